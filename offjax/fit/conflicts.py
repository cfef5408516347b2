"""Which parameters are pulled opposite ways by the places where they act, and the SMARTS that would tell these apart.

Give every slot s where a parameter acts a correction of its own, phi_s = (A theta + b)_s + d_s. The derivative of the
objective in d_s at d = 0 tells what the slot contributes to the gradient,

    g_sj = A_sj scale_j df/dd_s ,      df/dx_j = sum_s g_sj + p_j^2 x_j ,

and -g_sj is its *pull*: positive where the objective wants the parameter to rise. At the end of a fit the pulls add up
to that of the prior, although each may be large: pulls of both signs are a conflict, which one parameter cannot
resolve. A split gives the places S of a child SMIRKS parameters of their own. In the quadratic model with the
Gauss-Newton matrix H and gradient g, with y the difference of the child's x from the parent's and z = (x, y),

    f(z) ~ f + g.z + 1/2 z.H z,    g_y = sum_(s in S) g_s + p^2 x,    H_xy = J_x^T J_S + p^2,    H_yy = J_S^T J_S + p^2

(p^2 is the prior's precision: the child has the parent's prior, around the same value; an l1 prior enters with the
slope and curvature that it has at x). The *expected gain* is what its
minimum lies below f, less what the minimum without y does: what a refit of everything should bring. To rank the
candidates, the same without the other parameters and with J_S^T J_S = H_jj sum_(s in S) A_sj^2 / sum_s A_sj^2 is used;
the best ones are then computed in full.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from offjax.assignment import AssignmentMatrix
from offjax.batch import SystemBatch
from offjax.fit import optimizers, targets
from offjax.fit.config import FitConfig
from offjax.fit.driver import Prepared
from offjax.fit.end_point import end_point
from offjax.fit.environments import SECTIONS, Environments, Place, place
from offjax.fit.objective import FitData, compiled, value_and_gradient
from offjax.fit.targets import components
from offjax.interop.files import write_atomically
from offjax.parameters import Label, ParameterSet, Schema
from offjax.system import System

EVALUATED = 2
"""How many candidates of one parameter have their expected gain computed in full."""


@dataclass(frozen=True, eq=False)
class Pull:
    """The pulls of all places on one free entry: minus the derivative of the objective in x.

    The unit of x is the scale of the entry, by default its prior width. ``up`` and ``down`` are the sums of the
    positive and of the negative pulls, ``cancelled`` is 1 - |up + down| / (up - down): 0 all agree, 1 they cancel.
    ``places`` are (molecule, atoms, pull), the strongest first.
    """

    label: Label
    up: float
    down: float
    places: tuple[tuple[str, tuple[int, ...], float], ...]

    @property
    def cancelled(self) -> float:
        total = self.up - self.down
        return 1.0 - abs(self.up + self.down) / total if total else 0.0


@dataclass(frozen=True, eq=False)
class Split:
    """A proposal: ``child`` is the SMIRKS for a new parameter right after ``smirks``.

    ``labels`` are the free entries of the parent, ``pull_parent`` and ``pull_child`` their pulls on the two sides of
    the split, ``change_parent`` and ``change_child`` where the quadratic model sees both, from the start, in MD units.
    ``molecules`` are those of the child, each by the name of its first record.
    ``gain`` is by how much the objective should fall beyond what the fit without the split can reach.
    """

    section: str
    id: str | None
    smirks: str
    child: str
    n_places: int
    n_child: int
    molecules: tuple[str, ...]
    labels: tuple[Label, ...]
    pull_parent: np.ndarray
    pull_child: np.ndarray
    change_parent: np.ndarray
    change_child: np.ndarray
    gain: float


@dataclass(frozen=True, eq=False)
class Conflicts:
    """``pulls`` (the largest conflict first), ``splits`` (the largest expected gain first), the ``objective``, what it
    could still fall without a split, and the entries that have no SMIRKS to split (``left_out``)."""

    pulls: list[Pull]
    splits: list[Split]
    objective: float
    unsplit_gain: float
    left_out: list[Label]

    def table(self):
        """A pandas table of the pulls, one row a free entry."""
        import pandas as pd

        rows = [
            {
                "section": p.label.section,
                "attribute": p.label.key,
                "id": p.label.id,
                "smirks": p.label.smirks,
                "places": len(p.places),
                "up": p.up,
                "down": p.down,
                "cancelled": p.cancelled,
            }
            for p in self.pulls
        ]
        return pd.DataFrame(rows, columns=["section", "attribute", "id", "smirks", "places", "up", "down", "cancelled"])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, values in the units of the force field."""
        return {
            "objective": self.objective,
            "unsplit_gain": self.unsplit_gain,
            "splits": [_plain(split) for split in self.splits],
            "pulls": [
                {"parameter": str(p.label), "up": p.up, "down": p.down, "cancelled": p.cancelled, "places": p.places}
                for p in self.pulls
            ],
            "left_out": [str(label) for label in self.left_out],
        }

    def write(self, path) -> None:
        """Write :meth:`to_dict` as JSON; the file is whole or not there."""
        write_atomically(path, (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    def __repr__(self) -> str:
        return f"Conflicts of {len(self.pulls)} parameters, {len(self.splits)} splits proposed"


def _plain(split: Split) -> dict[str, Any]:
    factor = np.array([label.factor for label in split.labels])
    loaded = np.array([label.loaded for label in split.labels])
    return {
        "section": split.section,
        "id": split.id,
        "smirks": split.smirks,
        "child": split.child,
        "places": split.n_places,
        "places_of_child": split.n_child,
        "molecules_of_child": list(split.molecules),
        "expected_gain": split.gain,
        "entries": [
            {"attribute": label.key, "unit": label.unit, "loaded": start, "pull_parent": a, "pull_child": b}
            | {"expected_parent": p, "expected_child": c}
            for label, start, a, b, p, c in zip(
                split.labels,
                (loaded / factor).tolist(),
                split.pull_parent.tolist(),
                split.pull_child.tolist(),
                ((loaded + split.change_parent) / factor).tolist(),
                ((loaded + split.change_child) / factor).tolist(),
                strict=True,
            )
        ],
    }


# --- every slot a correction of its own ------------------------------------------------------------------------------


class Slot(NamedTuple):
    """One free entry (its position among them) in one slot: the number of the slot's correction, the entry's weight."""

    entry: int
    correction: int
    weight: float
    place: Place


class Site(NamedTuple):
    """A slot: molecule, section, attribute and its row there."""

    molecule: int
    section: str
    attribute: str
    row: int


def _slots(systems: Sequence[System], chosen: np.ndarray, free: np.ndarray) -> tuple[list[Slot], list[Site]]:
    """The Slots of the chosen Systems that free entries have a part in, and the Site of every correction."""
    old = systems[0].parameters.schema
    position = {int(column): n for n, column in enumerate(free)}
    of_section = np.array([old.flat[column].section for column in free])
    slots: list[Slot] = []
    sites: list[Site] = []
    for m, system in enumerate(systems):
        for section in (s for s in SECTIONS if s in system.terms and chosen[m]):
            term, mine = system.terms[section], free[of_section == section]
            first = np.unique(term.slot, return_index=True)[1]  # of each slot's instances
            for attribute, matrix in system.assignment[section].items():
                used = np.isin(matrix.columns, mine) & (matrix.values != 0) & system.active[section][matrix.rows]
                own, count = np.unique(matrix.rows[used]), len(sites)
                for r, c, v in zip(matrix.rows[used], matrix.columns[used], matrix.values[used], strict=True):
                    where = place(section, m, term.atoms[first[r]])
                    slots.append(Slot(position[int(c)], count + int(np.searchsorted(own, r)), float(v), where))
                sites += [Site(m, section, attribute, int(r)) for r in own]
    return slots, sites


def _extended(systems: Sequence[System], added: Sequence[Sequence[tuple[Site, float]]]):
    """The Systems with one more parameter, 0 at first, for each of ``added``, and their ParameterSet, where these stand
    after everything else. ``added`` are the slots that a parameter shifts, each by it times a weight.
    """
    old = systems[0].parameters.schema
    names = [Label("Slots", "value", n, None, None, None, None, None, "", 1.0, 0.0) for n in range(len(added))]
    schema = Schema({**{s: dict(d) for s, d in old.labels.items()}, "Slots": {"value": names}})
    parameters = ParameterSet.loaded(schema)
    entries: list[dict[tuple[str, str], list[tuple[int, int, float]]]] = [defaultdict(list) for _ in systems]
    for n, shifts in enumerate(added):
        for site, weight in shifts:
            entries[site.molecule][site.section, site.attribute].append((site.row, old.size + n, weight))
    return [_shifted(s, e, parameters) for s, e in zip(systems, entries, strict=True)], parameters


def _shifted(system: System, entries, parameters: ParameterSet) -> System:
    assignment = {}
    for section, attributes in system.assignment.items():
        matrices = {}
        for attribute, m in attributes.items():
            own = entries.get((section, attribute), [])
            rows, columns, values = zip(*own, strict=True) if own else ((), (), ())
            all_rows = np.concatenate([m.rows, np.array(rows, dtype=np.int64)])
            all_columns = np.concatenate([m.columns, np.array(columns, dtype=np.int64)])
            all_values = np.concatenate([m.values, np.array(values, dtype=float)])
            order = np.lexsort((all_columns, all_rows))
            matrices[attribute] = AssignmentMatrix(
                parameters.schema, all_rows[order], all_columns[order], all_values[order], m.offset
            )
        assignment[section] = MappingProxyType(matrices)
    return replace(system, parameters=parameters, assignment=MappingProxyType(assignment))


class Proposal(NamedTuple):
    """A split to be judged: the free ``entries`` of one parameter, its ``slots``, and those that ``child`` takes."""

    entries: list[int]
    slots: np.ndarray
    child: str
    taken: np.ndarray


# --- the analysis ---------------------------------------------------------------------------------------------------


class _Model:
    """The quadratic model of the objective in x and in the corrections of the slots."""

    def __init__(self, data: Prepared, config: FitConfig, x):
        objective = data.objective(config)
        free = objective.free
        self.prepared, self.config, self.objective = data, config, objective
        self.free, self.x, self.n = free, np.asarray(x), len(free)
        objective.settle(jnp.asarray(self.x))
        self.slots, self.sites = _slots(data.systems, data.train, free.selection.indices)
        value, gradient = jax.device_get(
            compiled(value_and_gradient)(*self._with([[(site, 1.0)] for site in self.sites]))
        )
        self.value, self.gradient, by_slot = float(value), gradient[: self.n], gradient[self.n :]
        self.hessian = np.asarray(objective.gauss_newton(jnp.asarray(self.x))[2])
        residual, slope = (np.asarray(v) for v in objective.data.priors(jnp.asarray(self.x)))
        self.penalty, self.prior_slope, self.precision = 0.5 * residual**2, residual * slope, slope**2
        self.factors = free.factors(self.x)
        self.slopes = np.array([by_slot[s.correction] * s.weight * self.factors[s.entry] for s in self.slots])
        held = optimizers.held(self.x, self.gradient, objective.lower, objective.upper)
        self.moves = ~np.asarray(held)
        self.unsplit_gain = self._fall(self.gradient, self.hessian, self.moves)[0]

    def _with(self, added: Sequence[Sequence[tuple[Site, float]]]) -> tuple[Float[jax.Array, " n"], FitData]:
        """x with zeros behind it, and the data of :func:`_extended` Systems, from the same minima."""
        systems, parameters = _extended(self.prepared.systems, added)
        before, records, weights = self.objective.data, self.prepared.records, self.prepared.weights
        size, k = parameters.schema.size - len(added), len(added)
        packed = targets.build(
            SystemBatch.from_systems(systems), records, weights, self.config.objective, self.config.relaxation
        )
        data = FitData(
            packed,
            jax.tree.map(jnp.asarray, parameters),
            indices=jnp.concatenate([before.indices, size + jnp.arange(k)]),
            scales=jnp.concatenate([before.scales, jnp.ones(k)]),
            prior=jnp.concatenate([before.prior, jnp.zeros(k)]),
            log=jnp.concatenate([before.log, jnp.zeros(k, bool)]),
            corner=jnp.concatenate([before.corner, jnp.zeros(k)]),
            components=components.build(systems, records, weights, self.config),
        )
        return jnp.concatenate([jnp.asarray(self.x), jnp.zeros(k)]), data.begin(before.starts)

    @staticmethod
    def _fall(gradient, hessian, moves) -> tuple[float, np.ndarray]:
        """By how much the quadratic model falls, and the step, among the variables that are not held at a bound."""
        step = np.zeros(len(gradient))
        inner = hessian[np.ix_(moves, moves)]
        step[moves] = -np.linalg.lstsq(inner, gradient[moves], rcond=1e-12)[0]
        return float(-0.5 * gradient @ step), step

    def rank(self, entries: Sequence[int], chosen: np.ndarray, taken: np.ndarray) -> float:
        """A cheap guess of the expected gain; ``chosen`` are the parameter's slots, ``taken`` the child's."""
        total = 0.0
        for j in entries:
            p, q = self.precision[j], self.prior_slope[j]
            own = chosen[[self.slots[s].entry == j for s in chosen]]
            share = np.array([self.slots[s].weight ** 2 for s in own])
            child = np.isin(own, taken)
            part, pull = float(share[child].sum() / share.sum()), self.slopes[own]
            curvature = max(self.hessian[j, j] - p, 0.0)

            def fall(slope, curvature, p=p, q=q):
                return 0.5 * (slope + q) ** 2 / max(curvature + p, np.finfo(float).tiny)

            total += fall(pull[child].sum(), part * curvature) + fall(pull[~child].sum(), (1 - part) * curvature)
            total -= fall(pull.sum(), curvature) + self.penalty[j]
        return total

    def gains(self, proposals: Sequence[Proposal]) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """For each split its expected gain, and where x of parent and child end, each (its entries,)."""
        if not proposals:
            return []
        return [self._gain(p, *blocks) for p, blocks in zip(proposals, self.curvature(proposals), strict=True)]

    def curvature(self, proposals: Sequence[Proposal]) -> list[tuple[np.ndarray, np.ndarray]]:
        """J_S^T J_x (entries, n) and J_S^T J_S (entries, entries) of each split, from one Gauss-Newton matrix."""
        added = [
            [
                (self.sites[slot.correction], slot.weight * self.factors[j])
                for slot in (self.slots[s] for s in proposal.taken)
                if slot.entry == j
            ]
            for proposal in proposals
            for j in proposal.entries
        ]
        objective = self.prepared.objective(self.config)
        start, objective.data = self._with(added)
        matrix = np.asarray(objective.gauss_newton(start)[2])
        ends = self.n + np.cumsum([0, *(len(p.entries) for p in proposals)])
        return [(matrix[a:b, : self.n], matrix[a:b, a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    def _gain(self, proposal: Proposal, xy: np.ndarray, yy: np.ndarray):
        """``xy`` and ``yy`` are what :meth:`curvature` gives."""
        entries, m = proposal.entries, len(proposal.entries)
        slope = np.array([sum(self.slopes[s] for s in proposal.taken if self.slots[s].entry == j) for j in entries])
        prior = np.zeros((m, self.n))
        prior[range(m), entries] = self.precision[entries]
        xy, yy = xy + prior, yy + np.diag(self.precision[entries])
        xx = self.hessian + prior.T @ (prior != 0)
        hessian = np.block([[xx, xy.T], [xy, yy]])
        extra = self.prior_slope[entries]
        gradient = np.concatenate([self.gradient, slope + extra])
        gradient[entries] += extra
        fall, step = self._fall(gradient, hessian, np.concatenate([self.moves, np.ones(m, bool)]))
        parent = self.x[entries] + step[entries]
        gain = fall - float(self.penalty[entries].sum()) - self.unsplit_gain
        return gain, parent, parent + step[self.n :]

    def change(self, entries: Sequence[int], x: np.ndarray) -> np.ndarray:
        """theta - theta0 of some entries, MD units."""
        whole = self.x.copy()
        whole[entries] = x
        return (self.free.theta(whole) - np.asarray(self.free.selection.to_vector()))[entries]


def analyse(data: Prepared, config: FitConfig, x, *, top: int = 10, parameter: str | None = None) -> Conflicts:
    """Pulls and proposed splits at the point x (n,), in scaled variables.

    Parameters
    ----------
    data
        What :func:`offjax.fit.driver.prepare` returns for the configuration.
    config
        The configuration. A side of a split that its ``min_count`` or ``min_molecules`` would not fit is not proposed.
    x
        The end point of a fit; elsewhere the quadratic model has far to go.
    top
        How many splits to propose, at most one a parameter.
    parameter
        Id or SMIRKS of the only parameter to propose splits of; None: all.
    """
    with jax.enable_x64(True):
        model = _Model(data, config, x)
        labels = model.free.selection.labels
        rows: dict[tuple[str, int], list[int]] = defaultdict(list)
        for j, label in enumerate(labels):
            rows[label.section, label.row].append(j)
        by_row: dict[tuple[str, int], list[int]] = defaultdict(list)
        for s, slot in enumerate(model.slots):
            by_row[labels[slot.entry].section, labels[slot.entry].row].append(s)
        environments = Environments([record.molecule() for record in data.records])
        limits = _limits(config, model.free.selection.parameters)
        names = [record.inchikey for record in data.records]
        candidates = []
        for key in by_row:
            entries, slots = rows[key], np.array(by_row[key])
            if parameter not in (None, labels[entries[0]].id, labels[entries[0]].smirks):
                continue
            least = [
                max(pair) for pair in zip(*(limits[model.free.selection.indices[j]] for j in entries), strict=True)
            ]
            found = _candidates(environments, model, labels[entries[0]], slots, least, names)
            ranked = sorted(
                ((model.rank(entries, slots, taken), child, taken) for child, taken in found), key=lambda c: -c[0]
            )
            if ranked:
                best = [Proposal(entries, slots, child, taken) for _, child, taken in ranked[:EVALUATED]]
                candidates.append((ranked[0][0], best))
        candidates.sort(key=lambda c: -c[0])
        proposals = [proposal for _, best in candidates[:top] for proposal in best]
        judged = iter([_split(model, data, p, *g) for p, g in zip(proposals, model.gains(proposals), strict=True)])
        splits = [max((next(judged) for _ in best), key=lambda split: split.gain) for _, best in candidates[:top]]
        pulls = [
            _pull(model, data, j, by_row[label.section, label.row])
            for j, label in enumerate(labels)
            if label.section in SECTIONS
        ]
        return Conflicts(
            pulls=sorted(pulls, key=lambda p: -min(p.up, -p.down)),
            splits=sorted((s for s in splits if s.gain > 0), key=lambda s: -s.gain),
            objective=model.value,
            unsplit_gain=model.unsplit_gain,
            left_out=[label for label in labels if label.section not in SECTIONS],
        )


def _limits(config: FitConfig, parameters: ParameterSet) -> dict[int, tuple[int, int]]:
    """(min_count, min_molecules) of every entry that a block chooses."""
    found = {}
    for block in config.parameters:
        for i in parameters.select(block.path, block.patterns).indices:
            found[int(i)] = block.min_count, block.min_molecules
    return found


def _candidates(environments: Environments, model: _Model, label: Label, slots: np.ndarray, least, names):
    """(child SMIRKS, slots that it takes) of one parameter; ``names`` are the InChIKeys of the records."""
    places = {model.slots[s].place for s in slots}
    for child, taken in environments.children(label.section, str(label.smirks), places).items():
        sides = taken, places - taken
        if all(len(side) >= least[0] and len({names[m] for m, _ in side}) >= least[1] for side in sides):
            yield child, np.array([s for s in slots if model.slots[s].place in taken])


def _split(model: _Model, data: Prepared, proposal: Proposal, gain: float, parent_x, child_x) -> Split:
    entries, slots, child, taken = proposal
    labels = [model.free.selection.labels[j] for j in entries]
    places = {model.slots[s].place for s in taken}
    first: dict[str, str] = {}
    for record in (data.records[m] for m in sorted({m for m, _ in places})):
        first.setdefault(record.inchikey, record.name)

    def pulls(side):
        return np.array([-sum(model.slopes[s] for s in side if model.slots[s].entry == j) for j in entries])

    return Split(
        section=labels[0].section,
        id=labels[0].id,
        smirks=str(labels[0].smirks),
        child=child,
        n_places=len({model.slots[s].place for s in slots}),
        n_child=len(places),
        molecules=tuple(first.values()),
        labels=tuple(labels),
        pull_parent=pulls(np.setdiff1d(slots, taken)),
        pull_child=pulls(taken),
        change_parent=model.change(entries, parent_x),
        change_child=model.change(entries, child_x),
        gain=gain,
    )


def _pull(model: _Model, data: Prepared, j: int, slots: Sequence[int]) -> Pull:
    by_place: dict[Place, float] = defaultdict(float)
    for s in slots:
        if model.slots[s].entry == j:
            by_place[model.slots[s].place] -= float(model.slopes[s])
    ordered = sorted(by_place.items(), key=lambda item: -abs(item[1]))
    return Pull(
        model.free.selection.labels[j],
        up=sum(v for _, v in ordered if v > 0),
        down=sum(v for _, v in ordered if v < 0),
        places=tuple((data.records[m].name, atoms, v) for (m, atoms), v in ordered),
    )


def find_conflicts(
    fit, *, top: int = 10, config: FitConfig | None = None, progress=None, parameter: str | None = None
) -> Conflicts:
    """Pulls and proposed splits of a fit.

    Parameters
    ----------
    fit, config, progress
        See :func:`offjax.fit.end_point.end_point`.
    top, parameter
        See :func:`analyse`.
    """
    config, data, x = end_point(fit, config, progress)
    return analyse(data, config, x, top=top, parameter=parameter)
