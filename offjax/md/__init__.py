"""Differentiable dynamics and minimisation of any energy function, in any number of dimensions.

An energy is a function of positions (n, dimension) and, where it has them, of ``box`` and ``neighbors``; its
parameters are bound with ``functools.partial(energy, parameters)`` or a closure. Nothing here knows molecular
mechanics: a System's ``to_jax()``, a pair potential and a neural network are used alike.
"""

from offjax.md.constraints import Constraints, distance_constraints
from offjax.md.dynamics import (
    Forces,
    Info,
    Integrator,
    State,
    maxwell_boltzmann,
    mixed_precision,
    thermal_energy,
)
from offjax.md.integrators import (
    advance,
    brownian,
    langevin,
    langevin_middle,
    monte_carlo_barostat,
    nose_hoover,
    nose_hoover_npt,
    stochastic_velocity_rescaling,
    velocity_verlet,
)
from offjax.md.minimizers import Descent, Minimum, descend, fire, lbfgs, minimize, steepest_descent
from offjax.md.observables import (
    Modes,
    bond_orientational_order,
    elastic_moduli,
    kinetic_temperature,
    mean_squared_displacement,
    normal_modes,
    pair_correlation,
    pressure,
    smooth_pair_correlation,
    stress,
    velocity_autocorrelation,
)
from offjax.md.pair import lennard_jones, morse, pair_energy, smooth_cutoff, soft_sphere
from offjax.md.reversible import reversible_trajectory
from offjax.md.simulation import Frame, Simulation, load_checkpoint, save_checkpoint, simulate
from offjax.md.space import Space, free, periodic, volume

__all__ = [
    "Constraints",
    "Descent",
    "Forces",
    "Frame",
    "Info",
    "Integrator",
    "Minimum",
    "Modes",
    "Simulation",
    "Space",
    "State",
    "advance",
    "bond_orientational_order",
    "brownian",
    "descend",
    "distance_constraints",
    "elastic_moduli",
    "fire",
    "free",
    "kinetic_temperature",
    "langevin",
    "langevin_middle",
    "lbfgs",
    "lennard_jones",
    "load_checkpoint",
    "maxwell_boltzmann",
    "mean_squared_displacement",
    "minimize",
    "mixed_precision",
    "monte_carlo_barostat",
    "morse",
    "normal_modes",
    "nose_hoover",
    "nose_hoover_npt",
    "pair_correlation",
    "pair_energy",
    "periodic",
    "pressure",
    "reversible_trajectory",
    "save_checkpoint",
    "simulate",
    "smooth_cutoff",
    "smooth_pair_correlation",
    "soft_sphere",
    "steepest_descent",
    "stochastic_velocity_rescaling",
    "stress",
    "thermal_energy",
    "velocity_autocorrelation",
    "velocity_verlet",
    "volume",
]
