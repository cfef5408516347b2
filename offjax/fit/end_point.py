"""The objective at the end point of a fit, from what the fit wrote and the data it read."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from offjax.errors import InputError, UnsupportedError
from offjax.fit.config import FitConfig
from offjax.fit.driver import Prepared, prepare
from offjax.fit.progress import Silent
from offjax.fit.result import FitResult


def end_point(
    fit: FitResult | FitConfig | str | os.PathLike, config: FitConfig | None = None, progress: Silent | None = None
) -> tuple[FitConfig, Prepared, np.ndarray]:
    """Configuration, data and the scaled variables x (n,) of a fit.

    Parameters
    ----------
    fit
        A FitResult or the output directory of a fit; or a FitConfig or its file, which stand for the start, x = 0.
    config
        The FitConfig to read the data by; None: that of the result, with paths as they were in that run.
    progress
        See :mod:`offjax.fit.progress`.

    Raises
    ------
    InputError
        The data are not where they were, or not what they were.
    UnsupportedError
        A fit with a network.
    """
    if not isinstance(fit, FitResult | FitConfig):
        fit = FitConfig.load(fit) if Path(fit).is_file() else FitResult.load(fit)
    if (fit.config if isinstance(fit, FitResult) else fit).network is not None:
        raise UnsupportedError(
            "uncertainties and conflicts are those of a force field alone: this fit has a [network]; leave that out"
        )
    with jax.enable_x64(True):
        if isinstance(fit, FitConfig):
            data = prepare(fit, progress)
            return fit, data, np.zeros(len(data.free))
        config = fit.config if config is None else config
        data = prepare(config, progress)
    if data.digest != fit.provenance["data_digest"]:
        raise InputError(
            f"{fit.directory}: the reference data, force field or charges are not those of this fit any more; fit again"
        )
    theta = np.asarray(fit.fitted.to_vector())[fit.selection.indices]
    return config, data, data.free.x(theta)
