"""The AssignmentMatrix: slots as a sparse affine function of the force-field parameters, phi = A theta + b."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError
from offjax.parameters import Label, ParameterSet, Schema


@dataclass(frozen=True, eq=False)
class AssignmentMatrix:
    """Sparse (n_slots, n_parameters) matrix A with an offset b of shape (n_slots,), host float64.

    ``A(theta)`` is ``A @ theta + A.offset``; ``A @ theta`` the linear part; ``A.T`` the transpose, so that
    ``A.T @ dU_dslots`` is the contribution of these slots to dU/dtheta. Columns are always all of
    ``ParameterSet.to_vector()``. Entries are stored as coordinates sorted by row.
    """

    schema: Schema
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    offset: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(n_slots, n_parameters)."""
        return len(self.offset), self.schema.size

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return len(self.values)

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """(columns, values), each (n_slots, width): every row's entries padded with value 0 at column 0."""
        counts = np.bincount(self.rows, minlength=self.shape[0])
        width = int(counts.max(initial=1))
        starts = np.cumsum(counts) - counts
        place = np.arange(self.nnz) - np.repeat(starts, counts)
        columns = np.zeros((self.shape[0], width), dtype=np.int32)
        values = np.zeros((self.shape[0], width))
        columns[self.rows, place] = self.columns
        values[self.rows, place] = self.values
        return columns, values

    def __matmul__(self, theta):
        """A @ theta for a vector (n_parameters,) or matrix (n_parameters, m); NumPy or traced JAX arrays."""
        theta = _operand(theta, self.shape[1], "parameters")
        if not isinstance(theta, jax.Array):
            if theta.ndim == 1 and theta.dtype == np.float64:
                return np.bincount(self.rows, weights=self.values * theta[self.columns], minlength=self.shape[0])
            return self.to_scipy() @ theta
        columns, values = self.table
        values = jnp.asarray(values, theta.dtype).reshape(values.shape + (1,) * (theta.ndim - 1))
        return weighted_sums(values, theta, columns)

    def __call__(self, theta):
        """The slots A @ theta + b, shape (n_slots,)."""
        linear = self @ theta
        return linear + (jnp.asarray(self.offset, linear.dtype) if isinstance(linear, jax.Array) else self.offset)

    @property
    def T(self) -> TransposedAssignment:
        """The transpose, (n_parameters, n_slots), for ``A.T @ cotangent``."""
        return TransposedAssignment(self)

    def to_scipy(self):
        """The linear part as ``scipy.sparse.csr_array``."""
        return self._csr

    @cached_property
    def _csr(self):
        import scipy.sparse

        return scipy.sparse.csr_array((self.values, (self.rows, self.columns)), shape=self.shape)

    def to_bcoo(self, dtype=None):
        """The linear part as ``jax.experimental.sparse.BCOO``."""
        from jax.experimental import sparse

        indices = jnp.asarray(np.stack([self.rows, self.columns], axis=1), jnp.int32)
        data = jnp.asarray(self.values, dtype or jnp.result_type(float))
        return sparse.BCOO((data, indices), shape=self.shape, indices_sorted=True)

    def to_dense(self) -> np.ndarray:
        """The linear part as a dense array, for small systems and tests."""
        return self.to_scipy().toarray()

    def block(self, section: str, attribute: str):
        """The columns of one parameter array, as ``scipy.sparse.csr_array``."""
        return self.to_scipy()[:, self.schema.slice(section, attribute)]

    def parameters_of(self, slot: int) -> list[tuple[Label, float]]:
        """Which parameters make this slot, with their weights."""
        if not 0 <= slot < self.shape[0]:
            raise InputError(f"slot {slot} is out of range; there are {self.shape[0]} slots")
        flat = self.schema.flat
        return [(flat[self.columns[i]], float(self.values[i])) for i in np.nonzero(self.rows == slot)[0]]

    def slots_of(self, parameter: int) -> np.ndarray:
        """Which slots the parameter at this vector index touches."""
        return np.unique(self.rows[(self.columns == parameter) & (self.values != 0)])

    def __repr__(self) -> str:
        return f"AssignmentMatrix{self.shape} with {self.nnz} entries and {np.count_nonzero(self.offset)} offsets"


def weighted_sums(weights, theta, columns):
    """sum_w weights[i, w] * theta[columns[i, w]]; what has weight zero is left out, even if it is not a number."""
    return jnp.sum(jnp.where(weights == 0.0, 0.0, weights * theta[columns]), axis=1)


def _operand(x, n: int, what: str):
    """A vector (n,) or matrix (n, m) of floating-point numbers; a ParameterSet becomes its vector."""
    if isinstance(x, ParameterSet):
        x = x.to_vector()
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
    if x.ndim not in (1, 2) or x.shape[0] != n:
        raise InputError(f"this matrix takes vectors of {n} {what}, got shape {x.shape}")
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


@dataclass(frozen=True, eq=False)
class TransposedAssignment:
    """A.T: ``A.T @ dU_dslots`` -> (n_parameters,)."""

    matrix: AssignmentMatrix

    @property
    def shape(self) -> tuple[int, int]:
        """(n_parameters, n_slots)."""
        return self.matrix.shape[::-1]

    @property
    def T(self) -> AssignmentMatrix:
        """The matrix itself."""
        return self.matrix

    def __matmul__(self, cotangent):
        cotangent = _operand(cotangent, self.shape[1], "slots")
        if not isinstance(cotangent, jax.Array):
            return self.matrix.to_scipy().T @ cotangent
        matrix = self.matrix
        values = jnp.asarray(matrix.values, cotangent.dtype)
        rows = cotangent[matrix.rows]
        terms = values.reshape(values.shape + (1,) * (cotangent.ndim - 1)) * rows
        return jax.ops.segment_sum(terms, matrix.columns, num_segments=matrix.shape[1])

    def to_scipy(self):
        """As ``scipy.sparse`` array."""
        return self.matrix.to_scipy().T

    def to_dense(self) -> np.ndarray:
        """As a dense array."""
        return self.matrix.to_dense().T
