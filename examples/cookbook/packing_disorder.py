"""Packing disorder: bubbles of two sizes, and the derivative of the packing's energy in the size ratio.

    python examples/cookbook/packing_disorder.py [--output cookbook-output]

64 disks of diameter 1 and 64 of diameter D at packing fraction 0.98: the box depends on D. Equal disks crystallise,
very different ones fill each other's gaps; in between the packing is disordered and its energy the highest. For 40
packings a diameter, dE/dD is differentiated through a short minimisation from the packing, step by step; it crosses
zero where the energy has its maximum. The script fails where the maximum is not at D = 0.8 or the crossing is not
around it.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
from drawing import save

from offjax import md

jax.config.update("jax_enable_x64", True)

N, FRACTION, REPLICAS = 128, 0.98, 40
SPECIES = np.repeat([0, 1], N // 2)


def packing(diameter):
    """Side of the square, and the energy, of a given diameter."""
    side = jnp.sqrt(N / 2 * jnp.pi * (diameter**2 + 1) / 4 / FRACTION)
    mixed = (diameter + 1) / 2
    sigma = jnp.array([[diameter, mixed], [mixed, 1.0]])
    energy = md.pair_energy(md.soft_sphere, md.periodic(side).displacement, species=SPECIES)
    return side, lambda x: energy(x, sigma=sigma)


def packed(key, diameter):
    """A packing in fractions of the box, and its energy."""
    side, energy = packing(diameter)
    x = side * jax.random.uniform(key, (N, 2))
    found = md.descend(energy, x, method=md.fire(dt=0.01, dt_max=0.3), steps=400)
    return found.positions / side, found.energy


def relaxed_energy(diameter, fractions):
    """The energy after a few more steps."""
    side, energy = packing(diameter)
    return md.descend(energy, side * fractions, method=md.fire(dt=0.01, dt_max=0.3), steps=10).energy


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    arguments = parser.parse_args()
    diameters = np.linspace(0.4, 1.0, 10)
    keys = jax.random.split(jax.random.key(0), REPLICAS)
    fractions, energies = jax.jit(jax.vmap(jax.vmap(packed, (0, None)), (None, 0)))(keys, jnp.asarray(diameters))
    slope = jax.vmap(jax.grad(relaxed_energy), (None, 0))
    # one diameter after the other: reverse mode keeps all pairs of all steps
    slopes = jax.jit(lambda *each: jax.lax.map(lambda one: slope(*one), each))(jnp.asarray(diameters), fractions)
    mean, slope = np.asarray(energies).mean(1), np.asarray(slopes).mean(1)
    error = np.asarray(slopes).std(1, ddof=1) / np.sqrt(REPLICAS)
    for d, e, s, w in zip(diameters, mean, slope, error, strict=True):
        print(f"D = {d:.3f}: energy {e:.4f}, dE/dD {s:+.3f} +- {w:.3f}")

    h, k = 1e-6, 5
    above, below = (jax.jit(relaxed_energy)(diameters[k] + s, fractions[k, 0]) for s in (h, -h))
    difference = float((above - below) / (2 * h))
    print(f"dE/dD of one packing: {slopes[k, 0]:.8f}, by finite differences {difference:.8f}")

    figure = go.Figure(go.Scatter(x=diameters, y=mean, name="energy"))
    figure.add_scatter(x=diameters, y=slope, name="dE/dD", yaxis="y2")
    second = {"overlaying": "y", "side": "right", "title": "dE/dD"}
    figure.update_layout(xaxis_title="D", yaxis_title="energy", yaxis2=second, template="plotly_white")
    figure.update_layout(legend={"orientation": "h", "y": 1.1})
    save(figure, arguments.output, "packing_disorder.html")
    peak = int(np.argmax(mean))
    if abs(diameters[peak] - 0.8) > 1e-9 or not (slope[peak - 1] > 0 > slope[peak + 1]):
        sys.exit("the energy should have its maximum at D = 0.8, and dE/dD change sign around it")
    if abs(difference - slopes[k, 0]) > 1e-5 * abs(difference):
        sys.exit("the derivative should be that of finite differences")


if __name__ == "__main__":
    main()
