"""Early stopping: the parameters that suit the validation molecules best, which the fit does not train on.

The validation loss is that of the objective without priors, with every molecule counting equally,

    L = 1/2 [ w_E (energy RMSE / s_E)^2 + w_F (force RMSE / s_F)^2 ] + sum_K mean_m 1/2 |u_Km|^2

with the deviations u of the other kinds of data K (:mod:`offjax.fit.targets`).

A point that an iteration accepts is kept if its loss is the lowest so far; after ``patience`` points without a new
lowest one the fit ends, and the kept point is its result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax.fit.config import Objective


class Kept(NamedTuple):
    """The best point so far, its loss, and how many points ago it was; part of a checkpoint."""

    x: Float[Array, " n"]
    loss: Float[Array, ""]
    waited: Int[Array, ""]

    @classmethod
    def first(cls, x, loss: float | None) -> Kept:
        """The start; without validation molecules (None) every later point replaces it."""
        return cls(jnp.asarray(x), jnp.asarray(jnp.inf if loss is None else loss), jnp.asarray(0))

    def after(self, x, loss: float | None) -> Kept:
        """One iteration later."""
        if loss is None or loss < float(self.loss):
            return Kept.first(x, loss)
        return self._replace(waited=self.waited + 1)


def loss(errors: dict[str, float | None], objective: Objective, others: Sequence[float] = ()) -> float | None:
    """L of the errors of the validation molecules (kJ/mol, kJ/mol/nm) and the losses of other kinds of data; None
    without any validation molecules.
    """
    energy, force = errors["energy_rmse"], errors["force_rmse"]
    found = list(others)
    if energy is not None:
        found.append(0.5 * objective.energy_weight * (energy / objective.energy_scale) ** 2)
    if force is not None:
        found.append(0.5 * objective.force_weight * (force / objective.force_scale) ** 2)
    return sum(found) if found else None
