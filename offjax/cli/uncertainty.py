"""``offjax uncertainty``: how well the data of a fit determine its parameters."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from offjax.cli import options
from offjax.errors import InputError

NUTS = {"draws": 1000, "chains": 4, "warmup": 200, "seed": 0}
"""What --nuts takes if nothing else is given."""


class Noise(StrEnum):
    """Where the size of the errors of the data comes from."""

    scales = "scales"
    residuals = "residuals"


def uncertainty(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Output directory of a fit.")],
    noise: Annotated[
        Noise,
        typer.Option(
            "--noise",
            help="scales: the data are off by about energy_scale and force_scale. residuals: estimate their errors "
            "from what the fit left over (reduced chi-square), for energies and forces apart.",
        ),
    ] = Noise.scales,
    top: Annotated[int, typer.Option("--top", min=1, help="How many parameters, groups and directions to show.")] = 10,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", metavar="CONFIG", help="The fit's configuration, where its files have moved."),
    ] = None,
    nuts: Annotated[
        bool, typer.Option("--nuts", help="Sample the posterior by the No-U-Turn sampler; for few parameters.")
    ] = False,
    draws: Annotated[
        int | None, typer.Option("--draws", min=4, help=f"Of --nuts: draws of each chain; else {NUTS['draws']}.")
    ] = None,
    chains: Annotated[
        int | None, typer.Option("--chains", min=2, help=f"Of --nuts: number of chains; else {NUTS['chains']}.")
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            "--warmup",
            min=20,
            help=f"Of --nuts: transitions before the draws, which find the step size; else {NUTS['warmup']}.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help=f"Of --nuts; else {NUTS['seed']}.")] = None,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """How well did the data determine the fitted parameters?

        offjax uncertainty fit-output

        offjax uncertainty fit-output --noise residuals

    Prints the standard error of every parameter; what share of it the data decided ("learned": 0 nothing, the prior
    speaks; 1 everything); groups of parameters that only their combination is known of (|correlation| above 0.9); and
    the combinations that the data know least.

    The errors hold for the scales that the fit was given (--noise scales), or for the errors that it left
    (--noise residuals); neither includes what the functional form cannot describe. The reference data are read again:
    run it where the fit ran.

    Written to DIRECTORY: `uncertainty.csv` (all parameters) and `posterior.npz` (covariance, spectrum).

    --nuts samples exp(-objective) itself, priors included, instead of replacing it by a Gaussian; written are
    `samples.csv` and `samples.npz`. A draw costs some ten gradients of the objective. A run that was stopped goes on.
    """
    from offjax.cli import session, tables

    session.start()
    from offjax.fit import FitConfig, posterior

    settings = {"draws": draws, "chains": chains, "warmup": warmup, "seed": seed}
    given = {name: value for name, value in settings.items() if value is not None}
    if given and not nuts:
        raise InputError(f"--{next(iter(given))} belongs to --nuts: give both or leave it out")
    if nuts:
        if noise is not Noise.scales:
            raise InputError("--nuts samples the objective as it is: --noise scales")
        _sample(directory, None if config is None else FitConfig.load(config), NUTS | given, json, top)
        return
    with session.working("the Jacobian of the residuals"):
        found = posterior(directory, noise=noise.value, config=None if config is None else FitConfig.load(config))
    files = found.write(directory)
    if json:
        tables.dump(_document(found))
    else:
        _print(found, top)
        for file in files:
            tables.line(f"written: {os.path.relpath(file)}")


def _sample(directory: Path, config, settings: dict[str, int], json: bool, top: int) -> None:
    from offjax.cli import tables
    from offjax.fit import for_terminal, sampling
    from offjax.interop.units import short

    progress = for_terminal()
    path = directory / "sampling.npz"
    try:
        found = sampling.nuts(directory, config=config, path=path, progress=progress, **settings)
    finally:
        progress.close()
    files = found.write(directory)
    path.unlink()
    table = found.table()
    if json:
        tables.dump({"divergent": found.n_divergent, "parameters": table.to_dict("records")})
        return
    columns = [("parameter", "left"), ("id", "left"), ("fitted", "right"), ("mean", "right"), ("deviation", "right")]
    columns += [("Laplace", "right"), ("95 % interval", "right"), ("unit", "left"), ("R-hat", "right")]
    columns += [("effective draws", "right")]
    rows = [
        (
            f"{row.section} {row.attribute}",
            row.id or "",
            f"{row.value:.5g}",
            f"{row.mean:.5g}",
            f"{row.standard_deviation:.2g}",
            f"{row.laplace_error:.2g}",
            f"{row.quantile_025:.5g} to {row.quantile_975:.5g}",
            short(row.unit),
            f"{row.r_hat:.3f}",
            f"{row.effective:.0f}",
        )
        for row in table.sort_values("r_hat", ascending=False, kind="stable").head(top).itertuples()
    ]
    tables.show(f"The {len(rows)} of {len(table)} parameters whose chains agree least", columns, rows)
    tables.line(
        f"{settings['chains']} chains of {settings['draws']} draws after {settings['warmup']} of warm-up: largest "
        f"R-hat {found.r_hat.max():.3f}, least effective draws {found.effective.min():.0f}, "
        f"{found.n_divergent} divergent"
    )
    for file in files:
        tables.line(f"written: {os.path.relpath(file)}")


def _document(found) -> dict[str, Any]:
    return {
        "noise": found.noise,
        "kinds": [kind._asdict() for kind in found.kinds],
        "n_parameters": len(found),
        "n_determined": found.n_determined,
        "eigenvalues": found.spectrum[0],
        "groups": [[str(found.labels[i]) for i in group] for group in found.groups()],
        "parameters": found.table().to_dict("records"),
    }


def _print(found, top: int) -> None:
    from offjax.cli.tables import line, show
    from offjax.interop.units import short

    table = found.table()
    rows = [
        (
            f"{row.section} {row.attribute}",
            row.id or "",
            f"{row.value:.5g}",
            f"{row.standard_error:.2g}",
            f"{row.prior_width:.3g}",
            short(row.unit),
            "-" if row.learned != row.learned else f"{row.learned:.3f}",
            "at its bound" if row.at_bound else "",
        )
        for row in table.sort_values("learned", kind="stable").head(top).itertuples()
    ]
    columns = [("parameter", "left"), ("id", "left"), ("value", "right"), ("standard error", "right")]
    columns += [("prior width", "right"), ("unit", "left"), ("learned", "right"), ("", "left")]
    show(f"The {len(rows)} of {len(table)} parameters that the data say least about", columns, rows)
    for k, group in enumerate(found.groups()[:top], start=1):
        names = [f"{found.labels[i].section} {found.labels[i].key} {found.labels[i].id or ''}" for i in group]
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        line(f"correlated group {k}: {shown}")
    values = found.spectrum[0]
    free = found.prior <= 0
    unit = "of the prior's" if not free.any() else "of that of a scale"
    better = "better than the priors" if not free.all() else "to within their scales"
    for k in range(len(values) - 1, max(len(values) - 1 - min(top, 3), -1), -1):
        words = " ".join(f"{c:+.2f} {label.section} {label.key} {label.id or ''}" for label, c in found.direction(k))
        line(f"known least (information {values[k]:.2g} {unit}): {words}")
    for kind in found.kinds:
        used = "as estimated" if found.noise == "residuals" else "taken as 1"
        line(
            f"{kind.name}: {kind.n_residuals} residuals, mean square {kind.sum_of_squares / kind.n_residuals:.3g}, "
            f"noise variance {kind.variance:.3g} ({used}), {kind.effective_parameters:.1f} parameters' worth"
        )
    line(f"the data determine {found.n_determined} of {len(found)} directions {better}")
