"""Tables on the terminal: rich where there is one, the same columns unbroken in a file or pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any


def console():
    """For stdout; in a pipe as wide as the table, so that nothing is cut."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=400)


def show(title: str, columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[Any]], total: bool = False) -> None:
    """Print a table. ``columns`` are (heading, "left" or "right"); ``total`` sets the last row off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [[str(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, justify in columns:
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=justify == "right")  # type: ignore[arg-type]
    for n, row in enumerate(rows):
        if total and n == len(rows) - 1:
            table.add_section()
        table.add_row(*[Text(cell) for cell in row])
    out = console()
    if title:
        out.print(Text(title, style="bold"))
    out.print(table)


def line(text: str) -> None:
    """A line of text on stdout, without markup."""
    print(text)


def dump(document: Any) -> None:
    """A JSON document on stdout; NaN and infinity become null."""
    print(json.dumps(_plain(document), indent=1, ensure_ascii=False))


def _plain(value: Any) -> Any:
    import math

    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float, digits: int = 4) -> str:
    """Fixed decimals for energies; scientific where that would show nothing or too much."""
    if value == 0 or 10.0**-digits <= abs(value) < 1e7:
        return f"{value:.{digits}f}"
    return f"{value:.2e}"
