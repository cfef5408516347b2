"""What may stand in a configuration, and errors that name the key."""

import re

import pytest

from offjax import InputError
from offjax.fit import FitConfig

GOOD = """
force_field = "openff-2.2.1.offxml"

[[data]]
path = "data.h5"

[[parameters]]
path = "Bonds/k"
prior = "10%"

[[parameters]]
path = "Bonds/length"
patterns = ["b1", "b8*"]
prior = 0.02
upper = 2.0

[split]
holdout_fold = 1

[objective]
force_weight = 0.5

[optimizer]
method = "l-bfgs"
"""

YAML = """
force_field: openff-2.2.1.offxml
data:
  - path: data.h5
parameters:
  - path: Bonds/k
    prior: 10%
  - {path: Bonds/length, patterns: [b1, "b8*"], prior: 0.02, upper: 2.0}
split: {holdout_fold: 1}
objective: {force_weight: 0.5}
optimizer: {method: l-bfgs}
"""

BROKEN = {
    "misspelt key": (
        "force_weight = 0.5",
        "force_weigth = 0.5",
        ["line 21", "objective.force_weigth", "did you mean force_weight?"],
    ),
    "misspelt key in a list": ("upper = 2.0", "uper = 2.0", ["line 15", "parameters[2].uper", "did you mean upper?"]),
    "misspelt table": ("[objective]", "[objectives]", ["line 20", "objectives", "did you mean objective?"]),
    "unknown key": ("force_weight = 0.5", "zzz = 0.5", ["objective.zzz", "allowed are energy_weight"]),
    "unknown method": (
        '"l-bfgs"',
        '"newton"',
        ["line 24", "optimizer.method", "'levenberg-marquardt', 'l-bfgs' or 'adam'", "'newton'"],
    ),
    "option of another method": ('"l-bfgs"', '"l-bfgs"\nminibatch = 4', ["optimizer", 'belongs to method = "adam"']),
    "two clusters": (
        'method = "l-bfgs"',
        'method = "l-bfgs"\n[workers]\naddress = "tcp://h:1"\ncluster = "slurm"',
        ["workers", "address is a cluster that runs already"],
    ),
    "missing key": ('prior = "10%"', "", ["parameters[1].prior", "required"]),
    "missing data": ('[[data]]\npath = "data.h5"', "", ["data", "required"]),
    "negative prior": ("prior = 0.02", "prior = -1", ["line 14", "parameters[2].prior", "positive number", "-1"]),
    "prior that is no percentage": ('"10%"', '"ten"', ["parameters[1].prior", "percentage", "'ten'"]),
    "infinite prior without scale": ("prior = 0.02", "prior = inf", ["parameters[2]", "needs a scale"]),
    "fold out of range": ("holdout_fold = 1", "holdout_fold = 4", ["split", "below folds = 4"]),
    "text for a number": (
        "force_weight = 0.5",
        'force_weight = "much"',
        ["objective.force_weight", "valid number", "'much'"],
    ),
    "path without attribute": ('"Bonds/k"', '"Bonds"', ["parameters[1]", "section/attribute", "'Bonds'"]),
    "bounds in the wrong order": (
        "upper = 2.0",
        "upper = 2.0\nlower = 3.0",
        ["parameters[2]", "lower = 3.0 must be below"],
    ),
    "empty patterns": ('["b1", "b8*"]', "[]", ["parameters[2]", "patterns is empty"]),
    "nothing to fit": ("force_weight = 0.5", "force_weight = 0\nenergy_weight = 0", ["objective", "nothing to fit"]),
    "syntax": ("[split]", "[split", ["syntax error", "line 17"]),
}


def test_toml_and_yaml_say_the_same(tmp_path):
    (tmp_path / "a.toml").write_text(GOOD)
    (tmp_path / "a.yaml").write_text(YAML)
    toml, yaml = FitConfig.load(tmp_path / "a.toml"), FitConfig.load(tmp_path / "a.yaml")
    assert toml.canonical() == yaml.canonical()
    assert toml.digest == yaml.digest
    assert toml.parameters[0].prior == "10%"
    assert toml.split.folds == 4


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "own.offxml").write_text("")
    (tmp_path / "a.toml").write_text(GOOD.replace("openff-2.2.1.offxml", "own.offxml"))
    config = FitConfig.load(tmp_path / "a.toml")
    assert config.data[0].path == tmp_path / "data.h5"
    assert config.output.directory == tmp_path / "fit-output"
    assert config.force_field == str(tmp_path / "own.offxml")


def test_overrides_replace_values(tmp_path):
    (tmp_path / "a.toml").write_text(GOOD)
    config = FitConfig.load(tmp_path / "a.toml", {"split.holdout_fold": 2, "output.directory": "elsewhere"})
    assert config.split.holdout_fold == 2
    assert config.output.directory == tmp_path / "elsewhere"


def test_the_digest_ignores_where_files_lie_and_sees_what_matters(tmp_path):
    (tmp_path / "a.toml").write_text(GOOD)
    one = FitConfig.load(tmp_path / "a.toml")
    assert one.digest == FitConfig.load(tmp_path / "a.toml", {"output.directory": "elsewhere"}).digest
    assert one.digest != FitConfig.load(tmp_path / "a.toml", {"split.holdout_fold": 2}).digest


@pytest.mark.parametrize("case", BROKEN)
def test_an_error_names_file_line_key_value_and_what_is_allowed(case, tmp_path):
    old, new, expected = BROKEN[case]
    assert old in GOOD
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(InputError) as caught:
        FitConfig.load(path)
    message = str(caught.value)
    assert str(path) in message
    for part in expected:
        assert part in message


def test_every_wrong_key_is_reported_at_once(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text(GOOD.replace("upper", "uper").replace("force_weight", "force_weigth"))
    with pytest.raises(InputError, match=r"(?s)uper.*\n.*force_weigth"):
        FitConfig.load(path)


@pytest.mark.parametrize("name, text, message", [
    ("none.toml", None, "No such file"),
    ("a.json", "{}", "ends in .toml, .yaml or .yml"),
    ("a.yaml", "- 1", "expected keys and tables, found list"),
])  # fmt: skip
def test_a_file_that_is_no_configuration(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(message)):
        FitConfig.load(tmp_path / name)
