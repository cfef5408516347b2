"""The checkpoint: bit-exact, atomic, and clear about files it cannot use."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax import InputError
from offjax.fit.checkpoint import Checkpoint, differences
from offjax.fit.optimizers import LBFGS, Adam, LevenbergMarquardt, LMState

from .test_optimizers import Problem, rosenbrock

STATE = LMState(
    jnp.array([1 / 3, np.nextafter(1.0, 2.0)]), jnp.array(0.1), jnp.array([1e-300, -0.0]), jnp.eye(2), jnp.array(3.5)
)
HISTORY = [{"iteration": 0, "objective": 1.0, "seconds": 0.1, "stop": None}]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.npz"
    Checkpoint.of(STATE, 4, {"a": 1}, "digest", HISTORY).save(path)
    return path


def test_a_state_comes_back_bit_for_bit(path):
    stored = Checkpoint.load(path)
    assert (stored.iteration, stored.config, stored.data, stored.history) == (4, {"a": 1}, "digest", HISTORY)
    for a, b in zip(stored.restore(STATE, path), STATE, strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.npz"]


def test_there_is_no_pickle_in_it(path):
    with np.load(path, allow_pickle=False) as file:
        assert json.loads(bytes(file["header"]))["format"] == "offjax-fit-checkpoint"
        assert all(file[name].dtype != object for name in file.files)


def foreign():
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(3))
    return buffer.getvalue()


def other_version(path):
    stored = Checkpoint.load(path)
    import offjax.fit.checkpoint as module

    module.VERSION = 2
    try:
        stored.save(path)
    finally:
        module.VERSION = 1
    return path.read_bytes()


@pytest.mark.parametrize("content, message", [
    (lambda path: path.read_bytes()[:-200], "not a complete checkpoint"),
    (lambda path: path.read_bytes()[:50], "not a complete checkpoint"),
    (lambda path: b"", "not a complete checkpoint"),
    (lambda path: b"text", "not a complete checkpoint"),
    (lambda path: foreign(), "not a complete checkpoint"),
    (other_version, "checkpoint version 2, this release of offjax reads version 1"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_named(content, message, path):
    path.write_bytes(content(path))
    with pytest.raises(InputError, match=message) as caught:
        Checkpoint.load(path)
    assert str(path) in str(caught.value)


def test_no_file_and_another_shape(path, tmp_path):
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        Checkpoint.load(tmp_path / "none.npz")
    with pytest.raises(InputError, match="does not fit"):
        Checkpoint.load(path).restore(STATE._replace(x=jnp.zeros(3)), path)


def test_differences_name_keys_and_values():
    old = {"optimizer": {"seed": 0, "max_iterations": 5}, "data": [{"path": "a"}], "split": None}
    new = {"optimizer": {"seed": 1, "max_iterations": 9}, "data": [{"path": "b"}], "split": {"folds": 4}}
    assert differences(old, old) == []
    assert differences(old, new) == [
        "data[1].path: 'a' -> 'b'", "optimizer.seed: 0 -> 1", "split: None -> {'folds': 4}",
    ]  # fmt: skip


@pytest.mark.parametrize("solver", [LevenbergMarquardt(0.0, 0.0), LBFGS(0.0, 0.0, 5), Adam(0.05, 0.0, 0.0)])
def test_every_optimiser_goes_on_from_a_file_as_if_never_stopped(solver, tmp_path):
    with jax.enable_x64(True):
        task = Problem(rosenbrock, [-np.inf, -np.inf], [np.inf, np.inf])
        state = solver.init(task, jnp.zeros(2))
        for n in range(8):
            if n == 4:
                Checkpoint.of(state, n, {}, "", []).save(tmp_path / "c.npz")
            state, _ = solver.step(task, state)
        again = Checkpoint.load(tmp_path / "c.npz").restore(solver.init(task, jnp.zeros(2)), tmp_path / "c.npz")
        for _ in range(4):
            again, _ = solver.step(task, again)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
            if isinstance(a, jax.Array):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
