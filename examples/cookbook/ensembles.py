"""Ensembles: 400 replicas of 32 soft disks at ten temperatures, in one program by vmap.

    python examples/cookbook/ensembles.py [--output cookbook-output]

Below jamming, disks touch only in collisions: the chance of an overlap grows as the root of the temperature, its
energy with the temperature, so the mean energy is a power law with exponent 3/2 as T goes to zero. The time for a
replica must not grow with the number of replicas. The script fails where the exponent is not near 3/2 or a batch is
slower.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
from drawing import save

from offjax import md

jax.config.update("jax_enable_x64", True)

N, SIDE = 32, 32**0.5  # number density 1
REPLICAS = 400


def final_energy(key, kT, steps: int = 2000):
    """Energy after Brownian dynamics from a random start, averaged over the second half."""
    displacement, shift = md.periodic(SIDE)
    energy = md.pair_energy(md.soft_sphere, displacement)
    where, key = jax.random.split(key)
    x = jax.random.uniform(where, (N, 2), maxval=SIDE)
    integrator = md.brownian(energy, 0.1, kT, 1.0, shift=shift)

    def step(carry, k):
        state, total = carry
        state, _ = integrator.step(state)
        return (state, total + jnp.where(k >= steps // 2, state.energy, 0.0)), None

    start = (integrator.init(key, x), jnp.zeros(()))
    (_, total), _ = jax.lax.scan(step, start, jnp.arange(steps))
    return total / (steps - steps // 2)


def times() -> dict[int, float]:
    """Milliseconds a replica for several batch sizes, the best of three."""
    found = {}
    for count in (1, 10, 100, REPLICAS):
        keys = jax.random.split(jax.random.key(0), count)
        run = jax.jit(jax.vmap(partial(final_energy, steps=200), (0, None)))
        jax.block_until_ready(run(keys, 1e-3))
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(run(keys, 1e-3))
            best = min(best, time.perf_counter() - start)
        found[count] = 1e3 * best / count
        print(f"{count:4d} replicas: {found[count]:.2f} ms a replica and 200 steps")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    arguments = parser.parse_args()
    temperatures = np.logspace(-4.5, -2.5, 10)
    # 40 replicas at each of the ten temperatures
    keys = jax.random.split(jax.random.key(1), REPLICAS)
    energies = jax.jit(jax.vmap(final_energy))(keys, jnp.asarray(np.repeat(temperatures, REPLICAS // 10)))
    energies = np.asarray(energies).reshape(10, -1) / N
    mean, error = energies.mean(1), energies.std(1, ddof=1) / np.sqrt(energies.shape[1])
    exponent, offset = np.polyfit(np.log(temperatures), np.log(mean), 1)
    for kT, m, e in zip(temperatures, mean, error, strict=True):
        print(f"kT = {kT:.2e}: energy a particle {m:.4e} +- {e:.1e}")
    print(f"energy = {np.exp(offset):.3g} kT^{exponent:.3f}")
    figure = go.Figure(go.Scatter(x=temperatures, y=mean, error_y={"array": error}, mode="markers", name="replicas"))
    line = np.exp(offset) * temperatures**exponent
    figure.add_scatter(x=temperatures, y=line, mode="lines", name=f"kT^{exponent:.2f}")
    figure.update_xaxes(type="log", title="kT")
    figure.update_yaxes(type="log", title="energy a particle")
    save(figure, arguments.output, "ensembles.html")
    if not 1.3 < exponent < 1.6:
        sys.exit("the exponent should be near 3/2")
    found = times()
    if not found[REPLICAS] < 1.1 * found[1]:
        sys.exit("a replica should not take longer in a batch")


if __name__ == "__main__":
    main()
