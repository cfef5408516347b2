"""The System: how a force field's parameters become the parameter slots and instances of given molecules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offjax import virtual_sites
from offjax.assignment import AssignmentMatrix
from offjax.deferred import Deferred
from offjax.energy import PotentialEnergy, as_positions
from offjax.errors import InputError
from offjax.nonbonded import PairList
from offjax.parameters import ParameterSet
from offjax.settings import GBSASettings, NonbondedSettings
from offjax.terms.user import UserTerm
from offjax.topology import Topology


@dataclass(frozen=True, eq=False)
class Term:
    """The slots and instances of one SMIRNOFF section.

    A *slot* belongs to a unique molecule: ``slot_atoms`` (n_slots, body) are local atom indices, ``slot_molecule``
    (n_slots,) the unique molecule. An *instance* is the slot's use in one copy: ``atoms`` (n_instances, body) are
    global indices, ``slot`` (n_instances,) the slot. ``periodicity`` (n_slots,) is there for torsions only, ``kind``
    (n_slots,), an index into :data:`offjax.virtual_sites.KINDS`, for virtual sites only. Instances of one particle
    each (vdW, Electrostatics, GBSA) are in the order of the particles.
    """

    section: str
    slot_atoms: np.ndarray
    slot_molecule: np.ndarray
    atoms: np.ndarray
    slot: np.ndarray
    periodicity: np.ndarray | None = None
    kind: np.ndarray | None = None

    @classmethod
    def build(cls, section: str, slot_atoms, slot_molecule, topology: Topology, periodicity=None, kind=None) -> Term:
        """Make the instances from slots that are sorted by molecule."""
        body = slot_atoms.shape[1]
        n = len(topology.molecules)
        bounds = np.searchsorted(slot_molecule, np.arange(n + 1))
        atoms = topology.tile([slot_atoms[bounds[u] : bounds[u + 1]] for u in range(n)], body)
        slot = topology.spread(np.diff(bounds)).astype(np.int32)
        if body == 1 and topology.n_particles > topology.n_atoms:
            order = np.argsort(atoms[:, 0])
            atoms, slot = atoms[order], slot[order]
        return cls(section, slot_atoms.astype(np.int32), slot_molecule.astype(np.int32), atoms, slot, periodicity, kind)

    @property
    def n_slots(self) -> int:
        return len(self.slot_atoms)

    @property
    def n_instances(self) -> int:
        return len(self.slot)

    def __repr__(self) -> str:
        return f"Term({self.section}: {self.n_slots} slots, {self.n_instances} instances)"


@dataclass(frozen=True, eq=False, repr=False)
class System:
    """Molecules with a force field: the immutable map from force-field parameters to terms.

    Make one with :meth:`from_smirnoff`. ``parameters`` are those of the WHOLE force field in MD units; ``terms`` the
    slots and instances by section; ``assignment[section][attribute]`` the sparse affine map from parameters to slots;
    ``exceptions`` the scaled or excluded pairs of each unique molecule; ``offxml()`` the force field as OFFXML text;
    ``user_terms`` the user's definitions by section, ``scale14`` the 1-4 scales of those that are pair potentials.
    """

    parameters: ParameterSet
    topology: Topology
    terms: Mapping[str, Term]
    assignment: Mapping[str, Mapping[str, AssignmentMatrix]]
    exceptions: tuple[PairList, ...]
    nonbonded: NonbondedSettings
    offxml: Deferred
    box: np.ndarray | None = None
    charge_methods: tuple[str, ...] = ()
    gbsa: GBSASettings | None = None
    user_terms: Mapping[str, UserTerm] = field(default_factory=dict)
    scale14: Mapping[str, float] = field(default_factory=dict)

    # --- making, saving, exporting: these call upwards, at call time only -------------------------------------------

    @classmethod
    def from_smirnoff(
        cls,
        force_field,
        topology,
        *,
        box=None,
        charge_from_molecules=None,
        partial_bond_orders_from_molecules=None,
        allow_nonintegral_charges: bool = False,
        user_terms: Sequence[UserTerm] = (),
    ) -> System:
        """Apply a SMIRNOFF force field to molecules.

        Parameters
        ----------
        force_field
            ``openff.toolkit.ForceField``, a path or name such as ``"openff-2.2.1.offxml"``, or a sequence of files.
        topology
            ``openff.toolkit`` Molecule, Topology, or a list of Molecules.
        box
            (3, 3) or (3,) nm, reduced form; None takes the topology's box.
        charge_from_molecules
            Molecules whose ``partial_charges`` are used for isomorphic molecules, before every other charge model.
        partial_bond_orders_from_molecules
            Molecules whose ``fractional_bond_order`` values are used for bond-order interpolation.
        allow_nonintegral_charges
            Accept molecules whose charges differ from their formal charge by more than 0.01 e.
        user_terms
            Definitions (:class:`offjax.UserTerm`) of sections outside the SMIRNOFF specification. A definition of a
            section that the force field does not have is not used.

        Raises
        ------
        UnsupportedError
            A section, version or option that is not supported; the message names it.
        UnassignedParameterError
            An atom, bond, angle, torsion or charge without a parameter.
        InputError
            A file, molecule or box that cannot be used.
        """
        from offjax.parameterize.smirnoff import parameterize

        return parameterize(
            force_field,
            topology,
            box=box,
            charge_from_molecules=charge_from_molecules,
            partial_bond_orders_from_molecules=partial_bond_orders_from_molecules,
            allow_nonintegral_charges=allow_nonintegral_charges,
            user_terms=user_terms,
        )

    def to_openmm(self, p: ParameterSet | None = None, *, split_terms: bool = False, hydrogen_mass=None):
        """An ``openmm.System`` with one NonbondedForce; see :func:`offjax.interop.openmm.to_openmm`."""
        from offjax.interop.openmm import to_openmm

        return to_openmm(self, p, split_terms=split_terms, hydrogen_mass=hydrogen_mass)

    def to_openmm_topology(self):
        """An ``openmm.app.Topology``; see :func:`offjax.interop.openmm.to_openmm_topology`."""
        from offjax.interop.openmm import to_openmm_topology

        return to_openmm_topology(self)

    def to_force_field(self, p: ParameterSet | None = None):
        """An ``openff.toolkit.ForceField`` with the values of ``p``; unchanged entries keep their text."""
        from offjax.interop.offxml import to_force_field

        return to_force_field(self, p)

    def to_offxml(self, path, p: ParameterSet | None = None) -> None:
        """Write the force field with the values of ``p`` as OFFXML, to a temporary file that is then renamed."""
        from offjax.interop.offxml import to_offxml

        to_offxml(self, path, p)

    def save(self, path) -> None:
        """Write the System to an HDF5 file; schema in :mod:`offjax.interop.storage`."""
        from offjax.interop.storage import save

        save(self, path)

    @classmethod
    def load(cls, path, *, user_terms: Sequence[UserTerm] = ()) -> System:
        """Read a System that :meth:`save` wrote, with the definitions of its user-defined terms: files hold no code."""
        from offjax.interop.storage import load

        return load(path, user_terms)

    # --- parameters -> slots ----------------------------------------------------------------------------------------

    def slots(self, p: ParameterSet | None = None) -> dict[str, dict[str, Any]]:
        """Slot values ``{section: {attribute: (n_slots,)}}`` in MD units; traceable in ``p``."""
        theta = self._vector(self.parameters if p is None else p)
        return {s: {a: matrix(theta) for a, matrix in d.items()} for s, d in self.assignment.items()}

    def instances(self, p: ParameterSet | None = None) -> dict[str, dict[str, Any]]:
        """Instance values ``{section: {attribute: (n_instances,)}}``: slots gathered to every copy."""
        slots = self.slots(p)
        return {s: {a: v[self.terms[s].slot] for a, v in d.items()} for s, d in slots.items()}

    def jvp(self, tangent_parameters: ParameterSet) -> dict[str, dict[str, Any]]:
        """A @ tangent: the change of the slots along a change of the parameters."""
        theta = self._vector(tangent_parameters)
        return {s: {a: matrix @ theta for a, matrix in d.items()} for s, d in self.assignment.items()}

    def vjp(self, cotangents: Mapping[str, Mapping[str, Any]]) -> ParameterSet:
        """A.T @ cotangents: dU/dtheta from anybody's dU/dslots or dU/dinstances.

        ``cotangents[section][attribute]`` has shape (n_slots,) or (n_instances,); sections and attributes left out
        count as zero. Another engine that gives dU/d(its parameters) gets dU/d(force field) this way.
        """
        arrays: list[Any] = []
        for section, attributes in cotangents.items():
            if section not in self.assignment:
                raise InputError(f"no slots of section {section!r}; there are {', '.join(self.assignment)}")
            term = self.terms[section]
            for attribute, value in attributes.items():
                if attribute not in self.assignment[section]:
                    have = ", ".join(self.assignment[section])
                    raise InputError(f"slots of {section} have no attribute {attribute!r}; they have {have}")
                value = value if isinstance(value, jax.Array) else np.asarray(value)
                if value.shape == (term.n_instances,) != (term.n_slots,):
                    if isinstance(value, jax.Array):
                        value = jax.ops.segment_sum(value, term.slot, num_segments=term.n_slots)
                    else:
                        value = np.bincount(term.slot, weights=value, minlength=term.n_slots)
                if value.shape != (term.n_slots,):
                    raise InputError(
                        f"{section}/{attribute}: expected shape ({term.n_slots},) for slots or "
                        f"({term.n_instances},) for instances, got {value.shape}"
                    )
                arrays.append(self.assignment[section][attribute].T @ value)
        total = sum(arrays) if arrays else np.zeros(self.parameters.schema.size)
        return self.parameters.from_vector(total)

    @cached_property
    def used(self) -> ParameterSet:
        """How many instances use each parameter: a ParameterSet of integer counts; zero means not covered."""
        counts = np.zeros(self.parameters.schema.size, dtype=np.int64)
        for section, attributes in self.assignment.items():
            copies = np.bincount(self.terms[section].slot, minlength=self.terms[section].n_slots)
            for matrix in attributes.values():
                nonzero = matrix.values != 0
                np.add.at(counts, matrix.columns[nonzero], copies[matrix.rows[nonzero]])
        return self.parameters.from_vector(counts)

    def _vector(self, p: ParameterSet):
        if not isinstance(p, ParameterSet):
            raise InputError(f"expected a ParameterSet, got {type(p).__name__}")
        if p.schema is not self.parameters.schema:
            raise InputError(
                "these parameters belong to another force field "
                f"(digest {p.digest[:12]}, this System has {self.parameters.digest[:12]})"
            )
        return p.to_vector()

    # --- energies ---------------------------------------------------------------------------------------------------

    def to_jax(
        self,
        *,
        nonbonded_method: str | None = None,
        cutoff: float | None = None,
        switch: float | None = None,
        ewald_tolerance: float | None = None,
        pme_grid: tuple[int, int, int] | None = None,
        pme_alpha: float | None = None,
        dispersion_grid: tuple[int, int, int] | None = None,
        dispersion_alpha: float | None = None,
        accumulate: str | None = None,
    ) -> PotentialEnergy:
        """A traceable potential energy ``energy(parameters, positions, box=None)`` in kJ/mol.

        Parameters
        ----------
        nonbonded_method
            OpenMM's names: ``"NoCutoff"``, ``"CutoffNonPeriodic"``; with a box ``"CutoffPeriodic"`` (reaction field),
            ``"PME"`` or ``"LJPME"`` (dispersion in an Ewald sum too). None takes what the force field says, with the
            box of the System or without. A System with a box may be treated as if it had none.
        cutoff, switch
            nm: cutoff distance, and the distance at which the vdW switching function begins (None: no switching, or
            the force field's when ``cutoff`` is None too). CutoffPeriodic and PME add OpenMM's long-range dispersion
            correction.
        ewald_tolerance
            Error tolerance from which OpenMM's rules choose the splitting parameter and the grid; None is 1e-4, as in
            ``to_openmm()``. The grid is that of OpenMM's CPU platform, for the box of the System.
        pme_grid, pme_alpha
            Grid points along the three box vectors and the splitting parameter in 1/nm, instead of those chosen;
            ``NonbondedForce.getPMEParametersInContext`` tells OpenMM's.
        dispersion_grid, dispersion_alpha
            The same for the dispersion of LJPME (``getLJPMEParametersInContext``). Without ``dispersion_alpha`` its
            splitting parameter is that of the charges.
        accumulate
            ``"float64"`` sums float32 terms in float64.

        Raises
        ------
        InputError
            Options that contradict each other, or a cutoff that is more than half of the box.
        UnsupportedError
            Another method, or one that the force field asks for and that is not supported; the message names it.
        """
        from offjax.energy import build

        ewald = (pme_grid, pme_alpha, dispersion_grid, dispersion_alpha)
        return build(self, nonbonded_method, cutoff, switch, ewald_tolerance, *ewald, accumulate)

    def place_sites(self, positions, p: ParameterSet | None = None):
        """Positions (n_particles, 3) nm of all particles: those of the atoms, then the virtual sites.

        ``positions`` (n_atoms, 3) or (n_particles, 3) nm, whose rows of sites are ignored. The same as
        ``system.to_jax().place_sites(p, positions)``, without an energy.

        Raises
        ------
        InputError
            Wrong shape, or parameters of another force field.
        PrecisionError
            float64 NumPy positions while JAX's x64 mode is off.
        """
        x, n = as_positions(positions), self.topology.n_atoms
        if x.shape not in ((n, 3), (self.n_particles, 3)):
            raise InputError(f"expected positions ({n}, 3) of the atoms in nm, got {x.shape}")
        if n == self.n_particles:
            return x
        term, x = self.terms["VirtualSites"], x[:n]
        values = {a: jnp.asarray(v[term.slot], x.dtype) for a, v in self.slots(p)["VirtualSites"].items()}
        sites = virtual_sites.positions(x, term.atoms, np.asarray(term.kind)[term.slot], **values)
        return jnp.concatenate([x, sites])

    @cached_property
    def active(self) -> Mapping[str, np.ndarray]:
        """Which slots contribute energy, ``{section: (n_slots,) bool}``.

        OpenMM's convention: a constrained bond has no harmonic term; an angle has none only if all three of its pairs
        are constrained.
        """
        active = {section: np.ones(term.n_slots, dtype=bool) for section, term in self.terms.items()}
        held = self.terms.get("Constraints")
        if held is not None and held.n_slots:
            first = np.cumsum([0, *(m.n_particles for m in self.topology.molecules)])

            def pair(term: Term, a: int, b: int) -> np.ndarray:
                """One number for each pair of particles of a unique molecule, whichever comes first."""
                i, j = (first[term.slot_molecule] + term.slot_atoms[:, n] for n in (a, b))
                return np.minimum(i, j) * first[-1] + np.maximum(i, j)

            for section, needed in (("Bonds", ((0, 1),)), ("Angles", ((0, 1), (1, 2), (0, 2)))):
                if section in self.terms:
                    each = [np.isin(pair(self.terms[section], a, b), pair(held, 0, 1)) for a, b in needed]
                    active[section] = ~np.all(each, axis=0)
        return MappingProxyType(active)

    def without_constraints(self, water: bool = False) -> System:
        """The flexible System: bonds constrained to their equilibrium length get their harmonic term back.

        Constraints with an explicit ``distance`` in the force field (rigid water) stay, unless ``water`` is True.
        """
        if "Constraints" not in self.terms:
            return self
        matrix = self.assignment["Constraints"]["distance"]
        span = self.parameters.schema.slices.get(("Constraints", "distance"), slice(0, 0))
        explicit = np.zeros(matrix.shape[0], dtype=bool)
        explicit[matrix.rows[(matrix.columns >= span.start) & (matrix.columns < span.stop)]] = True
        keep = np.nonzero(explicit & (not water))[0]
        entries = np.isin(matrix.rows, keep)
        kept = AssignmentMatrix(
            matrix.schema,
            np.searchsorted(keep, matrix.rows[entries]),
            matrix.columns[entries],
            matrix.values[entries],
            matrix.offset[keep],
        )
        old = self.terms["Constraints"]
        term = Term.build("Constraints", old.slot_atoms[keep], old.slot_molecule[keep], self.topology)
        return replace(
            self,
            terms=MappingProxyType({**self.terms, "Constraints": term}),
            assignment=MappingProxyType({**self.assignment, "Constraints": {"distance": kept}}),
        )

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def source(self) -> str:
        """The force field as OFFXML text."""
        return self.offxml()

    @property
    def user_pairs(self) -> tuple[UserTerm, ...]:
        """The pair potentials of the user."""
        return tuple(term for term in self.user_terms.values() if term.is_pair)

    @property
    def has_vdw(self) -> bool:
        """Whether something is cut off as vdW is: <vdW> or a pair potential of the user."""
        return "vdW" in self.terms or bool(self.user_pairs)

    @property
    def masses(self) -> np.ndarray:
        """(n_particles,) amu."""
        return self.topology.masses

    @property
    def n_particles(self) -> int:
        """Number of particles: all atoms, then all virtual sites."""
        return self.topology.n_particles

    @property
    def digest(self) -> str:
        """SHA-256 of force field and topology: equal for Systems with the same slots."""
        import hashlib

        text = self.parameters.digest + self.topology.digest
        if self.n_particles > self.topology.n_atoms:
            sites = self.terms["VirtualSites"]
            text += repr((np.asarray(sites.slot_atoms).tolist(), np.asarray(sites.kind).tolist()))
        return hashlib.sha256(text.encode()).hexdigest()

    def __repr__(self) -> str:
        lines = [f"System: {self.topology.formula()}; {self._particles()}; force field {self.parameters!r}"]
        for section, term in self.terms.items():
            columns = [m.columns[m.values != 0] for m in self.assignment[section].values()]
            touched = len(np.unique(np.concatenate([np.zeros(0, np.int64), *columns])))
            off = int(np.count_nonzero(~self.active[section][term.slot]))
            note = f", {off} replaced by constraints" if off else ""
            lines.append(
                f"  {section:<18}{term.n_slots:>8} slots {term.n_instances:>9} instances  "
                f"made by {touched} parameters{note}"
            )
        return "\n".join(lines)

    def _particles(self) -> str:
        sites = self.n_particles - self.topology.n_atoms
        return f"{self.n_particles} particles" + (f", {sites} of them virtual sites" if sites else "")

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{s}</td><td>{t.n_slots}</td><td>{t.n_instances}</td><td>{', '.join(self.assignment[s])}</td></tr>"
            for s, t in self.terms.items()
        )
        return (
            f"<b>System</b>: {self.topology.formula()}; {self._particles()}; "
            f"{self.parameters.schema.size} force-field parameters"
            f"<table><tr><th>section</th><th>slots</th><th>instances</th><th>attributes</th></tr>{rows}</table>"
        )


def zeros_like_slots(system: System) -> dict[str, dict[str, Any]]:
    """Slot-shaped zeros, for cotangents that are built up section by section."""
    return {s: {a: jnp.zeros(m.shape[0]) for a, m in d.items()} for s, d in system.assignment.items()}
