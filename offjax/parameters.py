"""The ParameterSet: a whole SMIRNOFF force field as a pytree of arrays, one entry a value as written in the file.

A ParameterSet holds ``{section: {attribute: array}}`` in MD units and refers to one interned :class:`Schema` that
knows what each entry is: its SMIRKS, id, unit in the file and loaded value. All ParameterSets of one force field share
that Schema object, so labels never travel through ``jax.jit`` as per-call data.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError


@dataclass(frozen=True)
class Label:
    """What one entry of a parameter array is.

    ``term`` is the SMIRNOFF index n of ``k<n>``, ``charge<n>`` ... (1-based as in the file; None for an attribute
    without index), ``bond_order`` the m of ``k_bondorder<m>``, ``unit`` the unit in the file, ``factor`` the value in
    MD units of one such unit, ``loaded`` the value loaded from the file in MD units, ``row`` the position of the
    parameter in its section.
    """

    section: str
    attribute: str
    row: int
    id: str | None
    smirks: str | None
    name: str | None
    term: int | None
    bond_order: int | None
    unit: str
    factor: float
    loaded: float

    @property
    def key(self) -> str:
        """The attribute as the file writes it, for example ``k2`` or ``k1_bondorder2``."""
        base, _, tail = self.attribute.partition("_bondorder")
        if self.bond_order is None:
            return self.attribute + ("" if self.term is None else str(self.term))
        return f"{base}{'' if self.term is None else self.term}_bondorder{self.bond_order}"

    def __str__(self) -> str:
        return " ".join([f"{self.section}/{self.key}", *filter(None, (self.id, self.smirks))])


class Schema:
    """The interned description of a force field's parameters: one Label for each entry, in vector order."""

    _interned: weakref.WeakValueDictionary[str, Schema] = weakref.WeakValueDictionary()
    labels: Mapping[str, Mapping[str, tuple[Label, ...]]]
    slices: Mapping[tuple[str, str], slice]
    digest: str
    size: int

    def __new__(cls, labels: Mapping[str, Mapping[str, Sequence[Label]]]) -> Schema:
        flat = [[list(vars(label).values()) for label in column] for s in labels.values() for column in s.values()]
        names = [[section, list(attributes)] for section, attributes in labels.items()]
        digest = hashlib.sha256(json.dumps([names, flat]).encode()).hexdigest()
        if (known := cls._interned.get(digest)) is not None:
            return known
        self = super().__new__(cls)
        self.labels = MappingProxyType(
            {s: MappingProxyType({a: tuple(column) for a, column in d.items()}) for s, d in labels.items()}
        )
        slices, start = {}, 0
        for section, attributes in self.labels.items():
            for attribute, column in attributes.items():
                slices[section, attribute] = slice(start, start + len(column))
                start += len(column)
        self.slices, self.size, self.digest = MappingProxyType(slices), start, digest
        cls._interned[digest] = self
        return self

    def __reduce__(self):
        return Schema, ({s: {a: list(c) for a, c in d.items()} for s, d in self.labels.items()},)

    @property
    def flat(self) -> list[Label]:
        """All labels in the order of ``ParameterSet.to_vector()``."""
        return [label for attributes in self.labels.values() for column in attributes.values() for label in column]

    def slice(self, section: str, attribute: str) -> slice:
        """Where ``section/attribute`` stands in the vector; InputError names what exists otherwise."""
        if section not in self.labels:
            raise InputError(f"no section {section!r} in this force field; it has {', '.join(self.labels)}")
        if attribute not in self.labels[section]:
            have = ", ".join(self.labels[section]) or "no numerical attributes"
            raise InputError(f"section {section} has no attribute {attribute!r}; it has {have}")
        return self.slices[section, attribute]


@jax.tree_util.register_pytree_with_keys_class
class ParameterSet:
    """The parameters of a whole force field, in MD units, as a pytree.

    ``p["Bonds"]["k"]`` is one array for each attribute as written in the file (``rmin_half`` and ``sigma`` rows are two
    arrays; ``k1, k2, ...`` are flattened into ``k``; ``k1_bondorder2`` into ``k_bondorder``), and
    ``p.labels["Bonds"]["k"]`` tells for each entry its id, SMIRKS, name, indices and unit in the file.
    A ParameterSet is immutable; ``from_vector``, ``replace`` and ``select(...).insert`` make new ones and may be
    traced.
    """

    __slots__ = ("_values", "schema")

    def __init__(self, schema: Schema, values: Sequence[Any]):
        self.schema = schema
        self._values = tuple(values)

    @classmethod
    def loaded(cls, schema: Schema) -> ParameterSet:
        """The values that stand in the file, host float64."""
        values = []
        for attributes in schema.labels.values():
            for column in attributes.values():
                array = np.array([label.loaded for label in column], dtype=np.float64)
                array.setflags(write=False)
                values.append(array)
        return cls(schema, values)

    def tree_flatten_with_keys(self):
        keys = [jax.tree_util.DictKey(f"{s}/{a}") for s, a in self.schema.slices]
        return list(zip(keys, self._values, strict=True)), self.schema

    def tree_flatten(self):
        return self._values, self.schema

    @classmethod
    def tree_unflatten(cls, schema, values):
        return cls(schema, values)

    @property
    def labels(self) -> Mapping[str, Mapping[str, tuple[Label, ...]]]:
        """``labels[section][attribute]``: one :class:`Label` for each entry."""
        return self.schema.labels

    @property
    def digest(self) -> str:
        """SHA-256 over the schema: sections, labels, units and loaded values."""
        return self.schema.digest

    def __getitem__(self, section: str) -> Mapping[str, Any]:
        if section not in self.schema.labels:
            self.schema.slice(section, "")
        chosen = zip(self.schema.slices, self._values, strict=True)
        return MappingProxyType({a: value for (s, a), value in chosen if s == section})

    def __iter__(self):
        return iter(self.schema.labels)

    def __contains__(self, section: object) -> bool:
        return section in self.schema.labels

    def keys(self):
        """The names of the sections."""
        return self.schema.labels.keys()

    def items(self):
        """Pairs (section, {attribute: array})."""
        return [(section, self[section]) for section in self]

    def to_vector(self):
        """All values as one (n,) array, in the order of ``schema.flat``; NumPy in, NumPy out."""
        if all(isinstance(v, np.ndarray) for v in self._values):
            return np.concatenate(self._values) if self._values else np.zeros(0)
        return jnp.concatenate([jnp.asarray(v) for v in self._values], axis=-1)

    def from_vector(self, vector) -> ParameterSet:
        """A ParameterSet of this schema with the values of ``vector``, shape (n,). May be traced."""
        if not isinstance(vector, jax.Array):
            vector = np.asarray(vector)
        if vector.shape != (self.schema.size,):
            raise InputError(f"this force field has {self.schema.size} parameters, got shape {vector.shape}")
        _check_real(vector)
        return ParameterSet(self.schema, [vector[s] for s in self.schema.slices.values()])

    def replace(self, section: str, attribute: str, values) -> ParameterSet:
        """A ParameterSet with the array ``section/attribute`` (MD units, or an OpenFF quantity) replaced."""
        chosen = self.schema.slice(section, attribute)
        values = _in_md_units(values, self.schema.labels[section][attribute])
        if np.shape(values) != (chosen.stop - chosen.start,):
            raise InputError(
                f"{section}/{attribute} has {chosen.stop - chosen.start} entries, got shape {np.shape(values)}"
            )
        _check_real(values)
        position = list(self.schema.slices).index((section, attribute))
        return ParameterSet(self.schema, [values if i == position else v for i, v in enumerate(self._values)])

    def select(self, path: str | Iterable[str], patterns: str | Sequence[str] | None = None) -> Selection:
        """Choose entries: ``select("Bonds/k")``, ``select("Bonds/k", ["b1", "b8*"])``, ``select("Bonds/k", [smirks])``.

        ``path`` is ``section/attribute`` (or several; ``"Bonds"`` or ``"Bonds/*"`` takes every attribute of a section);
        ``patterns`` are parameter ids (shell wildcards allowed), SMIRKS exactly as in the file, or ``id:k2`` style keys
        that name one indexed value. A path or pattern that chooses nothing raises InputError.
        """
        paths = [path] if isinstance(path, str) else list(path)
        indices: list[int] = []
        for one in paths:
            indices.extend(self._match(one, patterns))
        return Selection(self, np.unique(np.asarray(indices, dtype=np.int64)))

    def _match(self, path: str, patterns: str | Sequence[str] | None) -> list[int]:
        section, _, attribute = path.partition("/")
        if attribute in ("", "*"):
            self.schema.labels.get(section) or self.schema.slice(section, "")
            attributes = list(self.schema.labels[section])
        else:
            self.schema.slice(section, attribute)
            attributes = [attribute]
        candidates = [
            (self.schema.slices[section, a].start + i, label)
            for a in attributes
            for i, label in enumerate(self.schema.labels[section][a])
        ]
        if patterns is None:
            return [index for index, _ in candidates]
        chosen = []
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = [index for index, label in candidates if _matches(label, pattern)]
            if not found:
                ids = sorted({label.id for _, label in candidates if label.id})
                some = ", ".join(ids[:8]) + (", ..." if len(ids) > 8 else "")
                raise InputError(f"{pattern!r} is neither an id nor a SMIRKS of {path}; ids there: {some or 'none'}")
            chosen.extend(found)
        return chosen

    def astype(self, dtype) -> ParameterSet:
        """The same values in another floating-point type."""
        return ParameterSet(self.schema, [v.astype(dtype) for v in self._values])

    def to_dataframe(self, only=None):
        """A pandas table: one row a value, in the file's unit beside the MD value. ``only``: vector indices."""
        import pandas as pd

        vector = np.asarray(self.to_vector())
        indices = range(len(vector)) if only is None else [int(i) for i in only]
        flat = self.schema.flat
        rows = [
            {
                "section": label.section,
                "attribute": label.key,
                "id": label.id,
                "smirks": label.smirks,
                "name": label.name,
                "value": vector[i] / label.factor,
                "unit": label.unit,
                "value_md": vector[i],
                "loaded": label.loaded / label.factor,
            }
            for i in indices
            for label in [flat[i]]
        ]
        columns = ["section", "attribute", "id", "smirks", "name", "value", "unit", "value_md", "loaded"]
        return pd.DataFrame(rows, columns=columns, index=list(indices))

    def __repr__(self) -> str:
        parts = [f"{section}({', '.join(f'{a}: {len(c)}' for a, c in attributes.items())})"
                 for section, attributes in self.schema.labels.items() if attributes]  # fmt: skip
        return f"ParameterSet of {self.schema.size} values, {self.digest[:8]}: " + "; ".join(parts)

    def _repr_html_(self) -> str:
        return f"<b>ParameterSet</b> of {self.schema.size} values" + self.to_dataframe().to_html(max_rows=20)


def _check_real(values) -> None:
    """Refuse complex numbers and text, which would lose something on the way to float64."""
    dtype = values.dtype if hasattr(values, "dtype") else np.asarray(values).dtype
    if dtype.kind not in "fiub" and not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"parameters are real numbers, got {dtype}")


def _matches(label: Label, pattern: str) -> bool:
    if label.smirks == pattern:
        return True
    if label.id is None:
        return False
    identity, colon, key = pattern.rpartition(":")
    if colon and key == label.key and fnmatch.fnmatchcase(label.id, identity):
        return True
    return fnmatch.fnmatchcase(label.id, pattern)


def _in_md_units(values, column: Sequence[Label]):
    """Strip an OpenFF/pint or OpenMM quantity; bare arrays are in MD units already."""
    if hasattr(values, "magnitude") and hasattr(values, "m_as"):
        units = {label.unit: label.factor for label in column}
        unit, factor = next(iter(units.items()))
        return np.asarray(values.m_as(unit), dtype=np.float64) * factor
    if hasattr(values, "value_in_unit_system"):
        from openmm import unit as openmm_unit

        return np.asarray(values.value_in_unit_system(openmm_unit.md_unit_system), dtype=np.float64)
    if isinstance(values, jax.Array):
        return values
    array = np.array(values)
    return array.astype(np.float64) if array.dtype.kind in "iub" else array


@dataclass(frozen=True, eq=False)
class Selection:
    """Some entries of a ParameterSet, in vector order: what a fit varies.

    ``to_vector()`` reads them, ``insert(v)`` gives the ParameterSet with these entries replaced (traceable in ``v``).
    """

    parameters: ParameterSet
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> list[Label]:
        """One Label an entry."""
        flat = self.parameters.schema.flat
        return [flat[i] for i in self.indices]

    def __or__(self, other: Selection) -> Selection:
        """The union of two selections of the same ParameterSet."""
        return Selection(self.parameters, np.union1d(self.indices, other.indices))

    def to_vector(self):
        """The selected values, shape (len(self),), MD units."""
        return self.parameters.to_vector()[self.indices]

    def insert(self, values) -> ParameterSet:
        """The ParameterSet with the selected entries replaced by ``values``, shape (len(self),)."""
        if np.shape(values) != (len(self),):
            raise InputError(f"the selection has {len(self)} values, got shape {np.shape(values)}")
        _check_real(values)
        vector = self.parameters.to_vector()
        if isinstance(values, jax.Array) or isinstance(vector, jax.Array):
            dtype = jnp.result_type(vector, values)
            return self.parameters.from_vector(jnp.asarray(vector, dtype=dtype).at[self.indices].set(values))
        vector = np.array(vector, dtype=np.float64)
        vector[self.indices] = values
        return self.parameters.from_vector(vector)

    def to_dataframe(self):
        """The table of :meth:`ParameterSet.to_dataframe`, selected rows only."""
        return self.parameters.to_dataframe(only=self.indices)

    def __repr__(self) -> str:
        return f"Selection of {len(self)} of {self.parameters.schema.size} parameters"


def close(a: float, b: float) -> bool:
    """Bitwise equality of two floats (NaN equals NaN): the test for 'this value was not changed'."""
    return a == b or (math.isnan(a) and math.isnan(b))
