"""Values that ForceBalance's ``parameter_eval`` ties to others, as linear functions that become part of A.

    theta_t = sum_j m_tj theta_j + c_t

A tied value is no parameter of its own: in phi = A theta + b its column is replaced by those of the values that it
follows, so that every derivative is right without further ado. In a force field

    <Bond smirks="[#6:1]-[#9:2]" ... parameter_eval="k=0.5*PRM['Bonds/Bond/k/[#6:1]-[#17:2]']"/>

numbers are in the units of the file. Sums, differences, products and quotients with numbers are read, by the grammar of
Python but without running anything. Source: ``forcefield.py`` of https://github.com/leeping/forcebalance
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import scipy.sparse

from offjax.assignment import AssignmentMatrix
from offjax.errors import InputError, UnsupportedError
from offjax.parameterize import forcefield
from offjax.parameters import ParameterSet, Selection
from offjax.system import System

TOLERANCE = 1e-6
"""How far a tied value in the file may be from its expression, relatively."""


@dataclass(frozen=True, eq=False)
class Ties:
    """The tied entries ``rows`` (k,) of a vector of parameters, and the ``matrix`` m (k, n_parameters); MD units."""

    rows: np.ndarray
    matrix: scipy.sparse.csr_array

    @classmethod
    def none(cls, p: ParameterSet) -> Ties:
        """No ties."""
        return cls(np.zeros(0, dtype=np.int64), scipy.sparse.csr_array((0, p.schema.size)))

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    @property
    def digest(self) -> str:
        """SHA-256 of the ties; empty without any."""
        if not self:
            return ""
        m = self.matrix.tocoo()
        content = [self.rows.tolist(), m.row.tolist(), m.col.tolist(), m.data.tolist()]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def apply(self, p: ParameterSet) -> ParameterSet:
        """The ParameterSet with tied values that follow the others; exactly as loaded where these are."""
        vector, loaded = np.array(p.to_vector()), _loaded(p)
        vector[self.rows] = loaded[self.rows] + self.matrix @ (vector - loaded)
        return p.from_vector(vector)

    def system(self, system: System) -> System:
        """The System with the tied values taken out of its assignment."""
        if not self:
            return system
        n = system.parameters.schema.size
        loaded = _loaded(system.parameters)
        constant = loaded[self.rows] - self.matrix @ loaded
        keep = np.ones(n)
        keep[self.rows] = 0.0
        spread = scipy.sparse.csr_array(
            (np.ones(len(self.rows)), (self.rows, np.arange(len(self.rows)))), shape=(n, len(self.rows))
        )
        substitution = scipy.sparse.diags_array(keep).tocsr() + spread @ self.matrix
        assignment = {
            section: MappingProxyType(
                {a: _substituted(m, substitution, self.rows, constant) for a, m in attributes.items()}
            )
            for section, attributes in system.assignment.items()
        }
        return replace(system, assignment=MappingProxyType(assignment))


@dataclass(frozen=True, eq=False, repr=False)
class TiedSelection(Selection):
    """A Selection whose ``insert`` lets the tied values follow."""

    ties: Ties

    def insert(self, values) -> ParameterSet:
        """The ParameterSet with the selected entries replaced, and with what is tied to them."""
        import jax
        import jax.numpy as jnp

        p = super().insert(values)
        vector = p.to_vector()
        if not isinstance(vector, jax.Array):
            return self.ties.apply(p)
        m = self.ties.matrix.tocoo()
        loaded = jnp.asarray(_loaded(p), vector.dtype)
        change = jax.ops.segment_sum(m.data * (vector - loaded)[m.col], m.row, num_segments=len(self.ties.rows))
        return p.from_vector(vector.at[self.ties.rows].set(loaded[self.ties.rows] + change))


def _loaded(p: ParameterSet) -> np.ndarray:
    return np.array([label.loaded for label in p.schema.flat])


def _substituted(m: AssignmentMatrix, substitution, rows: np.ndarray, constant: np.ndarray) -> AssignmentMatrix:
    if not np.isin(m.columns, rows).any():
        return m
    whole = m.to_scipy()
    found = scipy.sparse.csr_array(whole @ substitution)
    found.sum_duplicates()
    pairs = found.tocoo()
    offset = m.offset + whole[:, rows] @ constant
    return AssignmentMatrix(
        m.schema, pairs.row.astype(m.rows.dtype), pairs.col.astype(m.columns.dtype), pairs.data, offset
    )


def find(p: ParameterSet, source: str, files: str | Sequence[str] = ()) -> Ties:
    """The ties of a force field (OFFXML text); ``files`` are named in messages.

    Raises
    ------
    InputError
        An expression that cannot be read, names what is not there, or gives another value than the file has.
    UnsupportedError
        An expression that is not linear, or that names a tied value.
    """
    flat = p.schema.flat
    place = {(label.section, label.row, label.key): i for i, label in enumerate(flat)}
    by_name = {(label.section, label.key, label.smirks or label.name): i for i, label in enumerate(flat)}
    tied = {
        (section, row, key): text
        for (section, row), (_, expressions) in forcefield.tags(source).items()
        for key, text in expressions.items()
    }
    rows: list[int] = []
    entries: list[tuple[int, int, float]] = []
    for (section, row, key), text in tied.items():
        where = _where(files, text)
        if (section, row, key) not in place:
            raise InputError(
                f"{where}: parameter_eval of <{section}> names {key}, which is no value of parameter {row + 1}"
            )
        i = place[section, row, key]
        label = flat[i]
        parts, constant = _affine(text, f"{where}: parameter_eval {key}={text} of {label}")
        value, factors = constant, {}
        for name, coefficient in parts.items():
            j = _named(by_name, name, f"{where}: parameter_eval of {label}")
            if (flat[j].section, flat[j].row, flat[j].key) in tied:
                raise UnsupportedError(
                    f"{where}: parameter_eval of {label} names {name!r}, which is tied itself: name what that follows"
                )
            value += coefficient * flat[j].loaded / flat[j].factor
            factors[j] = coefficient * label.factor / flat[j].factor
        given = label.loaded / label.factor
        if abs(value - given) > TOLERANCE * max(abs(value), abs(given)):
            raise InputError(
                f"{where}: parameter_eval of {label} gives {value:.10g} {label.unit}, but the value is {given:.10g}: "
                "make them equal"
            )
        entries += [(len(rows), j, factor) for j, factor in factors.items()]
        rows.append(i)
    a, b, v = (np.array(column) for column in zip(*entries, strict=True)) if entries else (np.zeros(0, int),) * 3
    matrix = scipy.sparse.csr_array((v.astype(float), (a, b)), shape=(len(rows), len(flat)))
    return Ties(np.array(rows, dtype=np.int64), matrix)


def _named(by_name: Mapping[tuple[str, str, str | None], int], name: str, where: str) -> int:
    parts = name.split("/", 3)
    if len(parts) == 4 and (found := by_name.get((parts[0], parts[2], parts[3]))) is not None:
        return found
    raise InputError(
        f"{where} names {name!r}, which is no value of the force field; the form is Bonds/Bond/k/SMIRKS, with the "
        "attribute and the SMIRKS as they are in the file"
    )


def _affine(text: str, what: str) -> tuple[dict[str, float], float]:
    """Coefficients by name, and the constant, of an expression."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{what}: not an expression ({error})") from None

    def scaled(form, by: float):
        return {name: by * c for name, c in form[0].items()}, by * form[1]

    def walk(node):
        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return {}, float(number)
            case ast.Subscript(value=ast.Name(id="PRM" | "PARM"), slice=ast.Constant(value=str() as name)):
                return {name: 1.0}, 0.0
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return scaled(walk(operand), -1.0)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return walk(operand)
            case ast.BinOp(left=left, op=ast.Add() | ast.Sub() as op, right=right):
                a, b = walk(left), scaled(walk(right), 1.0 if isinstance(op, ast.Add) else -1.0)
                names = dict.fromkeys([*a[0], *b[0]])
                return {name: a[0].get(name, 0.0) + b[0].get(name, 0.0) for name in names}, a[1] + b[1]
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                a, b = walk(left), walk(right)
                if not a[0] or not b[0]:
                    return scaled(a, b[1]) if not b[0] else scaled(b, a[1])
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                a, b = walk(left), walk(right)
                if not b[0] and b[1] != 0:
                    return scaled(a, 1.0 / b[1])
        raise UnsupportedError(
            f"{what}: {ast.unparse(node)!r} is not supported: only sums of PRM['...'] times numbers are"
        )

    return walk(tree.body)


def _where(files: str | Sequence[str], text: str) -> str:
    """The file and line that have an expression, as far as they can be found."""
    names = [files] if isinstance(files, str) else list(files)
    for name in names:
        if Path(name).is_file():
            for number, line in enumerate(Path(name).read_text(errors="replace").splitlines(), start=1):
                if "parameter_eval" in line and text.strip() in line:
                    return f"{name}, line {number}"
    return ", ".join(Path(name).name for name in names if len(name) < 200) or "force field"
