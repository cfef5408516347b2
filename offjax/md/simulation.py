"""The driver: many steps in one compiled loop, with neighbour lists, reports, checkpoints and a check of every step.

The loop runs in blocks between reports. Inside, neighbour lists are brought up to date; a block in which one
overflowed is run again with a longer list, and the first step that is not finite ends the simulation with an error
that names it.
"""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError, NeighborListError, SimulationError
from offjax.interop.files import write_atomically
from offjax.md.dynamics import Info, Integrator, State
from offjax.nonbonded import blocks

FORMAT, VERSION = "offjax-md-checkpoint", 1


@dataclass(frozen=True, eq=False)
class Frame:
    """What a reporter gets: the step's number, its State and Info."""

    step: int
    state: State
    info: Info


@dataclass(frozen=True, eq=False)
class Simulation:
    """What :func:`simulate` returns: where it is, and the Info of the last step."""

    state: State
    step: int
    info: Info | None = None


def simulate(
    integrator: Integrator,
    state: State,
    steps: int,
    *,
    start: int = 0,
    every: int = 100,
    reporters: Iterable[Any] = (),
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = False,
    time_step: float | None = None,
    by_term: Callable | None = None,
) -> Simulation:
    """Run to step number ``steps``.

    Where the State has a neighbour list whose capacity does not suffice, a longer one takes its place.

    Parameters
    ----------
    integrator, state
        From ``offjax.md``; the state from ``integrator.init`` or a checkpoint.
    start
        The number of the step that ``state`` belongs to.
    every
        Steps between reports; also the length of a compiled block.
    reporters
        Called with a :class:`Frame` every ``every`` steps; :mod:`offjax.md.reporters` has XYZ, DCD and HDF5.
    checkpoint, checkpoint_every
        A file, and the steps between writing it (a multiple of ``every``; None: at the end only). It is replaced
        in one move. Resume with :func:`load_checkpoint`: the continuation is the same bit for bit. Neighbour lists
        are rebuilt when one is written.
    progress
        A progress bar with steps a second, and ns a day if ``time_step`` (ps) is given, on standard error.
    by_term
        A function of positions (and ``box``, ``neighbors``) that returns energies by name, for the error message of
        a step that is not finite: ``functools.partial(energy.by_term, p)`` of a System's energy.

    Raises
    ------
    SimulationError
        A position, velocity or energy is not finite, or a position or velocity so large that a step has no digits left
        (6e11 in double precision, 1.5e5 in single): the message has the step, the particle and, with ``by_term``, the
        terms that are not finite. Or there is no neighbour list, for the box has become too small.
    InputError
        Intervals that do not fit together; no Integrator; no State, one that is traced or that the integrator cannot
        step.
    """
    if not all(isinstance(number, int | np.integer) for number in (steps, start, every, checkpoint_every or 1)):
        raise InputError(f"simulate counts in whole steps, got {steps=}, {start=}, {every=}, {checkpoint_every=}")
    if every < 1 or steps < start:
        raise InputError(f"simulate needs every >= 1 and steps >= start, got {every}, {steps} and {start}")
    if checkpoint_every is not None and (checkpoint is None or checkpoint_every % every):
        raise InputError("checkpoint_every needs checkpoint=..., and must be a multiple of every")
    _check_start(integrator, state, start, by_term)
    run = partial(_compiled_block(), integrator)
    reporters = tuple(reporters)
    step, info = start, None
    with _bar(progress, start, steps, time_step) as tick:
        while step < steps:
            n = min(every - step % every, steps - step)
            state, info = _run_block(run, integrator, state, step, n, by_term)
            step += n
            tick(step)
            if step % every == 0:
                for reporter in reporters:
                    reporter(Frame(step, state, info))
            if checkpoint is not None and (step == steps or (checkpoint_every and step % checkpoint_every == 0)):
                if state.neighbors is not None:
                    fresh = state.neighbors.update(state.positions, state.box, rebuild=True)
                    state = state._replace(neighbors=fresh)
                save_checkpoint(checkpoint, state, step)
    return Simulation(state, step, info)


@cache
def _compiled_block():
    return blocks.jit(_block, static_argnums=0)


def _block(integrator: Integrator, state: State, n):
    """n steps: the last state, the last info, and the number of finite steps before the first that is not."""

    def step(k, carry):
        state, _, good = carry
        state, info = integrator.step(state)
        return state, info, jnp.where(_finite(state, integrator.has_energy), good, jnp.minimum(good, k))

    shapes = _stepped(integrator, state)
    empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.fori_loop(0, n, step, (state, empty, jnp.asarray(n)))


def _stepped(integrator: Integrator, state: State):
    """Shapes of the Info.

    Raises
    ------
    InputError
        Replicas without ``vmap``, or the State of another integrator.
    """
    try:
        after, info = jax.eval_shape(integrator.step, state)
        if _shapes(after) == _shapes(state):
            return info
        error = None
    except jax.errors.JAXTypeError:  # of the user's energy: it uses numpy, float() or if
        raise
    except (TypeError, ValueError) as found:
        error = found
    if state.positions.ndim > 2:
        raise InputError(
            f"this State has replicas, positions {state.positions.shape}: give simulate an integrator whose step takes "
            "them, integrator._replace(step=jax.vmap(integrator.step))"
        ) from error
    own = jax.eval_shape(lambda s: integrator.init(s.key, s.positions, s.velocities, **_environment(s)).extra, state)
    if _shapes(own) != _shapes(state.extra):
        raise InputError(
            "this State is of another integrator, whose thermostat or barostat carries other numbers: start from "
            "integrator.init(key, state.positions, state.velocities)"
        ) from error
    raise error or InputError("a step changes the shapes of the State")


def _shapes(tree) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _environment(state: State) -> dict[str, Any]:
    """What the energy takes besides positions."""
    return {name: v for name, v in (("box", state.box), ("neighbors", state.neighbors)) if v is not None}


def _finite(state: State, has_energy: bool):
    """Whether all numbers are finite, and no position or velocity so large that it has lost its digits."""
    results = (state.forces, state.energy) if has_energy else (state.forces,)
    small = [_small(v) for v in (state.positions, state.velocities)]
    return jnp.all(jnp.stack([*small, *(jnp.all(jnp.isfinite(v)) for v in results)]))


def _small(values):
    return jnp.all(jnp.abs(values) < _too_large(values.dtype))


def _too_large(dtype) -> float:
    """6e11 in double precision, 1.5e5 in single precision: what is left of one step are few digits."""
    return float(jnp.finfo(dtype).eps) ** -0.75


def _run_block(run, integrator, state, step, n, by_term):
    """n steps. An energy is NaN where a list has overflowed, so the step before is tried again with a longer list."""
    headroom = 1.25
    while True:
        new, info, good = run(state, n)
        if int(good) == n:
            return new, info
        if int(good):
            headroom = 1.25
            state = run(state, int(good))[0]
            step, n = step + int(good), n - int(good)
        after = run(state, 1)[0]
        if headroom > 2.0 or not _needs_longer_list(after):
            raise SimulationError(_report(integrator, state, step + 1, by_term))
        if state.positions.ndim > 2:
            raise SimulationError(f"step {step + 1}: a replica's neighbour list overflows: make it with headroom=2")
        try:
            longer = state.neighbors.reallocated(after.positions, after.box, headroom=headroom)
        except (InputError, NeighborListError) as error:
            raise SimulationError(f"step {step + 1}: there is no neighbour list: {error}") from error
        longer = longer.update(state.positions, state.box, rebuild=True)
        state, headroom = state._replace(neighbors=longer), 1.3 * headroom


def _needs_longer_list(state: State) -> bool:
    """Whether a State is not finite only since its list has overflowed."""
    return state.neighbors is not None and bool(jnp.any(state.neighbors.overflow)) and bool(_small(state.positions))


def _report(integrator, state, step, by_term) -> str:
    """What is wrong in the step after ``state``."""
    after, _ = jax.jit(integrator.step)(state)
    text = f"step {step} is not finite: {_where(after)}"
    forces = np.linalg.norm(np.asarray(state.forces), axis=-1)
    largest = np.unravel_index(np.argmax(forces), forces.shape)
    text += f"; in the step before, the largest force was {forces[largest]:.3g} on {_named(largest)}"
    if by_term is not None:
        text += _terms(by_term, after, state)
    advice = ". Minimise first, or take a smaller time step"
    if state.box is not None:
        advice += "; the box must stay longer than twice the cutoff"
    return text + advice + ("" if integrator.has_energy else ", and check the sign of the forces")


def _where(state: State) -> str:
    for name in ("positions", "velocities", "forces"):
        values = np.asarray(getattr(state, name))
        limit = np.inf if name == "forces" else _too_large(values.dtype)
        bad = np.argwhere(~(np.abs(values) < limit).all(axis=-1))
        if len(bad):
            more = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
            worst = np.max(np.abs(values[tuple(bad[0])]))
            large = f" (finite, but {worst:.3g}: it has exploded)" if np.isfinite(worst) else ""
            return f"{name} of {_named(bad[0])}{more}{large}"
    return f"the potential energy is {np.asarray(state.energy)}"


def _named(index) -> str:
    """A particle by its number; of many replicas too."""
    *replica, particle = (int(i) for i in index)
    return f"particle {particle}" + "".join(f" of replica {i}" for i in replica)


def _terms(by_term, state: State, before: State | None = None) -> str:
    """Names of the terms whose energy is not finite; all energies (of replicas the largest) if there is none.

    Where positions have gone too far for the neighbour list, it has the energies of the State before.
    """
    extra = _environment(state)
    evaluate = lambda x, extra: by_term(x, **extra)  # noqa: E731
    for _ in state.positions.shape[:-2]:
        evaluate = jax.vmap(evaluate)
    try:
        energies = {name: np.ravel(value) for name, value in evaluate(state.positions, extra).items()}
    except NeighborListError:
        return "" if before is None else f" (in the step before{_terms(by_term, before)})"
    except Exception as error:  # the user's function: its error must not take the place of what it was to explain
        return f"; by_term has an error of its own, {type(error).__name__}: {error}"
    bad = [name for name, values in energies.items() if not np.all(np.isfinite(values))]
    largest = {name: float(values[np.argmax(np.abs(values))]) for name, values in energies.items()}
    return f"; terms that are not finite: {', '.join(bad)}" if bad else f"; energies by term: {largest}"


def _check_start(integrator: Integrator, state: State, step: int, by_term) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(state)):
        raise InputError(
            "simulate runs outside jit, grad and vmap: inside use integrator.step in a loop, or md.advance"
        )
    if not isinstance(integrator, Integrator):
        raise InputError(f"simulate runs an Integrator, md.langevin(...) say, not a {type(integrator).__name__}")
    if not isinstance(state, State):
        raise InputError(f"simulate starts from a State, integrator.init(key, positions), not a {type(state).__name__}")
    if not bool(_finite(state, integrator.has_energy)):
        terms = "" if by_term is None else _terms(by_term, state)
        raise SimulationError(f"step {step}, the start, is not finite: {_where(state)}{terms}{_reason(state)}")


def _reason(state: State) -> str:
    """What may be wrong where positions and velocities are well and forces are not."""
    if not bool(_small(state.positions) & _small(state.velocities)):
        return ""
    if state.neighbors is not None and bool(jnp.any(state.neighbors.overflow)):
        return ". The neighbour list overflows: make it with more headroom"
    box = "" if state.box is None else ", a box shorter than twice the cutoff"
    return f". Look for two particles at one place{box}, and for an energy without a derivative, as that of sqrt at 0"


class _bar:
    """A rich progress bar, or nothing."""

    def __init__(self, shown: bool, start: int, steps: int, time_step: float | None):
        self.shown, self.start, self.steps, self.time_step = shown, start, steps, time_step

    def __enter__(self):
        if not self.shown:
            return lambda step: None
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True))
        self.task = self.bar.add_task("", total=self.steps, completed=self.start, speed="")
        self.began = time.perf_counter()
        self.bar.start()
        return self.tick

    def tick(self, step: int) -> None:
        """Show the step and the speed so far."""
        rate = (step - self.start) / (time.perf_counter() - self.began)
        speed = f"{rate:.3g} steps/s"
        if self.time_step is not None:
            speed += f", {rate * self.time_step * 86.4:.3g} ns/day"
        self.bar.update(self.task, completed=step, speed=speed)

    def __exit__(self, *_):
        if self.shown:
            self.bar.stop()


# --- checkpoints
# ------------------------------------------------------------------------------------------------------


def save_checkpoint(path: str | Path, state: State, step: int) -> None:
    """Write a State with its step number to a ``.npz`` file: under a temporary name, then renamed.

    Neighbour lists are not stored. The file has a JSON ``header`` and the leaves of the State in JAX's order, bit for
    bit. No pickle.
    """
    arrays: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for k, leaf in enumerate(jax.tree.leaves(state._replace(neighbors=None))):
        name = f"leaf_{k:03d}"
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        arrays[name] = np.asarray(leaf)
    header = {"format": FORMAT, "version": VERSION, "step": int(step), "keys": keys}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    write_atomically(path, buffer.getvalue())


def load_checkpoint(path: str | Path, like: State) -> tuple[State, int]:
    """The State and the step number of a checkpoint; ``like`` is a State of the same simulation, from ``init``.
    Its neighbour list, if it has one, is made anew for the positions.

    Raises
    ------
    InputError
        Not such a file, or of another simulation: numbers of particles, types or integrator differ.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(bytes(file["header"]).decode())
            if header["format"] != FORMAT or header["version"] != VERSION:
                raise InputError(f"{path}: format {header['format']} {header['version']}, expected {FORMAT} {VERSION}")
            leaves = [(name, file[name]) for name in sorted(set(file.files) - {"header"})]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no checkpoint of a simulation: {error}") from error
    expected, structure = jax.tree.flatten(like._replace(neighbors=None))
    restored = [
        jax.random.wrap_key_data(jnp.asarray(leaf), impl=header["keys"][name])
        if name in header["keys"]
        else jnp.asarray(leaf)
        for name, leaf in leaves
    ]
    found = [(v.shape, v.dtype) for v in restored]
    if found != [(v.shape, v.dtype) for v in expected]:
        raise InputError(f"{path} belongs to another simulation: its arrays differ from those of the State given")
    state = jax.tree.unflatten(structure, restored)
    if like.neighbors is not None:
        fresh = like.neighbors.update(state.positions, state.box, rebuild=True)
        if bool(fresh.overflow):
            fresh = like.neighbors.reallocated(state.positions, state.box)
        state = state._replace(neighbors=fresh)
    return state, header["step"]
