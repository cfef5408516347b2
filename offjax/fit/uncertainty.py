"""How well a fit determines its parameters: Fisher spectrum, Laplace posterior, and the errors of predictions.

The objective of :mod:`offjax.fit.objective` is minus the logarithm of a posterior density, up to a constant, if the
residuals r_D of the data are independent with variance 1 (errors of the size of the scales s_E, s_F) and the priors are
Gaussian. At the end point of a fit, with J the Jacobian of r_D in the scaled variables x,

    information   F = J^T J                       what the data say (Fisher, Gauss-Newton)
    prior         P = diag(w_P scale^2 / width^2), of an l1 prior its curvature in the Gauss-Newton sense
    covariance    C = (F + P)^-1                  Laplace's approximation

Eigenvalues of F in units of the prior widths (of the scales for entries without prior) tell how many combinations of
parameters the data determine: along an eigenvector of eigenvalue L the variance falls from 1 to 1 / (1 + L).

*Noise.* ``noise="scales"`` takes the configuration at its word. ``noise="residuals"`` estimates one variance for each
kind of data from the residuals, the reduced chi-square

    sigma_g^2 = |r_g|^2 / (N_g - tr[(F + P)^-1 F_g]),

where N_g counts residuals with weight (energies less one for each molecule, whose zero is free). The fit weighted the
data as if sigma_g were 1, so that the covariance of its end point is

    C = (F + P)^-1 (sum_g sigma_g^2 F_g + P) (F + P)^-1,

and F becomes sum_g F_g / sigma_g^2 in the spectrum. Weights that are the same for all data of a kind then drop out.
Neither choice knows of the error of the functional form: it shows as sigma_g far above 1. Bounds are not part of the
Gaussian: at a bound the true posterior is one-sided.

Sources: D. J. C. MacKay, Neural Comput. 4, 415 (1992), for the effective number of parameters; H. White, Econometrica
50, 1 (1982), for the covariance under another noise than the fit assumed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import InputError
from offjax.fit.end_point import end_point
from offjax.fit.objective import FitData, FitObjective, compiled
from offjax.fit.result import FitResult
from offjax.interop.files import write_atomically
from offjax.parameters import Label, ParameterSet, Selection

Noise = Literal["scales", "residuals"]

SINGULAR = 1e-12
"""Eigenvalues of F + P below this multiple of the largest count as zero."""
CORRELATED = 0.9
"""|correlation| from which two parameters belong to one group."""


class Kind(NamedTuple):
    """One kind of data: what its residuals say at the end point, and the noise variance that was used for it."""

    name: str
    sum_of_squares: float
    n_residuals: int
    effective_parameters: float
    variance: float


class Prediction(NamedTuple):
    """A function of the parameters at the end point and its standard error, pytrees of the same shape."""

    value: Any
    standard_error: Any


@dataclass(frozen=True, eq=False)
class Posterior:
    """The Gaussian posterior of the n free entries around the end point of a fit. Host arrays, (n,) or (n, n).

    ``theta`` and ``widths`` (of the priors as weighted, inf: none) are in MD units; ``at_bound`` tells which values sit
    at a bound. Matrices are in the scaled variables x: ``information`` is F divided by the noise variances, ``prior``
    the diagonal of P, ``fitted`` the matrix F + P that the fit itself went by, ``spread`` the covariance of its
    gradient, and ``factors`` d(theta)/dx.
    """

    selection: Selection
    theta: np.ndarray
    widths: np.ndarray
    at_bound: np.ndarray
    factors: np.ndarray
    information: np.ndarray
    prior: np.ndarray
    fitted: np.ndarray
    spread: np.ndarray
    kinds: tuple[Kind, ...]
    noise: Noise

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def labels(self) -> list[Label]:
        """One Label an entry."""
        return self.selection.labels

    @property
    def parameters(self) -> ParameterSet:
        """The whole force field at the end point."""
        return self.selection.insert(self.theta)

    # --- what the data determine ------------------------------------------------------------------------------------

    @cached_property
    def _units(self) -> np.ndarray:
        """Prior widths, or scales without prior, in units of x."""
        return 1.0 / np.sqrt(np.where(self.prior > 0, self.prior, 1.0))

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (n,) of the information in units of the prior widths, largest first, and their directions.

        Column k of the second array, (n, n), is the direction of eigenvalue k in prior widths, of length 1. The data
        determine it better than the prior where the eigenvalue is above 1.
        """
        values, vectors = np.linalg.eigh(self.information * np.outer(self._units, self._units))
        return np.maximum(values[::-1], 0.0), vectors[:, ::-1]

    @property
    def n_determined(self) -> int:
        """How many directions the data determine better than the priors."""
        return int(np.count_nonzero(self.spectrum[0] > 1.0))

    @cached_property
    def _undetermined(self) -> np.ndarray:
        """Entries without a finite error, (n,) bool: neither data nor priors fix them."""
        values, vectors = self._eigen
        null = vectors[:, values <= SINGULAR * values.max(initial=0.0)]
        return np.sum(null**2, axis=1) > 1e-6

    @cached_property
    def _eigen(self):
        return np.linalg.eigh(self.fitted * np.outer(self._units, self._units))

    @cached_property
    def _root(self) -> np.ndarray:
        """A matrix R (n, n) in MD units with C = R R^T."""
        values, vectors = self._eigen
        keep = values > SINGULAR * values.max(initial=0.0)
        inverse = (vectors[:, keep] / values[keep]) @ vectors[:, keep].T * np.outer(self._units, self._units)
        s, v = np.linalg.eigh(self.spread * np.outer(self._units, self._units))
        half = (v * np.sqrt(np.maximum(s, 0.0))) / self._units[:, None]
        return self.factors[:, None] * (inverse @ half)

    @property
    def covariance(self) -> np.ndarray:
        """(n, n), MD units.

        Raises
        ------
        InputError
            Parameters that neither data nor priors determine; the message names them.
        """
        self._check()
        return self._root @ self._root.T

    def _check(self) -> None:
        if self._undetermined.any():
            labels = [str(label) for label, u in zip(self.labels, self._undetermined, strict=True) if u]
            shown = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
            raise InputError(
                f"neither data nor priors determine {len(labels)} of {len(self)} parameters: {shown}. They have no "
                "covariance; give them a prior or leave them out"
            )

    @property
    def standard_errors(self) -> np.ndarray:
        """(n,), MD units; inf where neither data nor priors determine the entry."""
        errors = np.sqrt(np.sum(self._root**2, axis=1))
        return np.where(self._undetermined, np.inf, errors)

    @property
    def learned(self) -> np.ndarray:
        """1 - (standard error / prior width)^2, (n,): 0 the data say nothing, 1 they decide; NaN without prior."""
        with np.errstate(invalid="ignore"):
            learned = 1.0 - (self.standard_errors / self.widths) ** 2
        return np.where(np.isinf(self.widths), np.nan, learned)

    @property
    def correlation(self) -> np.ndarray:
        """Correlation coefficients, (n, n); NaN for entries that nothing determines."""
        covariance, errors = self._root @ self._root.T, self.standard_errors
        with np.errstate(invalid="ignore", divide="ignore"):
            found = covariance / np.outer(errors, errors)
        found[self._undetermined] = found[:, self._undetermined] = np.nan
        return found

    def groups(self, threshold: float = CORRELATED) -> list[list[int]]:
        """Sets of entries linked by |correlation| >= ``threshold``, each sorted, the largest first; only sets of two
        and more. Their sum or difference is known better than each of them."""
        from scipy.sparse.csgraph import connected_components

        linked = np.nan_to_num(np.abs(self.correlation)) >= threshold
        _, label = connected_components(linked, directed=False)
        found = [np.flatnonzero(label == k).tolist() for k in range(label.max(initial=-1) + 1)]
        return sorted((g for g in found if len(g) > 1), key=lambda g: (-len(g), g))

    def direction(self, k: int, n: int = 4) -> list[tuple[Label, float]]:
        """The n largest components of direction k of :attr:`spectrum`: (label, component in prior widths)."""
        vector = self.spectrum[1][:, k]
        order = np.argsort(-np.abs(vector), kind="stable")[:n]
        return [(self.labels[i], float(vector[i])) for i in order]

    # --- what follows -----------------------------------------------------------------------------------------------

    def propagate(self, function: Callable[[ParameterSet], Any]) -> Prediction:
        """The error of a prediction, sqrt(diag(J C J^T)) with J the Jacobian of ``function``, to first order.

        Parameters
        ----------
        function
            A JAX function from a ParameterSet of this force field to a pytree of floating-point arrays: an energy
            difference, a minimised geometry, the slots of a System. It runs in float64.

        Raises
        ------
        InputError
            Parameters that neither data nor priors determine.
        """
        self._check()
        with jax.enable_x64(True):
            root = jnp.asarray(self._root.T)
            # of float64 JAX arrays, so that the function meets no host arrays
            whole = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), self.selection.parameters)
            insert = replace(self.selection, parameters=whole).insert
            value, linear = jax.linearize(lambda theta: function(insert(theta)), jnp.asarray(self.theta))
            changes = jax.lax.map(linear, root)
            error = jax.tree.map(lambda c: np.sqrt(np.sum(np.asarray(c) ** 2, axis=0)), changes)
        return Prediction(jax.tree.map(np.asarray, value), error)

    def sample(self, n: int, seed: int = 0) -> np.ndarray:
        """``n`` draws of the free entries, (n, len(self)), MD units; bounds are not looked at.

        Raises
        ------
        InputError
            Parameters that neither data nor priors determine.
        """
        self._check()
        return self.theta + np.random.default_rng(seed).normal(size=(n, len(self))) @ self._root.T

    def table(self):
        """A pandas table, one row a free entry, in the force-field file's units."""
        table = self.selection.to_dataframe()[["section", "attribute", "id", "smirks", "name", "unit"]]
        factor = np.array([label.factor for label in self.labels])
        group = np.full(len(self), -1)
        for k, members in enumerate(self.groups(), start=1):
            group[members] = k
        return table.reset_index(drop=True).assign(
            value=self.theta / factor,
            standard_error=self.standard_errors / factor,
            prior_width=self.widths / factor,
            learned=self.learned,
            group=[None if k < 0 else k for k in group],
            at_bound=self.at_bound,
        )

    def write(self, directory) -> list[Path]:
        """Write ``uncertainty.csv`` (:meth:`table`) and ``posterior.npz`` to a directory; each is whole or not there.

        The arrays of the second are ``indices`` (in the vector of the force field), ``theta``, ``standard_errors``,
        ``covariance`` (MD units; only if it exists), ``eigenvalues``, ``directions`` and
        ``noise``.
        """
        files = [Path(directory) / name for name in ("uncertainty.csv", "posterior.npz")]
        write_atomically(files[0], self.table().to_csv(index=False, lineterminator="\n").encode())
        eigenvalues, directions = self.spectrum
        arrays: dict[str, Any] = {
            "indices": self.selection.indices,
            "theta": self.theta,
            "standard_errors": self.standard_errors,
            "eigenvalues": eigenvalues,
            "directions": directions,
            "noise": self.noise,
        }
        if not self._undetermined.any():
            arrays["covariance"] = self.covariance
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(files[1], buffer.getvalue())
        return files

    def __repr__(self) -> str:
        return f"Posterior of {len(self)} parameters, the data determine {self.n_determined} directions"


def laplace(objective: FitObjective, x, *, noise: Noise = "scales") -> Posterior:
    """The posterior around the end point x (n,) of a fit, in scaled variables.

    The Jacobian is taken by forward mode and held for one kind of data at a time.

    Raises
    ------
    InputError
        An unknown ``noise``, or no more data of a kind than parameters where the noise is to be estimated.
    """
    if noise not in ("scales", "residuals"):
        raise InputError(f'noise must be "scales" or "residuals", got {noise!r}')
    with jax.enable_x64(True):
        data = objective.data
        x = jnp.asarray(x)
        prior = np.asarray(data.priors(x)[1]) ** 2
        names, squares, blocks, counts = _information(objective, x)
    fitted = np.sum(blocks, axis=0) + np.diag(prior)
    kinds = []
    for name, square, block, count in zip(names, squares, blocks, counts, strict=True):
        if not count:
            continue
        effective = float(np.trace(np.linalg.pinv(fitted, rcond=SINGULAR, hermitian=True) @ block))
        variance = 1.0
        if noise == "residuals":
            if count - effective < 1.0:
                raise InputError(
                    f"the noise of the {name} data cannot be estimated: {count} residuals determine {effective:.1f} "
                    'parameters; use noise="scales"'
                )
            variance = float(square) / (count - effective)
        kinds.append((Kind(name, float(square), count, effective, variance), block))
    variances = [max(kind.variance, np.finfo(float).tiny) for kind, _ in kinds]
    return _around(
        objective,
        x,
        information=sum(block / v for (_, block), v in zip(kinds, variances, strict=True)),
        prior=prior,
        spread=sum((v * block for (_, block), v in zip(kinds, variances, strict=True)), np.diag(prior)),
        fitted=fitted,
        kinds=tuple(kind for kind, _ in kinds),
        noise=noise,
    )


def from_gauss_newton(objective: FitObjective, x, fitted=None) -> Posterior:
    """The same with ``noise="scales"`` from one J^T J of the whole objective; its ``kinds`` are empty.

    ``fitted`` (n, n) is that J^T J at x, priors included, where it is known.
    """
    with jax.enable_x64(True):
        x = jnp.asarray(x)
        fitted = np.asarray(objective.gauss_newton(x)[2] if fitted is None else fitted)
        prior = np.asarray(objective.data.priors(x)[1]) ** 2
        information = fitted - np.diag(prior)
        return _around(
            objective,
            x,
            information=information,
            prior=prior,
            spread=fitted,
            fitted=fitted,
            kinds=(),
            noise="scales",
        )


def _around(objective: FitObjective, x, *, prior: np.ndarray, **matrices: Any) -> Posterior:
    theta, free, factors = objective.theta(x), objective.free, objective.free.factors(x)
    near = 1e-9 * free.scales
    return Posterior(
        selection=free.selection,
        theta=theta,
        widths=np.divide(factors, np.sqrt(prior), out=np.full(len(free), np.inf), where=prior > 0),
        at_bound=(theta <= free.lower + near) | (theta >= free.upper - near),
        factors=factors,
        prior=prior,
        **matrices,
    )


def stored_errors(result: FitResult) -> tuple[np.ndarray, str] | None:
    """Standard errors (n,), MD units, and their noise, from the ``posterior.npz`` of a fit; None without one that
    belongs to the fitted values."""
    path = result.directory / "posterior.npz"
    if not path.is_file():
        return None
    fitted = np.asarray(result.fitted.to_vector())[result.selection.indices]
    with np.load(path) as stored:
        if not np.array_equal(stored["indices"], result.selection.indices) or not np.array_equal(
            stored["theta"], fitted
        ):
            return None
        return stored["standard_errors"], str(stored["noise"])


def _information(objective: FitObjective, x):
    """Names of the kinds of data, and for each |r_g|^2, J_g^T J_g and the number of residuals.

    Energies and forces are of one kind where torsion profiles are relaxed and there are forces besides.
    """
    data, counts = objective.data, list(_counts(objective.data))
    others = [(2.0 * float(value), np.asarray(block)) for value, _, block in objective.component_normals(x)]
    names: list[str] = []
    squares: list[float] = []
    blocks: list[np.ndarray] = []
    if not objective.has_conformers:
        counts = []
    elif data.targets.relaxation is None:
        names = ["energy", "force"]
        squares, blocks = map(list, jax.device_get(compiled(_by_kind)(x, data)))
    else:
        at = objective.parts(x)
        blocks = [np.asarray(objective.conformer_normal(x)[2]) - np.diag(np.asarray(data.priors(x)[1]) ** 2)]
        names, squares = ["energy and force" if counts[1] else "energy"], [2.0 * float(at.energy + at.force)]
        counts = [sum(counts)]
    for component, (square, block) in zip(data.components, others, strict=True):
        names, squares, blocks = [*names, component.kind], [*squares, square], [*blocks, block]
        counts.append(int(np.sum(np.asarray(component.weighted(jnp.ones(len(component.target.record)))) > 0)))
    return names, squares, blocks, counts


def _by_kind(x, data: FitData):
    """|r_g|^2 and J_g^T J_g of energies and forces."""
    squares, blocks = [], []
    for kind in range(2):
        r, linear = jax.linearize(lambda y, kind=kind: data.residuals(y)[kind], x)
        transposed = jax.lax.map(linear, jnp.eye(len(x), dtype=x.dtype))
        squares.append(jnp.sum(r**2))
        blocks.append(transposed @ transposed.T)
    return jnp.stack(squares), jnp.stack(blocks)


def _counts(data: FitData) -> tuple[int, int]:
    """Residuals with weight: energies less one for each molecule, and force components."""
    targets = data.targets
    weighted = np.asarray(targets.energy_factor) > 0
    energies = int(weighted.sum()) - len(np.unique(np.asarray(targets.conformers.molecule)[weighted]))
    forces = np.asarray(targets.force_factor)[np.asarray(targets.conformers.conformer)] > 0
    return energies, 3 * int(np.sum(forces & np.asarray(targets.conformers.row_mask)))


def posterior(fit, *, noise: Noise = "scales", config=None, progress=None) -> Posterior:
    """The posterior of a finished fit.

    Parameters
    ----------
    fit, config, progress
        See :func:`offjax.fit.end_point.end_point`.
    noise
        ``"scales"`` or ``"residuals"``; see :mod:`offjax.fit.uncertainty`.

    Raises
    ------
    InputError
        The data are not where they were or not what they were, or see :func:`laplace`.
    """
    config, data, x = end_point(fit, config, progress)
    return laplace(data.objective(config), x, noise=noise)
