"""A bubble raft: 256 soft disks in a periodic square under Brownian dynamics go from square to hexagonal order.

    python examples/cookbook/bubble_raft.py [--output cookbook-output]

The same with a Morse potential, whose bubbles also attract each other. The script fails where the raft does not
order.
"""

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drawing import disks, save

from offjax import md

jax.config.update("jax_enable_x64", True)

ROWS = 16
SIDE = 0.92 * ROWS  # compressed: bubbles of diameter 1 at a distance of 0.92 in the square lattice
NEIGHBORS = 1.25  # farther than the first shell of either lattice, nearer than the second of the hexagonal one


def order(x) -> float:
    """Mean sixfold order of the particles."""
    return float(jnp.mean(md.bond_orientational_order(x, md.periodic(SIDE).displacement, NEIGHBORS)))


def raft(name: str, energy, dt: float, kT: float, steps: int = 4000):
    """Anneal: Brownian dynamics from the square lattice; positions and order before and after."""
    lattice = jnp.asarray(np.stack(np.meshgrid(*[np.arange(ROWS)] * 2), -1).reshape(-1, 2) * SIDE / ROWS)
    start = lattice + 1e-3 * jax.random.normal(jax.random.key(0), lattice.shape)
    _, shift = md.periodic(SIDE)
    integrator = md.brownian(energy, dt, kT, 0.2, shift=shift)
    state = integrator.init(jax.random.key(1), start)
    end = md.simulate(integrator, state, steps, every=steps).state
    before, after = order(lattice), order(end.positions)
    print(f"{name}: sixfold order {before:.3f} -> {after:.3f}, energy {energy(lattice):.4f} -> {end.energy:.4f}")
    return end.positions, before, after


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    arguments = parser.parse_args()
    displacement, _ = md.periodic(SIDE)
    soft = md.pair_energy(md.soft_sphere, displacement)
    cut = md.smooth_cutoff(md.morse, 2.0, 2.5)
    morse = md.pair_energy(lambda r: cut(r, epsilon=0.05, sigma=1.0, alpha=4.0), displacement)
    for name, energy, dt, kT in (("soft", soft, 0.1, 1e-4), ("Morse", morse, 0.004, 2e-3)):
        x, before, after = raft(name, energy, dt, kT)
        values = md.bond_orientational_order(x, displacement, NEIGHBORS)
        colours = [f"rgb({int(230 * (1 - v))}, 110, {int(230 * v)})" for v in np.asarray(values)]
        title = f"{name} bubbles, coloured by sixfold order: {after:.2f}"
        picture = disks(np.asarray(x), np.ones(len(x)), SIDE, colours, title)
        save(picture, arguments.output, f"bubble_raft_{name.lower()}.html")
        if not (before < 0.1 and after > 0.75):
            sys.exit(f"{name}: the raft should go from square (order below 0.1) to hexagonal (above 0.75)")


if __name__ == "__main__":
    main()
