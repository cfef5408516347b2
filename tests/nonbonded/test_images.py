"""Minimum images: every pair within the cutoff is found once, in any reduced box."""

import jax
import numpy as np
import pytest

from offjax.nonbonded import periodic
from tests.nonbonded import ewald_sum


def random_box(rng):
    a, b, c = rng.uniform(1.0, 2.5, 3)
    return np.array([[a, 0, 0], [rng.uniform(-a, a) / 2, b, 0], [rng.uniform(-a, a) / 2, rng.uniform(-b, b) / 2, c]])


@pytest.mark.parametrize("seed", range(20))
def test_every_image_within_the_cutoff_is_found_and_is_alone(seed):
    rng = np.random.default_rng(seed)
    box = random_box(rng)
    cutoff = 0.5 * np.diag(box).min()
    d = rng.uniform(-3, 3, (4000, 3)) @ box
    mine = np.linalg.norm(periodic.minimum_image(d, box), axis=1)
    inside = np.zeros(len(d), dtype=int)
    nearest = np.full(len(d), np.inf)
    home = d - np.round(d @ np.linalg.inv(box)) @ box
    for shift in ewald_sum.images(box, 4.0):
        r = np.linalg.norm(home + shift, axis=1)
        inside += r < cutoff
        nearest = np.minimum(nearest, r)
    assert inside.max() == 1 and inside.sum() > 100
    assert np.allclose(mine[inside == 1], nearest[inside == 1], rtol=0, atol=1e-12)
    assert np.all(mine[inside == 0] >= cutoff)


def test_volume_and_reciprocal_vectors():
    box = random_box(np.random.default_rng(3))
    assert periodic.volume(box) == pytest.approx(np.prod(np.diag(box)))
    assert np.allclose(periodic.reciprocal_vectors(box), np.linalg.inv(box), atol=1e-14)
    general = np.random.default_rng(4).normal(size=(3, 3))
    assert np.allclose(periodic.reciprocal_vectors(general), np.linalg.inv(general), atol=1e-12)
    slope = jax.jacfwd(periodic.reciprocal_vectors)(box)
    assert np.allclose(slope, jax.jacfwd(jax.numpy.linalg.inv)(box), atol=1e-12)


@pytest.mark.parametrize(
    ("box", "good"),
    [
        (np.diag([1.0, 1.1, 1.2]), True),
        (np.diag([1.0, 0.99, 1.2]), False),
        (np.diag([1.0, -1.1, 1.2]), False),
        (np.array([[1.0, 0, 0], [0.4, 1.1, 0], [0.1, 0.2, 1.3]]), True),
        (np.array([[1.0, 0, 0.01], [0.4, 1.1, 0], [0.1, 0.2, 1.3]]), False),
        (np.full((3, 3), np.nan), False),
    ],
)
def test_boxes_are_judged(box, good):
    assert bool(periodic.admissible(box, 0.5)) is good
