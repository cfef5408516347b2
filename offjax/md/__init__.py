"""Differentiable dynamics and minimisation of any energy function, in any number of dimensions.

An energy is a function of positions (n, dimension) and, where it has them, of ``box`` and ``neighbors``; its
parameters are bound with ``functools.partial(energy, parameters)`` or a closure. Nothing here knows molecular
mechanics: a System's ``to_jax()``, a pair potential and a neural network are used alike.
"""

from offjax.md.minimizers import Descent, Minimum, descend, fire, lbfgs, minimize, steepest_descent
from offjax.md.pair import lennard_jones, morse, pair_energy, smooth_cutoff, soft_sphere
from offjax.md.space import Space, free, periodic, volume

__all__ = [
    "Descent",
    "Minimum",
    "Space",
    "descend",
    "fire",
    "free",
    "lbfgs",
    "lennard_jones",
    "minimize",
    "morse",
    "pair_energy",
    "periodic",
    "smooth_cutoff",
    "soft_sphere",
    "steepest_descent",
    "volume",
]
