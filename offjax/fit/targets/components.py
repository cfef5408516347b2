"""Which target each kind of data has, what it reports, and the components of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from offjax.errors import InputError
from offjax.fit.config import FitConfig
from offjax.fit.targets.conformers import CONFORMERS
from offjax.fit.targets.geometries import OptimizedGeometries
from offjax.fit.targets.gradients import MinimumGradients
from offjax.fit.targets.hessians import Hessians
from offjax.fit.targets.interactions import InteractionEnergies
from offjax.fit.targets.potentials import ElectrostaticPotentials
from offjax.fit.targets.target import Component
from offjax.fit.targets.vibrations import Vibrations
from offjax.interop.records import Record
from offjax.system import System

TARGETS: dict[str, Any] = {
    "optimized-geometries": OptimizedGeometries,
    "minimum-gradients": MinimumGradients,
    "hessians": Hessians,
    "vibrations": Vibrations,
    "interaction-energies": InteractionEnergies,
    "electrostatic-potentials": ElectrostaticPotentials,
}

NEEDED = {
    "hessians": (("hessian",),),
    "vibrations": (("hessian",), ("frequencies", "modes")),
    "interaction-energies": (("interaction",),),
    "electrostatic-potentials": (("grid", "potential"),),
}
"""Properties of records that a kind cannot do without, in alternatives."""


class Quantity(NamedTuple):
    """Something whose error is reported: what it is called, and its unit."""

    name: str
    unit: str


QUANTITIES = {
    "energy": Quantity("energy", "kJ/mol"),
    "force": Quantity("force", "kJ/mol/nm"),
    "bond": Quantity("bond length", "nm"),
    "angle": Quantity("angle", "degree"),
    "torsion": Quantity("torsion angle", "degree"),
    "improper": Quantity("improper", "degree"),
    "position": Quantity("atoms after superposition", "nm"),
    "gradient": Quantity("force at the QM minimum", "kJ/mol/nm"),
    "hessian": Quantity("mass-weighted Hessian", "kJ/mol/nm^2/amu"),
    "frequency": Quantity("wavenumber", "1/cm"),
    "interaction": Quantity("interaction energy", "kJ/mol"),
    "potential": Quantity("electrostatic potential", "kJ/mol/e"),
}
"""All quantities, in the order of tables. Errors are root mean squares in which every molecule counts equally."""


def check(record: Record, kind: str) -> None:
    """Raise InputError where a record has not what a kind of data needs."""
    if kind in CONFORMERS:
        if not record.has_energies:
            raise InputError(f"{record.source}, {record.name}: there are no energies, which kind = {kind!r} compares")
    elif kind in NEEDED and not any(set(needed) <= set(record.properties) for needed in NEEDED[kind]):
        words = " or ".join(" and ".join(needed) for needed in NEEDED[kind])
        raise InputError(f"{record.source}, {record.name}: no {words}, which kind = {kind!r} compares")


def build(
    systems: Sequence[System], records: Sequence[Record], weights: Float[np.ndarray, " molecule"], config: FitConfig
) -> tuple[Component, ...]:
    """One component for each kind among the records that has one; ``weights[m]`` is w_m (0: held out)."""
    found = []
    for kind, target in TARGETS.items():
        members = tuple(m for m, record in enumerate(records) if record.kind == kind)
        if members:
            settings = getattr(config, kind.replace("-", "_"))
            packed = target.of([systems[m] for m in members], [records[m] for m in members], settings)
            found.append(Component(packed, jnp.sqrt(jnp.asarray(weights)[np.array(members)]), kind, members))
    return tuple(found)
