"""Terms that a user defines: one JAX function with the names of its attributes.

The potential is written for one interaction, of numbers or of arrays of any shape. A valence potential takes the
coordinate that its ``kind`` names, a pair potential the distance and the attributes of both atoms. Everything else
(reading, assignment, derivatives, neighbour lists, export) follows from the definition.
"""

from __future__ import annotations

import keyword
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from offjax import geometry
from offjax.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


class Kind(NamedTuple):
    """Tagged atoms of the SMIRKS, which of them the coordinate takes, the coordinate, and the name of one element."""

    body: int
    takes: tuple[int, ...]
    coordinate: Callable[..., Array]
    element: str


def _distance(a, b):
    return geometry.norm(b - a)


KINDS = {
    "pair": Kind(1, (0,), _distance, "Atom"),
    "bond": Kind(2, (0, 1), _distance, "Bond"),
    "urey-bradley": Kind(3, (0, 2), _distance, "UreyBradley"),
    "angle": Kind(3, (0, 1, 2), geometry.angle, "Angle"),
    "torsion": Kind(4, (0, 1, 2, 3), geometry.dihedral, "Torsion"),
}

_RESERVED = {"smirks", "id", "name", "parent_id", "version", "r", "theta", "phi", "cutoff", "switch_width",
             "scale12", "scale13", "scale14", "scale15", "periodic_method", "nonperiodic_method"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class UserTerm:
    """A pair or valence potential of the user's, for a section of the force field that carries its parameters.

    Parameters
    ----------
    section
        The name of the OFFXML section; also the key of ``system.terms``, ``p[section]`` and ``energy.by_term``.
    kind
        What the SMIRKS tag and what the potential is a function of: ``"bond"`` two atoms, their distance;
        ``"urey-bradley"`` three atoms, the distance of the outer ones; ``"angle"`` three atoms, ``"torsion"`` four,
        their angle in rad; ``"pair"`` one atom each: all pairs of atoms, except those one or two bonds apart, and
        scaled by ``scale14`` of the section three bonds apart.
    potential
        kJ/mol, made of JAX functions that act elementwise. Valence: ``potential(s, **attributes, **constants)`` of the
        coordinate s (nm or rad). Pair: ``potential(r, i, j, **constants)``, symmetric in the two atoms, whose
        attributes are ``i.name`` and ``j.name``. Derivatives must be finite wherever it is evaluated
        (``offjax.geometry.safe_sqrt`` for square roots that may be of zero).
    attributes
        ``{name: unit}`` of every parameter, in nm, kJ/mol, rad, e: ``"kJ/mol/nm**2"``, ``"1/nm"``, ``"dimensionless"``.
        The file may use other units of the same dimension.
    constants
        The same for attributes of the section itself, one value for the whole force field; parameters too.
    complete
        Whether every bond, angle or torsion of the molecules (pair: every atom) must have a parameter; if not, those
        that no SMIRKS matches have no such term. Incomplete terms may also match atoms that are not bonded.
    long_range_correction
        Whether a pair potential in a periodic box gets the mean energy of the pairs beyond the cutoff, by quadrature;
        it must then decay faster than r^-3.
    element
        The name of one element of the section; None is Atom, Bond, UreyBradley, Angle or Torsion.
    openmm
        The potential as an OpenMM expression, for ``to_openmm()``: of ``r`` or ``theta`` and the names above; in pairs
        the attributes of the two atoms end in 1 and 2. It is compared with ``potential`` at every export.

    Raises
    ------
    InputError
        A kind that does not exist, a name that cannot be used, or a potential that does not take these attributes or is
        not elementwise.
    """

    section: str
    kind: str
    potential: Callable[..., Any]
    attributes: Mapping[str, str]
    constants: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True
    long_range_correction: bool = True
    element: str | None = None
    openmm: str | None = None

    def __post_init__(self) -> None:
        for name in ("attributes", "constants"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if self.kind not in KINDS:
            raise InputError(f"{self!r}: kind must be one of {', '.join(KINDS)}")
        names = [self.section, *self.attributes, *self.constants]
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name in _RESERVED:
                raise InputError(f"{self!r}: {name!r} cannot be the name of a section or attribute")
        if not self.attributes or len(set(names)) < len(names):
            raise InputError(f"{self!r}: attributes and constants need names, each another one")
        if self.element is None:
            object.__setattr__(self, "element", KINDS[self.kind].element)
        self._check_potential()

    def _check_potential(self) -> None:
        """The potential must take arrays of any shape, elementwise."""
        n = len(self.attributes) * (2 if self.is_pair else 1) + len(self.constants) + 1
        arguments = [jax.ShapeDtypeStruct((2, 3), jnp.float32)] * n
        try:
            result = jax.eval_shape(lambda *a: jnp.asarray(self.of_flat(*a)), *arguments)
        except TypeError as error:
            raise InputError(f"{self!r}: the potential does not take these attributes: {error}") from error
        if result.shape != (2, 3):
            raise InputError(
                f"{self!r}: the potential must act elementwise, but arguments of shape (2, 3) give {result.shape}"
            )
        if self.is_pair:
            m = len(self.attributes)
            values = jnp.linspace(0.5, 1.0, n, dtype=jnp.float32)
            swapped = values[jnp.array([0, *range(m + 1, 2 * m + 1), *range(1, m + 1), *range(2 * m + 1, n)])]
            there, back = self.of_flat(*values), self.of_flat(*swapped)
            if not jnp.allclose(there, back, rtol=1e-4, equal_nan=True):
                raise InputError(f"{self!r}: the potential must be symmetric, but i and j swapped give {there}, {back}")

    def of_flat(self, s, *values):
        """The energy, kJ/mol, of the coordinate, the attributes (of both atoms in turn for pairs) and the constants."""
        n = len(self.attributes)
        last = dict(zip(self.constants, values[2 * n if self.is_pair else n :], strict=True))
        if self.is_pair:
            return self.potential(s, self._atom(*values[:n]), self._atom(*values[n : 2 * n]), **last)
        return self.potential(s, **dict(zip(self.attributes, values[:n], strict=True)), **last)

    def parameter_handler(self) -> type:
        """The OpenFF toolkit's ParameterHandler class of the section, made from this definition.

        For an entry point ``openff.toolkit.plugins.handlers``, so that ``ForceField(..., load_plugins=True)`` reads the
        section. ``System.from_smirnoff(path, ..., user_terms=[...])`` needs no such registration.
        """
        from offjax.parameterize.plugins import parameter_handler

        return parameter_handler(self)

    @property
    def is_pair(self) -> bool:
        return self.kind == "pair"

    @property
    def names(self) -> tuple[str, ...]:
        """Attributes, then constants: those of the slots."""
        return (*self.attributes, *self.constants)

    @property
    def units(self) -> dict[str, str]:
        """Of attributes and constants."""
        return {**self.attributes, **self.constants}

    @cached_property
    def _atom(self):
        return namedtuple("Atom", list(self.attributes))

    def energies(
        self, positions: Float[Array, "atom 3"], atoms: Int[Array, "term body"], values: Mapping[str, Array]
    ) -> Float[Array, " term"]:
        """Valence: the energy of every term, kJ/mol, from attributes and constants (term,).

        Where the coordinate has no derivative (coinciding atoms, linear angles, collinear torsions) it is zero.
        """
        kind = KINDS[self.kind]
        s = kind.coordinate(*(positions[atoms[:, m]] for m in kind.takes))
        return self.potential(s, **values)

    def pair(self, r2, first: tuple[Array, ...], second: tuple[Array, ...]):
        """The energy of pairs at squared distances ``r2`` > 0, nm^2, kJ/mol.

        ``first`` and ``second``: whether an atom takes part (1 or 0), its attributes and the constants, in order, as
        :meth:`of_particles` gives them. A constant is the mean of what both atoms have.
        """
        n = 1 + len(self.attributes)
        constants = (0.5 * (a + b) for a, b in zip(first[n:], second[n:], strict=True))
        both = first[0] * second[0] > 0
        u = self.of_flat(jnp.sqrt(jnp.where(both, r2, 1.0)), *first[1:n], *second[1:n], *constants)
        return jnp.where(both, u, 0.0)

    def of_particles(self, atoms: Int[Array, " term"], values: Mapping[str, Array], n_particles: int):
        """What :meth:`pair` takes, for every particle; those without parameter, and virtual sites, take no part."""
        columns = [values[name] for name in self.names]
        part = jnp.zeros(n_particles, columns[0].dtype).at[atoms].set(1.0)
        filling = [v[0] if len(atoms) else 1.0 for v in columns]
        return (
            part,
            *(jnp.full(n_particles, f, v.dtype).at[atoms].set(v) for f, v in zip(filling, columns, strict=True)),
        )

    def __repr__(self) -> str:
        return f"UserTerm({self.section!r}, {self.kind!r}, {', '.join([*self.attributes, *self.constants])})"
