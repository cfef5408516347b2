"""Run the demo's fit four times, each with another quarter of the molecules held out, and write the table of the docs.

    python examples/demo/folds.py [--output docs/demo-folds.md]

The folds are sha256(InChIKey) mod 4: no molecule is placed by hand, so they differ in size. Data, priors, weights and
stopping are those of fit.toml for every fold. Exits with 1 unless the held-out force RMSE falls in at least three folds
and in the mean.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from offjax.fit import FitConfig, Lines, run
from offjax.interop.files import write_atomically

HERE = Path(__file__).parent
PAGE = """# The demo on all four folds

`examples/demo/folds.py` runs the fit of `examples/demo/fit.toml` four times. In each run one fold of molecules, fold
number sha256(InChIKey) mod 4, is held out; everything else is the same. RMSE is the root mean square over molecules,
conformers and components, each molecule counting equally: forces in kJ/mol/nm, energies relative to the mean of the
molecule in kJ/mol, all of the held-out molecules. *Before* is `openff-2.2.1`, *after* the fit to the other three folds.

| fold | held out | fitted values | force RMSE before | after | change | energy RMSE before | after | change |
|---|---|---|---|---|---|---|---|---|
{rows}
| mean | | | {mean} |

{covered}

Made by `python examples/demo/folds.py` with offjax {version}, data `{data}` (SHA-256 {sha}).
"""


def cells(row):
    """Before, after and change of force and energy RMSE."""
    found = []
    for before, after in (row[:2], row[2:]):
        found.append(f"{before:.1f} | {after:.1f} | {100 * (after / before - 1):+.1f} %")
    return " | ".join(found)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "fit.toml")
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "docs" / "demo-folds.md")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # AmberTools
    jax.config.update("jax_enable_x64", True)

    rows, lines, names = [], [], []
    for fold in range(4):
        with tempfile.TemporaryDirectory() as directory:
            config = FitConfig.load(
                arguments.config, {"split.holdout_fold": fold, "split.folds": 4, "output.directory": directory}
            )
            result = run(config, progress=Lines())
        test = result.metrics["test"]
        rows.append([test[f"{q}_rmse_{when}"] for q in ("force", "energy") for when in ("initial", "fitted")])
        held = [m for m in result.molecules if m.split == "test"]
        names.append(", ".join(m.name for m in held))
        lines.append(
            f"| {fold} | {len(held)} of {len(result.molecules)} | {len(result.selection)} | {cells(rows[-1])} |"
        )
    better = sum(row[1] < row[0] for row in rows)
    mean = np.mean(rows, axis=0)
    page = PAGE.format(
        rows="\n".join(lines),
        mean=cells(mean),
        covered="\n".join(f"* fold {fold}: {text}" for fold, text in enumerate(names)),
        version=result.provenance["versions"]["offjax"],
        data=result.provenance["data"][0]["file"],
        sha=result.provenance["data"][0]["sha256"],
    )
    write_atomically(arguments.output, page.encode())
    print(page)
    good = better >= 3 and mean[1] < mean[0]
    print(f"held-out force RMSE falls in {better} of 4 folds, mean {mean[0]:.1f} -> {mean[1]:.1f} kJ/mol/nm")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
