"""From a FitResult to ``report.html``: one file with its data, drawings, style and plotly.js inside."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offjax.interop.files import write_atomically
from offjax.report import drawings, figures, geometries, rows

if TYPE_CHECKING:
    from offjax.fit import FitResult
    from offjax.fit.benchmark import Benchmark

FOLDER = Path(__file__).parent
MAX_DRAWINGS = 60
"""Fitted patterns that are drawn, those with the largest shifts first."""


def write(result: FitResult, path, benchmark: Benchmark | None = None) -> Path:
    """Write the page of a fit, whole or not at all, with its minima if they are given; returns its path.

    Raises
    ------
    InputError
        The directory does not exist or cannot be written.
    """
    path = Path(os.fspath(path))
    write_atomically(path, html(result, benchmark).encode())
    return path


def write_benchmark(benchmark: Benchmark, path, files: Sequence[os.PathLike | str] = ()) -> Path:
    """Write the page of a benchmark; ``files`` are its data. The rest is as for :func:`write`."""
    path = Path(os.fspath(path))
    views: list[dict[str, Any]] = []
    geometry, data = _geometry(benchmark, views)
    page = _render(
        "benchmark.html",
        data | {"views": views},
        geometry=geometry,
        n_conformers=sum(record.n_conformers for record in benchmark.records),
        n_molecules=len({record.smiles for record in benchmark.records}),
        provenance=rows.benchmark_provenance(files),
    )
    write_atomically(path, page.encode())
    return path


def html(result: FitResult, benchmark: Benchmark | None = None) -> str:
    """The page as text."""
    parameters = rows.parameters(result)
    plotted = figures.data(result, parameters)
    patterns = drawings.patterns(result, parameters)
    views: list[dict[str, Any]] = []
    geometry, minima = (None, {}) if benchmark is None else _geometry(benchmark, views)
    largest = _numbered(geometries.largest_errors(result), views)
    return _render(
        "fit.html",
        plotted | minima | {"views": views},
        has_forces=bool(plotted["forces"]),
        has_energies=bool(plotted["energies"]),
        targets=rows.targets(result),
        profiles=plotted["profiles"][: figures.MAX_PROFILES],
        n_profiles=len(plotted["profiles"]),
        geometry=geometry,
        largest=largest,
        summary=rows.summary(result),
        cards=rows.cards(result),
        parameters=parameters,
        noise=rows.noise(result),
        patterns=patterns[:MAX_DRAWINGS],
        n_patterns=len(patterns),
        molecules=rows.molecules(result),
        structures=[drawings.molecule(m.smiles) for m in result.molecules],
        provenance=rows.provenance(result),
        config=rows.configuration(result),
        left_out=[(str(item.label), item.reason) for item in result.free.left_out],
    )


def _geometry(benchmark: Benchmark, views: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the section of minima shows, and the data that its plots need."""
    curves = geometries.curves(benchmark)
    shown = {
        "summary": benchmark.summary(),
        "curves": curves,
        "cards": _numbered(geometries.worst(benchmark), views),
        "driven": any(record.driven for record in benchmark.records),
    }
    return shown, {"geometry": curves}


def _numbered(cards: list[dict[str, Any]], views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cards with the index of their view among all of the page."""
    found = []
    for card in cards:
        found.append({key: value for key, value in card.items() if key != "view"} | {"index": len(views)})
        views.append(card["view"])
    return found


def _render(template: str, data: dict[str, Any], **content: Any) -> str:
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sig"] = significant
    return environment.get_template(template).render(
        plotly=get_plotlyjs(),
        style=(FOLDER / "style.css").read_text(),
        viewer=(FOLDER / "viewer.js").read_text(),
        script=(FOLDER / "script.js").read_text(),
        data=_json(data),
        **content,
    )


def _json(data: dict[str, Any]) -> str:
    """JSON that may stand inside a script element; numbers that are not finite become null."""
    return json.dumps(_finite(data), allow_nan=False, separators=(",", ":")).replace("</", "<\\/")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float):
        # seven digits are more than a screen shows
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def significant(value: float | None, digits: int = 5) -> str:
    """``digits`` significant digits, without an exponent where that is readable; a dash for None.

    >>> significant(529.24296832), significant(13.0, 3), significant(0.0)
    ('529.24', '13.0', '0')
    >>> significant(None)
    '–'
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    text = f"{value:#.{digits}g}".removesuffix(".")
    return f"{value:,.0f}" if "e+" in text and abs(value) < 1e9 else text
