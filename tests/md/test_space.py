"""Spaces in any dimension: nearest images against brute force, and derivatives in the box."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offjax.errors import InputError
from offjax.md import free, periodic, volume

BOXES = {
    "line": [2.0],
    "square": [2.0, 3.0],
    "cuboid": [2.0, 3.0, 4.0],
    "tilted plane": [[2.0, 0.0], [0.9, 3.0]],
    "triclinic": [[3.0, 0.0, 0.0], [-1.2, 2.8, 0.0], [1.4, -1.0, 2.6]],
    "four dimensions": [1.0, 1.2, 1.4, 1.6],
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_displacement_is_to_the_nearest_image(box, rng):
    box = np.array(box)
    rows = np.diag(box) if box.ndim == 1 else box
    d = len(rows)
    a, b = rng.normal(scale=5, size=(2, 40, d))
    found = np.asarray(periodic(box).displacement(jnp.asarray(a), jnp.asarray(b)))
    # the same point up to whole rows of the box
    whole = np.linalg.solve(rows.T, (a - b - found).T)
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-12)
    images = np.array(list(itertools.product(*[range(-2, 3)] * d))) @ rows
    nearest = np.linalg.norm(found[:, None] + images, axis=-1).min(1)
    length = np.linalg.norm(found, axis=-1)
    near = nearest < 0.5 * np.diagonal(rows).min()
    assert near.sum() > 5
    np.testing.assert_allclose(length[near], nearest[near], rtol=1e-12)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_shift_wraps_into_the_box_and_keeps_displacements(box, rng):
    rows = np.diag(box) if np.ndim(box) == 1 else np.array(box)
    displacement, shift = periodic(np.array(box))
    x, dx = jnp.asarray(rng.normal(scale=5, size=(2, 20, len(rows))))
    moved = shift(x, dx)
    assert np.all(moved >= 0) and np.all(moved <= np.diagonal(rows))
    np.testing.assert_allclose(jnp.abs(displacement(moved, x + dx)), 0, atol=1e-12)
    assert np.array_equal(periodic(np.array(box), wrap=False).shift(x, dx), x + dx)


def test_a_box_in_the_call_takes_the_place_of_the_other():
    displacement, shift = periodic(10.0)
    a, b = jnp.array([0.1, 0.0]), jnp.array([0.9, 0.0])
    np.testing.assert_allclose(displacement(a, b), [-0.8, 0])
    np.testing.assert_allclose(displacement(a, b, box=1.0), [0.2, 0], atol=1e-15)
    np.testing.assert_allclose(shift(a, b, box=jnp.array([0.5, 0.5])), [0.0, 0.0], atol=1e-15)
    displacement, _ = periodic()
    np.testing.assert_allclose(displacement(a, b, box=1.0), [0.2, 0], atol=1e-15)


@pytest.mark.parametrize("differentiate", [jax.jacrev, jax.jacfwd])
def test_the_displacement_is_differentiable_in_the_box(differentiate):
    a, b = jnp.array([0.1, 0.4]), jnp.array([0.9, 0.3])
    derivative = differentiate(lambda box: periodic(box).displacement(a, b))(jnp.array([1.0, 1.0]))
    np.testing.assert_array_equal(derivative, [[1.0, 0.0], [0.0, 0.0]])


def test_free_space_and_volume():
    displacement, shift = free()
    a, b = jnp.array([1.0, 2.0, 3.0]), jnp.array([9.0, 9.0, 9.0])
    np.testing.assert_array_equal(displacement(a, b), a - b)
    np.testing.assert_array_equal(shift(a, b), a + b)
    assert volume(2.0, 3) == 8.0
    assert volume(np.array([2.0, 3.0])) == 6.0
    assert volume(BOXES["triclinic"]) == pytest.approx(abs(np.linalg.det(BOXES["triclinic"])), rel=1e-14)


def test_a_wrong_box_is_refused():
    for box, message in (
        (-1.0, "positive"),
        ([1.0, np.nan], "positive"),
        ([[1.0, 0.5], [0.0, 1.0]], "reduced form"),
        ([[1.0, 0.0], [0.7, 1.0]], "reduced form"),
        (np.ones((2, 3)), "shape"),
    ):
        with pytest.raises(InputError, match=message):
            periodic(np.array(box))
    with pytest.raises(InputError, match="no box"):
        periodic().displacement(jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(InputError, match="free space"):
        free().displacement(jnp.zeros(2), jnp.zeros(2), box=1.0)
    with pytest.raises(InputError, match="dimension"):
        volume(2.0)
