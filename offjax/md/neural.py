"""Behler-Parrinello networks: an energy that is a sum over atoms, each a small network of symmetry functions.

The symmetry functions describe what surrounds an atom within a cutoff, whatever the order of the neighbours and the
orientation. Sources: J. Behler and M. Parrinello, Phys. Rev. Lett. 98, 146401 (2007); J. Behler, J. Chem. Phys. 134,
074106 (2011), equations 5, 8 and 9. With r = r_ij and the cutoff function fc(r) = (cos(pi r/rc) + 1)/2:

    radial   G_i = sum_j exp(-eta (r_ij - center)^2) fc(r_ij)
    angular  G_i = 2^(1 - zeta) sum_{j<k} (1 + sign cos(theta_jik))^zeta exp(-eta (r_ij^2 + r_ik^2)) fc(r_ij) fc(r_ik)

There is one of each for every kind of neighbour, or pair of kinds. The angular ones are Behler's without the side
r_jk (his equation 9), summed over pairs once.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offjax import geometry
from offjax.devices import matmul
from offjax.errors import InputError, UnsupportedError
from offjax.interop.files import write_atomically
from offjax.md import space
from offjax.nonbonded.neighbors import LANES, NeighborList, shifts, slots


@dataclass(frozen=True)
class SymmetryFunctions:
    """Which symmetry functions describe the surroundings of an atom.

    Parameters
    ----------
    cutoff
        The distance from which on neighbours do not count.
    radial
        (eta, center) of each radial function: 1/length^2, length.
    angular
        (eta, zeta, sign) of each angular function: 1/length^2, a positive integer, +1 or -1.
    most_neighbors
        Room for neighbours within the cutoff. Where an atom has more, the energy is NaN.

    Raises
    ------
    InputError
        A cutoff that is not positive, a zeta that is not a positive integer, a sign other than 1 and -1.
    """

    cutoff: float
    radial: tuple[tuple[float, float], ...]
    angular: tuple[tuple[float, int, int], ...] = ()
    most_neighbors: int = 32

    def __post_init__(self):
        if not self.cutoff > 0 or self.most_neighbors < 1:
            raise InputError(f"cutoff and most_neighbors must be positive, got {self.cutoff}, {self.most_neighbors}")
        for _, zeta, sign in self.angular:
            if zeta != int(zeta) or zeta < 1 or sign not in (-1, 1):
                raise InputError(
                    f"angular functions need a positive integer zeta and sign 1 or -1, got {zeta} and {sign}"
                )

    def count(self, kinds: int = 1) -> int:
        """Number of symmetry functions of an atom among ``kinds`` kinds of atoms."""
        return kinds * len(self.radial) + kinds * (kinds + 1) // 2 * len(self.angular)

    def __call__(self, vectors: Float[Array, "n m 3"], real, kind=None, kinds: int = 1) -> Float[Array, "n function"]:
        """The symmetry functions of n atoms with ``vectors`` to m neighbours, of which those with ``real`` count.

        ``kind`` (n, m) tells the kinds of the neighbours apart. Derivatives are finite where a vector is zero.
        """
        r2 = jnp.where(real, geometry.dot(vectors, vectors), self.cutoff**2)
        r = geometry.safe_sqrt(r2)
        weight = jnp.where(real & (r2 < self.cutoff**2), 0.5 * (jnp.cos(jnp.pi * r / self.cutoff) + 1.0), 0.0)
        kind = jnp.zeros(real.shape, jnp.int32) if kind is None else kind
        radial = [jnp.exp(-eta * (r - center) ** 2) * weight for eta, center in self.radial]
        found = [_sums(radial, kind, kinds)] if radial else []
        if self.angular:
            j, k = np.triu_indices(vectors.shape[1], 1)
            apart = r2 > 0
            unit = vectors * jnp.where(apart, 1.0 / jnp.where(apart, r, 1.0), 0.0)[..., None]
            cosine = geometry.dot(unit[:, j], unit[:, k])
            both = weight[:, j] * weight[:, k]
            decay = {eta: jnp.exp(-eta * (r2[:, j] + r2[:, k])) * both for eta, _, _ in self.angular}
            angular = [
                2.0 ** (1 - zeta) * (1.0 + sign * cosine) ** int(zeta) * decay[eta] for eta, zeta, sign in self.angular
            ]
            number = np.zeros((kinds, kinds), np.int32)
            number[np.triu_indices(kinds)] = np.arange(kinds * (kinds + 1) // 2)
            number = np.maximum(number, number.T)
            found.append(_sums(angular, jnp.asarray(number)[kind[:, j], kind[:, k]], kinds * (kinds + 1) // 2))
        return jnp.concatenate(found, axis=1)


def _sums(values: Sequence[Float[Array, "n m"]], kind, kinds: int) -> Float[Array, "n sum"]:
    """The sums over m of some values for each kind: kinds one after the other, in each the values in their order."""
    if kinds == 1:
        return jnp.stack([jnp.sum(v, axis=1) for v in values], axis=1)
    each = jnp.asarray(kind[:, None] == jnp.arange(kinds)[:, None], values[0].dtype)
    return matmul(each, jnp.stack(values, axis=-1)).reshape(len(kind), -1)


class BehlerParrinello(eqx.Module):
    """An energy U = sum over atoms of scale * N_s((G_i - mean)/width) + offset_s, with a network N_s for each species.

    Called as ``network(positions, box=None, neighbors=None)`` it is an energy of ``offjax.md``.
    ``BehlerParrinello.__call__(network, positions, box, neighbors)`` is the same with the parameters first: the
    module is a pytree all of whose leaves are arrays, so ``jax.grad``, ``jit`` and optax take it as it is. A network
    has hidden layers with tanh. ``mean``, ``width``, ``scale`` and ``offset`` are set by :meth:`standardized` and get
    no derivatives.

    Parameters
    ----------
    symmetry
        A :class:`SymmetryFunctions`.
    displacement
        That of a :class:`~offjax.md.space.Space`, for calls without a neighbour list. Three dimensions.
    key
        For the initial weights: normal with variance 1/(number of inputs).
    hidden
        The widths of the hidden layers.
    species
        (n,) integers from 0, or None for one species.
    kinds
        Number of species, if there are more than these atoms have.
    """

    layers: tuple[tuple[tuple[Array, Array], ...], ...]
    mean: Float[Array, " function"]
    width: Float[Array, " function"]
    scale: Float[Array, ""]
    offset: Float[Array, " species"]
    symmetry: SymmetryFunctions = eqx.field(static=True)
    displacement: Callable = eqx.field(static=True)
    species: tuple[int, ...] | None = eqx.field(static=True)

    def __init__(self, symmetry, displacement, *, key, hidden: Sequence[int] = (30, 30), species=None, kinds=None):
        self.symmetry, self.displacement = symmetry, displacement
        self.species = None if species is None else tuple(int(s) for s in species)
        if self.species is not None and min(self.species) < 0:
            raise InputError("species must be (n,) integers from 0")
        kinds = max(1 if self.species is None else max(self.species) + 1, 1 if kinds is None else kinds)
        sizes = [symmetry.count(kinds), *hidden, 1]
        keys = jax.random.split(key, (kinds, len(sizes) - 1))
        self.layers = tuple(
            tuple(
                (jax.random.normal(k, (new, old)) / np.sqrt(old), jnp.zeros(new))
                for k, old, new in zip(of_kind, sizes[:-1], sizes[1:], strict=True)
            )
            for of_kind in keys
        )
        self.mean, self.width = jnp.zeros(sizes[0]), jnp.ones(sizes[0])
        self.scale, self.offset = jnp.ones(()), jnp.zeros(kinds)

    # Identity, as for every energy: an array has no hash.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def kinds(self) -> int:
        """Number of species."""
        return len(self.layers)

    def features(
        self, positions: Float[Array, "n 3"], box=None, neighbors=None, species=None
    ) -> Float[Array, "n function"]:
        """The symmetry functions of every atom; NaN where one has more than ``most_neighbors``, or the list is stale.

        ``species`` (n,) may be given here instead, traced too; without a neighbour list particles of negative species
        are no neighbours.

        Raises
        ------
        InputError
            Positions that are not (n, 3) or do not go with the species; a list whose cutoff is shorter than the
            network's, or that leaves out pairs.
        """
        x = jnp.asarray(positions)
        if x.ndim != 2 or x.shape[1] != 3:
            raise InputError(f"positions must have shape (n, 3), got {x.shape}")
        species = self._species(len(x), species)
        if neighbors is None:
            vectors, other, real, bad = self._nearest(x, box, species >= 0)
        else:
            vectors, other, real, bad = self._listed(x, box, neighbors)
        found = self.symmetry(vectors, real, species[other], self.kinds)
        return found * jnp.where(bad, jnp.nan, 1.0).astype(x.dtype)

    def atomic(self, features: Float[Array, "n function"], species=None) -> Float[Array, " n"]:
        """The energy of each atom from its symmetry functions; 0 for negative ``species``."""
        still = jax.lax.stop_gradient
        species = self._species(len(features), species)
        value = (features - still(self.mean)) / still(self.width)
        outputs = jnp.stack([_network(layers, value) for layers in self.layers], axis=-1)
        kind = jnp.maximum(species, 0)
        chosen = jnp.take_along_axis(outputs, kind[:, None], axis=1)[:, 0]
        return jnp.where(species >= 0, still(self.scale) * chosen + still(self.offset)[kind], 0.0)

    def __call__(
        self, positions: Float[Array, "n 3"], box=None, neighbors=None, *, species: Int[Array, " n"] | None = None
    ) -> Float[Array, ""]:
        """The energy; see :meth:`features` for ``species``."""
        return jnp.sum(self.atomic(self.features(positions, box, neighbors, species), species))

    def _species(self, n: int, species) -> Int[Array, " n"]:
        """Those of n particles, as given here or when the network was made."""
        species = self.species if species is None else species
        if species is None:
            return jnp.zeros(n, jnp.int32)
        if len(species) != n:
            raise InputError(f"there are {len(species)} species for {n} particles")
        return jnp.asarray(species, jnp.int32)

    def standardized(self, features: Float[Array, "*batch n function"], energies) -> BehlerParrinello:
        """With ``mean`` and ``width`` of these features, the spread of the energies (one a configuration) as
        ``scale``, and their mean an atom as ``offset``. Functions that do not vary get the width 1."""
        features, energies = jnp.asarray(features), jnp.asarray(energies)
        rows = features.reshape(-1, features.shape[-1])
        width = jnp.std(rows, axis=0)
        width = jnp.where(width > 1e-6 * jnp.max(jnp.abs(rows), initial=0.0), width, 1.0)
        n = features.shape[-2]
        values = jnp.mean(rows, axis=0), width, jnp.std(energies) / n**0.5, jnp.full(self.kinds, jnp.mean(energies) / n)
        return eqx.tree_at(lambda m: (m.mean, m.width, m.scale, m.offset), self, values)

    def _nearest(self, x, box, there):
        """Vectors to the nearest atoms, who they are, which count, and whether there are too many."""
        n = len(x)
        extra = {} if box is None else {"box": box}
        most = min(self.symmetry.most_neighbors, n - 1)
        still = jax.lax.stop_gradient(x)
        difference = self.displacement(still[None, :], still[:, None], **jax.lax.stop_gradient(extra))
        pair = there[:, None] & there & ~jnp.eye(n, dtype=bool)
        r2 = jnp.where(pair, geometry.dot(difference, difference), jnp.inf)
        other = jax.lax.top_k(-r2, most)[1]
        real = jnp.take_along_axis(r2, other, 1) < self.symmetry.cutoff**2
        bad = jnp.any(jnp.sum(r2 < self.symmetry.cutoff**2, axis=1) > most)
        return self.displacement(x[other], x[:, None], **extra), other, real, bad

    def _listed(self, x, box, neighbors: NeighborList):
        """The same from a neighbour list: entries of the rows of each block, the nearest ones chosen."""
        if neighbors.cutoff < self.symmetry.cutoff:
            raise InputError(
                f"the list's cutoff {neighbors.cutoff} is shorter than the network's {self.symmetry.cutoff}"
            )
        if neighbors.exclusions.shape[1] > 1:
            raise InputError("the list leaves out pairs; the network needs one without exclusions")
        n, most = len(x), self.symmetry.most_neighbors
        moved, h = neighbors.unwrapped(x, box)
        still, cell = jax.lax.stop_gradient((moved, h))
        blocks = len(neighbors.order) // LANES
        row = jnp.searchsorted(neighbors.block, jnp.arange(blocks))[:, None] + jnp.arange(neighbors.capacity.block_rows)
        mine = (row < neighbors.n_rows) & (neighbors.block.at[row].get(mode="clip") == jnp.arange(blocks)[:, None])
        row = jnp.minimum(row, neighbors.capacity.rows - 1)
        entries = neighbors.entries[row].reshape(blocks, 1, -1)
        mask = jnp.where(mine[..., None], neighbors.mask[row], 255).reshape(blocks, 1, -1)
        counts = (mask >> jnp.arange(LANES, dtype=jnp.uint8)[:, None]) & 1 == 0
        first = neighbors.order.reshape(blocks, LANES, 1)
        second = neighbors.order[slots(entries)]
        r2 = 0.0
        offsets = (0.0, 0.0, 0.0) if cell is None else shifts(entries, cell)
        for k in range(3):
            r2 = (
                r2
                + (still[:, k].at[second].get(mode="clip") + offsets[k] - still[:, k].at[first].get(mode="clip")) ** 2
            )
        r2 = jnp.where(counts, r2, jnp.inf).reshape(blocks * LANES, -1)
        most = min(most, r2.shape[1])
        place = jnp.argsort(neighbors.order)[:n]  # the slot of each atom
        r2 = r2[place]
        column = jax.lax.top_k(-r2, most)[1]
        real = jnp.take_along_axis(r2, column, 1) < self.symmetry.cutoff**2
        entry = jnp.take_along_axis(entries[place // LANES, 0], column, 1)
        other = jnp.where(real, neighbors.order[slots(entry)], 0)
        vectors = moved[other] - moved[:, None]
        if h is not None:
            vectors = vectors + jnp.stack(shifts(entry, h), axis=-1)
        bad = jnp.any(jnp.sum(r2 < self.symmetry.cutoff**2, axis=1) > most) | neighbors.unusable(x, box)
        return jnp.where(real[..., None], vectors, 1.0), other, real, bad


def _network(layers, value):
    """Dense layers with tanh between them, on rows."""
    for weights, bias in layers[:-1]:
        value = jnp.tanh(matmul(value, weights.T.astype(value.dtype)) + bias.astype(value.dtype))
    weights, bias = layers[-1]
    return (matmul(value, weights.T.astype(value.dtype)) + bias.astype(value.dtype))[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ElementNetwork:
    """A Behler-Parrinello network for molecules of some elements, whichever atoms they have; ``offjax fit`` trains one.

    ``elements`` are the atomic numbers of the species of ``network``, in their order. A pytree of arrays.
    """

    network: BehlerParrinello
    elements: tuple[int, ...] = field(metadata={"static": True})

    @classmethod
    def create(
        cls, symmetry: SymmetryFunctions, elements, displacement, *, key, hidden: Sequence[int] = (16, 16)
    ) -> ElementNetwork:
        """A network whose energy is 0 whatever the positions, until it is trained: its last weights are 0."""
        elements = tuple(sorted({int(z) for z in elements}))
        made = BehlerParrinello(symmetry, displacement, key=key, hidden=hidden, kinds=len(elements))
        last = [layers[-1][0] for layers in made.layers]
        zero = [jnp.zeros_like(w) for w in last]
        return cls(eqx.tree_at(lambda m: [layers[-1][0] for layers in m.layers], made, zero), elements)

    @property
    def n_weights(self) -> int:
        """Number of trainable values."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.network.layers))

    def species(self, atomic_numbers) -> np.ndarray:
        """The species (n,) of atoms; -1, which the network does not see, for the atomic number 0 of virtual sites.

        Raises
        ------
        InputError
            An element that the network does not know.
        """
        numbers = np.asarray(atomic_numbers, dtype=int)
        if unknown := sorted(set(numbers.tolist()) - {0, *self.elements}):
            raise InputError(f"the network knows the elements {list(self.elements)} by number, not {unknown}")
        place = {z: k for k, z in enumerate(self.elements)} | {0: -1}
        return np.array([place[z] for z in numbers.tolist()], dtype=np.int32)

    def for_atoms(self, atomic_numbers) -> BehlerParrinello:
        """The network of one molecule or of several: an energy that :class:`Corrected` adds to that of a System.

        ``atomic_numbers`` (n,) as in ``system.topology.atomic_numbers``, with a 0 for each virtual site that follows.
        """
        made = copy.copy(self.network)
        object.__setattr__(made, "species", tuple(self.species(atomic_numbers).tolist()))
        return made

    def save(self, path) -> None:
        """Write to a ``.npz`` file: a JSON header with elements and symmetry functions, and the arrays."""
        buffer = io.BytesIO()
        symmetry = self.network.symmetry
        header = {"format": FORMAT, "version": VERSION, "elements": self.elements, "symmetry": asdict(symmetry)}
        header["hidden"] = [len(bias) for _, bias in self.network.layers[0][:-1]]
        leaves: dict[str, Any] = {f"array_{i:04d}": np.asarray(a) for i, a in enumerate(jax.tree.leaves(self.network))}
        np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **leaves)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path, displacement=None) -> ElementNetwork:
        """Read a file of :meth:`save`, its arrays as they were (float64 only where that is switched on).

        ``displacement`` is that of a :class:`~offjax.md.space.Space`; None: open boundaries.

        Raises
        ------
        InputError
            No such file, or not one of these.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                header = json.loads(bytes(file["header"]).decode())
                leaves = [jnp.asarray(file[name]) for name in sorted(file.files) if name.startswith("array_")]
            if (header["format"], header["version"]) != (FORMAT, VERSION):
                raise KeyError(f"{header['format']}, version {header['version']}")
            kept = {k: _tuples(v) for k, v in header["symmetry"].items()}
            symmetry = SymmetryFunctions(**kept)
            displacement = space.free().displacement if displacement is None else displacement
            made = cls.create(
                symmetry, header["elements"], displacement, key=jax.random.key(0), hidden=header["hidden"]
            )
            structure = jax.tree.structure(made.network)
            if [a.shape for a in leaves] != [a.shape for a in jax.tree.leaves(made.network)]:
                raise KeyError("arrays of other shapes")
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: not a network of offjax ({type(error).__name__}: {error})") from error
        return cls(jax.tree.unflatten(structure, leaves), made.elements)


FORMAT, VERSION = "offjax-network", 1


def _tuples(value):
    """Lists, as JSON has them, as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Corrected:
    """An energy with parameters p, such as a System's ``to_jax()``, and a network that corrects it.

    ``corrected((p, network), positions, box=None, neighbors=None)`` is U(p, positions) + network(positions), with
    derivatives in both. ``neighbors`` belongs to U; the network looks at all pairs. Fit it as any other function, or
    leave one of the two as it is.
    """

    energy: Any

    def __call__(self, parameters, positions, box=None, neighbors=None) -> Float[Array, ""]:
        """The sum."""
        p, network = parameters
        extra = {k: v for k, v in (("box", box), ("neighbors", neighbors)) if v is not None}
        return self.energy(p, positions, **extra) + network(positions, box)

    def by_term(self, parameters, positions, box=None, neighbors=None) -> dict[str, Array]:
        """The terms of the energy, and ``"network"``."""
        p, network = parameters
        extra = {k: v for k, v in (("box", box), ("neighbors", neighbors)) if v is not None}
        return {**self.energy.by_term(p, positions, **extra), "network": network(positions, box)}

    def to_openmm(self, *_, **__):
        """OpenMM has no force for it.

        Raises
        ------
        UnsupportedError
            Always.
        """
        raise UnsupportedError(
            "the Behler-Parrinello network of Corrected cannot be exported to OpenMM; system.to_openmm(p) exports the "
            "System without it"
        )
