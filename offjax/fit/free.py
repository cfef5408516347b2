"""Which force-field parameters a fit varies, with their priors, scales and bounds.

An entry is free when a ``[[parameters]]`` block chooses it, the training molecules use it often enough, and its
derivative exists. Whatever a block chooses and a fit leaves out is kept with the reason, never dropped silently.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offjax.errors import InputError
from offjax.fit import ties
from offjax.fit.config import FitConfig, Parameters
from offjax.fit.targets.internal import STRAIGHT
from offjax.fit.ties import TiedSelection, Ties
from offjax.parameterize import forcefield
from offjax.parameters import Label, ParameterSet, Selection
from offjax.system import System

NON_NEGATIVE = {
    ("Bonds", "k"),
    ("Bonds", "length"),
    ("Angles", "k"),
    ("Angles", "angle"),
    ("vdW", "epsilon"),
    ("vdW", "sigma"),
    ("vdW", "rmin_half"),
    ("VirtualSites", "epsilon"),
    ("VirtualSites", "sigma"),
    ("VirtualSites", "rmin_half"),
}
"""Entries with the physical lower bound 0; the upper bound of ``Angles/angle`` is pi."""

LOGARITHMIC = {("Bonds", "k"), ("Angles", "k"), ("vdW", "epsilon"), ("VirtualSites", "epsilon")}
"""Entries that may have the transform log."""

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class LeftOut:
    """An entry that a block chose and the fit does not vary."""

    label: Label
    reason: str

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}"


@dataclass(frozen=True, eq=False)
class FreeParameters:
    """The free entries, in vector order; every array has shape (n,) and MD units.

    ``widths`` are the standard deviations of the Gaussian priors around the loaded values (inf: no prior), ``scales``
    the units of the optimiser's variables x = (theta - theta0) / scale. ``log`` (bool) are the entries that vary
    exponentially, x = theta0 / scale ln(theta / theta0), ``l1`` those whose prior is of that form. ``instances`` and
    ``molecules`` count the use in the training set.
    """

    selection: Selection
    widths: np.ndarray
    scales: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    log: np.ndarray
    l1: np.ndarray
    instances: np.ndarray
    molecules: np.ndarray
    left_out: tuple[LeftOut, ...]

    def __len__(self) -> int:
        return len(self.selection)

    def theta(self, x) -> np.ndarray:
        """The values at x, MD units; exactly the loaded ones at x = 0."""
        start, x = np.asarray(self.selection.to_vector()), np.asarray(x, dtype=np.float64)
        safe = np.where(self.log, start, 1.0)
        return np.where(
            self.log, start * np.exp(np.where(self.log, self.scales * x / safe, 0.0)), start + self.scales * x
        )

    def x(self, theta) -> np.ndarray:
        """The scaled variables of values in MD units; -inf for 0 with the transform log."""
        start, theta = np.asarray(self.selection.to_vector()), np.asarray(theta, dtype=np.float64)
        ratio = np.where(self.log, theta / np.where(self.log, start, 1.0), 1.0)
        with np.errstate(divide="ignore"):
            return np.where(self.log, start * np.log(np.maximum(ratio, 0.0)), theta - start) / self.scales

    def factors(self, x) -> np.ndarray:
        """d(theta)/dx, MD units."""
        start = np.asarray(self.selection.to_vector())
        return self.scales * np.where(self.log, self.theta(x) / np.where(self.log, start, 1.0), 1.0)


def coverage(systems: Sequence[System], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """How many instances, and how many molecules, use each entry of the parameter vector: two (n_parameters,) arrays.

    ``names`` (InChIKeys) tell which Systems are of one molecule: that of several torsion drives counts once, each of
    its instances in every drive. Slots without energy (a bond replaced by a constraint) do not count, nor do
    constraint distances.
    """
    size = systems[0].parameters.schema.size
    instances = np.zeros(size, dtype=np.int64)
    used: dict[str, np.ndarray] = {name: np.zeros(size, dtype=bool) for name in names}
    for system, name in zip(systems, names, strict=True):
        counts = np.zeros(size, dtype=np.int64)
        for section, attributes in system.assignment.items():
            if section == "Constraints":
                continue
            term = system.terms[section]
            copies = np.bincount(term.slot, minlength=term.n_slots) * system.active[section]
            for matrix in attributes.values():
                nonzero = matrix.values != 0
                np.add.at(counts, matrix.columns[nonzero], copies[matrix.rows[nonzero]])
        instances += counts
        used[name] |= counts > 0
    return instances, np.stack([*used.values()]).astype(np.int64).sum(axis=0)


def about_straight_angles(systems: Sequence[System]) -> np.ndarray:
    """Entries of the parameter vector that act on torsions about straight angles only, (n_parameters,) bool.

    Close to the straight angle the forces of such a torsion go with 1 / sin(angle), and at a minimum that has it the
    derivatives are infinite. Which angles are straight is what the force field says.
    """
    size = systems[0].parameters.schema.size
    bent, used = np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    for system in systems:
        if "Angles" not in system.terms or "ProperTorsions" not in system.terms:
            continue
        angles, torsions = system.terms["Angles"], system.terms["ProperTorsions"]
        values = np.asarray(system.slots(system.parameters)["Angles"]["angle"])[angles.slot]
        atoms = np.asarray(angles.atoms)[values > STRAIGHT]
        known = {tuple(own) for own in atoms.tolist()} | {tuple(own[::-1]) for own in atoms.tolist()}
        hit = [tuple(t[:3]) in known or tuple(t[1:]) in known for t in np.asarray(torsions.atoms).tolist()]
        of = np.bincount(torsions.slot[~np.array(hit, dtype=bool)], minlength=torsions.n_slots) > 0
        for matrix in system.assignment["ProperTorsions"].values():
            nonzero = matrix.values != 0
            used[matrix.columns[nonzero]] = True
            bent[matrix.columns[nonzero & of[matrix.rows]]] = True
    return used & ~bent


def needs_forces(config: FitConfig) -> bool:
    """Whether a fit compares forces or minima, beside energies and potentials of geometries as they are."""
    kinds = {data.kind for data in config.data}
    forces = "energies" in kinds and config.objective.force_weight > 0
    return forces or not kinds <= {"energies", "interaction-energies", "electrostatic-potentials"}


def choose(config: FitConfig, training: Sequence[System], names: Sequence[str]) -> FreeParameters:
    """Apply the ``[[parameters]]`` blocks to the force field of the training Systems.

    Parameters
    ----------
    config
        The configuration.
    training
        A System for each training record.
    names
        The InChIKey of each, which tells the molecules apart.

    Raises
    ------
    InputError
        A path, pattern or tag that chooses nothing, a named entry whose derivative is one-sided, a starting value
        outside its bounds, a relative width of a value 0, or no free entry at all.
    """
    parameters = training[0].parameters
    instances, molecules = coverage(training, names)
    straight = about_straight_angles(training) & needs_forces(config)
    start = np.asarray(parameters.to_vector())
    flat = parameters.schema.flat
    tagged = any(block.tagged for block in config.parameters)
    tags = forcefield.tags(training[0].source) if tagged else {}
    tied = tying(config, parameters, training[0].source)
    free: dict[int, tuple[float, float, float, float, bool, bool]] = {}
    left_out: dict[int, LeftOut] = {}
    for number, block in enumerate(config.parameters, start=1):
        where = f"{config.source or 'configuration'}: parameters[{number}]"
        try:
            chosen = parameters.select(block.path, block.patterns)
        except InputError as error:
            key = "patterns" if "neither an id nor a SMIRKS" in str(error) else "path"
            raise InputError(f"{where}.{key}: {error}") from None
        indices = [int(i) for i in chosen.indices]
        if block.tagged:
            indices = [i for i in indices if flat[i].key in tags.get((flat[i].section, flat[i].row), ((),))[0]]
            if not indices:
                raise InputError(
                    f"{where}.tagged: no parameterize attribute of the force field names a value of {block.path} that "
                    "the block chooses"
                )
        for i in indices:
            label = flat[i]
            free.pop(i, None)
            left_out.pop(i, None)
            if singular(label) and not block.allow_singular:
                if _named(block, label):
                    raise InputError(
                        f"{where}.patterns: {label} is {label.loaded / label.factor:g} {label.unit}, where the "
                        "derivative is one-sided: it is not fitted unless the block says allow_singular = true"
                    )
                left_out[i] = LeftOut(label, "one-sided derivative (allow_singular = false)")
            elif straight[i] and not block.allow_singular:
                reason = "torsions about straight angles only, where the derivatives of forces and minima have no bound"
                if _named(block, label):
                    raise InputError(
                        f"{where}.patterns: {label} acts on {reason}: it is not fitted unless the block says "
                        "allow_singular = true"
                    )
                left_out[i] = LeftOut(label, f"{reason} (allow_singular = false)")
            elif i in tied.rows:
                left_out[i] = LeftOut(label, "follows others by parameter_eval")
            elif instances[i] == 0:
                left_out[i] = LeftOut(label, "no training molecule uses it")
            elif instances[i] < block.min_count:
                left_out[i] = LeftOut(label, f"{instances[i]} training instances, min_count = {block.min_count}")
            elif molecules[i] < block.min_molecules:
                left_out[i] = LeftOut(
                    label, f"{molecules[i]} training molecules, min_molecules = {block.min_molecules}"
                )
            else:
                free[i] = _numbers(block, label, float(start[i]), where)
    if not free and (config.parameters or config.network is None):
        raise InputError(
            f"{config.source or 'configuration'}: parameters: the blocks choose {len(left_out)} entries and none can "
            f"be fitted; the first: {next(iter(left_out.values()), 'none chosen')}"
        )
    indices = np.array(sorted(free), dtype=np.int64)
    numbers = np.array([free[i][:4] for i in indices]).reshape(-1, 4)
    return FreeParameters(
        TiedSelection(parameters, indices, tied) if tied else Selection(parameters, indices),
        *numbers.T,
        log=np.array([free[i][4] for i in indices], dtype=bool),
        l1=np.array([free[i][5] for i in indices], dtype=bool),
        instances=instances[indices],
        molecules=molecules[indices],
        left_out=tuple(left_out[i] for i in sorted(left_out)),
    )


def tying(config: FitConfig, parameters: ParameterSet, source: str) -> Ties:
    """The ties that ForceBalance's ``parameter_eval`` makes, if a block goes by its tags; else none."""
    if not any(block.tagged for block in config.parameters):
        return Ties.none(parameters)
    return ties.find(parameters, source, config.force_field)


def singular(label: Label) -> bool:
    """Whether the energy has no two-sided derivative at the loaded value."""
    if label.section in ("vdW", "VirtualSites") and label.attribute in ("epsilon", "sigma", "rmin_half"):
        return label.loaded == 0.0
    return (label.section, label.attribute) == ("Angles", "angle") and abs(label.loaded - math.pi) < 1e-6


def _named(block: Parameters, label: Label) -> bool:
    """Whether a pattern names just this entry, not by a wildcard."""
    names = (label.id, label.smirks, f"{label.id}:{label.key}")
    return any(p in names and (p == label.smirks or not _WILDCARDS & set(p)) for p in block.patterns or ())


def _numbers(block: Parameters, label: Label, value: float, where: str):
    """(width, scale, lower, upper) in MD units, and whether the transform is log and the prior l1."""
    width = _absolute(block.prior, label, value, f"{where}.prior")
    scale = width if block.scale is None else _absolute(block.scale, label, value, f"{where}.scale")
    lower, upper = -math.inf, math.inf
    if (label.section, label.attribute) in NON_NEGATIVE:
        lower = 0.0
    if (label.section, label.attribute) == ("Angles", "angle"):
        upper = math.pi
    if block.lower is not None:
        lower = block.lower * label.factor
    if block.upper is not None:
        upper = block.upper * label.factor
    if not lower <= value <= upper:
        raise InputError(
            f"{where}: {label} starts at {value / label.factor:g} {label.unit}, outside its bounds "
            f"[{lower / label.factor:g}, {upper / label.factor:g}]"
        )
    log = block.transform == "log"
    if log and ((label.section, label.attribute) not in LOGARITHMIC or not value > 0):
        raise InputError(
            f'{where}.transform: {label} is {value / label.factor:g} {label.unit}: "log" is for positive k of Bonds '
            "and Angles and positive epsilon; other values may change their sign, or are lengths and angles"
        )
    return width, scale, lower, upper, log, block.prior_form == "l1"


def _absolute(width: float | str, label: Label, value: float, where: str) -> float:
    if isinstance(width, float):
        return width * label.factor
    absolute = abs(value) * float(width.rstrip("%")) / 100.0
    if absolute == 0.0:
        raise InputError(f"{where}: {width} of {label} = 0 is 0: give the width in {label.unit}")
    return absolute
