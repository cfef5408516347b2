"""Parallel tempering: replicas at several temperatures by vmap exchange their places, so that a barrier is crossed.

    python examples/cookbook/parallel_tempering.py [--output cookbook-output]

A particle in two wells of different depths and widths, U = 8 (x^2 - 1)^2 + x/2 + y^2 (2 (1 + x/2)^2 + 1/20), at
kT = 0.4: the barrier is about 20 kT high and plain Langevin dynamics stays where it starts. Eight temperatures up to
kT = 8 run side by side; every 20 steps neighbours are exchanged with probability min(1, exp((1/kT_i - 1/kT_j)
(U_i - U_j))) (R. H. Swendsen and J.-S. Wang, Phys. Rev. Lett. 57, 2607 (1986); Y. Sugita and Y. Okamoto, Chem. Phys.
Lett. 314, 141 (1999)), with velocities scaled to the new temperature. 64 such sets run at once: the mean over them has
an honest error.

The script compares the share of the right well and the mean energy at each temperature with numerical integrals, and
ends with an error where they differ by more than five standard errors, where hardly any exchange is accepted, or where
the plain dynamics crosses, which would make the example pointless.
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

LADDER = 0.4 * 20.0 ** (np.arange(8) / 7)  # kT of the replicas
SETS, ROUNDS, STEPS, DT, FRICTION = 64, 3000, 20, 0.02, 2.0


def energy(x):
    """Of one particle in two dimensions, (1, 2)."""
    x, y = x[0]
    return 8.0 * (x**2 - 1.0) ** 2 + 0.5 * x + 2.0 * y**2 * (1.0 + 0.5 * x) ** 2 + 0.05 * y**2


def exact(kT):
    """Share of x > 0 and mean energy by integration."""
    x, y = np.meshgrid(np.linspace(-3, 3, 1501), np.linspace(-25, 25, 2501), indexing="ij")
    u = 8.0 * (x**2 - 1.0) ** 2 + 0.5 * x + 2.0 * y**2 * (1.0 + 0.5 * x) ** 2 + 0.05 * y**2
    weight = np.exp(-(u - u.min()) / kT)
    return (weight * (x > 0)).sum() / weight.sum(), (weight * u).sum() / weight.sum()


def moved(state, kT):
    """Langevin dynamics of one replica between exchanges."""
    integrator = md.langevin_middle(energy, DT, kT, FRICTION)
    return jax.lax.fori_loop(0, STEPS, lambda _, s: integrator.step(s)[0], state)


def exchanged(key, states, number):
    """States after trials of the pairs (0, 1), (2, 3), ... or (1, 2), (3, 4), ... in turn; and the accepted ones."""
    n, kT = len(LADDER), jnp.asarray(LADDER)
    place = jnp.arange(n)
    partner = jnp.clip(jnp.where((place + number) % 2 == 0, place + 1, place - 1), 0, n - 1)
    log_odds = (1.0 / kT - 1.0 / kT[partner]) * (states.energy - states.energy[partner])
    lower = jnp.minimum(place, partner)
    accepted = (jnp.log(jax.random.uniform(key, (n,)))[lower] < log_odds) & (partner != place)
    source = jnp.where(accepted, partner, place)
    new = jax.tree.map(lambda v: v[source], states)
    scale = jnp.sqrt(kT / kT[source])[:, None, None]
    return new._replace(velocities=scale * new.velocities), accepted


def simulation(key, exchange: bool):
    """(round, replica) positions, energies and accepted exchanges of one set, all starting in the left well."""
    kT = jnp.asarray(LADDER)
    start, key = jax.random.split(key)
    begin = jnp.array([[-1.0, 0.0]])
    states = jax.vmap(lambda k, t: md.langevin_middle(energy, DT, t, FRICTION).init(k, begin))(
        jax.random.split(start, len(LADDER)), kT
    )

    def one(states, number):
        states = jax.vmap(moved)(states, kT)
        accepted = jnp.zeros(len(LADDER), bool)
        if exchange:
            states, accepted = exchanged(jax.random.fold_in(key, number), states, number)
        return states, (states.positions[:, 0, 0], states.energy, accepted)

    return jax.lax.scan(one, states, jnp.arange(ROUNDS))[1]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    arguments = parser.parse_args()
    run = jax.jit(jax.vmap(simulation, in_axes=(0, None)), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), SETS)
    x, u, accepted = (np.asarray(v) for v in run(keys, True))
    plain = np.asarray(run(keys[:4], False)[0])
    used = slice(ROUNDS // 10, None)

    shares = (x[:, used] > 0).mean(1)  # (set, replica)
    energies = u[:, used].mean(1)
    worst = 0.0
    for k, kT in enumerate(LADDER):
        row = []
        for found, true in zip((shares[:, k], energies[:, k]), exact(kT), strict=True):
            error = found.std(ddof=1) / np.sqrt(SETS)
            worst = max(worst, abs(found.mean() - true) / error)
            row.append(f"{found.mean():.4f} +- {error:.4f} (exact {true:.4f})")
        print(f"kT = {kT:5.2f}: right well {row[0]}, energy {row[1]}")
    rate = accepted.mean() / 0.875  # 8 and 6 of the 8 replicas have a partner, in turn
    stuck = (plain[:, :, 0] > 0).mean()
    print(f"largest deviation {worst:.1f} standard errors; {rate:.2f} of the exchanges accepted")
    print(f"without exchange the coldest replica is in the right well {stuck:.4f} of the time")

    figure = go.Figure()
    figure.add_scatter(y=x[0, :1000, 0], mode="markers", marker={"size": 3}, name="with exchange")
    figure.add_scatter(y=plain[0, :1000, 0], mode="markers", marker={"size": 3}, name="without")
    figure.update_layout(xaxis_title="round", yaxis_title="x of the coldest replica", template="plotly_white")
    save(figure, arguments.output, "parallel_tempering.html")
    if not (worst < 5 and rate > 0.1):
        sys.exit("averages should be those of the canonical distributions, and exchanges be accepted")
    if stuck > 0.01 * exact(LADDER[0])[0]:
        sys.exit("without exchange the barrier should not be crossed")


if __name__ == "__main__":
    main()
