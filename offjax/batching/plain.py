"""The plain path of a batch: every conformer's terms concatenated into one flat list, and JAX's own
differentiation.

It holds every term of every conformer at once, but it is a direct transcription of the energy (the kernels of
:mod:`offjax.terms` over index arrays) and can be differentiated in any mode and to any order. The chunked
path is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offjax.batching import solvent
from offjax.batching.instances import Affine, MoleculeTerms, user_values
from offjax.batching.kernel import user_energy
from offjax.batching.sites import placed
from offjax.settings import GBSASettings
from offjax.terms import angles, bonds, electrostatics, torsions, vdw
from offjax.terms.user import KINDS as USER_KINDS
from offjax.terms.user import UserTerm

KERNELS: dict[str, Callable[..., Any]] = {
    "Bonds": bonds.energies,
    "Angles": angles.energies,
    "ProperTorsions": torsions.energies,
    "ImproperTorsions": torsions.energies,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class PlainTerms:
    """All terms of all conformers: ``atoms[name]`` (n, body) rows of the flat positions, ``conformer[name]`` (n,) the
    conformer each belongs to, ``values[name]`` its parameters as affine functions of theta. ``"pairs"`` are the
    nonbonded pairs; vdW, Electrostatics and GBSA have values by atom row. ``"VirtualSites"``, of which ``kind`` has the
    kinds, are placed before the others are evaluated. ``members`` (n_conformers, width) are the rows of each conformer,
    for the implicit solvent ``gbsa``."""

    atoms: dict[str, Array]
    conformer: dict[str, Array]
    values: dict[str, dict[str, Affine]]
    periodicity: dict[str, Array]
    vdw_scale: Array
    coulomb_scale: Array
    user: tuple[UserTerm, ...] = field(default=(), metadata={"static": True})
    kind: Array | None = None
    gbsa: GBSASettings | None = field(default=None, metadata={"static": True})
    members: Array | None = None

    def energies(self, theta, x: Float[Array, "row 3"], n: int) -> Float[Array, " n"]:
        """Energy of each of ``n`` conformers, kJ/mol; ``theta`` the force-field vector, ``x`` all atom rows in nm."""
        return self._energies(self._values(theta, x.dtype), x, n)

    def charges(self, theta, x: Float[Array, "row 3"]):
        """Charge of every row (row,), e, and positions with virtual sites in their places (row, 3)."""
        values = self._values(theta, x.dtype)
        if "VirtualSites" in values:
            x = placed(x, self.atoms["VirtualSites"], self.kind, **values["VirtualSites"])
        if "Electrostatics" not in values:
            return jnp.zeros(len(x), x.dtype), x
        return values["Electrostatics"]["charge"], x

    def rows(self, theta, x: Float[Array, "row 3"], n: int, columns, function):
        """``function(energies, x) -> (n,)`` of each conformer, its gradient in x, and in some ``columns`` of theta.

        ``energies(x) -> (n,)`` may be differentiated within; a conformer's value must depend on that conformer alone.
        Every term has values of its own here, so that one reverse pass holds the rows (n, len(columns)) of all
        conformers.
        """

        def total(values, x):
            each = function(lambda y: self._energies(values, y, n), x)
            return jnp.sum(each), each

        (slopes, pull), each = jax.grad(total, (0, 1), has_aux=True)(self._values(theta, x.dtype), x)
        outside = len(columns)
        place = jnp.full(len(theta), outside).at[columns].set(jnp.arange(outside))
        rows = jnp.zeros((n, outside), x.dtype)
        for section, attributes in slopes.items():
            for attribute, slope in attributes.items():
                of, weights, _ = self.values[section][attribute]
                at = (self.conformer[section][:, None], place[of])
                rows = rows.at[at].add(jnp.asarray(weights, x.dtype) * slope[:, None], mode="drop")
        return each, pull, rows

    def _values(self, theta, dtype):
        return {s: {a: v.at(theta, dtype) for a, v in d.items()} for s, d in self.values.items()}

    def _energies(self, values, x, n: int):
        total = jnp.zeros(n, x.dtype)
        if "VirtualSites" in values:
            x = placed(x, self.atoms["VirtualSites"], self.kind, **values["VirtualSites"])

        def add(name, terms):
            return total + jax.ops.segment_sum(terms, self.conformer[name], num_segments=n)

        for name, kernel in KERNELS.items():
            if name in values:
                extra = {"periodicity": self.periodicity[name]} if name in self.periodicity else {}
                total = add(name, kernel(x, self.atoms[name], **values[name], **extra))
        for term in self.user:
            if term.section in values:
                own = [values[term.section][a] for a in user_values(term)]
                terms = _user_energies(term, x, self.atoms[term.section], own)
                total = add(term.section, terms)
        i, j = self.atoms["pairs"][:, 0], self.atoms["pairs"][:, 1]
        r2 = jnp.sum((x[j] - x[i]) ** 2, axis=-1)
        if "vdW" in values:
            sigma, epsilon = values["vdW"]["sigma"], values["vdW"]["epsilon"]
            u = vdw.potential(r2, *vdw.combine(sigma[i], sigma[j], epsilon[i], epsilon[j]))
            total = add("pairs", jnp.asarray(self.vdw_scale, x.dtype) * u)
        if "Electrostatics" in values:
            q = values["Electrostatics"]["charge"]
            total = add("pairs", electrostatics.potential(r2, jnp.asarray(self.coulomb_scale, x.dtype) * q[i] * q[j]))
        if self.gbsa is not None and self.members is not None:
            own = values["Electrostatics"]["charge"], *(values["GBSA"][a] for a in ("radius", "scale"))
            total = total.at[: len(self.members)].add(solvent.energies(self.gbsa, self.members, x, *own))
        return total

    def energies_and_forces(self, theta, x: Float[Array, "row 3"], n: int):
        """Energies (n,), and forces (row, 3) in kJ/mol/nm as minus the derivative of their sum."""

        def total(x):
            energies = self.energies(theta, x, n)
            return jnp.sum(energies), energies

        gradient, energies = jax.grad(total, has_aux=True)(x)
        return energies, -gradient


def _user_energies(term: UserTerm, x, atoms, values):
    """The energy of user-defined terms."""
    kind = USER_KINDS[term.kind]
    takes = (0, 1) if term.is_pair else kind.takes
    return user_energy(term, kind.coordinate(*(x[atoms[:, m]] for m in takes)), values)


def flatten(molecules: Sequence[MoleculeTerms], molecule: np.ndarray) -> PlainTerms:
    """The terms of conformers; ``molecule`` (n_conformers,) tells which of ``molecules`` each is."""
    sizes = np.array([m.n_atoms for m in molecules])
    starts = np.concatenate([[0], np.cumsum(sizes[molecule])])
    used = [molecules[m] for m in molecule]
    atoms, conformer, values, periodicity = {}, {}, {}, {}
    kind = None
    for name in sorted({name for m in used for name in m.sections}):
        parts = [(c, m.sections[name]) for c, m in enumerate(used) if name in m.sections]
        atoms[name] = np.concatenate([part.atoms + starts[c] for c, part in parts]).astype(np.int32)
        conformer[name] = np.concatenate([np.full(len(part.atoms), c) for c, part in parts]).astype(np.int32)
        values[name] = {a: Affine.concatenate([part.values[a] for _, part in parts]) for a in parts[0][1].values}
        if parts[0][1].periodicity is not None:
            periodicity[name] = np.concatenate([part.periodicity for _, part in parts])
        if name == "VirtualSites":
            kind = np.concatenate([part.kind for _, part in parts]).astype(np.int32)
    pairs = [m.pairs for m in used]
    atoms["pairs"] = np.concatenate([p.atoms + starts[c] for c, p in enumerate(pairs)]).astype(np.int32)
    conformer["pairs"] = np.repeat(np.arange(len(pairs)), [len(p.atoms) for p in pairs]).astype(np.int32)
    scales = (np.concatenate([p.vdw_scale for p in pairs]), np.concatenate([p.coulomb_scale for p in pairs]))
    defined = {term.section: term for m in used for term in m.user}
    implicit = used[0].gbsa
    members = None if implicit is None else solvent.members(sizes[molecule], starts[:-1], int(sizes[molecule].max()))
    return PlainTerms(atoms, conformer, values, periodicity, *scales, tuple(defined.values()), kind, implicit, members)
