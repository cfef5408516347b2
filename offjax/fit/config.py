"""The configuration of a fit: what may stand in the TOML or YAML file, and errors that name the key.

Paths in the file are relative to the file. Widths, scales and bounds of parameters are in the units of the force-field
file (kcal/mol, angstrom, degree ...), because these are the numbers that people know.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from offjax.constants import DEGREE
from offjax.errors import InputError
from offjax.interop import definitions
from offjax.interop.forcebalance import Sign
from offjax.interop.reading import Format

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


class DataSet(_Table):
    """``[[data]]``: one file of reference data."""

    path: Path
    kind: Literal[
        "energies",
        "torsion-profiles",
        "optimized-geometries",
        "minimum-gradients",
        "hessians",
        "vibrations",
        "interaction-energies",
        "electrostatic-potentials",
    ] = Field("energies", description="what is compared; energies: energies and forces of geometries as they are")
    format: Format | None = Field(None, description="none: what the file's name says")
    include: list[str] = Field(default_factory=list, description="names or wildcards of molecules; empty: all")
    exclude: list[str] = Field(default_factory=list, description="names or wildcards of molecules to leave out")
    weight: Positive = 1.0
    molecule: str | None = Field(
        None,
        description="forcebalance: mapped SMILES, or a MOL2, SDF or MOL file; qc-json: QCSubmit's result collection",
    )
    sign: Sign = Field("auto", description="forcebalance-qdata: what stands under FORCES")
    check_units: bool = Field(True, description="reject records whose energies or forces seem to have another unit")
    on_error: Literal["raise", "report"] = Field(
        "raise", description="what to do with a record that cannot be used: stop, or go on without it and say so"
    )


class Charges(_Table):
    """``[charges]``: where partial charges come from."""

    method: Literal["force-field", "am1bcc", "am1-mulliken", "gasteiger", "mmff94", "formal_charge", "zeros"] = (
        "force-field"
    )


class Split(_Table):
    """``[split]``: a molecule belongs to fold sha256(InChIKey) mod ``folds``; ``holdout_fold`` is held out.

    The molecules of ``validation_fold`` are not trained on either; they end the fit when they no longer gain from it.
    """

    folds: Annotated[int, Field(ge=2)] = 4
    holdout_fold: Annotated[int, Field(ge=0)] | None = None
    validation_fold: Annotated[int, Field(ge=0)] | None = None
    patience: Annotated[int, Field(ge=1)] = Field(5, description="iterations without a lower validation loss")

    @pydantic.model_validator(mode="after")
    def _in_range(self):
        if self.validation_fold is not None and self.validation_fold >= self.folds:
            raise ValueError(f"validation_fold must be below folds = {self.folds}, got {self.validation_fold}")
        if self.validation_fold is not None and self.validation_fold == self.holdout_fold:
            raise ValueError("validation_fold and holdout_fold must differ: what ends the fit is not unseen")
        if self.holdout_fold is not None and self.holdout_fold >= self.folds:
            raise ValueError(f"holdout_fold must be below folds = {self.folds}, got {self.holdout_fold}")
        return self


def _width(value: Any) -> Any:
    """A positive number in file units, or ``"10%"`` of the starting value."""
    if isinstance(value, str):
        number = value.strip()
        try:
            if not number.endswith("%") or not float(number[:-1]) > 0 or math.isinf(float(number[:-1])):
                raise ValueError
        except ValueError:
            raise ValueError(
                'expected a positive number in the units of the force field, or a percentage such as "10%"'
            ) from None
        return number
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError('expected a positive number in the units of the force field, or a percentage such as "10%"')
    return float(value)


Width = Annotated[float | str, pydantic.BeforeValidator(_width)]


class Parameters(_Table):
    """``[[parameters]]``: entries of the force field to fit. For an entry of several blocks the last one counts."""

    path: str = Field(description='section/attribute, for example "Bonds/k"')
    patterns: list[str] | None = Field(None, description="ids (wildcards allowed) or SMIRKS; none: every entry")
    tagged: bool = Field(False, description="only what ForceBalance's parameterize attribute names in the force field")
    min_count: Annotated[int, Field(ge=1)] = Field(1, description="least number of instances in training molecules")
    min_molecules: Annotated[int, Field(ge=1)] = Field(1, description="least number of training molecules that use it")
    prior: Width = Field(description='width of the Gaussian prior: file units, "10%" of the value, or inf')
    prior_form: Literal["gaussian", "l1"] = Field(
        "gaussian", description="l1: the penalty grows linearly with the shift, so that most values stay where they are"
    )
    transform: Literal["linear", "log"] = Field(
        "linear", description="log: varies by factors and stays positive (k of Bonds and Angles, epsilon)"
    )
    scale: Width | None = Field(None, description="unit of the optimiser's variable; none: the prior's width")
    lower: float | None = Field(None, description="lower bound, file units")
    upper: float | None = Field(None, description="upper bound, file units")
    allow_singular: bool = Field(False, description="also free entries whose derivative is one-sided or infinite")

    @pydantic.model_validator(mode="after")
    def _consistent(self):
        if self.path.count("/") != 1 or not all(self.path.split("/")):
            raise ValueError(f'path must be "section/attribute" such as "Bonds/k", got {self.path!r}')
        if self.patterns is not None and not self.patterns:
            raise ValueError("patterns is empty: leave it out to take every entry of the path")
        if self.prior == math.inf and self.scale is None:
            raise ValueError("a block with prior = inf needs a scale")
        if self.prior == math.inf and self.prior_form == "l1":
            raise ValueError('prior_form = "l1" needs a finite prior')
        if self.scale == math.inf:
            raise ValueError("scale must be finite")
        if self.lower is not None and self.upper is not None and not self.lower < self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}")
        return self


class Objective(_Table):
    """``[objective]``: weights and scales; the equation stands in :mod:`offjax.fit.targets`."""

    energy_weight: NonNegative = 1.0
    energy_scale: Positive = Field(4.184, description="kJ/mol: an energy error of this size counts as 1")
    energy_reference: Literal["mean", "min"] = "mean"
    force_weight: NonNegative = 1.0
    force_scale: Positive = Field(200.0, description="kJ/mol/nm: a force error of this size counts as 1")
    prior_weight: NonNegative = 1.0
    temperature: Positive | None = Field(
        None, description="K: weight conformers by exp(-(E - E_min)/RT); none: equally"
    )
    parts: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="molecules are computed in so many parts, one after the other: for data larger than memory",
    )

    @pydantic.model_validator(mode="after")
    def _something(self):
        if self.energy_weight == 0 and self.force_weight == 0:
            raise ValueError("energy_weight and force_weight are both 0: there is nothing to fit")
        return self


class Relaxation(_Table):
    """``[relaxation]``: how the points of torsion profiles are minimised."""

    restraint: NonNegative = Field(418.4, description="kJ/mol/nm^2: k of k/2 |x - x_QM|^2 on atoms that may move")
    tolerance: Positive = Field(0.01, description="kJ/mol/nm: largest force at a minimum")
    max_steps: Annotated[int, Field(ge=1)] = 5000


class OptimizedGeometries(_Table):
    """``[optimized_geometries]``: see :mod:`offjax.fit.targets.geometries`. A type with the scale 0 is not fitted."""

    bond_scale: NonNegative = Field(0.005, description="nm")
    angle_scale: NonNegative = Field(8.0, description="degree")
    torsion_scale: NonNegative = Field(20.0, description="degree")
    improper_scale: NonNegative = Field(20.0, description="degree")
    tolerance: Positive = Field(0.01, description="kJ/mol/nm: largest force at a minimum")
    max_steps: Annotated[int, Field(ge=1)] = 5000

    @property
    def scales(self) -> dict[str, float]:
        """By type of internal coordinate, nm and rad."""
        degrees = {"angle": self.angle_scale, "torsion": self.torsion_scale, "improper": self.improper_scale}
        return {"bond": self.bond_scale} | {k: v * DEGREE for k, v in degrees.items()}


class MinimumGradients(_Table):
    """``[minimum_gradients]``: see :mod:`offjax.fit.targets.gradients`."""

    scale: Positive = Field(200.0, description="kJ/mol/nm: a force of this size counts as 1")


class Hessians(_Table):
    """``[hessians]``: see :mod:`offjax.fit.targets.hessians`."""

    scale: Positive = Field(10_000.0, description="kJ/mol/nm^2/amu: a root mean square error of this size counts as 1")


class Vibrations(_Table):
    """``[vibrations]``: see :mod:`offjax.fit.targets.vibrations`."""

    scale: Positive = Field(50.0, description="1/cm: a root mean square error of this size counts as 1")
    tolerance: Positive = Field(0.01, description="kJ/mol/nm: largest force at a minimum")
    max_steps: Annotated[int, Field(ge=1)] = 5000


class InteractionEnergies(_Table):
    """``[interaction_energies]``: see :mod:`offjax.fit.targets.interactions`."""

    scale: Positive = Field(2.0, description="kJ/mol: an error of this size counts as 1")
    attenuate: bool = Field(True, description="errors of repulsive complexes count relative to the repulsion")


class ElectrostaticPotentials(_Table):
    """``[electrostatic_potentials]``: see :mod:`offjax.fit.targets.potentials`."""

    scale: Positive = Field(5.0, description="kJ/mol/e: a root mean square error of this size counts as 1")


class Network(_Table):
    """``[network]``: a neural network that is added to the force field; see :mod:`offjax.fit.network`."""

    cutoff: Positive = Field(0.5, description="nm: atoms that are farther away are not seen")
    radial: Annotated[int, Field(ge=1)] = Field(8, description="number of Gaussians of the distance, for each element")
    angular: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [1, 4], description="exponents zeta of angular functions, each with both signs"
    )
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=lambda: [16, 16], description="widths of the hidden layers"
    )
    output: Positive = Field(4.184, description="kJ/mol: the energy of an output of 1")
    prior: Annotated[float, Field(gt=0)] = Field(1.0, description="width of the Gaussian prior of every weight, or inf")
    scale: Positive = Field(0.1, description="unit of the optimiser's variables")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of the initial weights")
    start: Path | None = Field(None, description="network.npz of an earlier fit to go on from; none: a correction of 0")

    @pydantic.model_validator(mode="after")
    def _of_a_start(self):
        """A network that is read has its functions and sizes already."""
        defaults = {
            name: type(self).model_fields[name].get_default(call_default_factory=True)
            for name in ("cutoff", "radial", "angular", "hidden", "output", "seed")
        }
        given = [name for name, default in defaults.items() if getattr(self, name) != default]
        if self.start is not None and given:
            raise ValueError(f"start is a network that has its own {', '.join(given)}: leave out the one or the other")
        return self


class Optimizer(_Table):
    """``[optimizer]``: method and stopping. Tolerances are relative to the scaled variables and to the objective."""

    method: Literal["levenberg-marquardt", "l-bfgs", "adam"] = "levenberg-marquardt"
    max_iterations: Annotated[int, Field(ge=1)] = 50
    objective_tolerance: NonNegative = Field(
        1e-6, description="stop when a step lowers the objective by less, relatively"
    )
    gradient_tolerance: NonNegative = Field(1e-6, description="stop when the largest projected gradient is below")
    history: Annotated[int, Field(ge=1)] = Field(10, description="l-bfgs: number of stored steps")
    learning_rate: Positive = Field(0.05, description="adam: step in scaled variables")
    minibatch: Annotated[int, Field(ge=1)] | None = Field(None, description="adam: molecules a step; none: all")
    seed: Annotated[int, Field(ge=0)] = 0

    @pydantic.model_validator(mode="after")
    def _of_the_method(self):
        """Options that the method would not look at are refused."""
        belongs = {"history": "l-bfgs", "learning_rate": "adam", "minibatch": "adam"}
        for name, method in belongs.items():
            if self.method != method and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f'{name} belongs to method = "{method}", this is "{self.method}"')
        return self


class Workers(_Table):
    """``[workers]``: processes of a Dask cluster that share the molecules; none unless something is set here."""

    count: Annotated[int, Field(ge=1)] = Field(1, description="processes, or jobs of a queueing system")
    cluster: Literal["local", "slurm", "pbs", "lsf"] = Field("local", description="what starts them")
    address: str | None = Field(None, description='a running Dask scheduler, for example "tcp://host:8786"')
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of LocalCluster or of dask-jobqueue's cluster, as queue and memory",
    )
    shards: Annotated[int, Field(ge=1)] | None = Field(None, description="parts of the molecules; none: count")

    @pydantic.model_validator(mode="after")
    def _one_cluster(self):
        if self.address is not None and (self.cluster != "local" or self.options):
            raise ValueError("address is a cluster that runs already: leave out cluster and options")
        return self

    @property
    def n_shards(self) -> int:
        """In how many parts the molecules are divided; 0: no workers."""
        if self.count == 1 and self.cluster == "local" and self.address is None and self.shards is None:
            return 0
        return self.n_processes if self.shards is None else self.shards

    @property
    def n_processes(self) -> int:
        """Workers: jobs times ``options.processes``."""
        processes = self.options.get("processes", 1) if self.cluster != "local" else 1
        return self.count * processes if isinstance(processes, int) and processes > 0 else self.count


class Output(_Table):
    """``[output]``: where the results go."""

    directory: Path = Path("fit-output")


class FitConfig(_Table):
    """A whole fit. ``FitConfig.load(path)`` reads a file; ``source`` remembers which one."""

    force_field: str | list[str]
    terms: list[str] = Field(
        default_factory=list, description="Python files or modules that define terms of your own (offjax.UserTerm)"
    )
    flexible: bool = Field(True, description="give constrained bonds their harmonic term back, as QM data need")
    data: Annotated[list[DataSet], Field(min_length=1)]
    parameters: list[Parameters]
    network: Network | None = None
    charges: Charges = Charges()
    split: Split = Split()
    objective: Objective = Objective()
    relaxation: Relaxation = Relaxation()
    optimized_geometries: OptimizedGeometries = OptimizedGeometries()
    minimum_gradients: MinimumGradients = MinimumGradients()
    hessians: Hessians = Hessians()
    vibrations: Vibrations = Vibrations()
    interaction_energies: InteractionEnergies = InteractionEnergies()
    electrostatic_potentials: ElectrostaticPotentials = ElectrostaticPotentials()
    optimizer: Optimizer = Optimizer()
    workers: Workers = Workers()
    output: Output = Output()
    source: Path | None = Field(None, exclude=True, repr=False)

    @pydantic.model_validator(mode="after")
    def _something_to_fit(self):
        if not self.parameters and self.network is None:
            raise ValueError("parameters is empty: there is nothing to fit; only a [network] can be fitted alone")
        return self

    @pydantic.model_validator(mode="after")
    def _with_network(self):
        if self.network is None:
            return self
        if self.optimizer.method == "levenberg-marquardt":
            raise ValueError(
                'a [network] has too many weights for optimizer.method = "levenberg-marquardt" (the default): set it '
                'to "l-bfgs" or "adam"'
            )
        if others := sorted({data.kind for data in self.data} - {"energies"}):
            raise ValueError(f'[network] corrects data of kind = "energies" only, not {", ".join(others)}')
        return self

    @pydantic.model_validator(mode="after")
    def _whole_batches(self):
        if self.workers.n_shards and self.optimizer.minibatch is not None:
            raise ValueError("optimizer.minibatch cannot be combined with [workers]: leave one of them out")
        if self.objective.parts is not None:
            for there, name in (
                (self.workers.n_shards, "[workers], whose shards are parts"),
                (self.optimizer.minibatch is not None, "optimizer.minibatch"),
                (self.network is not None, "[network]; take optimizer.minibatch"),
            ):
                if there:
                    raise ValueError(f"objective.parts cannot be combined with {name}: leave one of them out")
        return self

    @classmethod
    def load(cls, path, overrides: dict[str, Any] | None = None) -> FitConfig:
        """Read a ``.toml``, ``.yaml`` or ``.yml`` file and resolve its paths.

        ``overrides`` replaces values by dotted key, for example ``{"split.holdout_fold": 2}``.

        Raises
        ------
        InputError
            No such file, a syntax error with its line, or one line for each wrong key: its dotted name, the line,
            what came and what is allowed.
        """
        path = Path(path)
        text, content = _read(path)
        for key, value in (overrides or {}).items():
            table = content
            *parents, last = key.split(".")
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = value
        return cls._checked(content, path, text)

    @classmethod
    def from_dict(cls, content: dict[str, Any], directory=".") -> FitConfig:
        """The configuration of a nested dictionary; paths are relative to ``directory``."""
        return cls._checked(content, Path(directory) / "<dict>", "")

    @classmethod
    def _checked(cls, content: dict[str, Any], path: Path, text: str) -> FitConfig:
        if "source" in content:
            raise InputError(f"{path}: source: there is no such key")
        try:
            config = cls.model_validate(content)
        except pydantic.ValidationError as error:
            problems = [_describe(e, path, text) for e in error.errors()]
            # a Width that is neither number nor percentage is reported once for each type of the union
            raise InputError("\n".join(dict.fromkeys(problems))) from None
        folder = path.parent
        files = [config.force_field] if isinstance(config.force_field, str) else config.force_field
        files = [str(folder / f) if (folder / f).is_file() else f for f in files]
        return config.model_copy(
            update={
                "source": path,
                "force_field": files[0] if isinstance(config.force_field, str) else files,
                "terms": [str(folder / t) if t.endswith(".py") else t for t in config.terms],
                "data": [_located(d, folder) for d in config.data],
                "network": _started(config.network, folder),
                "output": Output(directory=folder / config.output.directory),
            }
        )

    def canonical(self) -> dict[str, Any]:
        """What decides the result, as plain data: everything but the output directory and where the files lie; of
        definitions of terms what they say.

        Of the workers only the number of shards counts, whose sums are rounded one by one.
        """
        content = self.model_dump(mode="json", exclude={"output", "workers"})
        if self.workers.n_shards:
            content["shards"] = self.workers.n_shards
        for data in content["data"]:
            data["path"] = Path(data["path"]).name
            if data["molecule"] is not None and Path(data["molecule"]).is_file():
                data["molecule"] = Path(data["molecule"]).name
        terms = content.pop("terms")
        if terms:
            content["terms"] = {Path(t).name: definitions.sha256(t) for t in terms}
        if content["network"] is None:
            del content["network"]
        elif content["network"]["start"] is not None:
            content["network"]["start"] = Path(content["network"]["start"]).name
        files = content["force_field"]
        content["force_field"] = [Path(f).name for f in ([files] if isinstance(files, str) else files)]
        return content

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


def _located(data: DataSet, folder: Path) -> DataSet:
    """The same with paths that do not depend on where the configuration stands."""
    update: dict[str, Any] = {"path": folder / data.path}
    if data.molecule is not None and (folder / data.molecule).is_file():
        update["molecule"] = str(folder / data.molecule)
    return data.model_copy(update=update)


def _started(network: Network | None, folder: Path) -> Network | None:
    if network is None or network.start is None:
        return network
    return network.model_copy(update={"start": folder / network.start})


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: the configuration is not UTF-8 text: {error}") from None
    try:
        if path.suffix == ".toml":
            content = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            content = yaml.safe_load(text)
        else:
            raise InputError(f"{path}: a configuration ends in .toml, .yaml or .yml")
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: syntax error: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected keys and tables, found {type(content).__name__}")
    return text, content


def _describe(error, path: Path, text: str) -> str:
    """``file, line 12: objective.force_weigth: there is no such key; did you mean force_weight?``"""
    location = [part for part in error["loc"] if not str(part).startswith(("function-", "union", "literal["))]
    while len(location) > 1 and location[-1] in ("str", "float", "int", "list[str]"):
        location.pop()
    key = "".join(f"[{p + 1}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    line = _line(text, location)
    where = f"{path}{f', line {line}' if line else ''}: {key or 'the configuration'}: "
    if error["type"] == "extra_forbidden":
        allowed = _keys(location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"allowed are {', '.join(allowed)}"
        return f"{where}there is no such key; {hint}"
    if error["type"] == "missing":
        return f"{where}this key is required"
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], dict | list | BaseModel) else f", got {error['input']!r}"
    return f"{where}{message[0].lower()}{message[1:]}{'' if ' got ' in message else shown}"


def _keys(location: list[Any]) -> list[str]:
    """The keys that are allowed in the table at ``location``."""
    model: Any = FitConfig
    for part in location:
        if isinstance(part, str):
            tables: dict[str, Any] = {"data": DataSet, "parameters": Parameters}
            model = tables.get(part) or model.model_fields[part].annotation
            model = next((m for m in get_args(model) if m is not type(None)), model)  # a table that may be missing
    return [k for k in model.model_fields if k != "source"]


def _line(text: str, location: list[Any]) -> int | None:
    """The line of a key, found by reading headers and keys in order; None where that fails."""
    if not location or not text:
        return None
    names = [p for p in location if isinstance(p, str)]
    number = next((p for p in location if isinstance(p, int)), 0)
    seen, inside, header = -1, len(names) == 1, None
    for n, line in enumerate(text.splitlines(), start=1):
        bare = line.strip()
        if bare.startswith("[") and "=" not in bare.split("]")[0]:
            inside = bare.strip("[] ") == names[0]
            seen += inside
            header = n if inside and seen == number else header
            if len(names) == 1 and inside and seen == number:
                return n
        elif inside and (len(names) == 1 or seen in (-1, number)):
            if bare.replace("=", " ").replace(":", " ").replace('"', " ").split()[:1] == [names[-1]]:
                return n
    return header
