"""PotentialEnergy: a traceable potential energy of force-field parameters and positions.

This is the plain path: scalar potentials over index arrays, all pairs, and JAX's own differentiation in any mode and to
any order. It defines the numbers; faster paths (:mod:`offjax.batch`) are tested against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax import virtual_sites
from offjax.constants import REACTION_FIELD_DIELECTRIC
from offjax.errors import InputError, PrecisionError, UnsupportedError
from offjax.nonbonded import molecule_pairs
from offjax.parameters import ParameterSet, Schema
from offjax.terms import angles, bonds, electrostatics, torsions, vdw

if TYPE_CHECKING:
    from offjax.system import System

METHODS = ("NoCutoff", "CutoffNonPeriodic")

MAX_ATOMS = 8000
"""All pairs of more atoms than this do not fit into the memory of an ordinary machine (32 million pairs here)."""


@dataclass(frozen=True)
class _Static:
    """What a compiled program depends on besides array shapes."""

    schema: Schema
    n_atoms: int
    n_particles: int
    method: str
    cutoff: float | None
    switch: float | None
    accumulate: str | None
    layout: tuple[tuple[str, str, int, int], ...]


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Pairs:
    """Interacting pairs; ``exception`` marks the scaled (1-4) pairs, which no cutoff applies to, as in OpenMM."""

    atoms: Array
    vdw_scale: Array
    coulomb_scale: Array
    exception: Array


@jax.tree_util.register_pytree_node_class
class PotentialEnergy:
    """``energy(parameters, positions) -> scalar``, kJ/mol: a callable pytree with identity hash.

    ``jax.jit``, ``grad``, ``jacfwd``, ``vmap``, ``hessian`` and ``checkpoint`` accept it directly. Passed as an
    argument of a jitted function, Systems of equal shapes share one compiled program. Positions (n_atoms, 3) or
    (n_particles, 3) are in nm; the rows of virtual sites, after those of all atoms, are ignored and computed from
    parameters and atoms, so that forces on sites act on the atoms. The parameters are cast to the dtype of the
    positions; ``jax.vjp(energy, parameters, positions)`` gives dU/dtheta for every force-field parameter and minus the
    forces in one pass.
    """

    def __init__(self, table: _Table, sections: dict[str, _Section], pairs: _Pairs, static: _Static):
        self.table, self.sections, self.pairs, self.static = table, sections, pairs, static

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def tree_flatten(self):
        return (self.table, self.sections, self.pairs), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        self = object.__new__(cls)
        self.table, self.sections, self.pairs = children
        self.static = static
        return self

    # --- the public calls -------------------------------------------------------------------------------------------

    def __call__(self, p: ParameterSet, positions, box=None, neighbors=None) -> Float[Array, ""]:
        """Potential energy, kJ/mol, of parameters ``p`` at ``positions`` (n_atoms, 3) nm.

        Raises
        ------
        InputError
            Wrong shape, or parameters of another force field.
        PrecisionError
            float64 NumPy positions while JAX's x64 mode is off.
        UnsupportedError
            ``box`` or ``neighbors``: this energy is not periodic and uses all pairs.
        """
        return _total(self.by_term(p, positions, box, neighbors))

    def by_term(self, p: ParameterSet, positions, box=None, neighbors=None) -> dict[str, Float[Array, ""]]:
        """Energy of each section, kJ/mol: Bonds, Angles, ProperTorsions, ImproperTorsions, vdW, Electrostatics."""
        x = self._positions(positions, box, neighbors)
        self._check(p)
        return _by_term(self._host_cast(x.dtype), jax.tree.map(lambda v: _host_cast(v, x.dtype), p), x)

    def at_slots(self, slots: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given slot values, as ``system.slots(p)`` returns them."""
        x = self._positions(positions, box, neighbors)
        values = self._instances(self._cast(slots, x.dtype, "slots"))
        return _total(_at_instances(self._host_cast(x.dtype), values, x))

    def at_instances(self, instances: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given instance values ``{section: {attribute: (n_instances,)}}``."""
        x = self._positions(positions, box, neighbors)
        return _total(_at_instances(self._host_cast(x.dtype), self._cast(instances, x.dtype, "instances"), x))

    def neighbor_list(self, positions, box, *, skin=None, capacity=None):
        """Raises UnsupportedError: this version has no periodic boxes, and uses all pairs."""
        raise UnsupportedError(
            "neighbour lists belong to periodic Systems, which this version does not support; "
            "call energy(parameters, positions) without neighbors"
        )

    def place_sites(self, p: ParameterSet, x):
        """Positions (n_particles, 3) nm of all particles: the atoms of ``x`` and the virtual sites of parameters ``p``.

        ``x`` has shape (n_atoms, 3) or (n_particles, 3), nm. Differentiable in ``p`` and ``x``.
        """
        x = self._positions(x, None, None)
        self._check(p)
        return _place(self._host_cast(x.dtype), jax.tree.map(lambda v: _host_cast(v, x.dtype), p), x)

    def __repr__(self) -> str:
        s = self.static
        cut = "" if s.cutoff is None else f" {s.cutoff:g} nm" + ("" if s.switch is None else f" from {s.switch:g} nm")
        pairs = len(self.pairs.atoms)
        sites = f", {s.n_particles - s.n_atoms} virtual sites" if s.n_particles > s.n_atoms else ""
        return f"PotentialEnergy({s.n_atoms} atoms{sites}, {s.method}{cut}, {pairs} pairs; {', '.join(self.sections)})"

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
        phi = jnp.sum(_cast(table.weights, dtype) * theta[table.columns], axis=1) + _cast(table.offset, dtype)
        slots: dict[str, dict[str, Array]] = {}
        for section, attribute, start, stop in self.static.layout:
            slots.setdefault(section, {})[attribute] = phi[start:stop]
        return slots

    def _host_cast(self, dtype) -> PotentialEnergy:
        """Host arrays in the working precision: no compiled program sees another type than it was made for."""
        return jax.tree.map(lambda v: _host_cast(v, dtype), self)

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

    def _positions(self, positions, box, neighbors) -> Float[Array, "atom 3"]:
        if box is not None or neighbors is not None:
            raise UnsupportedError(
                f"this energy is not periodic ({self.static.method}); call it without box and neighbors"
            )
        x, n, all_particles = as_positions(positions), self.static.n_atoms, self.static.n_particles
        if x.shape not in ((n, 3), (all_particles, 3)):
            hint = "; use jax.vmap(energy, (None, 0)) for many conformers" if x.ndim == 3 else ""
            sites = f" or ({all_particles}, 3) with virtual sites" if all_particles > n else ""
            raise InputError(f"positions must have shape ({n}, 3){sites} in nm, got {x.shape}{hint}")
        return x[:n]

    # --- instances -> energies --------------------------------------------------------------------------------------

    def _with_sites(self, values, x) -> Float[Array, "particle 3"]:
        """The atoms ``x`` followed by the virtual sites."""
        if "VirtualSites" not in self.sections:
            return x
        section = self.sections["VirtualSites"]
        return jnp.concatenate([x, virtual_sites.positions(x, section.atoms, section.kind, **values["VirtualSites"])])

    def _energies(self, values, x) -> dict[str, Float[Array, ""]]:
        x = self._with_sites(values, x)
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
        if "vdW" in self.sections or "Electrostatics" in self.sections:
            energies.update(self._nonbonded(values, x))
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

    def _nonbonded(self, values, x):
        """vdW and Electrostatics over the same pairs; beyond the cutoff r is replaced before it is used."""
        static, pairs = self.static, self.pairs
        i, j = pairs.atoms[:, 0], pairs.atoms[:, 1]
        difference = x[j] - x[i]
        r2 = jnp.sum(difference * difference, axis=-1)
        if static.cutoff is not None:
            inside = pairs.exception | (r2 < static.cutoff**2)
            r2 = jnp.where(inside, r2, static.cutoff**2)
        energies = {}
        if "vdW" in self.sections:
            sigma, epsilon = values["vdW"]["sigma"], values["vdW"]["epsilon"]
            u = vdw.potential(r2, *vdw.combine(sigma[i], sigma[j], epsilon[i], epsilon[j]))
            if static.switch is not None:
                switch = vdw.switching(jnp.sqrt(r2), static.switch, static.cutoff)
                u = jnp.where(pairs.exception, u, u * switch)
            if static.cutoff is not None:
                u = jnp.where(inside, u, 0.0)
            energies["vdW"] = self._sum(_cast(pairs.vdw_scale, x.dtype) * u)
        if "Electrostatics" in self.sections:
            charge = values["Electrostatics"]["charge"]
            product = _cast(pairs.coulomb_scale, x.dtype) * charge[i] * charge[j]
            u = electrostatics.potential(r2, product)
            if static.cutoff is not None:
                cut = electrostatics.reaction_field_potential(r2, product, static.cutoff, REACTION_FIELD_DIELECTRIC)
                u = jnp.where(pairs.exception, u, jnp.where(inside, cut, 0.0))
            energies["Electrostatics"] = self._sum(u)
        return energies

    def _sum(self, terms):
        if self.static.accumulate is not None:
            terms = terms.astype(self.static.accumulate)
        return jnp.sum(terms)


# Compiled once for each shape, so that a call outside jit does not run operation by operation. The energy travels as an
# argument: Systems of equal shapes share the program.
@jax.jit
def _by_term(energy: PotentialEnergy, p: ParameterSet, x):
    return energy._energies(energy._instances(energy._slots(p, x.dtype)), x)


@jax.jit
def _at_instances(energy: PotentialEnergy, instances, x):
    return energy._energies(instances, x)


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
    """A length without unit, in nm: strips OpenFF/pint and OpenMM quantities."""
    if hasattr(length, "m_as"):
        return length.m_as("nanometer")
    if hasattr(length, "value_in_unit"):
        from openmm import unit

        return length.value_in_unit(unit.nanometer)
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
    accumulate: str | None,
) -> PotentialEnergy:
    """The plain energy of a System; see :meth:`offjax.System.to_jax`."""
    method, cutoff, switch = _method(system, nonbonded_method, in_nm(cutoff), in_nm(switch))
    if ewald_tolerance is not None or pme_grid is not None:
        raise UnsupportedError("ewald_tolerance and pme_grid belong to periodic Systems, not supported in this version")
    if accumulate not in (None, "float64"):
        raise InputError(f'accumulate must be None or "float64", got {accumulate!r}')
    if accumulate == "float64" and not jax.config.jax_enable_x64:
        raise PrecisionError('accumulate="float64" needs jax.config.update("jax_enable_x64", True)')

    if system.n_particles > MAX_ATOMS:
        raise UnsupportedError(
            f"{system.n_particles} particles: to_jax() uses all pairs and takes at most {MAX_ATOMS}; use "
            "to_openmm() or a smaller System"
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
    static = _Static(system.parameters.schema, n_atoms, n_particles, method, cutoff, switch, accumulate, tuple(layout))
    return PotentialEnergy(_table(matrices), sections, _pairs(system), static)


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


def _pairs(system: System) -> _Pairs:
    full, scaled = pairs(system)
    stacked = [np.concatenate(both) for both in zip(full, scaled, strict=True)]
    return _Pairs(*stacked, np.arange(len(stacked[0])) >= len(full.atoms))


def pairs(system: System):
    """All (full, scaled) pairs of a System without box, global indices."""
    topology = system.topology
    atoms = topology.tile([e.atoms for e in system.exceptions], 2)
    vdw_scale = np.concatenate([np.zeros(0), *(system.exceptions[u].vdw_scale for u in topology.copies)])
    coulomb_scale = np.concatenate([np.zeros(0), *(system.exceptions[u].coulomb_scale for u in topology.copies)])
    return molecule_pairs(topology.n_particles, atoms, vdw_scale, coulomb_scale)


def _method(system: System, method: str | None, cutoff: float | None, switch: float | None):
    settings = system.nonbonded
    if method is None:
        if system.box is not None:
            raise UnsupportedError(
                "periodic boundary conditions are not supported in this version of to_jax(): build the System without "
                'box, or pass nonbonded_method="NoCutoff" to ignore the box; to_openmm() exports periodic Systems'
            )
        if settings.vdw_nonperiodic_method != "no-cutoff":
            raise UnsupportedError(
                f'<vdW nonperiodic_method="{settings.vdw_nonperiodic_method}"> with uncut Coulomb electrostatics is '
                'not supported: pass nonbonded_method="CutoffNonPeriodic", cutoff=... to cut both off'
            )
        method = "NoCutoff"
    if method not in METHODS:
        periodic = ("CutoffPeriodic", "Ewald", "PME", "LJPME")
        why = "periodic methods are not supported in this version" if method in periodic else "there is no such method"
        raise UnsupportedError(f"nonbonded_method={method!r}: {why}; supported are {', '.join(METHODS)}")
    if method == "NoCutoff":
        if cutoff is not None or switch is not None:
            raise InputError('cutoff and switch need nonbonded_method="CutoffNonPeriodic"')
        return method, None, None
    if cutoff is None:
        if settings.vdw_cutoff != settings.coulomb_cutoff:
            raise InputError(
                f"the force field cuts vdW at {settings.vdw_cutoff} nm and Coulomb at {settings.coulomb_cutoff} nm; "
                "pass cutoff=... to use one for both"
            )
        cutoff = settings.vdw_cutoff
        if switch is None and settings.vdw_switch_width > 0:
            switch = cutoff - settings.vdw_switch_width
    if not cutoff > 0:
        raise InputError(f"cutoff must be positive, got {cutoff} nm")
    if switch is not None and not 0 < switch < cutoff:
        raise InputError(f"switch must lie between 0 and the cutoff {cutoff} nm, got {switch} nm")
    return method, float(cutoff), None if switch is None else float(switch)
