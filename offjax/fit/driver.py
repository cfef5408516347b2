"""The fit itself: read, parameterize, choose, iterate, write.

Everything runs in float64. After each iteration the log line and then the checkpoint are on the disk; Ctrl-C lets the
iteration finish first. A second Ctrl-C stops at once and costs at most that iteration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offjax.batch import SystemBatch
from offjax.errors import InputError, OffjaxError
from offjax.fit import distributed, metrics, network, optimizers, provenance, stopping, targets
from offjax.fit import free as free_parameters
from offjax.fit.checkpoint import Checkpoint, differences
from offjax.fit.config import DataSet, FitConfig, Objective, Relaxation
from offjax.fit.free import FreeParameters
from offjax.fit.network import Correction
from offjax.fit.objective import FitObjective
from offjax.fit.progress import Silent
from offjax.fit.result import FitResult, MoleculeResult
from offjax.fit.stopping import Kept
from offjax.fit.targets import CONFORMERS, Component, components
from offjax.interop import definitions, reading, torsiondrives
from offjax.interop.files import owner, remove_abandoned, write_atomically
from offjax.interop.records import Problem, Record
from offjax.md.neural import ElementNetwork
from offjax.system import System
from offjax.terms.user import UserTerm

SPLITS = ("train", "validation", "test")
"""What molecules are for: training, ending the fit, and neither (held out)."""

INTERRUPTED = "interrupted by Ctrl-C; continue with --resume"


def run(config: FitConfig, *, resume: bool = False, progress: Silent | None = None) -> FitResult:
    """Fit a force field and write the results to ``config.output.directory``.

    Parameters
    ----------
    config
        From :meth:`FitConfig.load`.
    resume
        Continue from the checkpoint in the output directory, exactly as if there had been no interruption. Only
        ``optimizer.max_iterations`` may have changed.
    progress
        See :mod:`offjax.fit.progress`.

    Raises
    ------
    InputError
        Data, parameters or a checkpoint that cannot be used; the message names file and key.
    OffjaxError
        What :meth:`System.from_smirnoff` raises for a molecule.
    """
    progress = Silent() if progress is None else progress
    try:
        with jax.enable_x64(True), contextlib.ExitStack() as stack:
            return _run(config, resume, progress, stack)
    finally:
        progress.close()


def _run(config: FitConfig, resume: bool, progress: Silent, stack: contextlib.ExitStack) -> FitResult:
    clock = time.perf_counter()
    directory = config.output.directory
    directory.mkdir(parents=True, exist_ok=True)
    folder = None
    if config.objective.parts is not None:
        remove_abandoned(directory, "parts-")
        place = tempfile.TemporaryDirectory(prefix=f"parts-{owner()}.", dir=directory, ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(place))
    data = prepare(config, progress, folder)
    optimizer = make_optimizer(config)
    objective = stack.enter_context(distributed.shared(config, data, progress))
    path = directory / "checkpoint.npz"
    stored = _stored(path, config, data.digest) if resume else None
    log = _Log(directory / "log.jsonl", data.header(config), stored)

    if data.free.left_out:
        progress.stage(
            f"{len(data.free.left_out)} chosen parameters are left out, most for lack of data; log.jsonl lists them"
        )
    if data.problems:
        rejected = sum(problem.kind == "rejected" for problem in data.problems)
        progress.stage(
            f"{rejected} records cannot be used, {len(data.problems) - rejected} remarks; log.jsonl lists them"
        )
    weights = len(objective) - len(data.free)
    also = f" and {weights} weights of a network" if weights else ""
    progress.stage(f"compiling the objective: {len(data.free)} parameters{also}, {data.n_conformers} conformers")
    x = jnp.zeros(len(objective))
    state = optimizer.init(objective, x)
    initial = objective.parts(x)
    stopped = None
    kept = Kept.first(x, None)
    if stored is None:
        log.add(data.entry(objective, optimizer.x(state), 0, None, time.perf_counter() - clock))
        objective.settle(optimizer.x(state))
        kept = Kept.first(optimizer.x(state), log.history[-1]["validation_loss"])
        checkpoint = (state, kept, objective.starts)
        Checkpoint.of(checkpoint, 0, config.canonical(), data.digest, log.history).save(path)
    else:
        state, kept, starts = stored.restore((state, kept, objective.starts), path)
        objective.starts = starts
        clock -= log.history[-1]["seconds"]
        stopped = log.history[-1]["stop"]
    progress.iteration(log.history[-1], config.optimizer.max_iterations)

    with _interruptible() as interrupt:
        while stopped is None:
            iteration = log.history[-1]["iteration"] + 1
            if interrupt.requested:
                stopped = INTERRUPTED
            elif kept.waited >= config.split.patience:
                stopped = f"the validation loss has not fallen for {config.split.patience} iterations"
            elif iteration > config.optimizer.max_iterations:
                stopped = f"max_iterations = {config.optimizer.max_iterations}"
            else:
                state, info = optimizer.step(objective, state)
                seconds = time.perf_counter() - clock
                log.add(data.entry(objective, optimizer.x(state), iteration, info, seconds))
                if info.accepted:
                    objective.settle(optimizer.x(state))
                    kept = kept.after(optimizer.x(state), log.history[-1]["validation_loss"])
                checkpoint = (state, kept, objective.starts)
                Checkpoint.of(checkpoint, iteration, config.canonical(), data.digest, log.history).save(path)
                progress.iteration(log.history[-1], config.optimizer.max_iterations)
                stopped = info.stop
        log.event("stop", reason=stopped, seconds=time.perf_counter() - clock)
        result = data.result(config, objective, kept.x, initial, log, stopped)
        result.write()
        if stopped != INTERRUPTED and isinstance(optimizer, optimizers.LevenbergMarquardt):  # others have no J^T J
            from offjax.fit import uncertainty

            known = state.hessian if np.array_equal(kept.x, optimizer.x(state)) else None
            uncertainty.from_gauss_newton(objective, kept.x, known).write(directory)
    return result


def make_optimizer(config: FitConfig) -> optimizers.Optimizer:
    """The optimiser that ``[optimizer]`` names."""
    o = config.optimizer
    if o.method == "levenberg-marquardt":
        return optimizers.LevenbergMarquardt(o.objective_tolerance, o.gradient_tolerance)
    if o.method == "l-bfgs":
        return optimizers.LBFGS(o.objective_tolerance, o.gradient_tolerance, o.history)
    return optimizers.Adam(o.learning_rate, o.objective_tolerance, o.gradient_tolerance)


# --- preparation ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Prepared:
    """Records and Systems in one order, the split and the free parameters.

    ``weights`` (molecule,) are those of the data sets, 0 for held-out molecules. ``components`` hold the data that are
    no energies. ``network`` is fitted too, if there is one. ``folder`` is where a fit in parts keeps its arrays.
    """

    records: list[Record]
    systems: list[System]
    train: np.ndarray
    validation: np.ndarray
    weights: np.ndarray
    free: FreeParameters
    batch: SystemBatch
    digest: str
    problems: list[Problem]
    weighting: Objective
    relaxation: Relaxation
    components: tuple[Component, ...] = ()
    network: ElementNetwork | None = None
    folder: Path | None = None

    @cached_property
    def targets(self) -> targets.Targets:
        """All molecules packed, with weight 0 those whose energies are not fitted."""
        with jax.enable_x64(True):
            return targets.build(
                self.batch, self.records, self.weights, self.weighting, self.relaxation, self.network is not None
            )

    @property
    def n_conformers(self) -> int:
        return sum(r.n_conformers for r in self.records)

    def objective(self, config: FitConfig) -> FitObjective:
        """The function to minimise."""

        def subset(members: np.ndarray, factor: float) -> tuple[Component, ...]:
            systems, records = ([own[m] for m in members] for own in (self.systems, self.records))
            return components.build(systems, records, factor * self.weights[members], config)

        return FitObjective(
            self.targets,
            self.free,
            config.objective.prior_weight,
            config.optimizer.minibatch,
            np.flatnonzero(self.train),
            config.optimizer.seed,
            self.components,
            subset,
            self.correction(config),
        )

    def correction(self, config: FitConfig) -> Correction | None:
        """What the network adds to all molecules, if there is one."""
        return Correction.of(self.network, self.systems, self.targets, config.network)

    def unpack(self, parts) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Energies (n,) and forces (n, atoms, 3) of each molecule."""
        if isinstance(parts.energies, list):
            return parts.energies, parts.forces
        batch, conformers = self.targets.batch, self.targets.conformers
        energies = [np.asarray(e) for e in batch.unpack(np.asarray(parts.energies), conformers)]
        return energies, [np.asarray(f) for f in batch.unpack(np.asarray(parts.forces), conformers)]

    @property
    def splits(self) -> list[str]:
        """One of SPLITS for each molecule."""
        return [
            "train" if train else "validation" if validation else "test"
            for train, validation in zip(self.train, self.validation, strict=True)
        ]

    def errors(self, parts) -> dict[str, dict[str, float | None]]:
        """RMSE of energies, forces and other quantities of the molecules of each of SPLITS."""
        energies, forces = self.unpack(parts)
        found: dict[str, dict[str, float | None]] = {}
        for split in SPLITS:
            members = [m for m, own in enumerate(self.splits) if own == split and self.records[m].kind in CONFORMERS]
            found[split] = {
                "energy_rmse": metrics.energy_rmse(
                    [energies[m] for m in members], [self.records[m].energies for m in members]
                ),
                "force_rmse": metrics.force_rmse(
                    [forces[m] for m in members], [self.records[m].forces for m in members]
                ),
            }
            for component, at in zip(self.components, parts.components, strict=True):
                chosen = self._chosen(component, split)
                for quantity, squares in at.errors.items():
                    found[split][f"{quantity}_rmse"] = metrics.root_mean(np.asarray(squares)[chosen])
        return found

    def _chosen(self, component: Component, split: str) -> np.ndarray:
        """Which records of a component belong to a split, (record,) bool."""
        return np.array([self.splits[m] == split for m in component.members])

    def _validation_loss(self, parts, errors) -> float | None:
        others = [
            float(np.mean(np.asarray(at.losses)[chosen]))
            for component, at in zip(self.components, parts.components, strict=True)
            if np.any(chosen := self._chosen(component, "validation"))
        ]
        return stopping.loss(errors, self.weighting, others)

    def _other_errors(self, parts) -> list[dict[str, float]]:
        """By molecule: the RMSE of each quantity of its component."""
        found: list[dict[str, float]] = [{} for _ in self.records]
        for component, at in zip(self.components, parts.components, strict=True):
            for quantity, squares in at.errors.items():
                for m, square in zip(component.members, np.asarray(squares), strict=True):
                    if np.isfinite(square):
                        found[m][quantity] = float(np.sqrt(square))
        return found

    def entry(self, objective: FitObjective, x, iteration: int, info, seconds: float) -> dict[str, Any]:
        """The log line of an iteration."""
        parts = objective.parts(x)
        errors = self.errors(parts)
        energy, force, prior = (float(p) for p in parts[:3])
        others = {c.kind: float(at.value) for c, at in zip(self.components, parts.components, strict=True)}
        if not np.isfinite(total := energy + force + prior + sum(others.values())):
            raise InputError(
                f"iteration {iteration}: the objective is not finite; bound the parameters that moved most"
            )
        return {
            "iteration": iteration,
            "objective": total,
            "energy_part": energy,
            "force_part": force,
            "prior_part": prior,
            **{f"{kind.replace('-', '_')}_part": value for kind, value in others.items()},
            **{f"{q}_{split}": value for split in SPLITS for q, value in errors[split].items()},
            "validation_loss": self._validation_loss(parts, errors["validation"]),
            "gradient": None if info is None else info.gradient,
            "step": None if info is None else info.step,
            "unconverged": parts.failures,
            "accepted": None if info is None else info.accepted,
            "stop": None if info is None else info.stop,
            "seconds": round(seconds, 3),
        }

    def header(self, config: FitConfig) -> dict[str, Any]:
        """The first line of the log, and the provenance of the result."""
        return {
            "date": provenance.date(),
            "command": provenance.command(),
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "config": str(config.source) if config.source else None,
            "config_digest": config.digest,
            "data_digest": self.digest,
            "force_field": [config.force_field] if isinstance(config.force_field, str) else config.force_field,
            "force_field_digest": self.free.selection.parameters.digest,
            "terms": [{"file": definitions.absolute(t), "sha256": definitions.sha256(t)} for t in config.terms],
            "charges": sorted({m for s in self.systems for m in s.charge_methods}),
            "data": [{"file": d.path.name, "sha256": provenance.sha256(d.path)} for d in config.data],
            **{
                split: [r.name for r, own in zip(self.records, self.splits, strict=True) if own == split]
                for split in SPLITS
            },
            "free": [str(label) for label in self.free.selection.labels],
            "left_out": [str(item) for item in self.free.left_out],
            "problems": [list(problem) for problem in self.problems],
        }

    def result(self, config: FitConfig, objective: FitObjective, x, initial, log: _Log, stopped: str) -> FitResult:
        """Before and after, molecule by molecule."""
        final = objective.parts(x)
        before, after = self.unpack(initial), self.unpack(final)
        others = self._other_errors(initial), self._other_errors(final)
        molecules = [
            MoleculeResult(
                name=record.name,
                smiles=record.smiles,
                inchikey=record.inchikey,
                split=self.splits[m],
                system=self.systems[m],
                positions=record.positions,
                energies_qm=metrics.centred(record.energies),
                energies_initial=metrics.centred(before[0][m]),
                energies_fitted=metrics.centred(after[0][m]),
                forces_qm=record.forces,
                forces_initial=before[1][m],
                forces_fitted=after[1][m],
                driven=record.driven,
                kind=record.kind,
                errors_initial=others[0][m],
                errors_fitted=others[1][m],
            )
            for m, record in enumerate(self.records)
        ]
        errors = {"initial": self.errors(initial), "fitted": self.errors(final)}
        table = {
            split: {f"{q}_{when}": errors[when][split][q] for q in errors["initial"][split] for when in errors}
            for split in SPLITS
        }
        return FitResult(
            config=config,
            initial=self.free.selection.parameters,
            fitted=self.free.selection.insert(objective.theta(x)),
            free=self.free,
            history=log.history,
            stopped=stopped,
            interrupted=stopped == INTERRUPTED,
            molecules=molecules,
            metrics=table,
            provenance=log.header | {"seconds": log.history[-1]["seconds"]},
            directory=config.output.directory,
            network=objective.network(x),
        )


def prepare(config: FitConfig, progress: Silent | None = None, folder: Path | None = None) -> Prepared:
    """Read the data, parameterize each molecule, split and choose the free parameters.

    With a ``folder`` positions and forces lie in files there, and only what is used of them in memory.
    """
    progress = Silent() if progress is None else progress
    progress.stage("reading reference data")
    records, weights, problems = [], [], []
    for data in config.data:
        found = reading.read(
            data.path,
            data.format,
            include=data.include,
            exclude=data.exclude,
            forces=data.kind == "energies" and config.objective.force_weight > 0,
            strict=data.on_error == "raise",
            molecule=data.molecule,
            sign=data.sign,
            check_units=data.check_units,
            folder=folder,
        )
        problems += found.problems
        chosen = _points(found.records, data, problems)
        records += chosen
        weights += [data.weight] * len(chosen)
    if not records:
        raise InputError(f"{config.source}: no record can be used; {len(problems)} problems, the first: {problems[0]}")
    terms = definitions.read(config.terms)
    systems = parameterize(records, config.force_field, config.charges.method, config.flexible, progress, terms)
    tied = free_parameters.tying(config, systems[0].parameters, systems[0].source)
    known = {id(system): tied.system(system) for system in systems}
    systems = [known[id(system)] for system in systems]
    folds = np.array([fold(r.inchikey, config.split.folds) for r in records])
    validation = folds == config.split.validation_fold
    train = (folds != config.split.holdout_fold) & ~validation
    if not train.any():
        also = "" if config.split.validation_fold is None else f" (validation_fold = {config.split.validation_fold})"
        raise InputError(
            f"{config.source}: split.holdout_fold = {config.split.holdout_fold} leaves no training molecule{also}"
        )
    if config.split.validation_fold is not None and not validation.any():
        raise InputError(f"{config.source}: split.validation_fold = {config.split.validation_fold} has no molecule")
    names = [r.inchikey for r, t in zip(records, train, strict=True) if t]
    free = free_parameters.choose(config, [s for s, t in zip(systems, train, strict=True) if t], names)
    batch = SystemBatch.from_systems(systems)
    factors = np.where(train, weights, 0.0)
    others = components.build(systems, records, factors, config)
    digest = _digest(records, systems, train, tied.digest)
    start = None
    if config.network is not None:
        start = network.create(config.network, records, systems, train)
        digest = hashlib.sha256(f"{digest} {network.digest(start)}".encode()).hexdigest()
        _unseen(systems, train, progress)
    return Prepared(
        records,
        systems,
        train,
        validation,
        factors,
        free,
        batch,
        digest,
        problems,
        config.objective,
        config.relaxation,
        others,
        start,
        folder,
    )


def _unseen(systems: Sequence[System], train: np.ndarray, progress: Silent) -> None:
    """Say which elements a network cannot learn."""
    from openff.units.elements import SYMBOLS

    found: dict[bool, set[str]] = {True: set(), False: set()}
    for system, own in zip(systems, train, strict=True):
        found[bool(own)] |= {SYMBOLS[z] for z in system.topology.atomic_numbers}
    if unseen := sorted(found[False] - found[True]):
        progress.stage(f"no training molecule has {', '.join(unseen)}: the network knows nothing of these elements")


def _points(records: Sequence[Record], data: DataSet, problems: list[Problem]) -> list[Record]:
    """What a data set's ``kind`` makes of its records: geometries as they are, or torsion drives one by one.

    The forces of a drive, if any, are not those of free minima and are left alone, as are those of other kinds.
    """
    chosen = []
    for record in records:
        try:
            components.check(record, data.kind)
            if data.kind == "energies":
                found = [replace(record, driven=())]
            elif data.kind == "torsion-profiles":
                drives = [record] if record.driven else torsiondrives.drives(record)
                found = [replace(drive, forces=None, kind=data.kind) for drive in drives]
            else:
                found = [replace(record, driven=(), forces=None, kind=data.kind)]
        except InputError as error:
            if data.on_error == "raise":
                raise
            problems.append(Problem(record.source, record.name, "rejected", str(error)))
            continue
        chosen += found
    return chosen


def fold(inchikey: str, folds: int) -> int:
    """sha256(InChIKey) mod folds: the same on every machine and for every order of the data.

    >>> fold("LFQSCWFLJHTTHZ-UHFFFAOYSA-N", 4)
    2
    """
    return int(hashlib.sha256(inchikey.encode()).hexdigest(), 16) % folds


def parameterize(
    records: Sequence[Record],
    files,
    charges: str = "force-field",
    flexible: bool = True,
    progress: Silent | None = None,
    user_terms: Sequence[UserTerm] = (),
) -> list[System]:
    """A System for each record, one for all that have the same SMILES.

    Parameters
    ----------
    records
        Reference data.
    files
        What :meth:`offjax.System.from_smirnoff` takes as a force field.
    charges
        ``"force-field"``, or the charge method of ``[charges]``.
    flexible
        Without constraints, but for those of rigid water.
    progress
        See :mod:`offjax.fit.progress`.
    user_terms
        Definitions of sections that SMIRNOFF does not have.

    Raises
    ------
    OffjaxError
        What :meth:`offjax.System.from_smirnoff` raises, with the name of the record.
    """
    from openff.toolkit import Quantity

    from offjax.parameterize import forcefield
    from offjax.parameterize.charges import ahead, compute

    progress = Silent() if progress is None else progress
    force_field = forcefield.load(files, forcefield.check_terms(user_terms))
    distinct = {record.smiles: record for record in records}.values()
    source = force_field if charges == "force-field" else charges
    ahead(
        (m for r in distinct for m in r.molecules()), source, partial(progress.stage, "AM1 charges"), progress.advance
    )
    progress.stage("typing and charges", len(records))
    systems: list[System] = []
    known: dict[str, System] = {}
    for record in records:
        if record.smiles in known:
            systems.append(known[record.smiles])
            progress.advance(record.name)
            continue
        parts = record.molecules()
        given = None if charges == "force-field" else parts
        try:
            for part in given or ():
                part.partial_charges = Quantity(compute(part, charges), "elementary_charge")
            system = System.from_smirnoff(force_field, parts, charge_from_molecules=given, user_terms=user_terms)
        except OffjaxError as error:
            raise type(error)(f"{record.source}, group {record.name!r}: {error}") from error
        if systems:  # one force field: its text is kept once
            system = replace(system, offxml=systems[0].offxml)
        known[record.smiles] = system.without_constraints() if flexible else system
        systems.append(known[record.smiles])
        progress.advance(record.name)
    return systems


def _digest(records: Sequence[Record], systems: Sequence[System], train: np.ndarray, ties: str) -> str:
    """SHA-256 over reference data, force field, charges, split and ties: all of the data that decides a result."""
    digest = hashlib.sha256(train.tobytes() + ties.encode())
    digest.update("".join(sorted({system.source for system in systems})).encode())  # periodicities, scales, cutoffs too
    for record, system in zip(records, systems, strict=True):
        digest.update(record.digest.encode())
        digest.update(system.digest.encode())
        if "Electrostatics" in system.assignment:
            digest.update(system.assignment["Electrostatics"]["charge"].offset.tobytes())
    return digest.hexdigest()


# --- log, checkpoint, interruption ------------------------------------------------------------------------------


class _Log:
    """``log.jsonl``: one JSON object a line, each with its ``event``; rewritten from the checkpoint on resume."""

    def __init__(self, path: Path, header: dict[str, Any], stored: Checkpoint | None):
        self.path, self.header = path, header
        self.history: list[dict[str, Any]] = [] if stored is None else list(stored.history)
        first = "start" if stored is None else "resume"
        lines = [{"event": first, **header}, *({"event": "iteration", **entry} for entry in self.history)]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def add(self, entry: dict[str, Any]) -> None:
        """Append an iteration."""
        self.history.append(entry)
        self.event("iteration", **entry)

    def event(self, event: str, **content: Any) -> None:
        """Append a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **content}) + "\n")


def _stored(path: Path, config: FitConfig, data: str) -> Checkpoint:
    stored = Checkpoint.load(path)
    if changed := differences(stored.config, config.canonical()):
        raise InputError(
            f"{path}: the configuration changed since the checkpoint: {'; '.join(changed)}. Restore it to resume, "
            "or run without --resume to start again"
        )
    if stored.data != data:
        raise InputError(
            f"{path}: the reference data, force field or charges changed since the checkpoint; run without --resume to "
            "start again"
        )
    return stored


class _Interrupt:
    requested = False


@contextlib.contextmanager
def _interruptible():
    """Within, the first Ctrl-C only sets ``requested``; the second raises KeyboardInterrupt. Main thread only."""
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return

    def request(number, frame):
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True

    before = signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
