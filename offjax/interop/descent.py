"""Reading quantum-chemical reference data as descent writes them: an Arrow table with one row a molecule.

==========  ===================  =================================================================
``smiles``  text                 mapped SMILES with explicit hydrogens; map index = atom position + 1
``coords``  list of n*atoms*3    positions, angstrom
``energy``  list of n            energies, kcal/mol
``forces``  list of n*atoms*3    kcal/mol/angstrom; may be null or missing
==========  ===================  =================================================================

The table is an Arrow IPC stream or file, or a folder of them as Hugging Face's ``datasets`` saves one. Reading needs
pyarrow (``pip install "offjax[arrow]"``). Source of the layout: https://github.com/SimonBoothroyd/descent
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from offjax.constants import ANGSTROM, KCAL
from offjax.errors import InputError
from offjax.interop import energy_units
from offjax.interop.records import Problem, Record, chosen, collect, parse, usable


def read(path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), forces: bool = True) -> list[Record]:
    """The molecules of a table, in its order; a record's name is its row: ``"row-0"``, ``"row-1"``, ...

    Parameters
    ----------
    path
        The Arrow file, or a folder with ``*.arrow`` files.
    include, exclude
        Names, InChIKeys or mapped SMILES of molecules, shell wildcards allowed; a pattern that matches nothing raises.
    forces
        Whether forces are needed: a row without them raises.

    Raises
    ------
    InputError
        No such file, pyarrow is missing, not an Arrow table of this layout, or a row that cannot be used.
    """
    found = scan(path, include=include, exclude=exclude, forces=forces)
    return collect(energy_units.checked(found), strict=True).records


def scan(
    path, *, include: Sequence[str] = (), exclude: Sequence[str] = (), forces: bool = True
) -> Iterator[Record | Problem]:
    """The same, with a Problem for each row or conformer that cannot be used, and for what a truncated file lacks.

    Raises
    ------
    InputError
        No such file, pyarrow is missing, not an Arrow table of this layout, or a pattern that matches nothing.
    """
    path = Path(path)
    found: list[Record | Problem] = []
    for n, row in enumerate(_rows(path)):
        if isinstance(row, Problem):
            found.append(row)
            continue
        try:
            found += _record(path, n, row, forces)
        except InputError as error:
            found.append(Problem(str(path), f"row-{n}", "rejected", str(error), f"row-{n}"))
    yield from chosen(path, found, include, exclude)


def _rows(path: Path) -> Iterator[dict | Problem]:
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f'{path}: reading Arrow tables needs pyarrow: pip install "offjax[arrow]"') from None
    files = sorted(path.glob("*.arrow")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise InputError(f"{path}: no such file, and no folder of *.arrow files")
    read = 0
    for file in files:
        # an Arrow file is a stream behind eight bytes; read as one, it needs no footer
        data, n = file.read_bytes(), 0
        try:
            for batch in pa.ipc.open_stream(data[8:] if data.startswith(b"ARROW1") else data):
                if missing := {"smiles", "coords", "energy"} - set(batch.schema.names):
                    columns = ", ".join(sorted(missing))
                    raise InputError(f"{file}: the columns {columns} are missing; is this descent's layout?")
                for row in _checked(batch, file, read):
                    n, read = n + 1, read + 1
                    yield row
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            reason = f"{file}: not a complete Arrow table; {n} rows can be read ({error}); was it copied completely?"
            yield Problem(str(file), f"what follows {n} rows", "rejected", reason)


def _checked(batch, file: Path, n: int) -> Iterator[dict | Problem]:
    """The rows of a batch, the first of which is row n; those that contradict themselves would crash pyarrow."""
    import pyarrow as pa

    for k in range(batch.num_rows):
        row = batch.slice(k, 1)
        try:
            row.validate(full=True)
            [content] = row.to_pylist()
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            reason = f"{file}, row-{n + k}: damaged ({error}); was the file copied completely?"
            yield Problem(str(file), f"row-{n + k}", "rejected", reason, f"row-{n + k}")
        else:
            yield content


def _record(path: Path, n: int, row: dict, forces: bool) -> Iterator[Record | Problem]:
    name = f"row-{n}"
    where = f"{path}, {name}"
    if not isinstance(row["smiles"], str):
        raise InputError(f"{where}, smiles: expected text, found {row['smiles']!r}")
    molecule = parse(row["smiles"], f"{where}, smiles", name)
    energies = _numbers(row["energy"], f"{where}, energy")
    shape = (len(energies), molecule.n_atoms, 3)
    if not len(energies):
        raise InputError(f"{where}, energy: no conformers; leave the molecule out with exclude = [{name!r}]")
    positions = _table(row["coords"], shape, f"{where}, coords") * ANGSTROM
    given = row.get("forces")
    absent = given is None or all(v is None for v in given)
    if absent and forces:
        raise InputError(
            f"{where}, forces: there are none but forces are asked for; set objective.force_weight = 0 to fit energies"
        )
    record = Record(
        name=name,
        smiles=row["smiles"],
        inchikey=molecule.to_inchikey(),
        positions=positions,
        energies=energies * KCAL,
        forces=None if absent else _table(given, shape, f"{where}, forces") * (KCAL / ANGSTROM),
        source=str(path),
    )
    yield from usable(molecule, record, where, ("coords", "energy", "forces"))


def _numbers(values, where: str) -> np.ndarray:
    try:
        return np.asarray([] if values is None else values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected a list of numbers") from None


def _table(values, shape: tuple[int, ...], where: str) -> np.ndarray:
    array = _numbers(values, where)
    if array.size != np.prod(shape):
        raise InputError(
            f"{where}: {array.size} numbers, expected {np.prod(shape)} = {shape[0]} energies x {shape[1]} atoms of the "
            "SMILES x 3"
        )
    return array.reshape(shape)
