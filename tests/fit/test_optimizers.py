"""Every optimiser on a table of small problems with known minima; no chemistry here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from offjax.fit.objective import L1_CORNER, FitData
from offjax.fit.optimizers import LBFGS, Adam, LevenbergMarquardt

SOLVERS = {
    "levenberg-marquardt": (LevenbergMarquardt(0.0, 1e-9), 60, 1e-7),
    "l-bfgs": (LBFGS(0.0, 1e-9, 10), 200, 1e-6),
    "adam": (Adam(0.05, 0.0, 1e-9), 400, 5e-3),
}
"""solver, iterations, accuracy of x."""


class Problem:
    """1/2 |r(x)|^2 in a box; notes every point at which it is evaluated."""

    def __init__(self, residuals, lower, upper):
        self.residuals, self.lower, self.upper, self.data = residuals, np.array(lower), np.array(upper), None
        self.points = []
        self._gradient = jax.jit(jax.value_and_grad(self.scalar))

    def scalar(self, x, data):
        return 0.5 * jnp.sum(self.residuals(x) ** 2)

    def value(self, x):
        self.points.append(np.asarray(x))
        return self.scalar(x, None)

    def value_and_gradient(self, x, data=None):
        self.points.append(np.asarray(x))
        return self._gradient(x, None)

    def gauss_newton(self, x):
        self.points.append(np.asarray(x))
        r, J = self.residuals(x), jax.jacfwd(self.residuals)(x)
        return 0.5 * r @ r, J.T @ r, J.T @ J

    def minibatches(self, epoch):
        return [None]


inf = np.inf
A = np.array([[3.0, 1.0], [1.0, 2.0], [0.5, -1.0]])
B = A @ np.array([0.7, -0.4])
HELD = A[:, 0] @ (B + 0.1 * A[:, 1]) / (A[:, 0] @ A[:, 0])
"""The first variable of the linear problem while the second is held at -0.1."""


def linear(x):
    return A @ x - B


def rosenbrock(x):
    return jnp.stack([3 * (x[1] - x[0] ** 2), 1 - x[0]])


LASSO = FitData(None, None, None, None, prior=np.ones(2), log=None, corner=np.full(2, L1_CORNER))
"""An l1 prior of width 1 on two variables."""


def lasso(x):
    """Data at 1.5 and 0.3: without rounding the minimum is (0.5, 0)."""
    return jnp.concatenate([x - np.array([1.5, 0.3]), LASSO.prior_residuals(x)])


def shrunk(a):
    """The root of x + x / (x^2 + L1_CORNER^2)^(1/2) = a."""
    return brentq(lambda x: x + x / np.hypot(x, L1_CORNER) - a, 0.0, a, xtol=1e-14)


PROBLEMS = {
    "l1 prior": (lasso, [-inf, -inf], [inf, inf], [shrunk(1.5), shrunk(0.3)]),
    "linear": (linear, [-inf, -inf], [inf, inf], [0.7, -0.4]),
    "Rosenbrock": (rosenbrock, [-inf, -inf], [inf, inf], [1.0, 1.0]),
    "lower bound active": (linear, [-inf, -0.1], [inf, inf], [HELD, -0.1]),
    "both bounds active": (lambda x: x - np.array([5.0, -5.0]), [-1.0, -0.5], [1.5, 1.0], [1.5, -0.5]),
    "start at a bound that is left": (lambda x: x - 0.5, [0.0, -1.0], [inf, inf], [0.5, 0.5]),
}


def solve(solver, problem, x, iterations):
    state = solver.init(problem, x)
    values = []
    for _ in range(iterations):
        state, info = solver.step(problem, state)
        values.append(info.value)
        assert np.all(np.asarray(solver.x(state)) >= problem.lower)
        assert np.all(np.asarray(solver.x(state)) <= problem.upper)
        if info.stop:
            break
    return solver.x(state), values, info


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_finds_the_minimum_within_bounds(solver, problem):
    optimizer, iterations, accuracy = SOLVERS[solver]
    residuals, lower, upper, minimum = PROBLEMS[problem]
    if solver == "adam" and problem in ("Rosenbrock", "l1 prior"):
        accuracy = 0.1
    with jax.enable_x64(True):
        task = Problem(residuals, lower, upper)
        x, values, _ = solve(optimizer, task, jnp.zeros(2), iterations)
        np.testing.assert_allclose(x, minimum, atol=accuracy)
        for point in task.points:
            assert np.all(point >= task.lower) and np.all(point <= task.upper)
        if solver != "adam":
            assert all(b <= a for a, b in zip(values, values[1:], strict=False))


@pytest.mark.parametrize("solver", SOLVERS)
def test_says_why_it_stops(solver):
    with jax.enable_x64(True):
        task = Problem(lambda x: x - 1.0, [-inf, -inf], [inf, inf])
        start = jnp.ones(2)
        _, _, info = solve(SOLVERS[solver][0], task, start, 3)
        assert info.stop == "the gradient vanishes"


def test_levenberg_marquardt_ends_where_no_step_promises_enough():
    """As of objectives of minima, which are known to within the tolerance of the minimisations."""
    problem = Problem(linear, [-inf, -inf], [inf, inf])
    exact = problem.value
    problem.value = lambda x: exact(x) + 1e-9
    solver = LevenbergMarquardt(1e-6, 0.0)
    with jax.enable_x64(True):
        least = jnp.linalg.lstsq(jnp.asarray(A), jnp.asarray(B + [0.0, 0.0, 0.3]))[0]
        problem.residuals = lambda x: A @ x - B - jnp.array([0.0, 0.0, 0.3])
        state = solver.init(problem, least + 1e-6)
        after, info = solver.step(problem, state)
    assert not info.accepted and info.stop == "the objective no longer falls"
    np.testing.assert_array_equal(after.x, state.x)


def test_levenberg_marquardt_rejects_a_step_into_nan():
    with jax.enable_x64(True):
        task = Problem(lambda x: jnp.log(x) + 2.0, [-inf], [inf])
        x, _, _ = solve(LevenbergMarquardt(0.0, 1e-9), task, jnp.array([1.0]), 80)
        np.testing.assert_allclose(x, np.exp(-2.0), atol=1e-6)


def test_l_bfgs_compiles_its_step_once():
    count = []
    with jax.enable_x64(True):
        solver = LBFGS(0.0, 1e-12, 5)

        def residuals(x):
            count.append(1)
            return rosenbrock(x)

        task = Problem(residuals, [-inf, -inf], [inf, inf])
        state = solver.init(task, jnp.zeros(2))
        state, _ = solver.step(task, state)
        traced = len(count)
        for _ in range(5):
            state, _ = solver.step(task, state)
        assert len(count) == traced
