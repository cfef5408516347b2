"""Ensembles: 400 replicas of 32 soft disks at ten temperatures, in one program by vmap.

    python examples/cookbook/ensembles.py [--output cookbook-output]

Over two decades the mean energy is close to a power law of the temperature. Disks that always touch would have
exponent 1 (equipartition); disks that meet only in collisions 3/2, as the chance of an overlap grows as the root of
the temperature and its energy with the temperature. Here, below jamming, it lies in between. The script fails where
it does not, where the points are not near a line, or where a replica takes longer in a batch than alone.
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
    """Milliseconds of processor time a replica, the best of three."""
    found = {}
    for count in (1, 10, 100, REPLICAS):
        keys = jax.random.split(jax.random.key(0), count)
        run = jax.jit(jax.vmap(partial(final_energy, kT=1e-3, steps=200)))
        jax.block_until_ready(run(keys))
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            jax.block_until_ready(run(keys))
            best = min(best, time.process_time() - start)
        found[count] = 1e3 * best / count
        print(f"{count:4d} replicas: {found[count]:.2f} ms of processor time for 200 steps of a replica")
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    arguments = parser.parse_args()
    temperatures = np.logspace(-4.5, -2.5, 10)
    # 40 replicas at each of the ten temperatures
    keys = jax.random.split(jax.random.key(1), REPLICAS)
    kT = jnp.asarray(np.repeat(temperatures, REPLICAS // 10))
    energies = np.asarray(jax.jit(jax.vmap(final_energy))(keys, kT)).reshape(10, -1) / N
    mean, error = energies.mean(1), energies.std(1, ddof=1) / np.sqrt(energies.shape[1])
    exponent, offset = np.polyfit(np.log(temperatures), np.log(mean), 1)
    for kT, m, e in zip(temperatures, mean, error, strict=True):
        print(f"kT = {kT:.2e}: energy a particle {m:.4e} +- {e:.1e}")
    residual = np.std(np.log(mean) - offset - exponent * np.log(temperatures))
    print(f"energy = {np.exp(offset):.3g} kT^{exponent:.3f}, root mean square deviation of ln(energy) {residual:.3f}")
    figure = go.Figure(go.Scatter(x=temperatures, y=mean, error_y={"array": error}, mode="markers", name="replicas"))
    line = np.exp(offset) * temperatures**exponent
    figure.add_scatter(x=temperatures, y=line, mode="lines", name=f"kT^{exponent:.2f}")
    figure.update_xaxes(type="log", title="kT")
    figure.update_yaxes(type="log", title="energy a particle")
    save(figure, arguments.output, "ensembles.html")
    if not (1.0 < exponent < 1.5 and residual < 0.15):
        sys.exit("the energy should be a power law with an exponent between 1 and 3/2")
    found = times()
    if not found[REPLICAS] < 1.1 * found[1]:
        sys.exit("a replica should not take longer in a batch")


if __name__ == "__main__":
    main()
