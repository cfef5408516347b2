"""The objective of a fit as a function of scaled variables, with the derivatives that optimisers ask for.

    f(x) = 1/2 ( sum r^E^2 + sum r^F^2 + w_P sum_k [(theta_k - theta0_k) / width_k]^2 ),   theta = theta0 + scale * x

with the residuals of :mod:`offjax.fit.targets`; theta0 are the values in the force-field file and the last sum is minus
the logarithm of a Gaussian prior. Everything is one compiled program a kind of derivative, whatever the number of
molecules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.fit.free import FreeParameters
from offjax.fit.targets import Targets

COLUMNS = 8
"""Columns of the Jacobian computed side by side: memory against speed."""


class Parts(NamedTuple):
    """The three sums of the objective, each with its factor 1/2, and flat energies (kJ/mol) and forces (kJ/mol/nm)."""

    energy: Array
    force: Array
    prior: Array
    energies: Array
    forces: Array


class FitObjective:
    """f(x), its gradient by reverse mode and its Gauss-Newton matrix by forward mode; an optimisers' Problem."""

    def __init__(
        self,
        targets: Targets,
        free: FreeParameters,
        prior_weight: float = 1.0,
        minibatch: int | None = None,
        training: np.ndarray | None = None,
        seed: int = 0,
    ):
        self.data, self.free = targets, free
        self.start = np.asarray(free.selection.to_vector())
        self.scales = free.scales
        self.lower = (free.lower - self.start) / self.scales
        self.upper = (free.upper - self.start) / self.scales
        self.prior = np.sqrt(prior_weight) * np.where(np.isinf(free.widths), 0.0, self.scales / free.widths)
        self.minibatch, self.seed = minibatch, seed
        self.training = np.arange(0) if training is None else np.asarray(training)
        self._parts = jax.jit(self._parts_of)
        self._gradient = jax.jit(jax.value_and_grad(self.scalar))
        self._gauss_newton = jax.jit(self._gauss_newton_of)

    # --- x and theta ------------------------------------------------------------------------------------------------

    def theta(self, x) -> np.ndarray:
        """The free entries at x, MD units, on the host; bounds hold to the last bit and x = 0 is the start exactly."""
        theta = self.start + self.scales * np.asarray(x, dtype=np.float64)
        return np.clip(theta, self.free.lower, self.free.upper)

    def parameters(self, x):
        """The ParameterSet at x; traceable."""
        return self.free.selection.insert(self.start + self.scales * x)

    # --- f and its derivatives --------------------------------------------------------------------------------------

    def residuals(self, x: Float[Array, " n"], data: Targets) -> Float[Array, " residual"]:
        """All residuals, priors last."""
        energies, forces = data.batch.energies_and_forces(self.parameters(x), data.conformers)
        energy, force = data.residuals(energies, forces)
        return jnp.concatenate([energy, force.ravel(), self.prior * x])

    def scalar(self, x: Float[Array, " n"], data: Targets) -> Float[Array, ""]:
        """f(x)."""
        return 0.5 * jnp.sum(self.residuals(x, data) ** 2)

    def value(self, x):
        """f(x), by the program of :meth:`parts`."""
        return sum(self.parts(x)[:3])

    def value_and_gradient(self, x, data: Targets | None = None):
        """f(x) and its gradient, of all training data or of one minibatch."""
        return self._gradient(x, self.data if data is None else data)

    def gauss_newton(self, x):
        """f, J^T r and J^T J."""
        return self._gauss_newton(x, self.data)

    def parts(self, x) -> Parts:
        """The terms of f, and energies and forces of all molecules, held-out ones too."""
        return self._parts(x, self.data)

    def minibatches(self, epoch: int) -> list[Any]:
        """The training molecules of an epoch in an order given by seed and epoch, in parts of ``minibatch`` molecules.

        Each part is so weighted that the mean of f over the parts is f, priors included.
        """
        if self.minibatch is None or self.minibatch >= len(self.training):
            return [self.data]
        order = np.random.default_rng([self.seed, epoch]).permutation(self.training)
        pieces = np.array_split(order, -(-len(order) // self.minibatch))
        parts = []
        for piece in pieces:
            weights = np.zeros(len(self.data.batch))
            weights[piece] = len(pieces)
            parts.append(self.data.reweighted(weights))
        return parts

    def _parts_of(self, x, data: Targets) -> Parts:
        energies, forces = data.batch.energies_and_forces(self.parameters(x), data.conformers)
        energy, force = data.residuals(energies, forces)
        half = [0.5 * jnp.sum(r**2) for r in (energy, force, self.prior * x)]
        return Parts(*half, energies, forces)

    def _gauss_newton_of(self, x, data: Targets):
        def column(direction):
            return jax.jvp(lambda y: self.residuals(y, data), (x,), (direction,))[1]

        r = self.residuals(x, data)
        transposed = jax.lax.map(column, jnp.eye(len(x), dtype=x.dtype), batch_size=COLUMNS)
        return 0.5 * jnp.sum(r**2), transposed @ r, transposed @ transposed.T
