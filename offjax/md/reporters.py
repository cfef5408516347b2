"""Reporters: write trajectories, one frame a call. Anything that takes a Frame can be used instead.

Lengths are taken as nm: XYZ and DCD files have angstrom, HDF5 files the numbers as they are. Each writes a new file
and refuses to replace one; a resumed simulation writes the next file. Each is a context manager.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offjax.constants import ANGSTROM
from offjax.errors import InputError


class _File:
    """A new file in an existing directory, closed at the end of a ``with``."""

    file: Any

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.exists():
            raise InputError(f"{self.path} exists: choose another name or remove it")
        if not self.path.parent.is_dir():
            raise InputError(f"cannot write {self.path}: the directory {self.path.parent} does not exist")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class XYZReporter(_File):
    """XYZ text: the number of particles, a comment with step and energy, then symbol and x y z in angstrom.

    ``symbols`` are one a particle, or one for all. Two-dimensional positions get z = 0.
    """

    def __init__(self, path: str | Path, symbols: str | Sequence[str] = "X"):
        super().__init__(path)
        self.symbols = symbols
        self.file = open(self.path, "x")

    def __call__(self, frame) -> None:
        """Append a frame."""
        x = _three(frame.state.positions) / ANGSTROM
        symbols = [self.symbols] * len(x) if isinstance(self.symbols, str) else self.symbols
        self.file.write(f"{len(x)}\nstep={frame.step} energy={float(frame.state.energy)!r}\n")
        for symbol, (a, b, c) in zip(symbols, x, strict=True):
            self.file.write(f"{symbol} {a:.6f} {b:.6f} {c:.6f}\n")
        self.file.flush()


class DCDReporter(_File):
    """DCD, written by OpenMM: float32 positions in angstrom, with the box if there is one.

    ``time_step`` is that of the integrator, ps; ``every`` the steps between frames, as in ``simulate``: both stand in
    the header.
    """

    def __init__(self, path: str | Path, n_atoms: int, time_step: float, every: int):
        super().__init__(path)
        self.n_atoms, self.time_step, self.every = n_atoms, time_step, every
        self.file = open(self.path, "xb")
        self.dcd: Any = None

    def __call__(self, frame) -> None:
        """Append a frame."""
        box = None if frame.state.box is None else _rows(np.asarray(frame.state.box, dtype=float))
        if self.dcd is None:
            self.dcd = self._started(box)
        self.dcd.writeModel(_three(frame.state.positions), periodicBoxVectors=box)
        self.file.flush()

    def _started(self, box):
        """The header, which says whether there is a box."""
        from openmm import Vec3, unit
        from openmm.app import DCDFile, Topology

        topology = Topology()
        residue = topology.addResidue("X", topology.addChain())
        for _ in range(self.n_atoms):
            topology.addAtom("X", None, residue)
        if box is not None:
            topology.setPeriodicBoxVectors([Vec3(*row) for row in box] * unit.nanometer)
        step = self.time_step * unit.picosecond
        return DCDFile(self.file, topology, step, firstStep=self.every, interval=self.every)


class HDF5Reporter(_File):
    """HDF5 datasets that grow along their first axis.

    ``step``, ``positions``, ``potential_energy``, ``kinetic_energy``, ``conserved_energy``, ``kT``, with
    ``velocities`` on request, and ``box`` where there is one.
    """

    def __init__(self, path: str | Path, *, velocities: bool = False):
        import h5py

        super().__init__(path)
        self.velocities = velocities
        self.file = h5py.File(self.path, "x")
        self.file.attrs["format"] = "offjax-md-trajectory"

    def __call__(self, frame) -> None:
        """Append a frame."""
        values = {"step": np.asarray(frame.step), "positions": np.asarray(frame.state.positions)}
        values |= {name: np.asarray(value) for name, value in frame.info._asdict().items()}
        if self.velocities:
            values["velocities"] = np.asarray(frame.state.velocities)
        if frame.state.box is not None:
            values["box"] = np.asarray(frame.state.box)
        for name, value in values.items():
            if name not in self.file:
                shape = (0, *value.shape)
                self.file.create_dataset(
                    name, shape, value.dtype, maxshape=(None, *value.shape), chunks=(1, *value.shape)
                )
            data = self.file[name]
            data.resize(len(data) + 1, axis=0)
            data[-1] = value
        self.file.flush()


def _three(positions) -> np.ndarray:
    """Positions with z = 0 where they are two-dimensional (or y = z = 0)."""
    x = np.asarray(positions, dtype=float)
    if x.shape[1] > 3:
        raise InputError(f"XYZ and DCD files have three dimensions, the positions {x.shape[1]}; use HDF5Reporter")
    return np.pad(x, ((0, 0), (0, 3 - x.shape[1])))


def _rows(box: np.ndarray) -> np.ndarray:
    """A box as three rows; a missing dimension is 1."""
    if box.ndim < 2:
        box = np.diag(np.broadcast_to(box, 3) if box.ndim == 0 else box)
    full = np.eye(3)
    full[: len(box), : len(box)] = box
    return full
