"""Random boxes, densities, skins and shapes: a neighbour list gives the energy of all pairs, or says that it cannot.

    python -m tests.nonbonded.fuzz --minutes 10 [--seed 0]

draws one *family* (sizes that are compiled in: atoms, cutoff, skin, capacity) after the other, prints a line for each,
and stops at the first wrong number with the seed that repeats it.
"""

import argparse
import time
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from offjax.errors import NeighborListError
from offjax.nonbonded.blocks import pair_energy
from offjax.nonbonded.neighbors import check_box, neighbor_list

IMAGES = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)


def potential(r2, first, second):
    """Of one sign and far from zero at the cutoff, so that any pair that is missed or counted twice shows."""
    return first[0] * second[0] / (r2 + 0.1)


@partial(jax.jit, static_argnames="cutoff")
def energies(x, h, q, neighbors, cutoff):
    """(of the list, of all pairs and images)."""
    listed = pair_energy(potential, neighbors, x, h, (q,))
    if h is None:
        difference = (x[None] - x[:, None])[:, :, None]
    else:
        s = x @ jnp.linalg.inv(h)
        difference = ((s - jnp.floor(s))[None] - (s - jnp.floor(s))[:, None])[:, :, None] @ h + IMAGES @ h
    r2 = jnp.sum(difference**2, axis=-1)
    left_out = jnp.zeros((len(x) + 1, len(x) + 1), bool).at[jnp.arange(len(x))[:, None], neighbors.exclusions].set(True)
    inside = (r2 < cutoff**2) & ~left_out[: len(x), : len(x), None]
    return listed, 0.5 * jnp.sum(jnp.where(inside, potential(r2, (q[:, None, None],), (q[None, :, None],)), 0.0))


def positions(rng, n, h):
    """Spread evenly, or in clusters, and over several cells."""
    kind = rng.integers(3)
    s = rng.uniform(0, 1, (n, 3))
    if kind == 1:
        s = rng.uniform(0, 1, (max(1, n // 12), 3))[rng.integers(max(1, n // 12), size=n)] + rng.normal(
            scale=rng.uniform(0.01, 0.1), size=(n, 3)
        )
    if kind == 2:
        s[:, rng.integers(3)] *= rng.uniform(0, 0.1)
    if h is None:
        return s * rng.uniform(0.5, 6.0)
    return (s + rng.integers(-2, 3, size=(n, 3)) * rng.integers(2)) @ h


def box(rng, cutoff, skin):
    """A reduced box that the cutoff and the skin fit into, often by little; None for no box."""
    if rng.random() < 0.2:
        return None
    while True:
        edges = cutoff * (2.0 + np.array([rng.exponential(rng.choice([0.02, 1.0])) for _ in range(3)]))
        h = np.diag(edges)
        if rng.random() < 0.7:
            h[1, 0], h[2, 0], h[2, 1] = rng.uniform(-0.5, 0.5, 3) * edges[[0, 0, 1]]
        if fits(h, cutoff, skin):
            return h


def fits(h, cutoff, skin):
    try:
        check_box(h, cutoff, skin)
    except ValueError:
        return False
    return True


def family(seed: int, draws: int = 40) -> Counter:
    """What happened in some draws of one family.

    Raises
    ------
    AssertionError
        A wrong number; the message has the seed and the draw.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 7, 8, 9, 60, 129, 250]))
    cutoff, skin = 1.0, float(rng.choice([0.0, 0.02, 0.2, 0.6]))
    base = box(rng, cutoff, skin)
    pairs = rng.integers(n, size=(rng.integers(0, 2 * n), 2))
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
    q = jnp.asarray(rng.uniform(0.5, 1.5, n))
    first, headroom = positions(rng, n, base), rng.choice([1.0, 1.25, 2.0])
    neighbors = neighbor_list(first, base, cutoff=cutoff, skin=skin, exclusions=pairs, headroom=headroom)
    seen: Counter = Counter()
    for draw in range(draws):
        where = f"seed {seed}, draw {draw}: {n} atoms, skin {skin}, box {None if base is None else base.tolist()}"
        h = None if base is None else base * rng.choice([1.0, rng.uniform(0.97, 1.05)])
        x = positions(rng, n, h)
        neighbors = neighbors.update(x, h)
        seen[compare(neighbors, x, h, q, cutoff, where)] += 1
        if h is not None and not fits(h, cutoff, skin):
            assert bool(neighbors.overflow), f"{where}: a box that is too small was taken"
        if not bool(neighbors.overflow):
            moved = x + rng.uniform(-1, 1, x.shape) * rng.choice([0.28, 0.5]) * skin
            seen["moved " + compare(neighbors, moved, h, q, cutoff, where)] += 1
            if n > 1:
                moved[rng.integers(n), rng.integers(3)] = np.nan
                assert compare(neighbors, moved, h, q, cutoff, where) == "refused", f"{where}: NaN was taken"
    return seen


def compare(neighbors, x, h, q, cutoff, where) -> str:
    """ "right" or "refused"; the list may be refused only if it says so."""
    listed, exact = (float(e) for e in energies(x, h, q, neighbors, cutoff))
    if np.isnan(listed):
        assert bool(neighbors.unusable(x, h)), f"{where}: NaN from a list that is usable"
        try:
            neighbors.refuse(neighbors.unusable(x, h))
        except NeighborListError:
            return "refused"
        raise AssertionError(f"{where}: no error outside jit")
    assert not bool(neighbors.unusable(x, h)), f"{where}: {listed} from a list that is not usable"
    assert abs(listed - exact) <= 1e-9 * max(1.0, exact), f"{where}: {listed} from the list, {exact} from all pairs"
    return "right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    end, total, seed = time.monotonic() + 60 * options.minutes, Counter(), options.seed
    while time.monotonic() < end:
        total += family(seed)
        print(seed, dict(total), flush=True)
        seed += 1


if __name__ == "__main__":
    main()
