"""What a kind of reference data beside energies, forces and torsion profiles has to tell the objective.

A :class:`Target` gives deviations u_j(theta), each divided by its scale, so that the squares of those of one record sum
to about 1 where the force field is as wrong as the scales say. A :class:`Component` gives each record r its weight w_r,

    r_j = sqrt(w_r) u_j,

and 0 to held-out records. Deviations can be differentiated once, in forward and reverse mode; ``jacobian`` gives their
derivatives in some entries of the force field at once, by whatever way is cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offjax.parameters import ParameterSet


class Found(NamedTuple):
    """Deviations u (j,), and ``errors``: the mean square deviation of each record by quantity, in the quantity's unit.

    ``positions`` (row, 3) nm are those of minima; None where geometries are taken as they are. ``unconverged`` counts
    the conformers whose minimisation did not end. ``directions`` (conformer, mode, coordinate) are normal modes.
    """

    deviations: Float[Array, " j"]
    errors: dict[str, Float[Array, " record"]]
    positions: Float[Array, "row 3"] | None
    unconverged: Int[Array, ""]
    directions: Float[Array, "conformer mode coordinate"] | None = None


class Target(Protocol):
    """Reference data of one kind, a pytree and a dataclass. ``record`` (j,) is the record of each deviation; ``starts``
    (row, 3) nm where minimisations begin, None where nothing is minimised.
    """

    @property
    def record(self) -> Int[Array, " j"]: ...

    @property
    def starts(self) -> Float[Array, "row 3"] | None: ...

    def evaluate(self, p: ParameterSet) -> Found: ...

    def jacobian(self, p: ParameterSet, at: Found, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
        """du/d theta in some entries of ``p.to_vector()``; ``at`` is what ``evaluate`` gives."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Component:
    """A target with the weights of its records: ``root_weight`` (record,) is sqrt(w_r).

    ``members`` are the places of the records among all molecules of a fit.
    """

    target: Target
    root_weight: Float[Array, " record"]
    kind: str = field(metadata={"static": True})
    members: tuple[int, ...] = field(metadata={"static": True})

    def residuals(self, p: ParameterSet) -> Float[Array, " j"]:
        """r, without unit; differentiable once."""
        return self.weighted(self.target.evaluate(p).deviations)

    def weighted(self, deviations):
        """sqrt(w_r) u_j, for deviations (j,) or their derivatives (j, k)."""
        factor = self.root_weight[self.target.record]
        return factor.reshape(-1, *[1] * (deviations.ndim - 1)) * deviations

    def losses(self, deviations: Float[Array, " j"]) -> Float[Array, " record"]:
        """1/2 sum_j u_j^2 of each record."""
        return 0.5 * jax.ops.segment_sum(deviations**2, self.target.record, len(self.members))


def forward(function, p: ParameterSet, columns: Int[Array, " k"]) -> Float[Array, "j k"]:
    """The Jacobian of ``function(p) -> (j,)`` in some entries of ``p.to_vector()``, column by column."""
    theta = jnp.asarray(p.to_vector())
    _, linear = jax.linearize(lambda t: function(p.from_vector(theta.at[columns].set(t))), theta[columns])
    return jax.lax.map(linear, jnp.eye(len(columns), dtype=theta.dtype)).T
