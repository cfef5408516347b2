"""Optimisers that advance one iteration at a time and whose state is a pytree of arrays.

An optimiser sees a *problem* (:class:`Problem`): a function of scaled variables x with box bounds, and nothing of
force fields. ``init`` makes a state, ``step`` advances it by one iteration and reports an :class:`Info`; all that is
needed to go on is in the arrays of the state, so that a run continued from a stored state is the run that was not
interrupted.

Bounds are handled by projection in all three: the trial point is clipped into the box, and a variable that sits at a
bound while the objective falls outwards is held for that iteration (D. P. Bertsekas, SIAM J. Control Optim. 20, 221
(1982)). No iterate or trial point ever lies outside the box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
from jaxtyping import Array, Float

SMALLEST_STEP = 1e-12
"""Levenberg-Marquardt: 1 / damping below which no further progress is expected."""


class Problem(Protocol):
    """What is minimised: f(x) = 1/2 |r(x)|^2 within lower <= x <= upper.

    ``scalar`` is a traceable ``(x, data) -> f`` and ``data`` its arrays; ``gauss_newton`` returns
    (f, J^T r, J^T J); ``minibatches`` yields for an epoch the ``data`` of its parts, each with the same shapes, so
    scaled that the mean over parts is f.
    """

    lower: np.ndarray
    upper: np.ndarray
    data: Any

    def scalar(self, x, data) -> Float[Array, ""]: ...

    def value(self, x) -> Float[Array, ""]: ...

    def value_and_gradient(self, x, data=None) -> tuple[Float[Array, ""], Float[Array, " n"]]: ...

    def gauss_newton(self, x) -> tuple[Float[Array, ""], Float[Array, " n"], Float[Array, "n n"]]: ...

    def minibatches(self, epoch: int) -> list[Any]: ...


class Info(NamedTuple):
    """What an iteration did: only reported, never used to go on.

    ``gradient`` is the largest element of the projected gradient x - clip(x - g), ``step`` of the change of x.
    ``stop`` is the reason to end, or None.
    """

    value: float
    accepted: bool
    step: float
    gradient: float
    stop: str | None


class Optimizer(Protocol):
    """``x(state)`` is the current point."""

    def init(self, problem: Problem, x) -> Any: ...

    def step(self, problem: Problem, state) -> tuple[Any, Info]: ...

    def x(self, state) -> Array: ...


def projected_gradient(x, gradient, lower, upper):
    """x - clip(x - g, lower, upper): zero exactly where no feasible first-order decrease is left."""
    return x - jnp.clip(x - gradient, lower, upper)


def held(x, gradient, lower, upper):
    """Variables at a bound whose decrease points out of the box, boolean (n,)."""
    return ((x <= lower) & (gradient > 0)) | ((x >= upper) & (gradient < 0))


# --- Levenberg-Marquardt --------------------------------------------------------------------------------------------


class LMState(NamedTuple):
    """Point, objective, gradient J^T r, Gauss-Newton matrix J^T J, and 1 / damping."""

    x: Array
    value: Array
    gradient: Array
    hessian: Array
    step_size: Array


class LevenbergMarquardt(eqx.Module):
    """Levenberg-Marquardt in normal-equation form: optimistix' damped Newton descent with its classical trust region.

    (J^T J + I / s) dx = -J^T r, where s grows by 3.5 after a step that the quadratic model predicts well and shrinks
    by 4 after a rejected one. The state is n x n whatever the number of residuals; with Gaussian priors J^T J is never
    worse conditioned than the priors make it.
    """

    objective_tolerance: float
    gradient_tolerance: float
    descent: optx.DampedNewtonDescent
    search: optx.ClassicalTrustRegion

    def __init__(self, objective_tolerance: float, gradient_tolerance: float):
        self.objective_tolerance, self.gradient_tolerance = objective_tolerance, gradient_tolerance
        self.descent = optx.DampedNewtonDescent(linear_solver=lx.Cholesky())
        self.search = optx.ClassicalTrustRegion()

    def init(self, problem: Problem, x) -> LMState:
        """Evaluates the start."""
        value, gradient, hessian = problem.gauss_newton(x)
        return LMState(x, value, gradient, hessian, jnp.ones((), x.dtype))

    def x(self, state: LMState) -> Array:
        """The current point."""
        return state.x

    def step(self, problem: Problem, state: LMState) -> tuple[LMState, Info]:
        """One trial point: accepted, with new derivatives, or rejected."""
        lower, upper = jnp.asarray(problem.lower), jnp.asarray(problem.upper)
        trial = self._trial(state, lower, upper)
        value = problem.value(trial)
        step_size, accepted = self._judge(state, trial, value)
        accepted = bool(accepted)
        step = float(jnp.max(jnp.abs(trial - state.x), initial=0.0))
        stop = None
        if accepted:
            decrease = float(state.value - value)
            fresh, gradient, hessian = problem.gauss_newton(trial)
            if decrease <= self.objective_tolerance * abs(float(state.value)):
                stop = "the objective no longer falls"
            state = LMState(trial, fresh, gradient, hessian, step_size)
        else:
            # smaller steps promise less still
            change = trial - state.x
            promised = -float(change @ (state.gradient + 0.5 * state.hessian @ change))
            if 0 <= promised <= self.objective_tolerance * abs(float(state.value)):
                stop = "the objective no longer falls"
            state = state._replace(step_size=step_size)
            if float(step_size) < SMALLEST_STEP or step == 0.0:
                stop = "no smaller step lowers the objective"
        size = float(jnp.max(jnp.abs(projected_gradient(state.x, state.gradient, lower, upper)), initial=0.0))
        if size <= self.gradient_tolerance:
            stop = "the gradient vanishes"
        return state, Info(float(state.value), accepted, step if accepted else 0.0, size, stop)

    @eqx.filter_jit
    def _trial(self, state: LMState, lower, upper):
        """The damped Newton step among the variables that are not held, clipped into the box."""
        fixed = held(state.x, state.gradient, lower, upper)
        gradient = jnp.where(fixed, 0.0, state.gradient)
        hessian = jnp.where(fixed[:, None] | fixed[None, :], jnp.diag(fixed.astype(gradient.dtype)), state.hessian)
        info = _quadratic(state.value, gradient, hessian)
        descent = self.descent.query(state.x, info, self.descent.init(state.x, info))
        change, _ = self.descent.step(state.step_size, descent)
        return jnp.clip(state.x + change, lower, upper)

    @eqx.filter_jit
    def _judge(self, state: LMState, trial, value):
        """(next step size, accepted). The model may predict an increase for a clipped step; NaN is never accepted."""
        info = _quadratic(state.value, state.gradient, state.hessian)
        region = eqx.tree_at(lambda s: s.step_size, self.search.init(state.x, info), state.step_size)
        size, accepted, _, _ = self.search.step(
            jnp.array(False), state.x, trial, info, optx.FunctionInfo.Eval(value), region
        )
        accepted = accepted & (value < state.value)
        return jnp.where(accepted, size, state.step_size * self.search.low_constant), accepted


def _quadratic(value, gradient, hessian):
    operator = lx.MatrixLinearOperator(hessian, lx.positive_semidefinite_tag)
    return optx.FunctionInfo.EvalGradHessian(value, gradient, operator)


# --- L-BFGS ---------------------------------------------------------------------------------------------------------


class _ProjectedState(eqx.Module):
    x: Array
    direction: Array


class ProjectedNewtonDescent(optx.AbstractDescent):
    """dx = clip(x - s P H^-1 P g, lower, upper) - x, where P removes the variables held at their bounds."""

    lower: Array
    upper: Array

    def init(self, y, f_info_struct):
        """A state with direction 0."""
        return _ProjectedState(y, jnp.zeros_like(y))

    def query(self, y, f_info, state):
        """The direction at an accepted point."""
        free = ~held(y, f_info.grad, self.lower, self.upper)
        newton = f_info.hessian_inv.mv(jnp.where(free, f_info.grad, 0.0))
        return _ProjectedState(y, jnp.where(free, -newton, 0.0))

    def step(self, step_size, state):
        """The change of x for a step size."""
        trial = jnp.clip(state.x + step_size * state.direction, self.lower, self.upper)
        return trial - state.x, optx.RESULTS.successful


class BoundedLBFGS(optx.AbstractLBFGS):
    """optimistix' L-BFGS with backtracking Armijo search and the projected direction."""

    rtol: float
    atol: float
    norm: Callable
    use_inverse: bool
    descent: ProjectedNewtonDescent
    search: optx.BacktrackingArmijo
    history_length: int
    verbose: Callable

    def __init__(self, lower, upper, history_length: int):
        self.rtol = self.atol = 0.0
        self.norm = optx.max_norm
        self.use_inverse = True
        self.descent = ProjectedNewtonDescent(jnp.asarray(lower), jnp.asarray(upper))
        self.search = optx.BacktrackingArmijo()
        self.history_length = history_length
        self.verbose = _quiet


class LBFGSState(NamedTuple):
    """The accepted point and optimistix' solver state."""

    x: Array
    solver: Any


class LBFGS:
    """L-BFGS by optimistix; one iteration is one evaluation of objective and gradient."""

    def __init__(self, objective_tolerance: float, gradient_tolerance: float, history: int):
        self.objective_tolerance, self.gradient_tolerance = objective_tolerance, gradient_tolerance
        self.history = history
        self._step = eqx.filter_jit(_lbfgs_step)

    def x(self, state: LBFGSState) -> Array:
        """The accepted point."""
        return state.x

    def init(self, problem: Problem, x) -> LBFGSState:
        """Evaluates the start: optimistix spends its first step on it."""
        solver = BoundedLBFGS(problem.lower, problem.upper, self.history)
        value = jax.ShapeDtypeStruct((), x.dtype)
        state = solver.init(_with_aux(problem.scalar), x, problem.data, {}, value, None, frozenset())
        y, state = self._step(solver, problem.scalar, x, problem.data, state)
        return LBFGSState(y, state)

    def step(self, problem: Problem, state: LBFGSState) -> tuple[LBFGSState, Info]:
        """One trial point of the line search."""
        solver = BoundedLBFGS(problem.lower, problem.upper, self.history)
        before, trials = float(state.solver.f_info.f), int(state.solver.num_accepted_steps)
        x, inner = self._step(solver, problem.scalar, state.x, problem.data, state.solver)
        accepted = int(inner.num_accepted_steps) > trials
        value, gradient = float(inner.f_info.f), inner.f_info.grad
        step = float(jnp.max(jnp.abs(x - state.x), initial=0.0))
        size = float(jnp.max(jnp.abs(projected_gradient(x, gradient, problem.lower, problem.upper)), initial=0.0))
        stop = None
        if accepted and before - value <= self.objective_tolerance * abs(before):
            stop = "the objective no longer falls"
        elif not accepted and float(inner.search_state.step_size) < SMALLEST_STEP:
            stop = "no smaller step lowers the objective"
        if size <= self.gradient_tolerance:
            stop = "the gradient vanishes"
        return LBFGSState(x, inner), Info(value, accepted, step, size, stop)


def _quiet(**kwargs):
    """Reports nothing; one function object, so that every solver compiles to the same program."""


def _with_aux(scalar):
    return lambda x, data: (scalar(x, data), None)


def _lbfgs_step(solver, scalar, x, data, state):
    x, state, _ = solver.step(_with_aux(scalar), x, data, {}, state, frozenset())
    return x, state


# --- Adam -----------------------------------------------------------------------------------------------------------


class AdamState(NamedTuple):
    """Point, optax' moments, and the number of finished epochs."""

    x: Array
    moments: Any
    epoch: Array


class Adam:
    """Adam (optax) with projection onto the bounds; one iteration is one epoch over the minibatches."""

    def __init__(self, learning_rate: float, objective_tolerance: float, gradient_tolerance: float):
        self.objective_tolerance, self.gradient_tolerance = objective_tolerance, gradient_tolerance
        self.transform = optax.adam(learning_rate)
        self._update = jax.jit(self._updated)

    def _updated(self, gradient, moments, x, lower, upper):
        updates, moments = self.transform.update(gradient, moments, x)
        return jnp.clip(optax.apply_updates(x, updates), lower, upper), moments

    def x(self, state: AdamState) -> Array:
        """The current point."""
        return state.x

    def init(self, problem: Problem, x) -> AdamState:
        """Zero moments."""
        return AdamState(x, self.transform.init(x), jnp.zeros((), jnp.int64))

    def step(self, problem: Problem, state: AdamState) -> tuple[AdamState, Info]:
        """One epoch; its order of molecules is a function of the seed and the epoch alone."""
        lower, upper = jnp.asarray(problem.lower), jnp.asarray(problem.upper)
        x, moments = state.x, state.moments
        for part in problem.minibatches(int(state.epoch)):
            _, gradient = problem.value_and_gradient(x, part)
            x, moments = self._update(gradient, moments, x, lower, upper)
        value, gradient = problem.value_and_gradient(x)
        size = float(jnp.max(jnp.abs(projected_gradient(x, gradient, lower, upper)), initial=0.0))
        stop = "the gradient vanishes" if size <= self.gradient_tolerance else None
        step = float(jnp.max(jnp.abs(x - state.x), initial=0.0))
        return AdamState(x, moments, state.epoch + 1), Info(float(value), True, step, size, stop)
