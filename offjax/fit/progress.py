"""Telling people how a fit gets on: a bar with time to go in a terminal, plain lines elsewhere, nothing by default.

A Progress is anything with the five methods of :class:`Silent`.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from offjax.fit.targets import QUANTITIES


class Silent:
    """Says nothing; the interface that others implement."""

    def stage(self, text: str, total: int | None = None) -> None:
        """A preparatory stage begins, with ``total`` items where that is known."""

    def advance(self, text: str = "") -> None:
        """One item of the stage is done."""

    def note(self, text: str) -> None:
        """Something to know happened; the stage goes on."""

    def iteration(self, entry: dict[str, Any], maximum: int) -> None:
        """An iteration is done; ``entry`` is its line in the log. Called after the checkpoint is on the disk."""

    def close(self) -> None:
        """The fit ends, for whatever reason."""


class Lines(Silent):
    """One line a stage and an iteration, for log files."""

    def __init__(self, file=None):
        self.file = sys.stderr if file is None else file

    def stage(self, text: str, total: int | None = None) -> None:
        """A line."""
        print(text + (f" ({total})" if total else ""), file=self.file, flush=True)

    def note(self, text: str) -> None:
        """A line."""
        print(f"note: {text}", file=self.file, flush=True)

    def iteration(self, entry: dict[str, Any], maximum: int) -> None:
        """A line."""
        print(f"iteration {entry['iteration']}/{maximum}: {describe(entry)}", file=self.file, flush=True)


class Bars(Silent):
    """rich progress bars with the time to go."""

    def __init__(self, console=None):
        from rich import progress

        self.bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("to go"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.task: Any = None
        self.fitting = False
        self.bars.start()

    def stage(self, text: str, total: int | None = None) -> None:
        """A new bar; the one before is full."""
        self._finish()
        self.task = self.bars.add_task(text, total=total, note="")

    def advance(self, text: str = "") -> None:
        """One step of the bar."""
        self.bars.update(self.task, advance=1, note=text)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.bars.console.print(f"note: {text}", markup=False)

    def iteration(self, entry: dict[str, Any], maximum: int) -> None:
        """One step of the fit's bar."""
        if not self.fitting:
            self._finish()
            self.fitting = True
            self.task = self.bars.add_task("fitting", total=maximum, note="")
        self.bars.update(self.task, completed=entry["iteration"], note=describe(entry))

    def close(self) -> None:
        """Leave the bars as they stand."""
        self.bars.stop()

    def _finish(self) -> None:
        if self.task is not None:
            total = self.bars.tasks[-1].total
            self.bars.update(self.task, total=total or 1, completed=total or 1, note="")


class Recorder(Silent):
    """Keeps the entries with the time they came, for tests and notebooks."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.times: list[float] = []

    def iteration(self, entry: dict[str, Any], maximum: int) -> None:
        """Keep it."""
        self.entries.append(entry)
        self.times.append(time.perf_counter())


def describe(entry: dict[str, Any]) -> str:
    """``f = 12.3, force RMSE 180 (test 190) kJ/mol/nm``."""
    text = f"f = {entry['objective']:.6g}"
    for name, unit in (("force", "kJ/mol/nm"), ("energy", "kJ/mol")):
        train, test = entry[f"{name}_rmse_train"], entry[f"{name}_rmse_test"]
        if train is not None:
            text += f", {name} RMSE {train:.4g}" + (f" (held out {test:.4g})" if test is not None else "") + f" {unit}"
    for name, (words, unit) in QUANTITIES.items():
        if name not in ("energy", "force") and (train := entry.get(f"{name}_rmse_train")) is not None:
            text += f", {words} {train:.3g} {unit}"
    return text


def for_terminal() -> Silent:
    """Bars where standard error is a terminal, else lines."""
    return Bars(_console()) if sys.stderr.isatty() else Lines()


def _console():
    from rich.console import Console

    return Console(stderr=True)
