"""What people see of a fit: bars in a terminal, lines elsewhere."""

import io

from rich.console import Console

from offjax.fit.progress import Bars, Lines, describe

ENTRY = {
    "iteration": 1, "objective": 12.5, "force_rmse_train": 100.0, "force_rmse_test": 120.0,
    "energy_rmse_train": 3.0, "energy_rmse_test": None,
}  # fmt: skip


def go(progress):
    progress.stage("typing and charges", 2)
    progress.advance("ethane")
    progress.advance("methanol")
    progress.stage("compiling")
    progress.iteration(ENTRY | {"iteration": 0}, 5)
    progress.iteration(ENTRY, 5)
    progress.close()


def test_a_missing_quantity_is_left_out():
    text = describe(ENTRY)
    assert text == "f = 12.5, force RMSE 100 (held out 120) kJ/mol/nm, energy RMSE 3 kJ/mol"


def test_bars_count_iterations_and_show_the_time_to_go():
    file = io.StringIO()
    go(Bars(Console(file=file, force_terminal=True, width=200)))
    text = file.getvalue()
    for part in ("typing and charges", "2/2", "fitting", "1/5", "to go", "f = 12.5"):
        assert part in text


def test_lines_say_the_same():
    file = io.StringIO()
    go(Lines(file))
    assert file.getvalue().splitlines() == [
        "typing and charges (2)", "compiling", f"iteration 0/5: {describe(ENTRY)}", f"iteration 1/5: {describe(ENTRY)}",
    ]  # fmt: skip
