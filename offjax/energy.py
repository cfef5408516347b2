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

from offjax.constants import REACTION_FIELD_DIELECTRIC
from offjax.errors import InputError, PrecisionError, UnsupportedError
from offjax.nonbonded import molecule_pairs
from offjax.parameters import ParameterSet, Schema
from offjax.terms import angles, bonds, electrostatics, torsions, vdw

if TYPE_CHECKING:
    from offjax.system import System

METHODS = ("NoCutoff", "CutoffNonPeriodic")


@dataclass(frozen=True)
class _Static:
    """What a compiled program depends on besides array shapes."""

    schema: Schema
    n_atoms: int
    method: str
    cutoff: float | None
    switch: float | None
    accumulate: str | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Section:
    """The arrays of one section: assignment tables by attribute, and the active instances."""

    columns: dict[str, Array]
    weights: dict[str, Array]
    offset: dict[str, Array]
    slot: Array
    active: Array
    atoms: Array
    periodicity: Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class _Pairs:
    atoms: Array
    vdw_scale: Array
    coulomb_scale: Array


@jax.tree_util.register_pytree_node_class
class PotentialEnergy:
    """``energy(parameters, positions) -> scalar``, kJ/mol: a callable pytree with identity hash.

    ``jax.jit``, ``grad``, ``jacfwd``, ``vmap``, ``hessian`` and ``checkpoint`` accept it directly. Passed as an argument of a
    jitted function, Systems of equal shapes share one compiled program. Positions (n_atoms, 3) are in nm. The
    parameters are cast to the dtype of the positions; ``jax.vjp(energy, parameters, positions)`` gives dU/dtheta for
    every force-field parameter and minus the forces in one pass.
    """

    def __init__(self, sections: dict[str, _Section], full: _Pairs, scaled: _Pairs, static: _Static):
        self.sections, self.full, self.scaled, self.static = sections, full, scaled, static

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other

    def tree_flatten(self):
        return (self.sections, self.full, self.scaled), self.static

    @classmethod
    def tree_unflatten(cls, static, children):
        self = object.__new__(cls)
        self.sections, self.full, self.scaled = children
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
        return self._energies(self._instances(self._slots(p, x.dtype)), x)

    def at_slots(self, slots: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given slot values, as ``system.slots(p)`` returns them."""
        x = self._positions(positions, box, neighbors)
        return _total(self._energies(self._instances(self._cast(slots, x.dtype, "slots")), x))

    def at_instances(self, instances: Mapping[str, Mapping[str, Any]], positions, box=None, neighbors=None):
        """Potential energy, kJ/mol, of given instance values ``{section: {attribute: (n_instances,)}}``."""
        x = self._positions(positions, box, neighbors)
        return _total(self._energies(self._cast(instances, x.dtype, "instances"), x))

    def neighbor_list(self, positions, box, *, skin=None, capacity=None):
        """Raises UnsupportedError: this version has no periodic boxes, and uses all pairs."""
        raise UnsupportedError(
            "neighbour lists belong to periodic Systems, which this version does not support; "
            "call energy(parameters, positions) without neighbors"
        )

    def place_sites(self, p: ParameterSet, x):
        """Positions of all particles; without virtual sites, which this version does not support, ``x`` itself."""
        return self._positions(x, None, None)

    def __repr__(self) -> str:
        s = self.static
        pairs = f"{len(self.full.atoms)} pairs + {len(self.scaled.atoms)} scaled"
        return f"PotentialEnergy({s.n_atoms} atoms, {s.method}, {pairs}, sections {', '.join(self.sections)})"

    # --- parameters -> instances ------------------------------------------------------------------------------------

    def _slots(self, p: ParameterSet, dtype):
        if not isinstance(p, ParameterSet):
            raise InputError(f"the first argument must be a ParameterSet (system.parameters), got {type(p).__name__}")
        if p.schema is not self.static.schema:
            raise InputError(
                f"these parameters belong to another force field (digest {p.digest[:12]}, "
                f"this energy has {self.static.schema.digest[:12]})"
            )
        leaves = [_cast(v, dtype) for v in jax.tree_util.tree_leaves(p)]
        theta = jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)
        return {
            name: {
                a: jnp.sum(_cast(s.weights[a], dtype) * theta[s.columns[a]], axis=1) + _cast(s.offset[a], dtype)
                for a in s.columns
            }
            for name, s in self.sections.items()
        }

    def _instances(self, slots):
        return {name: {a: v[self.sections[name].slot] for a, v in d.items()} for name, d in slots.items()}

    def _cast(self, values, dtype, kind):
        unknown = sorted(set(values) - set(self.sections))
        missing = sorted(set(self.sections) - set(values))
        if unknown or missing:
            raise InputError(f"{kind}: unknown sections {unknown}, missing sections {missing}")
        result: dict[str, dict[str, Array]] = {}
        for name, section in self.sections.items():
            if missing := sorted(set(section.columns) - set(values[name])):
                raise InputError(f"{kind} of {name} lack {', '.join(missing)}")
            result[name] = {a: _cast(values[name][a], dtype) for a in section.columns}
            n = len(section.slot) if kind == "instances" else len(next(iter(section.columns.values()), []))
            for a, v in result[name].items():
                if v.shape != (n,):
                    raise InputError(f"{kind} {name}/{a}: expected shape ({n},), got {v.shape}")
        return result

    def _positions(self, positions, box, neighbors) -> Float[Array, "atom 3"]:
        if box is not None or neighbors is not None:
            raise UnsupportedError(
                f"this energy is not periodic ({self.static.method}); call it without box and neighbors"
            )
        x = as_positions(positions)
        if x.shape != (self.static.n_atoms, 3):
            hint = "; use jax.vmap(energy, (None, 0)) for many conformers" if x.ndim == 3 else ""
            raise InputError(f"positions must have shape ({self.static.n_atoms}, 3) in nm, got {x.shape}{hint}")
        return x

    # --- instances -> energies --------------------------------------------------------------------------------------

    def _energies(self, values, x) -> dict[str, Float[Array, ""]]:
        energies = {}
        for name, kernel in (
            ("Bonds", bonds.energies),
            ("Angles", angles.energies),
            ("ProperTorsions", torsions.energies),
            ("ImproperTorsions", torsions.energies),
        ):
            if name not in self.sections:
                continue
            s, v = self.sections[name], values[name]
            v = {a: u[s.active] for a, u in v.items()}
            if s.periodicity is not None:
                v["periodicity"] = s.periodicity
            energies[name] = self._sum(kernel(x, s.atoms, **v))
        if "vdW" in self.sections:
            sigma, epsilon = values["vdW"]["sigma"], values["vdW"]["epsilon"]
            energies["vdW"] = self._vdw(x, sigma, epsilon)
        if "Electrostatics" in self.sections:
            energies["Electrostatics"] = self._coulomb(x, values["Electrostatics"]["charge"])
        return energies

    def _vdw(self, x, sigma, epsilon):
        static = self.static

        def pair(pairs, cut):
            i, j = pairs.atoms[:, 0], pairs.atoms[:, 1]
            r2 = _squared_distance(x, i, j)
            s, e = vdw.combine(sigma[i], sigma[j], epsilon[i], epsilon[j])
            if not cut or static.cutoff is None:
                return vdw.potential(r2, s, e)
            r2 = jnp.where(r2 < static.cutoff**2, r2, static.cutoff**2)
            u = vdw.potential(r2, s, e)
            if static.switch is not None:
                u = u * vdw.switching(jnp.sqrt(r2), static.switch, static.cutoff)
            return jnp.where(r2 < static.cutoff**2, u, 0.0)

        scaled = _cast(self.scaled.vdw_scale, x.dtype) * pair(self.scaled, False)
        return self._sum(pair(self.full, True)) + self._sum(scaled)

    def _coulomb(self, x, charge):
        static = self.static

        def pair(pairs, cut):
            i, j = pairs.atoms[:, 0], pairs.atoms[:, 1]
            r2, qq = _squared_distance(x, i, j), charge[i] * charge[j]
            if not cut or static.cutoff is None:
                return electrostatics.potential(r2, qq)
            inside = r2 < static.cutoff**2
            r2 = jnp.where(inside, r2, static.cutoff**2)
            u = electrostatics.reaction_field_potential(r2, qq, static.cutoff, REACTION_FIELD_DIELECTRIC)
            return jnp.where(inside, u, 0.0)

        scaled = _cast(self.scaled.coulomb_scale, x.dtype) * pair(self.scaled, False)
        return self._sum(pair(self.full, True)) + self._sum(scaled)

    def _sum(self, terms):
        if self.static.accumulate is not None:
            terms = terms.astype(self.static.accumulate)
        return jnp.sum(terms)


def _total(energies: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
    return sum(energies.values(), start=jnp.zeros((), next(iter(energies.values())).dtype) if energies else 0.0)


def _squared_distance(x, i, j):
    d = x[j] - x[i]
    return jnp.sum(d * d, axis=-1)


def _cast(value, dtype):
    """To ``dtype`` without the detour over JAX's default type that would warn for float64 host arrays."""
    return value.astype(dtype) if isinstance(value, jax.Array) else jnp.asarray(np.asarray(value), dtype)


def as_positions(positions):
    """Positions as an array in nm: strips OpenFF/pint and OpenMM quantities, refuses a silent loss of precision.

    Raises
    ------
    PrecisionError
        float64 host data while JAX's x64 mode is off.
    InputError
        Not floating-point numbers.
    """
    if hasattr(positions, "m_as"):
        positions = positions.m_as("nanometer")
    elif hasattr(positions, "value_in_unit"):
        from openmm import unit

        positions = positions.value_in_unit(unit.nanometer)
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
    method, cutoff, switch = _method(system, nonbonded_method, cutoff, switch)
    if ewald_tolerance is not None or pme_grid is not None:
        raise UnsupportedError("ewald_tolerance and pme_grid belong to periodic Systems, not supported in this version")
    if accumulate not in (None, "float64"):
        raise InputError(f'accumulate must be None or "float64", got {accumulate!r}')
    if accumulate == "float64" and not jax.config.jax_enable_x64:
        raise PrecisionError('accumulate="float64" needs jax.config.update("jax_enable_x64", True)')

    sections = {}
    for name, term in system.terms.items():
        if name == "Constraints":
            continue
        matrices = system.assignment[name]
        active = np.nonzero(system.active[name][term.slot])[0].astype(np.int32)
        periodicity = None if term.periodicity is None else term.periodicity[term.slot[active]].astype(np.int32)
        sections[name] = _Section(
            columns={a: m.table[0] for a, m in matrices.items()},
            weights={a: m.table[1] for a, m in matrices.items()},
            offset={a: m.offset for a, m in matrices.items()},
            slot=term.slot,
            active=active,
            atoms=term.atoms[active],
            periodicity=periodicity,
        )
    static = _Static(system.parameters.schema, system.n_particles, method, cutoff, switch, accumulate)
    full, scaled = pairs(system)
    return PotentialEnergy(sections, _Pairs(*full), _Pairs(*scaled), static)


def pairs(system: System):
    """All (full, scaled) pairs of a System without box, global indices."""
    topology = system.topology
    atoms = topology.tile([e.atoms for e in system.exceptions], 2)
    vdw_scale = np.concatenate([np.zeros(0), *(system.exceptions[u].vdw_scale for u in topology.copies)])
    coulomb_scale = np.concatenate([np.zeros(0), *(system.exceptions[u].coulomb_scale for u in topology.copies)])
    return molecule_pairs(topology.n_atoms, atoms, vdw_scale, coulomb_scale)


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
                f'<vdW nonperiodic_method="{settings.vdw_nonperiodic_method}"> with uncut Coulomb electrostatics is not '
                'supported: pass nonbonded_method="CutoffNonPeriodic", cutoff=... to cut both off'
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
