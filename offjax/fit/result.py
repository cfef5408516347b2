"""What a fit returns and writes: parameters before and after, and energies and forces of every molecule.

The output directory holds ``fitted.offxml``, ``parameters.csv``, ``log.jsonl``, ``checkpoint.npz`` and ``result.h5``,
from which :meth:`FitResult.load` makes the result again; and ``network.npz`` where a network was fitted. The layouts
are described in ``docs/fit-files.md``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from offjax.errors import InputError
from offjax.fit.config import FitConfig
from offjax.fit.free import FreeParameters, LeftOut, tying
from offjax.fit.targets import QUANTITIES
from offjax.fit.ties import TiedSelection
from offjax.interop import definitions
from offjax.interop.files import write_atomically, written_atomically
from offjax.interop.records import components
from offjax.md.neural import ElementNetwork
from offjax.parameters import ParameterSet, Selection
from offjax.system import System
from offjax.terms.user import UserTerm

FORMAT, VERSION = "offjax-fit-result", 2
NETWORK = "network.npz"
"""The name of the file of a fitted network."""
AT_BOUND = 1e-9
"""Distance to a bound, in scales, within which a fitted value counts as at the bound."""


@dataclass(frozen=True, eq=False)
class MoleculeResult:
    """One molecule: energies (n,) kJ/mol relative to their mean, forces (n, atoms, 3) kJ/mol/nm, positions nm.

    ``forces_qm`` is None where the data set has no forces; ``split`` is "train", "validation" or "test". ``driven`` are
    the atoms of the dihedrals that a torsion drive held; empty for other data. ``kind`` is what was compared; where it
    is neither energies nor torsion profiles, ``errors_initial`` and ``errors_fitted`` are the RMSE by quantity.
    """

    name: str
    smiles: str
    inchikey: str
    split: str
    system: System
    positions: np.ndarray
    energies_qm: np.ndarray
    energies_initial: np.ndarray
    energies_fitted: np.ndarray
    forces_qm: np.ndarray | None
    forces_initial: np.ndarray
    forces_fitted: np.ndarray
    driven: tuple[tuple[int, int, int, int], ...] = ()
    kind: str = "energies"
    errors_initial: dict[str, float] = field(default_factory=dict)
    errors_fitted: dict[str, float] = field(default_factory=dict)

    @property
    def charges(self) -> np.ndarray:
        """Partial charges that no parameter of the force field explains, (atoms,) e; NaN where parameters do.

        Increments of virtual sites come on top of them.
        """
        n = self.system.topology.n_atoms
        if "Electrostatics" not in self.system.terms:
            return np.zeros(n)
        matrix = self.system.assignment["Electrostatics"]["charge"]
        sections = np.array([label.section for label in matrix.schema.flat])
        explained = np.zeros(matrix.shape[0], dtype=bool)
        explained[matrix.rows[sections[matrix.columns] != "VirtualSites"]] = True
        return np.where(explained, np.nan, matrix.offset)[self.system.terms["Electrostatics"].slot[:n]]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A finished or interrupted fit. Arrays of the free entries have shape (n,), MD units, in the selection's order.

    ``network`` is the fitted network, if the configuration has one: energies are those of both together.
    """

    config: FitConfig
    initial: ParameterSet
    fitted: ParameterSet
    free: FreeParameters
    history: list[dict[str, Any]]
    stopped: str
    interrupted: bool
    molecules: list[MoleculeResult]
    metrics: dict[str, dict[str, float | None]]
    provenance: dict[str, Any]
    directory: Path
    network: ElementNetwork | None = None

    @property
    def selection(self) -> Selection:
        """The free entries of ``initial``."""
        return self.free.selection

    @property
    def prior_widths(self) -> np.ndarray:
        """Standard deviations of the priors; inf without prior."""
        return self.free.widths

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(lower, upper); -inf and inf without bound."""
        return self.free.lower, self.free.upper

    @property
    def at_bound(self) -> np.ndarray:
        """Which fitted values sit at a bound, (n,) bool."""
        values = np.asarray(self.fitted.to_vector())[self.selection.indices]
        near = AT_BOUND * self.free.scales
        return (values <= self.free.lower + near) | (values >= self.free.upper - near)

    def table(self):
        """A pandas table, one row a free entry, in the force-field file's units; shifts in widths of the priors."""
        free, table = self.free, self.selection.to_dataframe()
        start = np.asarray(self.selection.to_vector())
        end = np.asarray(self.fitted.to_vector())[self.selection.indices]
        factor = np.array([label.factor for label in self.selection.labels])
        table = table[["section", "attribute", "id", "smirks", "name", "unit"]].reset_index(drop=True)
        return table.assign(
            initial=start / factor,
            fitted=end / factor,
            change=(end - start) / factor,
            prior_width=free.widths / factor,
            shift_in_widths=free.x(end) * free.scales / free.widths,
            lower=free.lower / factor,
            upper=free.upper / factor,
            at_bound=self.at_bound,
            training_instances=free.instances,
            training_molecules=free.molecules,
        )

    def write(self) -> list[Path]:
        """Write ``fitted.offxml``, ``parameters.csv``, ``network.npz`` where there is one, and ``result.h5``; each is
        whole or not there."""
        files = [self.directory / name for name in ("fitted.offxml", "parameters.csv", "result.h5")]
        write_atomically(files[0], self._offxml().encode())
        write_atomically(files[1], self.table().to_csv(index=False, lineterminator="\n").encode())
        if self.network is not None:
            files.insert(2, self.directory / NETWORK)
            self.network.save(files[2])
        with written_atomically(files[-1]) as file:
            self._hdf5(file)
        return files

    def _offxml(self) -> str:
        from offjax.parameterize import forcefield

        text = forcefield.text(self.molecules[0].system.to_force_field(self.fitted))
        end = text.find("?>") + 2 if text.startswith("<?xml") else 0
        return f"{text[:end]}\n{self._comment()}{text[end:]}"

    def _comment(self) -> str:
        p, n = self.provenance, len(self.selection)
        lines = [
            f"Fitted by offjax {p['versions']['offjax']} on {p['date']}: {n} values of "
            f"{', '.join(p['force_field'])} changed.",
            f"Command: {p['command']}",
            f"Versions: {', '.join(f'{name} {version}' for name, version in p['versions'].items())}",
            *(f"Data: {d['file']}, SHA-256 {d['sha256']}" for d in p["data"]),
            *(f"Terms: {t['file']}, SHA-256 {t['sha256']}" for t in p.get("terms", ())),
            f"Force field before: digest {self.initial.digest}",
            f"Configuration: {self.config.source.name if self.config.source else 'none'}, digest {p['config_digest']}",
            f"Training molecules: {', '.join(m.name for m in self.molecules if m.split == 'train')}",
            f"Held out: {', '.join(m.name for m in self.molecules if m.split == 'test') or 'none'}",
            f"Stopped: {self.stopped}",
        ]
        if self.network is not None:
            lines.insert(1, f"Fitted together with the network of {NETWORK}: without it this is another model.")
        body = "\n  ".join(line.replace("--", "- -") for line in lines)
        return f"<!--\n  {body}\n-->\n"

    def _hdf5(self, target: BinaryIO) -> None:
        with h5py.File(target, "w") as file:
            file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
            header = {
                "config": self.config.model_dump(mode="json"),
                "source": None if self.config.source is None else str(self.config.source),
                "history": self.history,
                "stopped": self.stopped,
                "interrupted": self.interrupted,
                "metrics": self.metrics,
                "provenance": self.provenance,
                "left_out": [[int(i), r] for i, r in self._left_out()],
            }
            file.create_dataset("header", data=json.dumps(header), dtype=h5py.string_dtype())
            file.create_dataset("force_field", data=self.molecules[0].system.source, dtype=h5py.string_dtype())
            free = file.create_group("parameters")
            free["indices"] = self.selection.indices
            free["fitted"] = np.asarray(self.fitted.to_vector())[self.selection.indices]
            for name in _FREE:
                free[name] = getattr(self.free, name)
            for i, molecule in enumerate(self.molecules):
                group = file.create_group(f"molecules/{i:05d}")
                for name in _NAMES:
                    group.attrs[name] = getattr(molecule, name)
                for name in _ERRORS:
                    group.attrs[name] = json.dumps(getattr(molecule, name))
                group["charges"] = molecule.charges
                if molecule.driven:
                    group["driven"] = np.array(molecule.driven)
                for name in _ARRAYS:
                    if (values := getattr(molecule, name)) is not None:
                        group.create_dataset(name, data=values, compression="gzip", shuffle=True)

    def _left_out(self):
        order = {label: i for i, label in enumerate(self.initial.schema.flat)}
        return [(order[item.label], item.reason) for item in self.free.left_out]

    @classmethod
    def load(cls, directory, user_terms: Sequence[UserTerm] | None = None) -> FitResult:
        """Read ``result.h5``; the Systems are made again from the stored force field and charges.

        Charges that come from parameters (library charges, charge increments) are assigned again. ``user_terms`` are
        the definitions that the fit was made with; None: those of the files of its configuration, as they were.

        Raises
        ------
        InputError
            No such file, or not a result of this version; definitions of terms that are not there or not the same.
        """
        path = Path(directory) / "result.h5"
        if not path.is_file():
            raise InputError(f"{path}: no such file; is this the output directory of a finished fit?")
        try:
            with h5py.File(path, "r") as file:
                if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
                    raise InputError(f"{path}: not a fit result of version {VERSION}")
                return cls._read(file, Path(directory), user_terms)
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: not a complete fit result ({error}); run the fit again") from error

    @classmethod
    def _read(cls, file, directory: Path, user_terms: Sequence[UserTerm] | None) -> FitResult:
        from offjax.parameterize import forcefield

        header = json.loads(file["header"].asstr()[()])
        source = file["force_field"].asstr()[()]
        config = FitConfig.model_validate(header["config"])
        if header["source"] is not None:
            config = config.model_copy(update={"source": Path(header["source"])})
        if user_terms is None:
            user_terms = _definitions(header["provenance"], directory)
        force_field = forcefield.load(source, forcefield.check_terms(user_terms))
        molecules = [_molecule(g, force_field, config.flexible, user_terms) for g in file["molecules"].values()]
        initial = molecules[0].system.parameters
        group = file["parameters"]
        tied = tying(config.model_copy(update={"force_field": []}), initial, source)
        indices = group["indices"][()]
        selection = TiedSelection(initial, indices, tied) if tied else Selection(initial, indices)
        flat = initial.schema.flat
        free = FreeParameters(
            selection,
            **{name: group[name][()] for name in _FREE},
            left_out=tuple(LeftOut(flat[i], reason) for i, reason in header["left_out"]),
        )
        names = ("history", "stopped", "interrupted", "metrics", "provenance")
        return cls(
            config=config,
            initial=initial,
            fitted=selection.insert(group["fitted"][()]),
            free=free,
            molecules=molecules,
            directory=directory,
            network=None if config.network is None else ElementNetwork.load(directory / NETWORK),
            **{name: header[name] for name in names},
        )


_FREE = ("widths", "scales", "lower", "upper", "log", "l1", "instances", "molecules")
_NAMES = ("name", "smiles", "inchikey", "split", "kind")
_ERRORS = ("errors_initial", "errors_fitted")
_ARRAYS = (
    "positions",
    "energies_qm",
    "energies_initial",
    "energies_fitted",
    "forces_qm",
    "forces_initial",
    "forces_fitted",
)


def _definitions(provenance, directory: Path) -> tuple[UserTerm, ...]:
    """The terms of the user, from the files that the fit had them from."""
    known = provenance.get("terms", [])
    for one in known:
        if definitions.sha256(one["file"]) != one["sha256"]:
            raise InputError(
                f"{directory}: {one['file']} is not what the fit was made with any more: restore it, or pass the "
                "definitions, FitResult.load(directory, user_terms=[...])"
            )
    return definitions.read([one["file"] for one in known])


def _molecule(group, force_field, flexible: bool, user_terms: Sequence[UserTerm]) -> MoleculeResult:
    from openff.units import Quantity

    parts = components(group.attrs["smiles"], "result.h5, smiles", group.attrs["name"])
    ends = np.cumsum([part.n_atoms for part in parts])
    given = []
    for part, charges in zip(parts, np.split(group["charges"][()], ends)[:-1], strict=True):
        if np.all(np.isfinite(charges)):  # others come from parameters, which may have been fitted
            part.partial_charges = Quantity(charges, "elementary_charge")
            given.append(part)
    system = System.from_smirnoff(
        force_field,
        parts,
        charge_from_molecules=given or None,
        allow_nonintegral_charges=True,
        user_terms=user_terms,
    )
    known: dict[str, Any] = {name: group.attrs[name] for name in _NAMES}
    known |= {name: json.loads(group.attrs[name]) for name in _ERRORS}
    known |= {name: group[name][()] if name in group else None for name in _ARRAYS}
    driven = tuple((i, j, k, m) for i, j, k, m in group["driven"][()].tolist()) if "driven" in group else ()
    return MoleculeResult(system=system.without_constraints() if flexible else system, driven=driven, **known)


def summary(result: FitResult) -> list[tuple[Any, ...]]:
    """Rows (quantity, train before, train after, held out before, held out after) for a table on the terminal."""
    rows: list[tuple[Any, ...]] = []
    train, test = (result.metrics[split] for split in ("train", "test"))
    for quantity in QUANTITIES:
        before, after = f"{quantity}_rmse_initial", f"{quantity}_rmse_fitted"
        if quantity in ("energy", "force") or before in train:
            rows.append((quantity, *(split.get(when) for split in (train, test) for when in (before, after))))
    return rows
