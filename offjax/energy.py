"""PotentialEnergy: a traceable potential energy of force-field parameters and positions.

This is the plain path: scalar potentials over index arrays, all pairs, and JAX's own differentiation in any mode and to
any order. It defines the numbers; faster paths (:mod:`offjax.batch`, neighbour lists) are tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from offjax import interactions, virtual_sites
from offjax.assignment import weighted_sums
from offjax.devices import matmul
from offjax.errors import InputError, PrecisionError, UnsupportedError
from offjax.interactions import METHODS, PERIODIC, Pairs, Particles, Treatment
from offjax.nonbonded import bonded_pairs, ewald, molecule_pairs, scaled_pairs
from offjax.nonbonded.neighbors import Capacity, NeighborList, neighbor_list
from offjax.parameters import ParameterSet, Schema
from offjax.settings import EWALD_TOLERANCE, GBSASettings, check_cutoff, openmm_methods
from offjax.terms import angles, bonds, gbsa, torsions
from offjax.terms.user import UserTerm
from offjax.topology import reduced_box

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from offjax.system import System

MAX_ATOMS = 8000
"""All pairs of more atoms than this do not fit into the memory of an ordinary machine (32 million pairs here)."""


@dataclass(frozen=True)
class _Static:
    """What a compiled program depends on besides array shapes."""

    schema: Schema
    n_atoms: int
    n_particles: int
    treatment: Treatment
    accumulate: str | None
    layout: tuple[tuple[str, str, int, int], ...]
    gbsa: GBSASettings | None
    user_valence: tuple[UserTerm, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Table:
    """All slots of all sections as one affine map: phi = sum(weights * theta[columns], 1) + offset."""

    columns: Array
    weights: Array
    offset: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Section:
    """The arrays of one section: which instance uses which slot, and the active instances with their atoms."""

    slot: Array
    active: Array
    atoms: Array
    periodicity: Array | None
    kind: Array | None


@jax.tree_util.register_pytree_node_class
class PotentialEnergy:
    """``energy(parameters, positions, box=None) -> scalar``, kJ/mol: a callable pytree with identity hash.

    ``jax.jit``, ``grad``, ``jacfwd``, ``vmap``, ``hessian`` and ``checkpoint`` accept it directly. Passed as an
    argument of a jitted function, Systems of equal shapes share one compiled program. Positions (n_atoms, 3) or
    (n_particles, 3) are in nm; the rows of virtual sites, after those of all atoms, are ignored and computed from
    parameters and atoms, so that forces on sites act on the atoms. The parameters are cast to the dtype of the
    positions; ``jax.vjp(energy, parameters, positions)`` gives dU/dtheta for every force-field parameter and minus the
    forces in one pass.

    A periodic energy takes a ``box``, (3, 3) rows or (3,) edges in nm, in OpenMM's reduced form; None is the box of the
    System. It is an argument like the positions: another box runs the same program, and the energy may be
    differentiated in it. A box with known values is checked; one that is traced (inside ``jit``, ``grad``, ``vmap``)
    cannot raise, so the energy is NaN if it is not lower triangular or too small for the cutoff. Atoms may lie outside
    the box; molecules must be whole, because bonds, angles, torsions and 1-4 pairs use the positions as they are, as in
    OpenMM. The number of grid points of an Ewald sum stays what it was when the energy was made.
    """

    def __init__(self, table: _Table, sections: dict[str, _Section], pairs: Pairs, box, static: _Static):
        self.table, self.sections, self.pairs, self.box, self.static = table, sections, pairs, box, static

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def tree_flatten(self):
        return (self.table, self.sections, self.pairs, self.box), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        self = object.__new__(cls)
        self.table, self.sections, self.pairs, self.box = children
        self.static = static
        return self

    # --- the public calls -------------------------------------------------------------------------------------------

    def __call__(self, p: ParameterSet, positions, box=None, neighbors=None) -> Float[Array, ""]:
        """Potential energy, kJ/mol, of parameters ``p`` at ``positions`` (n_atoms, 3) nm in ``box``.

        Raises
        ------
        InputError
            Wrong shape, parameters of another force field, or a box that is not reduced or too small for the cutoff.
        PrecisionError
            float64 NumPy positions while JAX's x64 mode is off.
        UnsupportedError
            ``box`` for an energy that is not periodic; no ``neighbors`` for a System too large for all pairs.
        NeighborListError
            Outside ``jit``: ``neighbors`` have overflowed or are out of date. Inside ``jit`` the energy is NaN.
        """
        self._check(p)
        energies, bad = _by_term(*self._arguments(p, positions, box, neighbors), together=True)
        return _total(_valid(neighbors, energies, bad))

    def by_term(self, p: ParameterSet, positions, box=None, neighbors=None) -> dict[str, Float[Array, ""]]:
        """Energy by section, kJ/mol: Bonds, Angles, ProperTorsions, ImproperTorsions, vdW, Electrostatics, GBSA, and
        those of user-defined terms."""
        self._check(p)
        return _valid(neighbors, *_by_term(*self._arguments(p, positions, box, neighbors)))

    def components(
        self, p: ParameterSet, positions, box=None, neighbors=None
    ) -> dict[str, dict[str, Float[Array, ""]]]:
        """The parts of vdW and of Electrostatics, ``{section: {part: kJ/mol}}``; they add up to the section.

        ``direct``: fully interacting pairs, within the cutoff if there is one; ``exceptions``: 1-4 pairs;
        ``reciprocal``, ``exclusions`` (excluded and 1-4 pairs, taken back from it), ``self`` and ``background`` (of
        the neutralising charge): an Ewald sum; ``dispersion``: the long-range correction.
        """
        self._check(p)
        return _valid(neighbors, *_components(*self._arguments(p, positions, box, neighbors)))

    def virial(self, p: ParameterSet, positions, box=None, neighbors=None) -> Float[Array, "3 3"]:
        """The virial tensor W = -dU/d(strain), kJ/mol: every position and box vector r becomes r (1 + strain).

        The pressure is (2 K + trace(W)) / (3 V), with the kinetic energy K and the volume V, in kJ/mol/nm^3;
        1 kJ/mol/nm^3 is 16.60539 bar. This is the atomic virial. W is symmetric.

        Raises
        ------
        UnsupportedError
            The energy is not periodic.
        """
        if not self.static.treatment.periodic:
            raise UnsupportedError(f"a virial needs a periodic box, and this energy has none ({self!r})")
        self._check(p)
        return _valid(neighbors, *_virial(*self._arguments(p, positions, box, neighbors)))

    def at_slots(self, slots: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given slot values, as ``system.slots(p)`` returns them."""
        values = self._instances(self._cast(slots, as_positions(positions).dtype, "slots"))
        return self._at_instances(values, positions, box, neighbors)

    def at_instances(self, instances: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given instance values ``{section: {attribute: (n_instances,)}}``."""
        values = self._cast(instances, as_positions(positions).dtype, "instances")
        return self._at_instances(values, positions, box, neighbors)

    def _at_instances(self, values, positions, box, neighbors):
        energy, _, x, box, neighbors = self._arguments(None, positions, box, neighbors)
        return _total(_valid(neighbors, *_at_instances(energy, values, x, box, neighbors)))

    def neighbor_list(
        self, positions, box=None, *, skin: float = 0.1, capacity: Capacity | None = None, headroom: float = 1.25
    ) -> NeighborList:
        """The pairs within the cutoff + ``skin`` (nm), for ``energy(p, positions, box, neighbors)``; outside ``jit``.

        The list serves until an atom has moved ``skin``/2: ``neighbors.update(positions, box)``, inside ``jit`` or
        outside, is the same list or a new one of the same shape, which is all that ``headroom`` (the capacity beyond
        what these positions need) is for. ``capacity`` is that of another list. See :mod:`offjax.nonbonded.neighbors`.
        Below about 100 atoms all pairs are faster (``benchmarks/liquids.py --crossover``).

        Raises
        ------
        InputError
            No cutoff, a box too small for cutoff and skin; virtual sites without positions: a list is made of
            ``energy.place_sites(p, positions)``, and updated with them.
        NeighborListError
            Positions that are not finite, or a ``capacity`` that is too small.
        """
        treatment = self.static.treatment
        if treatment.method == "NoCutoff":
            raise InputError("NoCutoff sums all pairs: a neighbour list needs a method with a cutoff")
        x = as_positions(positions)
        if x.shape != (self.static.n_particles, 3):
            raise InputError(
                f"positions must have shape ({self.static.n_particles}, 3), all particles, got {x.shape}"
                + ("; use energy.place_sites(p, positions)" if self.static.n_particles > self.static.n_atoms else "")
            )
        box = self._box(box)
        return neighbor_list(
            x,
            None if box is None else _cast(box, x.dtype),
            cutoff=treatment.cutoff,
            skin=in_nm(skin),
            exclusions=self.pairs.exceptions,
            capacity=capacity,
            headroom=headroom,
        )

    def place_sites(self, p: ParameterSet, x):
        """Positions (n_particles, 3) nm of all particles: the atoms of ``x`` and the virtual sites of parameters ``p``.

        ``x`` has shape (n_atoms, 3) or (n_particles, 3), nm. Differentiable in ``p`` and ``x``.
        """
        x = self._positions(x)
        self._check(p)
        return _place(*jax.tree.map(lambda v: _host_cast(v, x.dtype), (self, p)), x)

    def __repr__(self) -> str:
        s = self.static.treatment
        cut = "" if s.method == "NoCutoff" else f" {s.cutoff:g} nm"
        cut += "" if s.switch is None else f" from {s.switch:g} nm"
        if s.coulomb is not None:
            cut += f", alpha {s.coulomb.alpha:.4g}/nm, grid {' x '.join(map(str, s.coulomb.grid))}"
        n_atoms, n_sites = self.static.n_atoms, self.static.n_particles - self.static.n_atoms
        what = f"{n_atoms} atoms" + (f", {n_sites} virtual sites" if n_sites else "")
        full = None if self.pairs.full is None else len(self.pairs.full) + len(self.pairs.scaled)
        pairs = "neighbour lists only" if full is None else f"{full} pairs"
        return f"PotentialEnergy({what}, {s.method}{cut}, {pairs}; {', '.join(self.sections)})"

    # --- arguments --------------------------------------------------------------------------------------------------

    def _arguments(self, p, positions, box, neighbors):
        """(self, p, positions, box, neighbors), checked, and host arrays in the dtype of the positions."""
        x = self._positions(positions)
        if neighbors is not None:
            self._check_neighbors(neighbors)
        elif self.pairs.full is None:
            raise UnsupportedError(
                f"{self.static.n_particles} particles are too many for all pairs (at most {MAX_ATOMS}): "
                "pass neighbors, made by energy.neighbor_list(positions, box)"
            )
        box = self._box(box)
        return (
            *jax.tree.map(lambda v: _host_cast(v, x.dtype), (self, p)),
            x,
            None if box is None else _cast(box, x.dtype),
            neighbors,
        )

    def _check_neighbors(self, neighbors) -> None:
        cutoff = self.static.treatment.cutoff
        if not isinstance(neighbors, NeighborList):
            raise InputError(f"neighbors must come from energy.neighbor_list(), got {type(neighbors).__name__}")
        if (neighbors.n_atoms, neighbors.cutoff) != (self.static.n_particles, cutoff):
            raise InputError(
                f"these neighbors are of {neighbors.n_atoms} particles within {neighbors.cutoff:g} nm; "
                f"this energy has {self.static.n_particles} within {cutoff:g} nm"
            )

    def _positions(self, positions) -> Float[Array, "atom 3"]:
        x, n, all_particles = as_positions(positions), self.static.n_atoms, self.static.n_particles
        if x.shape not in ((n, 3), (all_particles, 3)):
            hint = "; use jax.vmap(energy, (None, 0)) for many conformers" if x.ndim == 3 else ""
            sites = f" or ({all_particles}, 3) with virtual sites" if all_particles > n else ""
            raise InputError(f"positions must have shape ({n}, 3){sites} in nm, got {x.shape}{hint}")
        return x[:n]

    def _box(self, box):
        """(3, 3), or None for an energy that is not periodic; checked unless it is traced."""
        treatment = self.static.treatment
        if not treatment.periodic:
            if box is not None:
                raise UnsupportedError(f"this energy is not periodic ({treatment.method}); call it without box")
            return None
        if box is None:
            return self.box
        box = in_nm(box)
        if isinstance(box, jax.core.Tracer):
            if box.shape not in ((3,), (3, 3)):
                raise InputError(f"a box is (3, 3) rows or (3,) edges in nm, got shape {box.shape}")
            return jnp.diag(box) if box.ndim == 1 else box
        reduced = np.asarray(reduced_box(box))
        check_cutoff(treatment.cutoff, reduced)
        return reduced

    # --- parameters -> instances ------------------------------------------------------------------------------------

    def _check(self, p: ParameterSet) -> None:
        if not isinstance(p, ParameterSet):
            raise InputError(f"the first argument must be a ParameterSet (system.parameters), got {type(p).__name__}")
        if p.schema is not self.static.schema:
            raise InputError(
                f"these parameters belong to another force field (digest {p.digest[:12]}, "
                f"this energy has {self.static.schema.digest[:12]})"
            )

    def _slots(self, p: ParameterSet, dtype):
        leaves = [_cast(v, dtype) for v in jax.tree_util.tree_leaves(p)]
        theta = jnp.concatenate(leaves) if leaves else jnp.zeros(1, dtype)
        table = self.table
        phi = weighted_sums(_cast(table.weights, dtype), theta, table.columns) + _cast(table.offset, dtype)
        slots: dict[str, dict[str, Array]] = {}
        for section, attribute, start, stop in self.static.layout:
            slots.setdefault(section, {})[attribute] = phi[start:stop]
        return slots

    def _instances(self, slots):
        return {name: {a: v[self.sections[name].slot] for a, v in d.items()} for name, d in slots.items()}

    def _cast(self, values, dtype, kind):
        unknown = sorted(set(values) - set(self.sections) - {"Constraints"})
        if missing := sorted(set(self.sections) - set(values)) or unknown:
            raise InputError(f"{kind}: unknown sections {unknown}, missing sections {missing}")
        result: dict[str, dict[str, Array]] = {name: {} for name in self.sections}
        for name, attribute, start, stop in self.static.layout:
            if attribute not in values[name]:
                raise InputError(f"{kind} of {name} lack {attribute}")
            n = stop - start if kind == "slots" else len(self.sections[name].slot)
            value = result[name][attribute] = _cast(values[name][attribute], dtype)
            if value.shape != (n,):
                raise InputError(f"{kind} {name}/{attribute}: expected shape ({n},), got {value.shape}")
        return result

    # --- instances -> energies --------------------------------------------------------------------------------------

    def _with_sites(self, values, x) -> Float[Array, "particle 3"]:
        """The atoms ``x`` followed by the virtual sites."""
        if "VirtualSites" not in self.sections:
            return x
        section = self.sections["VirtualSites"]
        return jnp.concatenate([x, virtual_sites.positions(x, section.atoms, section.kind, **values["VirtualSites"])])

    def _energies(self, values, x, box, neighbors, together=False) -> dict[str, Float[Array, ""]]:
        """Energies by section of atoms and sites ``x``; ``together`` names some otherwise, for their sum only."""
        energies = {}
        if "Bonds" in self.sections:
            energies["Bonds"] = self._sum(
                bonds.energies(x, self.sections["Bonds"].atoms, **self._active("Bonds", values))
            )
        if "Angles" in self.sections:
            energies["Angles"] = self._sum(
                angles.energies(x, self.sections["Angles"].atoms, **self._active("Angles", values))
            )
        energies.update(self._torsions(values, x))
        for term in self.static.user_valence:
            atoms = self.sections[term.section].atoms
            energies[term.section] = self._sum(term.energies(x, atoms, values[term.section]))
        for section, parts in self._nonbonded(values, x, box, neighbors, together).items():
            energies[section] = sum(parts.values())
        if self.static.gbsa is not None:
            charge, options = values["Electrostatics"]["charge"], asdict(self.static.gbsa)
            terms = gbsa.energies(x, charge, **values["GBSA"], **options, cutoff=self.static.treatment.cutoff)
            energies["GBSA"] = self._sum(terms)
        return energies

    def _active(self, name, values):
        return {a: v[self.sections[name].active] for a, v in values[name].items()}

    def _torsions(self, values, x):
        """Propers and impropers in one evaluation of the kernel, summed apart."""
        names = [n for n in ("ProperTorsions", "ImproperTorsions") if n in self.sections]
        if not names:
            return {}
        chosen = [self._active(n, values) for n in names]
        terms = torsions.energies(
            x,
            jnp.concatenate([self.sections[n].atoms for n in names]),
            jnp.concatenate([c["k"] for c in chosen]),
            jnp.concatenate([c["phase"] for c in chosen]),
            jnp.concatenate([self.sections[n].periodicity for n in names]),
        )
        split = len(self.sections[names[0]].atoms)
        return {n: self._sum(part) for n, part in zip(names, (terms[:split], terms[split:]), strict=False)}

    def _nonbonded(self, values, x, box, neighbors, together=False) -> dict[str, dict[str, Float[Array, ""]]]:
        vdw, coulomb = values.get("vdW", {}), values.get("Electrostatics", {})
        user = tuple(
            term.of_particles(self.sections[term.section].atoms[:, 0], values[term.section], self.static.n_particles)
            for term in self.static.treatment.user_pairs
        )
        particles = Particles(vdw.get("sigma"), vdw.get("epsilon"), coulomb.get("charge"), user)
        pairs = jax.tree.map(lambda v: _cast(v, x.dtype) if np.issubdtype(v.dtype, np.floating) else v, self.pairs)
        return interactions.components(
            self.static.treatment, pairs, particles, x, box, self._sum, neighbors, self.static.accumulate, together
        )

    def _sum(self, terms):
        if self.static.accumulate is not None:
            terms = terms.astype(self.static.accumulate)
        return jnp.sum(terms)


# Compiled once for each shape, so that a call outside jit does not run operation by operation. The energy travels as an
# argument: Systems of equal shapes share the program.
@partial(jax.jit, static_argnames="together")
def _by_term(energy: PotentialEnergy, p: ParameterSet, x, box, neighbors, together=False):
    return _at_instances(energy, energy._instances(energy._slots(p, x.dtype)), x, box, neighbors, together)


@partial(jax.jit, static_argnames="together")
def _at_instances(energy: PotentialEnergy, instances, x, box, neighbors, together=False):
    x = energy._with_sites(instances, x)
    return energy._energies(instances, x, box, neighbors, together), _bad(energy, neighbors, x, box)


@jax.jit
def _components(energy: PotentialEnergy, p: ParameterSet, x, box, neighbors):
    values = energy._instances(energy._slots(p, x.dtype))
    x = energy._with_sites(values, x)
    return energy._nonbonded(values, x, box, neighbors), _bad(energy, neighbors, x, box)


@jax.jit
def _virial(energy: PotentialEnergy, p: ParameterSet, x, box, neighbors):
    def strained(strain):
        energies, bad = _by_term(energy, p, x + matmul(x, strain), box + matmul(box, strain), neighbors, together=True)
        return _total(energies), bad

    gradient, bad = jax.grad(strained, has_aux=True)(jnp.zeros((3, 3), x.dtype))
    return -gradient, bad


def _bad(energy: PotentialEnergy, neighbors, x, box):
    """Whether the list is another System's, and whether it has overflowed or is out of date."""
    if neighbors is None:
        return None
    return ~neighbors.excludes(jnp.asarray(energy.pairs.exceptions)), neighbors.unusable(x, box)


def _valid(neighbors, values, bad):
    """The values; outside ``jit``, an error if they are NaN because of the list."""
    if neighbors is not None:
        foreign, unusable = bad
        if not isinstance(foreign, jax.core.Tracer) and np.any(foreign):
            raise InputError(
                "these neighbors were made for another System, with other excluded pairs: use energy.neighbor_list() "
                "of this energy"
            )
        neighbors.refuse(unusable)
    return values


@jax.jit
def _place(energy: PotentialEnergy, p: ParameterSet, x):
    return energy._with_sites(energy._instances(energy._slots(p, x.dtype)), x)


def _total(energies: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    return sum(energies.values(), start=jnp.zeros((), next(iter(energies.values())).dtype) if energies else 0.0)


def _cast(value, dtype):
    """To ``dtype`` without the detour over JAX's default type that would warn for float64 host arrays."""
    return value.astype(dtype) if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value), dtype)


def _host_cast(value, dtype):
    """Floating-point host arrays to ``dtype``; everything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype != dtype and np.issubdtype(value.dtype, np.floating):
        return value.astype(dtype)
    return value


def in_nm(length):
    """A length without unit, in nm: strips OpenFF/pint and OpenMM quantities; refuses text."""
    try:
        if hasattr(length, "m_as"):
            return length.m_as("nanometer")
        if hasattr(length, "value_in_unit"):
            from openmm import unit

            return length.value_in_unit(unit.nanometer)
    except (TypeError, AttributeError) as error:  # pint's DimensionalityError is a TypeError
        raise InputError(f"expected a length in nm, or a quantity with a unit of length: {error}") from error
    if isinstance(length, str):
        raise InputError(f"expected a length in nm, or a quantity with a unit, got the text {length!r}")
    return length


def as_positions(positions):
    """Positions as an array in nm: strips OpenFF/pint and OpenMM quantities, refuses a silent loss of precision.

    Raises
    ------
    PrecisionError
        float64 host data while JAX's x64 mode is off.
    InputError
        Not floating-point numbers.
    """
    positions = in_nm(positions)
    if isinstance(positions, jax.Array):
        x = positions
    else:
        x = np.asarray(positions)
        if x.dtype == np.float64 and not jax.config.jax_enable_x64:
            raise PrecisionError(
                "the positions are float64 but JAX would round them to float32: add\n"
                '    jax.config.update("jax_enable_x64", True)\n'
                "at the start of the program, or ask for single precision with positions.astype('float32')"
            )
        x = jnp.asarray(x) if np.issubdtype(x.dtype, np.number) else x
    if not np.issubdtype(x.dtype, np.floating):
        raise InputError(f"positions must be floating-point numbers in nm, got {x.dtype}")
    return x


def build(
    system: System,
    nonbonded_method: str | None,
    cutoff: float | None,
    switch: float | None,
    ewald_tolerance: float | None,
    pme_grid: tuple[int, int, int] | None,
    pme_alpha: float | None,
    dispersion_grid: tuple[int, int, int] | None,
    dispersion_alpha: float | None,
    accumulate: str | None,
) -> PotentialEnergy:
    """The plain energy of a System; see :meth:`offjax.System.to_jax`."""
    treatment = _treatment(system, nonbonded_method, in_nm(cutoff), in_nm(switch))
    chosen = (pme_grid, pme_alpha, dispersion_grid, dispersion_alpha)
    treatment = _with_ewald(treatment, system.box, ewald_tolerance, *chosen)
    treatment = replace(treatment, user_pairs=system.user_pairs)
    if system.gbsa is not None:
        if treatment.periodic:
            raise UnsupportedError(
                "<GBSA> in a periodic box is not supported: build the System without box, or pass "
                'nonbonded_method="NoCutoff" or "CutoffNonPeriodic"'
            )
        # beside implicit solvent the reaction field is that of vacuum: the solvent is there already
        treatment = replace(treatment, reaction_field_dielectric=1.0)
    if accumulate not in (None, "float64"):
        raise InputError(f'accumulate must be None or "float64", got {accumulate!r}')
    if accumulate == "float64" and not jax.config.jax_enable_x64:
        raise PrecisionError('accumulate="float64" needs jax.config.update("jax_enable_x64", True)')

    if system.n_particles > MAX_ATOMS and (treatment.cutoff == np.inf or system.gbsa is not None):
        raise UnsupportedError(
            f"{system.n_particles} particles without cutoff, or with GBSA: all pairs of at most {MAX_ATOMS} can be "
            "summed; use a method with a cutoff and energy.neighbor_list(), to_openmm(), or a smaller System"
        )
    sections: dict[str, _Section] = {}
    layout: list[tuple[str, str, int, int]] = []
    matrices = []
    for name, term in system.terms.items():
        if name == "Constraints":
            continue
        active = np.nonzero(system.active[name][term.slot])[0].astype(np.int32)
        periodicity, kind = (
            None if v is None else v[term.slot[active]].astype(np.int32) for v in (term.periodicity, term.kind)
        )
        sections[name] = _Section(term.slot, active, term.atoms[active], periodicity, kind)
        for attribute, matrix in system.assignment[name].items():
            start = layout[-1][3] if layout else 0
            layout.append((name, attribute, start, start + matrix.shape[0]))
            matrices.append(matrix)
    n_atoms, n_particles = system.topology.n_atoms, system.n_particles
    valence = tuple(term for term in system.user_terms.values() if not term.is_pair)
    static = _Static(
        system.parameters.schema, n_atoms, n_particles, treatment, accumulate, tuple(layout), system.gbsa, valence
    )
    box = system.box if treatment.periodic else None
    return PotentialEnergy(_table(matrices), sections, _pairs(system), box, static)


def _table(matrices) -> _Table:
    """Stack assignment matrices; rows are padded with weight zero to the widest."""
    width = max((m.table[0].shape[1] for m in matrices), default=1)
    columns = [np.pad(m.table[0], ((0, 0), (0, width - m.table[0].shape[1]))) for m in matrices]
    weights = [np.pad(m.table[1], ((0, 0), (0, width - m.table[1].shape[1]))) for m in matrices]
    return _Table(
        np.concatenate([np.zeros((0, width), np.int32), *columns]),
        np.concatenate([np.zeros((0, width)), *weights]),
        np.concatenate([np.zeros(0), *(m.offset for m in matrices)]),
    )


def _pairs(system: System) -> Pairs:
    atoms, *scales = exceptions(system)
    scaled = scaled_pairs(atoms, *scales)
    full = None
    if system.n_particles <= MAX_ATOMS:
        full = molecule_pairs(system.topology.n_particles, atoms, *scales)[0].atoms
    scales = np.array([system.scale14[term.section] for term in system.user_pairs])
    separated = separated_pairs(system) if scales.any() else np.zeros((0, 2), np.int32)
    return Pairs(full, *scaled, atoms, separated, scales, tuple(_classes(system, t) for t in system.user_pairs))


def _classes(system: System, term: UserTerm) -> tuple[np.ndarray, np.ndarray]:
    """(class of every particle, particles of every class): those of one class are made by the same parameters."""
    instances, matrices = system.terms[term.section], system.assignment[term.section].values()
    rows = np.concatenate([np.column_stack([*m.table, m.offset]) for m in matrices], axis=1)
    _, of_slot = np.unique(rows, axis=0, return_inverse=True)
    n = int(of_slot.max(initial=-1)) + 1
    of = np.full(system.n_particles, n, dtype=np.int32)
    of[instances.atoms[:, 0]] = of_slot.reshape(-1)[instances.slot]
    return of, np.bincount(of, minlength=n)[:n].astype(np.float64)


def separated_pairs(system: System) -> np.ndarray:
    """Pairs of atoms three bonds apart, (n, 2) global indices."""
    local = [bonded_pairs(m.n_atoms, m.bonds)[3] for m in system.topology.molecules]
    return system.topology.tile(local, 2)


def pairs(system: System):
    """All (full, scaled) pairs of a System without box, global indices."""
    return molecule_pairs(system.topology.n_particles, *exceptions(system))


def exceptions(system: System):
    """Pairs that do not interact fully, with their vdW and Coulomb scales, global indices."""
    topology = system.topology
    atoms = topology.tile([e.atoms for e in system.exceptions], 2)
    each = topology.spread([len(e.atoms) for e in system.exceptions])
    vdw_scale, coulomb_scale = (
        np.concatenate([np.zeros(0), *(getattr(e, name) for e in system.exceptions)])[each]
        for name in ("vdw_scale", "coulomb_scale")
    )
    return atoms, vdw_scale, coulomb_scale


def _treatment(system: System, method: str | None, cutoff: float | None, switch: float | None) -> Treatment:
    """Method, cutoff and switching distance: what is given, else what the force field says."""
    settings = system.nonbonded
    if cutoff is not None:
        settings = replace(settings, vdw_cutoff=cutoff, coulomb_cutoff=cutoff)
    if method is None:
        method = openmm_methods(settings, system.has_vdw, "Electrostatics" in system.terms, system.box).both
    if method not in METHODS:
        raise UnsupportedError(f"nonbonded_method={method!r} is not supported; supported are {', '.join(METHODS)}")
    if method == "NoCutoff":
        if cutoff is not None or switch is not None:
            raise InputError(f"cutoff and switch need a nonbonded_method with a cutoff: {', '.join(METHODS[1:])}")
        return Treatment()
    if cutoff is None:
        if not system.has_vdw:
            cutoff = settings.coulomb_cutoff
        elif "Electrostatics" not in system.terms or settings.vdw_cutoff == settings.coulomb_cutoff:
            cutoff = settings.vdw_cutoff
        else:
            raise InputError(
                f"the force field cuts vdW at {settings.vdw_cutoff} nm and Coulomb at {settings.coulomb_cutoff} nm; "
                "pass cutoff=... to use one for both"
            )
        if switch is None and method != "LJPME" and system.has_vdw and settings.vdw_switch_width > 0:
            switch = cutoff - settings.vdw_switch_width
    if not cutoff > 0:
        raise InputError(f"cutoff must be positive, got {cutoff} nm")
    if switch is not None and method == "LJPME":
        raise InputError("LJPME has no switching function: leave out switch")
    if switch is not None and not 0 < switch < cutoff:
        raise InputError(f"switch must lie between 0 and the cutoff {cutoff} nm, got {switch} nm")
    if method in PERIODIC:
        if system.box is None:
            raise InputError(f"nonbonded_method={method!r} needs a periodic box: build the System with box=...")
        check_cutoff(cutoff, system.box)
    return Treatment(method, float(cutoff), None if switch is None else float(switch))


def _with_ewald(treatment: Treatment, box, tolerance, grid, alpha, dispersion_grid, dispersion_alpha) -> Treatment:
    """The treatment with the parameters of its Ewald sums: given, else chosen from the tolerance as OpenMM does it."""
    method = treatment.method
    if method not in ("PME", "LJPME") and (tolerance, grid, alpha) != (None, None, None):
        raise InputError(f"ewald_tolerance, pme_grid and pme_alpha need nonbonded_method PME or LJPME, not {method}")
    if method != "LJPME" and (dispersion_grid, dispersion_alpha) != (None, None):
        raise InputError(f"dispersion_grid and dispersion_alpha need nonbonded_method LJPME, not {method}")
    if method not in ("PME", "LJPME"):
        return treatment
    tolerance = EWALD_TOLERANCE if tolerance is None else float(tolerance)
    if not 0 < tolerance < 0.5:
        raise InputError(f"ewald_tolerance must lie between 0 and 0.5, got {tolerance}")
    alpha = ewald.splitting(tolerance, treatment.cutoff) if alpha is None else alpha
    coulomb = _ewald("pme", alpha, grid, box, tolerance)
    if method == "PME":
        return replace(treatment, coulomb=coulomb)
    alpha = alpha if dispersion_alpha is None else dispersion_alpha
    return replace(treatment, coulomb=coulomb, dispersion=_ewald("dispersion", alpha, dispersion_grid, box, tolerance))


def _ewald(which: str, alpha, grid, box, tolerance: float) -> ewald.Ewald:
    """The parameters of one Ewald sum, ``pme`` or ``dispersion``; without ``grid`` that of OpenMM's rule."""
    if not 0 < float(alpha) < np.inf:
        raise InputError(f"{which}_alpha must be positive, in 1/nm, got {alpha}")
    if grid is None:
        grid = ewald.grid_size(float(alpha), np.diag(box), tolerance, dispersion=which == "dispersion")
    if np.shape(grid) != (3,) or any(int(n) != n or n < ewald.MIN_GRID for n in grid):
        raise InputError(
            f"{which}_grid must be three numbers of grid points, each at least {ewald.MIN_GRID}, got {grid}"
        )
    x, y, z = map(int, grid)
    return ewald.Ewald(float(alpha), (x, y, z))
