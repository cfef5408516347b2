"""Samples of the posterior of a fit by the No-U-Turn sampler, for small sets of parameters.

The density is exp(-f(x)) within the bounds, with the objective f of :mod:`offjax.fit.objective`, its priors included:
the same that Laplace's approximation replaces by a Gaussian (:mod:`offjax.fit.uncertainty`). Its covariance C is the
inverse mass matrix, in which a nearly Gaussian posterior is nearly isotropic, and chains start at draws of that
Gaussian. The step size is found in the warm-up by dual averaging. A trajectory that leaves the bounds counts as
divergent, and ends.

The random numbers of a transition depend on seed, chain and its number only, so that a run that is stopped goes on
from its file as if nothing had happened. Needs blackjax: ``pip install "offjax[bayes]"``.

Sources: M. D. Hoffman, A. Gelman, J. Mach. Learn. Res. 15, 1593 (2014) for the sampler and the step size; A. Gelman and
others, Bayesian Data Analysis, 3rd ed., sections 11.4 and 11.5, for R-hat of split chains and the effective sample
size; C. J. Geyer, Statist. Sci. 7, 473 (1992) for where the sum of autocorrelations ends.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offjax.batch import compiler_options
from offjax.errors import InputError, UnsupportedError
from offjax.fit.end_point import end_point
from offjax.fit.objective import FitObjective
from offjax.fit.progress import Silent
from offjax.fit.uncertainty import Posterior, laplace
from offjax.interop.files import write_atomically

ACCEPTANCE = 0.8
"""The mean acceptance that the step size is adapted to."""
FIRST_STEP = 0.5
"""Where the adaptation of the step size begins; the posterior has about unit width."""
PAUSE = 10.0
"""Seconds between two writings of the file of a run."""


class Chains(NamedTuple):
    """``x`` (chains, draws, n), and of each draw whether its trajectory diverged, its acceptance and gradients."""

    x: np.ndarray
    divergent: np.ndarray
    acceptance: np.ndarray
    gradients: np.ndarray


def sample(
    scalar: Callable,
    data: Any,
    start: np.ndarray,
    covariance: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    *,
    draws: int = 1000,
    chains: int = 4,
    warmup: int = 200,
    seed: int = 0,
    path: Path | None = None,
    digest: str = "",
    progress: Silent | None = None,
) -> Chains:
    """Draws of the density exp(-scalar(x, data)) in lower <= x <= upper, all arrays (n,).

    Parameters
    ----------
    scalar, data
        A function that JAX can differentiate, and the arrays it depends on.
    start, covariance
        The Gaussian near the density: its mean (n,) and covariance (n, n).
    draws, chains, warmup
        Draws that are kept of each chain, number of chains, and transitions before, which find the step size.
    seed
        Of the random numbers.
    path, digest
        A file that holds the run while it lasts, written every few seconds; a file of the same settings and ``digest``
        is continued.
    progress
        See :mod:`offjax.fit.progress`.

    Raises
    ------
    UnsupportedError
        blackjax is not installed.
    InputError
        The file belongs to another run.
    """
    _blackjax()
    from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation

    begin, adapt, final = dual_averaging_adaptation(ACCEPTANCE)
    progress = Silent() if progress is None else progress
    n, root = len(start), np.linalg.cholesky(covariance)
    box = jnp.asarray(lower), jnp.asarray(upper)
    key = jax.random.key(seed)
    header = json.dumps([draws, chains, warmup, seed, n, digest])
    state = _stored(path, header) or {
        "done": np.zeros(chains, dtype=np.int64),
        "position": np.stack([_first(key, c, start, root, lower, upper) for c in range(chains)]),
        "adaptation": np.stack([np.array([float(v) for v in begin(FIRST_STEP)])] * chains),
        "x": np.full((chains, draws, n), np.nan),
        "divergent": np.zeros((chains, draws), dtype=bool),
        "acceptance": np.zeros((chains, draws)),
        "gradients": np.zeros((chains, draws), dtype=np.int64),
    }
    total = warmup + draws
    progress.stage("sampling the posterior", chains * total)
    for _ in range(int(state["done"].sum())):
        progress.advance()
    written = time.monotonic()
    step = _transition(scalar, tuple(compiler_options().items()))
    for c in range(chains):
        while state["done"][c] < total:
            number = int(state["done"][c])
            adaptation = DualAveragingAdaptationState(*map(jnp.asarray, state["adaptation"][c]))
            size = jnp.exp(adaptation.log_step_size) if number < warmup else final(adaptation)
            random = jax.random.fold_in(jax.random.fold_in(key, c), number + 1)
            found = step(random, jnp.asarray(state["position"][c]), size, jnp.asarray(covariance), box, data)
            x, divergent, acceptance, gradients = jax.device_get(found)
            state["position"][c] = x
            if number < warmup:
                state["adaptation"][c] = [float(v) for v in adapt(adaptation, jnp.asarray(acceptance))]
            else:
                at = c, number - warmup
                state["x"][at], state["divergent"][at] = x, divergent
                state["acceptance"][at], state["gradients"][at] = acceptance, gradients
            state["done"][c] += 1
            progress.advance(f"chain {c + 1}")
            if path is not None and time.monotonic() - written > PAUSE:
                _store(path, header, state)
                written = time.monotonic()
    if path is not None:
        _store(path, header, state)
    return Chains(*(state[name] for name in Chains._fields))


def _blackjax():
    try:
        import blackjax
    except ImportError:
        raise UnsupportedError('sampling needs blackjax, which is not installed: pip install "offjax[bayes]"') from None
    return blackjax


def _first(key, chain: int, start, root, lower, upper) -> np.ndarray:
    """A draw of the Gaussian, within the bounds."""
    z = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, chain), 0), start.shape)
    return np.clip(np.asarray(start) + root @ np.asarray(z), lower, upper)


@cache
def _transition(scalar: Callable, options) -> Callable:
    """(key, x, step size, inverse mass matrix, bounds, data) -> (x, divergent, acceptance, gradients)."""
    nuts = _blackjax().mcmc.nuts
    kernel = nuts.build_kernel()

    def transition(key, x, step_size, covariance, box, data):
        def density(x):
            value = scalar(x, data)
            inside = jnp.all((x >= box[0]) & (x <= box[1])) & jnp.isfinite(value)
            return jnp.where(inside, -value, -jnp.inf)

        state, info = kernel(key, nuts.init(x, density), density, step_size, covariance)
        return state.position, info.is_divergent, info.acceptance_rate, info.num_integration_steps

    return jax.jit(transition, compiler_options=dict(options))


def r_hat(x: np.ndarray) -> np.ndarray:
    """Potential scale reduction of the halves of chains (chains, draws, n): (n,), 1 where all agree."""
    halves = _halves(x)
    n = halves.shape[1]
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    between = halves.mean(axis=1).var(axis=0, ddof=1)
    return np.sqrt((n - 1) / n + between / within)


def effective(x: np.ndarray) -> np.ndarray:
    """Effective number of independent draws of chains (chains, draws, n): (n,).

    From the autocorrelations of the halves, summed in pairs as long as these are positive, and made to fall.
    """
    halves = _halves(x)
    m, n, _ = halves.shape
    centred = halves - halves.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * n, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :n].mean(axis=0) / n
    within = halves.var(axis=1, ddof=1).mean(axis=0)
    total = within * (n - 1) / n + halves.mean(axis=1).var(axis=0, ddof=1)
    correlation = 1.0 - (within - covariance * n / (n - 1)) / total
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].reshape(n // 2, 2, -1).sum(axis=1)
    positive = np.minimum.accumulate(np.where(np.cumprod(pairs > 0, axis=0), pairs, 0.0), axis=0)
    return m * n / np.maximum(2.0 * positive.sum(axis=0) - 1.0, 1.0 / np.log10(m * n))


def _halves(x: np.ndarray) -> np.ndarray:
    n = x.shape[1] // 2
    return np.concatenate([x[:, :n], x[:, -n:]])


def _store(path: Path, header: str, state: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"header": header, **state}
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())


def _stored(path: Path | None, header: str) -> dict[str, np.ndarray] | None:
    if path is None or not path.is_file():
        return None
    with np.load(path) as file:
        if str(file["header"]) != header:
            raise InputError(
                f"{path}: samples of another fit, or with other numbers of draws, chains or warm-up or another seed: "
                "move it away to sample again"
            )
        return {name: file[name].copy() for name in file.files if name != "header"}


@dataclass(frozen=True, eq=False)
class Samples:
    """Draws of the posterior of a fit: ``theta`` (chains, draws, n), MD units, beside Laplace's approximation."""

    laplace: Posterior
    theta: np.ndarray
    chains: Chains

    @property
    def mean(self) -> np.ndarray:
        """(n,), MD units."""
        return self.theta.mean(axis=(0, 1))

    @property
    def standard_deviations(self) -> np.ndarray:
        """(n,), MD units."""
        return self.theta.std(axis=(0, 1), ddof=1)

    @property
    def n_divergent(self) -> int:
        """How many draws come from divergent trajectories."""
        return int(self.chains.divergent.sum())

    @property
    def r_hat(self) -> np.ndarray:
        """:func:`r_hat` of each entry: near 1 if the chains agree; above 1.01 sample longer."""
        return r_hat(self.theta)

    @property
    def effective(self) -> np.ndarray:
        """:func:`effective` number of draws of each entry."""
        return effective(self.theta)

    def table(self):
        """A pandas table, one row a free entry, in the force-field file's units, Laplace's errors beside."""
        table = self.laplace.table()
        factor = np.array([label.factor for label in self.laplace.labels])
        low, middle, high = np.quantile(self.theta, [0.025, 0.5, 0.975], axis=(0, 1))
        return table[["section", "attribute", "id", "smirks", "name", "unit", "value"]].assign(
            mean=self.mean / factor,
            standard_deviation=self.standard_deviations / factor,
            laplace_error=self.laplace.standard_errors / factor,
            quantile_025=low / factor,
            median=middle / factor,
            quantile_975=high / factor,
            r_hat=self.r_hat,
            effective=self.effective,
        )

    def write(self, directory) -> list[Path]:
        """Write ``samples.csv`` (:meth:`table`) and ``samples.npz`` to a directory; each is whole or not there.

        The arrays of the second are ``indices`` (in the vector of the force field), ``theta`` (MD units),
        ``divergent``, ``acceptance`` and ``gradients``.
        """
        files = [Path(directory) / name for name in ("samples.csv", "samples.npz")]
        write_atomically(files[0], self.table().to_csv(index=False, lineterminator="\n").encode())
        buffer = io.BytesIO()
        rest = {name: value for name, value in self.chains._asdict().items() if name != "x"}
        np.savez(buffer, indices=self.laplace.selection.indices, theta=self.theta, **rest)
        write_atomically(files[1], buffer.getvalue())
        return files

    def __repr__(self) -> str:
        chains, draws, n = self.theta.shape
        return f"Samples of {n} parameters, {chains} chains of {draws} draws"


def nuts(
    fit,
    *,
    draws: int = 1000,
    chains: int = 4,
    warmup: int = 200,
    seed: int = 0,
    config=None,
    path: Path | None = None,
    progress: Silent | None = None,
) -> Samples:
    """Draws of the posterior of a finished fit, and Laplace's approximation of it.

    Parameters
    ----------
    fit, config, progress
        See :func:`offjax.fit.end_point.end_point`.
    draws, chains, warmup, seed, path
        See :func:`sample`.

    Raises
    ------
    InputError
        The data are not where they were or not what they were, parameters that neither data nor priors determine, or a
        file of another run.
    UnsupportedError
        blackjax is not installed.
    """
    _blackjax()
    config, data, x = end_point(fit, config, progress)
    return of_objective(
        data.objective(config), x, draws=draws, chains=chains, warmup=warmup, seed=seed, path=path, progress=progress
    )


def of_objective(objective: FitObjective, x, **options: Any) -> Samples:
    """The same around the point x (n,) of an objective; ``options`` are those of :func:`sample` but ``digest``."""
    with jax.enable_x64(True):
        approximate = laplace(objective, x)
        covariance = approximate.covariance / np.outer(approximate.factors, approximate.factors)
        digest = hashlib.sha256(np.asarray(x).tobytes() + covariance.tobytes()).hexdigest()
        found = sample(
            objective.scalar,
            objective.data,
            np.asarray(x),
            covariance,
            objective.lower,
            objective.upper,
            digest=digest,
            **options,
        )
    theta = np.stack([[objective.theta(row) for row in chain] for chain in found.x])
    return Samples(approximate, theta, found)
