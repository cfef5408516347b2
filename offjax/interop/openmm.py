"""Export to OpenMM: an ``openmm.System`` with one NonbondedForce, and an ``openmm.app.Topology``."""

from __future__ import annotations

import collections
import functools
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from offjax.constants import COULOMB
from offjax.energy import exceptions
from offjax.errors import InputError, UnsupportedError
from offjax.interop.openmm_user import user_forces
from offjax.settings import EWALD_TOLERANCE, GBSASettings, OpenMMMethods, openmm_methods
from offjax.terms import gbsa
from offjax.topology import Molecule
from offjax.virtual_sites import N_ATOMS, X_WEIGHTS, Y_WEIGHTS, local_positions

if TYPE_CHECKING:
    import openmm
    import openmm.app

    from offjax.parameters import ParameterSet
    from offjax.system import System

FORCE_GROUPS = ("Bonds", "Angles", "ProperTorsions", "ImproperTorsions", "vdW", "Electrostatics", "GBSA")
"""With ``split_terms=True``, the section at index n is force group n; user-defined sections follow in their order."""


def to_openmm(
    system: System, p: ParameterSet | None = None, *, split_terms: bool = False, hydrogen_mass=None
) -> openmm.System:
    """An ``openmm.System`` of the parameters ``p`` (default: ``system.parameters``).

    HarmonicBondForce, HarmonicAngleForce, PeriodicTorsionForce (propers, then impropers) and ONE NonbondedForce whose
    exceptions hold the 1-2 and 1-3 pairs with zero and the 1-4 pairs with scaled charge product and epsilon. Slots that
    constraints replace (``system.active``) make no term. Virtual sites are LocalCoordinatesSites after all atoms, at
    the points of :mod:`offjax.virtual_sites`, so that OpenMM moves their forces to the same atoms. User-defined terms
    become custom forces of their section's name (:mod:`offjax.interop.openmm_user`). ``<GBSA>`` of model
    OBC2 is a GBSAOBCForce where its solvent radius is the 0.14 nm that OpenMM has, every other one a CustomGBForce
    with the equations of :mod:`offjax.terms.gbsa`. No CMMotionRemover is added.

    Without box the method is NoCutoff; with box (which becomes the default box vectors) what the force field asks
    for: PME, LJPME for ``<vdW periodic_method="Ewald3D">``, CutoffPeriodic for reaction field or for a force field
    without electrostatics; with the vdW cutoff, its switching function and the long-range dispersion correction.

    Parameters
    ----------
    split_terms
        One force a SMIRNOFF section, named after it and in its own force group (:func:`force_groups`); vdW and
        Electrostatics are then two NonbondedForces, one with zero charges and one with zero epsilons. The total
        energy is the same; meant for analysis, not for speed.
    hydrogen_mass
        amu, or a quantity. Hydrogens bonded to heavy atoms get this mass and the heavy atom loses the difference, as
        ``openmm.app.ForceField.createSystem`` does it; rigid water (three constraints) is left alone. None: no change.

    Raises
    ------
    UnsupportedError
        A nonbonded treatment that one NonbondedForce cannot express; the message names it.
    InputError
        ``hydrogen_mass`` that is not positive or leaves a heavy atom without mass; non-finite parameters; a
        user-defined term without OpenMM expression, or with one that gives other energies than its function.
    """
    import openmm

    values = _slots(system, p)
    method = openmm_methods(system.nonbonded, system.has_vdw, "Electrostatics" in system.terms, system.box)
    made = openmm.System()
    _add(made, "addParticle", _masses(system, hydrogen_mass))
    _add_virtual_sites(system, values, made)
    if system.box is not None:
        made.setDefaultPeriodicBoxVectors(*system.box.tolist())
    if "Constraints" in system.terms:
        term = system.terms["Constraints"]
        _add(made, "addConstraint", *term.atoms.T, values["Constraints"]["distance"][term.slot])

    forces = _valence_forces(system, values, split_terms)
    nonbonded = {s: values[s] for s in ("vdW", "Electrostatics") if s in system.terms}
    if split_terms:
        forces.update({s: _nonbonded_force(system, {s: v}, method) for s, v in nonbonded.items()})
    elif nonbonded:
        forces["Nonbonded"] = _nonbonded_force(system, nonbonded, method)
    if system.gbsa is not None:
        forces["GBSA"] = _gbsa_force(system, values)
    groups = dict(zip((*FORCE_GROUPS, *system.user_terms), range(32), strict=False))
    for name, force in [*forces.items(), *user_forces(system, values, method)]:
        force.setName(name)
        if split_terms:
            force.setForceGroup(groups[name])
        made.addForce(force)
    return made


def force_groups(openmm_system: openmm.System) -> dict[int, str]:
    """``{force group: section}`` of a System made with ``split_terms=True``."""
    forces = [openmm_system.getForce(n) for n in range(openmm_system.getNumForces())]
    user = len(FORCE_GROUPS)
    return {f.getForceGroup(): f.getName() for f in forces if f.getName() in FORCE_GROUPS or f.getForceGroup() >= user}


def _slots(system: System, p: ParameterSet | None) -> dict[str, dict[str, np.ndarray]]:
    slots = {
        section: {a: np.asarray(v, dtype=np.float64) for a, v in attributes.items()}
        for section, attributes in system.slots(p).items()
    }
    for section, attributes in slots.items():
        for attribute, value in attributes.items():
            if not np.all(np.isfinite(value)):
                n = int(np.nonzero(~np.isfinite(value))[0][0])
                made_by = system.assignment[section][attribute].parameters_of(n)
                names = "; ".join(str(label) for label, _ in made_by) or "its offset"
                raise InputError(f"{section}/{attribute} is {value[n]} in slot {n}, from {names}: check the parameters")
    if "vdW" in slots and np.any(slots["vdW"]["epsilon"] < 0):
        n = int(np.nonzero(slots["vdW"]["epsilon"] < 0)[0][0])
        names = "; ".join(str(label) for label, _ in system.assignment["vdW"]["epsilon"].parameters_of(n))
        raise InputError(f"vdW/epsilon is negative in slot {n}, from {names}: OpenMM's mixing rule has no value for it")
    return slots


def _add_virtual_sites(system: System, values, made: openmm.System) -> None:
    import openmm

    if "VirtualSites" not in system.terms:
        return
    term = system.terms["VirtualSites"]
    kinds = np.asarray(term.kind)[term.slot].tolist()
    local = np.asarray(local_positions(**values["VirtualSites"]))[term.slot]
    first = system.topology.n_atoms
    for n, (atoms, kind, point) in enumerate(zip(term.atoms.tolist(), kinds, local.tolist(), strict=True)):
        width = N_ATOMS[kind]
        origin = [1.0] + [0.0] * (width - 1)
        x, y = X_WEIGHTS[kind, :width].tolist(), Y_WEIGHTS[kind, :width].tolist()
        made.setVirtualSite(first + n, openmm.LocalCoordinatesSite(atoms[:width], origin, x, y, point))


def _add(made, method: str, *columns: np.ndarray | float) -> None:
    """``made.method(*row)`` for every row of plain numbers.

    The layer below OpenMM's Python methods is called, which would ask of every argument whether it has a unit.
    """
    import openmm

    below = getattr(getattr(openmm, "_openmm", None), f"{type(made).__name__}_{method}", None)
    add = getattr(made, method) if below is None else functools.partial(below, made.this)
    [n] = {len(column) for column in columns if isinstance(column, np.ndarray)}
    numbers = [c.tolist() if isinstance(c, np.ndarray) else itertools.repeat(c, n) for c in columns]
    collections.deque(map(add, *numbers), maxlen=0)


# --- valence ----------------------------------------------------------------------------------------------------------


def _valence_forces(system: System, values, split_terms: bool) -> dict[str, openmm.Force]:
    import openmm

    def active(section: str) -> tuple[np.ndarray, np.ndarray]:
        """Atoms, one array for each place, and slots of the instances that have an energy."""
        term = system.terms[section]
        on = system.active[section][term.slot]
        return term.atoms[on].T, term.slot[on]

    forces: dict[str, openmm.Force] = {}
    if "Bonds" in system.terms:
        forces["Bonds"] = force = openmm.HarmonicBondForce()
        atoms, slot = active("Bonds")
        _add(force, "addBond", *atoms, values["Bonds"]["length"][slot], values["Bonds"]["k"][slot])
    if "Angles" in system.terms:
        forces["Angles"] = force = openmm.HarmonicAngleForce()
        atoms, slot = active("Angles")
        _add(force, "addAngle", *atoms, values["Angles"]["angle"][slot], values["Angles"]["k"][slot])
    for section in ("ProperTorsions", "ImproperTorsions"):
        if section not in system.terms:
            continue
        force = forces.setdefault(section if split_terms else "Torsions", openmm.PeriodicTorsionForce())
        atoms, slot = active(section)
        periodicity = np.asarray(system.terms[section].periodicity)[slot]
        _add(force, "addTorsion", *atoms, periodicity, values[section]["phase"][slot], values[section]["k"][slot])
    return forces


# --- nonbonded --------------------------------------------------------------------------------------------------------


def _nonbonded_force(system: System, values, method: OpenMMMethods) -> openmm.NonbondedForce:
    """A NonbondedForce of the sections in ``values``; a section that is left out counts as zero."""
    import openmm

    vdw, coulomb = "vdW" in values, "Electrostatics" in values
    name = method.both if vdw and coulomb or not _both(system) else method.vdw if vdw else method.coulomb
    force = openmm.NonbondedForce()
    force.setNonbondedMethod(getattr(openmm.NonbondedForce, name))
    if method.cutoff is not None:
        force.setCutoffDistance(method.cutoff)
    force.setEwaldErrorTolerance(EWALD_TOLERANCE)
    force.setUseDispersionCorrection(vdw)
    if vdw and method.switch is not None:
        force.setUseSwitchingFunction(True)
        force.setSwitchingDistance(method.switch)

    particles = [
        _per_particle(system, values, "Electrostatics", "charge", 0.0),
        _per_particle(system, values, "vdW", "sigma", 1.0),
        _per_particle(system, values, "vdW", "epsilon", 0.0),
    ]
    _add(force, "addParticle", *particles)
    _add(force, "addException", *_exceptions(system, *particles), False)
    return force


def _both(system: System) -> bool:
    return "vdW" in system.terms and "Electrostatics" in system.terms


def _per_particle(system: System, values, section: str, attribute: str, default: float) -> np.ndarray:
    """(n_particles,); ``default`` where the section is left out."""
    if section not in values:
        return np.full(system.n_particles, default)
    return values[section][attribute][system.terms[section].slot]


def _exceptions(system: System, charge, sigma, epsilon) -> tuple[np.ndarray, ...]:
    """Particles, charge product, sigma and epsilon of every excluded or scaled pair.

    A pair whose two scales are zero is written as OpenMM's createExceptionsFromBonds writes it: 0, 1 nm, 0.
    """
    pairs, vdw_scale, coulomb_scale = exceptions(system)
    i, j = pairs.T
    excluded = (vdw_scale == 0) & (coulomb_scale == 0)
    product = coulomb_scale * charge[i] * charge[j]
    mixed = np.where(excluded, 1.0, 0.5 * (sigma[i] + sigma[j]))
    depth = vdw_scale * np.sqrt(epsilon[i] * epsilon[j])
    return i, j, product, mixed, depth


def _gbsa_force(system: System, values) -> openmm.Force:
    import openmm

    solvent = system.gbsa
    assert solvent is not None
    if system.box is not None:
        raise UnsupportedError("<GBSA> in a periodic box is not supported: build the System without box")
    charge = values["Electrostatics"]["charge"][system.terms["Electrostatics"].slot]
    slot = system.terms["GBSA"].slot
    radius, scale = values["GBSA"]["radius"][slot], values["GBSA"]["scale"][slot]
    if not np.all(radius > gbsa.OFFSET):
        raise InputError(
            f"GBSA/radius is {radius.min():g} nm, but must be above {gbsa.OFFSET} nm: check the parameters"
        )
    if solvent.model == "OBC2" and math.isclose(solvent.solvent_radius, 0.14):
        force = openmm.GBSAOBCForce()
        force.setSolventDielectric(solvent.solvent_dielectric)
        force.setSoluteDielectric(solvent.solute_dielectric)
        force.setSurfaceAreaEnergy(solvent.surface_area_penalty)
        rows = zip(charge.tolist(), radius.tolist(), scale.tolist(), strict=True)
    else:
        force = _custom_gb_force(solvent)
        offset = radius - gbsa.OFFSET
        rows = ([row] for row in np.stack([charge, offset, scale * offset], axis=1).tolist())
    for row in rows:
        force.addParticle(*row)
    return force


def _custom_gb_force(solvent: GBSASettings) -> openmm.CustomGBForce:
    """Without particles, whose parameters are charge, offset radius (nm) and screened offset radius (nm)."""
    import openmm

    force = openmm.CustomGBForce()
    for name in ("charge", "o", "s"):
        force.addPerParticleParameter(name)
    bracket = "1/L-1/U+0.25*(r-s2^2/r)*(1/U^2-1/L^2)+0.5*log(L/U)/r"
    if solvent.model == "OBC2":
        bracket += "+2*step(s2-r-o1)*(1/o1-1/L)"
    force.addComputedValue(
        "I", f"0.5*step(U-o1)*({bracket});L=max(o1,abs(r-s2));U=r+s2", openmm.CustomGBForce.ParticlePairNoExclusions
    )
    born = "1/(1/o-I)"
    if solvent.model != "HCT":
        a, b, c = gbsa.TANH[solvent.model]
        born = f"1/(1/o-tanh({a!r}*psi+{b!r}*psi^2+{c!r}*psi^3)/(o+{gbsa.OFFSET!r}));psi=I*o"
    force.addComputedValue("B", born, openmm.CustomGBForce.SingleParticle)
    strength = -COULOMB * (1.0 / solvent.solute_dielectric - 1.0 / solvent.solvent_dielectric)
    surface = 4.0 * math.pi * solvent.surface_area_penalty
    force.addEnergyTerm(
        f"0.5*{strength!r}*charge^2/B+{surface!r}*(radius+{solvent.solvent_radius!r})^2*(radius/B)^6;"
        f"radius=o+{gbsa.OFFSET!r}",
        openmm.CustomGBForce.SingleParticle,
    )
    force.addEnergyTerm(
        f"{strength!r}*charge1*charge2/sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))",
        openmm.CustomGBForce.ParticlePairNoExclusions,
    )
    return force


# --- particles --------------------------------------------------------------------------------------------------------


def _masses(system: System, hydrogen_mass) -> np.ndarray:
    """(n_particles,) amu, hydrogen masses repartitioned if asked for."""
    masses = np.array(system.masses, dtype=np.float64)
    if hydrogen_mass is None:
        return masses
    if hasattr(hydrogen_mass, "m_as"):
        hydrogen_mass = hydrogen_mass.m_as("dalton")
    elif hasattr(hydrogen_mass, "value_in_unit"):
        from openmm import unit

        hydrogen_mass = hydrogen_mass.value_in_unit(unit.dalton)
    hydrogen_mass = float(hydrogen_mass)
    if not (math.isfinite(hydrogen_mass) and hydrogen_mass > 0):
        raise InputError(f"hydrogen_mass must be positive, in amu, got {hydrogen_mass}")
    rigid = _rigid_waters(system)
    changed = []
    for u, molecule in enumerate(system.topology.molecules):
        mass = np.array(molecule.masses, dtype=np.float64)
        for a, b in [] if u in rigid else molecule.bonds.tolist():
            heavy, hydrogen = (b, a) if molecule.atomic_numbers[a] == 1 else (a, b)
            if molecule.atomic_numbers[hydrogen] != 1 or molecule.atomic_numbers[heavy] == 1:
                continue
            mass[heavy] -= hydrogen_mass - mass[hydrogen]
            mass[hydrogen] = hydrogen_mass
            if not mass[heavy] > 0:
                raise InputError(
                    f"hydrogen_mass={hydrogen_mass} leaves atom {molecule.atom_names[heavy]} of "
                    f"{molecule.name or molecule.smiles} with {mass[heavy]:.3f} amu: use a smaller one"
                )
        changed.append(mass)
    masses[: system.topology.n_atoms] = np.concatenate([changed[u] for u in system.topology.copies])
    return masses


def _is_water(molecule: Molecule) -> bool:
    return sorted(molecule.atomic_numbers.tolist()) == [1, 1, 8] and len(molecule.bonds) == 2


def _rigid_waters(system: System) -> set[int]:
    """Unique molecules that are water with all three distances constrained."""
    if "Constraints" not in system.terms:
        return set()
    counts = np.bincount(system.terms["Constraints"].slot_molecule, minlength=len(system.topology.molecules))
    return {u for u, m in enumerate(system.topology.molecules) if _is_water(m) and counts[u] == 3}


# --- topology ---------------------------------------------------------------------------------------------------------


def to_openmm_topology(system: System) -> openmm.app.Topology:
    """An ``openmm.app.Topology`` with atoms, elements, bonds (type and order), residues, chains and box.

    Residue names, numbers and chain ids are those that the molecules came with. Without them a molecule is one residue:
    ``HOH`` for water, else named like the molecule, else ``UNK``. A molecule of several residues has chains of its own;
    consecutive molecules of one residue and the same chain id share one. Bonds have their Kekule order. Virtual sites
    follow all atoms, as in the System: atoms without element, in residues and chains named like those of their parents;
    the second site of a name in a residue gets a number, because PDB files tell atoms apart by their names.
    """
    import openmm.app
    from openmm import Vec3, unit

    made = openmm.app.Topology()
    kinds = {1: openmm.app.Single, 2: openmm.app.Double, 3: openmm.app.Triple}
    numbers = np.unique(system.topology.atomic_numbers).tolist()
    elements = {n: openmm.app.Element.getByAtomicNumber(n) for n in numbers}
    residues = [_residues(m) for m in system.topology.molecules]
    chain, shared = None, None
    parents = []
    for u in system.topology.copies.tolist():
        molecule = system.topology.molecules[u]
        single = len(set(residues[u])) == 1
        last = (None, None, shared if single else None)
        atoms = []
        for name, number, entry in zip(molecule.atom_names, molecule.atomic_numbers.tolist(), residues[u], strict=True):
            if entry != last:
                if chain is None or entry[2] != last[2]:
                    chain = made.addChain(id=entry[2] or None)
                residue = made.addResidue(entry[0], chain, id=entry[1] or None)
                last = entry
            atoms.append(made.addAtom(name, elements[number], residue))
        parents.extend(atoms)
        shared = last[2] if single else None
        for (a, b), order in zip(molecule.bonds.tolist(), molecule.bond_orders.tolist(), strict=True):
            made.addBond(atoms[a], atoms[b], type=kinds.get(order), order=order)
    _add_site_atoms(system, made, parents)
    if system.box is not None:
        made.setPeriodicBoxVectors([Vec3(*row) for row in system.box.tolist()] * unit.nanometer)
    return made


def _add_site_atoms(system: System, made: openmm.app.Topology, atoms: list) -> None:
    if "VirtualSites" not in system.terms:
        return
    names = [name for u in system.topology.copies for name in system.topology.molecules[u].site_names]
    chain = residue = like = None
    used: set[str] = set()
    for name, (parent, *_) in zip(names, system.terms["VirtualSites"].atoms.tolist(), strict=True):
        owner = atoms[parent].residue
        if like is None or owner.chain is not like.chain:
            chain = made.addChain(id=owner.chain.id)
        if owner is not like:
            residue = made.addResidue(owner.name, chain, id=owner.id, insertionCode=owner.insertionCode)
            like, used = owner, set()
        numbered = (f"{name}{n}" for n in itertools.count(2))
        name = next(n for n in itertools.chain([name], numbered) if n not in used)
        used.add(name)
        made.addAtom(name, None, residue)


def _residues(molecule: Molecule) -> list[tuple[str, str, str]]:
    """(residue name, number, chain id) of every atom; empty text where unknown, but a name always."""
    default = "HOH" if _is_water(molecule) else molecule.name or "UNK"
    known = molecule.residues or (("", "", ""),) * molecule.n_atoms
    return [(name or default, number, chain) for name, number, chain in known]
