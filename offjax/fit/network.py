"""A neural network that is fitted together with the force field, or alone, as a correction of its energies.

    U_mc = U_m(theta, x_mc) + N(w, x_mc),    w = w0 + s y

with a Behler-Parrinello network N (:mod:`offjax.md.neural`), one for each element, whose weights w the optimiser varies
through y; theta are the values of the force field. It begins as 0, so that a fit starts from the force field as it is.
The prior of the weights is a Gaussian around w0. Energies and forces of geometries as they are can be corrected;
:class:`offjax.md.neural.Corrected` uses the result with a System.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax.batch import Conformers
from offjax.devices import at_once
from offjax.errors import InputError
from offjax.fit import config
from offjax.fit.targets import Targets
from offjax.interop.records import Record
from offjax.md import space
from offjax.md.neural import ElementNetwork, SymmetryFunctions
from offjax.system import System

SHORTEST = 0.08
"""Where the first radial symmetry function stands, nm: no two atoms come closer."""
MOST_NEIGHBORS = 32
"""Room for the neighbours of an atom in a saved network, if no reference geometry has more."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Correction:
    """A network and the conformers of a fit. ``start`` has the weights w0; ``species`` (row,) are those of the batch's
    rows, -1 for virtual sites; ``scale`` is s, ``width`` the standard deviation of the weights' prior. ``size`` is the
    largest number of rows of a conformer.
    """

    start: ElementNetwork
    species: Int[Array, " row"]
    scale: Array
    width: Array
    size: int = field(metadata={"static": True})

    @classmethod
    def of(
        cls, start: ElementNetwork | None, systems: Sequence[System], to: Targets, settings: config.Network | None
    ) -> Correction | None:
        """The correction of all conformers of some targets, if there is one; ``systems`` are their molecules."""
        if start is None or settings is None:
            return None
        species = [_species(start, system) for system in systems]
        size = max(map(len, species))
        return cls(start, _flat(species, to), jnp.asarray(settings.scale), jnp.asarray(settings.prior), size)

    def at(self, y: Float[Array, " weight"]) -> ElementNetwork:
        """The network with the weights w0 + s y."""
        leaves, structure = jax.tree.flatten(self.start.network.layers)
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = jnp.split(self.scale * y, ends)
        moved = [leaf + part.reshape(leaf.shape) for leaf, part in zip(leaves, parts, strict=True)]
        layers = jax.tree.unflatten(structure, moved)
        return replace(self.start, network=eqx.tree_at(lambda m: m.layers, self.start.network, layers))

    def energies_and_forces(
        self, y: Float[Array, " weight"], conformers: Conformers
    ) -> tuple[Float[Array, " conformer"], Float[Array, "row 3"]]:
        """N of every conformer, kJ/mol, and -dN/dx, kJ/mol/nm; differentiable. 0 in padding and for virtual sites."""
        network = self.at(y).network
        rows, place, species = self._table(conformers)

        @jax.checkpoint
        def one(x, kinds):
            return jax.value_and_grad(lambda r: network(r, species=kinds))(x)

        table = conformers.positions[rows]
        energies, slopes = jax.lax.map(lambda a: one(*a), (table, species), batch_size=at_once(16, 1024))
        return energies, -slopes[conformers.conformer, place]

    def _table(self, conformers: Conformers):
        """The rows (conformer, size) of each conformer's atoms, the place (row,) of each row in its conformer, and the
        species (conformer, size), -1 where there is none."""
        first = jnp.searchsorted(conformers.conformer, jnp.arange(conformers.n_conformers))
        rows = first[:, None] + jnp.arange(self.size)
        inside = jnp.minimum(rows, conformers.n_rows - 1)
        own = (rows < conformers.n_rows) & (conformers.conformer[inside] == jnp.arange(len(first))[:, None])
        species = jnp.where(own & conformers.row_mask[inside], self.species[inside], -1)
        place = jnp.minimum(jnp.arange(conformers.n_rows) - first[conformers.conformer], self.size - 1)
        return inside, place, species

    def select(self, whole: Targets, part: Targets, molecules: Sequence[int]) -> Correction:
        """That of a minibatch ``part = whole.select(molecules, ...)``."""
        column = np.asarray(self.species, dtype=np.float64)[:, None].repeat(3, axis=1)
        found = whole.batch.unpack(column, whole.conformers)
        chosen = part.batch.flatten([found[m] for m in molecules], part.conformers)
        return replace(self, species=chosen[:, 0].astype(jnp.int32))


def _species(network: ElementNetwork, system: System) -> np.ndarray:
    """(n_particles,): the atoms' species, and -1 for the virtual sites that follow them."""
    sites = system.n_particles - system.topology.n_atoms
    return network.species(np.pad(system.topology.atomic_numbers, (0, sites)))


def _flat(species: Sequence[np.ndarray], to: Targets) -> Int[Array, " row"]:
    counts = np.bincount(np.asarray(to.conformers.molecule)[np.asarray(to.conformers.mask)], minlength=len(species))
    tables = [np.broadcast_to(s[:, None], (c, len(s), 3)) for s, c in zip(species, counts, strict=True)]
    return to.batch.flatten(tables, to.conformers)[:, 0].astype(jnp.int32)


def create(settings: config.Network, records: Sequence[Record], systems: Sequence[System], train: np.ndarray):
    """The network that a fit starts from: read, or 0 with symmetry functions scaled by the training molecules.

    Raises
    ------
    InputError
        A start that cannot be read, or does not know all elements.
    """
    numbers = [s.topology.atomic_numbers for s in systems]
    elements = sorted({int(z) for n in numbers for z in n})
    if settings.start is not None:
        start = ElementNetwork.load(settings.start)
        if missing := sorted(set(elements) - set(start.elements)):
            raise InputError(
                f"network.start: {settings.start} knows the elements {list(start.elements)} by number; the data have "
                f"{missing} too: leave out their molecules, or train a network from the start"
            )
        return start
    most = max((_most_neighbors(r.positions, settings.cutoff) for r in records), default=0)
    symmetry = symmetry_functions(settings, max(most, MOST_NEIGHBORS))
    start = ElementNetwork.create(
        symmetry, elements, space.free().displacement, key=jax.random.key(settings.seed), hidden=settings.hidden
    )
    mean, width = _spread(start, records, numbers, train)
    scale = jnp.asarray(settings.output, mean.dtype)
    moved = eqx.tree_at(lambda m: (m.mean, m.width, m.scale), start.network, (mean, width, scale))
    return replace(start, network=moved)


def symmetry_functions(settings: config.Network, most_neighbors: int = MOST_NEIGHBORS) -> SymmetryFunctions:
    """Gaussians of the distance at equal steps as wide as these, and angular functions of both signs."""
    centers = np.linspace(SHORTEST, settings.cutoff, settings.radial, endpoint=False)
    step = (settings.cutoff - SHORTEST) / settings.radial
    radial = tuple((1.0 / (2.0 * step**2), float(c)) for c in centers)
    angular = tuple((settings.cutoff**-2, zeta, sign) for zeta in settings.angular for sign in (1, -1))
    return SymmetryFunctions(settings.cutoff, radial, angular, most_neighbors)


def _most_neighbors(positions: np.ndarray, cutoff: float) -> int:
    """The largest number of atoms within the cutoff of another, in any conformer (n, atoms, 3)."""
    return max(
        (int(np.sum(np.linalg.norm(x[:, None] - x, axis=-1) < cutoff, axis=1).max()) - 1 for x in positions), default=0
    )


def _spread(start: ElementNetwork, records: Sequence[Record], numbers: Sequence[np.ndarray], train: np.ndarray):
    """Mean and standard deviation of the symmetry functions over all atoms of the training conformers; 1 for those
    that do not vary."""
    network = start.network
    size = max(len(n) for n, t in zip(numbers, train, strict=True) if t)
    tables, species = [], []
    for record, z, own in zip(records, numbers, train, strict=True):
        if own:
            rest = size - len(z)
            tables.append(np.pad(record.positions, ((0, 0), (0, rest), (0, 0))))
            padded = np.pad(start.species(z), (0, rest), constant_values=-1)
            species.append(np.broadcast_to(padded, (record.n_conformers, size)))
    x, kinds = jnp.asarray(np.concatenate(tables)), jnp.asarray(np.concatenate(species))

    @jax.jit
    def moments(x, kinds, mean):
        def one(a):
            deviation = jnp.where(a[1][:, None] >= 0, network.features(a[0], species=a[1]) - mean, 0.0)
            return jnp.sum(deviation, axis=0), jnp.sum(deviation**2, axis=0)

        totals = jax.lax.map(one, (x, kinds), batch_size=at_once(16, 1024))
        return jax.tree.map(lambda t: jnp.sum(t, axis=0) / jnp.sum(kinds >= 0), totals)

    mean, square = moments(x, kinds, jnp.zeros_like(network.mean, x.dtype))
    width = jnp.sqrt(moments(x, kinds, mean)[1])
    return mean, jnp.where(width > 1e-6 * jnp.max(jnp.sqrt(square), initial=0.0), width, 1.0)


def digest(network: ElementNetwork) -> str:
    """SHA-256 of elements, symmetry functions and weights."""
    found = hashlib.sha256(repr((network.elements, network.network.symmetry)).encode())
    for leaf in jax.tree.leaves(network.network):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()
