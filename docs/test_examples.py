"""The Python blocks of README.md and of every documentation page run, top to bottom, as a reader would type them."""

import re
from pathlib import Path

import pytest
from openff.toolkit import Molecule

import offjax
from offjax.fit import FitConfig

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "data-format.md":  # its program reads a System file
        molecule = Molecule.from_smiles("CCO")
        offjax.System.from_smirnoff("offjax-teaching-1.0.offxml", [molecule] * 2).save("system.h5")
    text, namespace = page.read_text(), {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block.group(1), str(page), "exec"), namespace)


def test_the_configuration_on_the_page_about_fits_is_valid(tmp_path):
    block, *_ = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/howto/fit.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "fit.toml"
    path.write_text(block)
    assert FitConfig.load(path).split.holdout_fold == 0
