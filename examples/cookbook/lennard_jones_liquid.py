"""A Lennard-Jones liquid of 8,000 particles with neighbour lists, and what happens when a force has the wrong sign.

    python examples/cookbook/lennard_jones_liquid.py [--output cookbook-output] [--steps 1000]

A simple cubic lattice of constant 1.3782 melts at constant energy (velocity Verlet) and at constant temperature
(Nose-Hoover), in double precision, in single precision, and in single precision with double sums: cutoff 3, lists of
radius 4. The integrator is given an energy, or, as ``md.Forces``, a function that returns forces; the cost of a step
is that of the pairs whichever it is, for a multiplication by -1 costs nothing.

Then the same is tried with a gradient in place of a force. The particles fall into each other, and their positions soon
are not finite. A program that renews its list only where some particle has moved far then never renews it, since
every comparison with a NaN is false: the run looks faster, and that speed is an error. Here a position that is
not finite makes a list stale, and ``md.simulate`` stops at the first such step and names it.

The script ends with an error where it does not, where the three functions do not cost the same, where the conserved
energy is not conserved, or where the temperature is not that of the thermostat.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
from drawing import save

import offjax
from offjax import md
from offjax.nonbonded.neighbors import neighbor_list

jax.config.update("jax_enable_x64", True)

SIDE, SPACING, CUTOFF, SKIN, KT, DT = 20, 1.3782, 3.0, 1.0, 1.2, 0.002
PRECISIONS = {"float64": (np.float64, None), "float32": (np.float32, None), "mixed": (np.float32, "float64")}


def energy(accumulate=None):
    """The energy function: ``energy(x, box=..., neighbors=...)``."""
    potential = md.smooth_cutoff(md.lennard_jones, 2.5, CUTOFF)
    return md.pair_energy(potential, md.periodic().displacement, accumulate=accumulate)


def gradient(u):
    """The gradient of an energy with the same arguments: a force, but for its sign."""
    return lambda x, **where: jax.grad(lambda x: u(x, **where))(x)


def start(integrator, dtype):
    """The lattice, with velocities of temperature KT."""
    x = jnp.asarray(np.stack(np.meshgrid(*[np.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3) * SPACING, dtype)
    v = np.random.default_rng(0).normal(scale=np.sqrt(KT), size=x.shape)
    box = jnp.full(3, SIDE * SPACING, dtype)
    listed = neighbor_list(x, box, cutoff=CUTOFF, skin=SKIN)
    return integrator.init(jax.random.key(0), x, jnp.asarray(v - v.mean(0), dtype), box=box, neighbors=listed)


def costs(repeats: int = 15) -> None:
    """Processor time of a step with each kind of function; they take turns."""
    u = energy()
    slope = gradient(u)
    kinds = {
        "an energy": u,
        "forces": md.Forces(lambda x, **where: -slope(x, **where)),
        "a gradient (the wrong sign)": md.Forces(slope),
    }
    steps, states, found = {}, {}, {name: [] for name in kinds}
    for name, given in kinds.items():
        integrator = md.velocity_verlet(given, DT)
        states[name], steps[name] = start(integrator, np.float32), jax.jit(integrator.step)
        jax.block_until_ready(steps[name](states[name]))
    for _ in range(repeats):
        for name, step in steps.items():
            began = time.process_time()
            jax.block_until_ready(step(states[name]))
            found[name].append(time.process_time() - began)
    best = {name: min(times) for name, times in found.items()}
    for name, seconds in best.items():
        print(f"a step with {name}: {1e3 * seconds:.2f} ms of processor time")
    if max(best.values()) > 1.25 * min(best.values()):
        sys.exit("the sign of a force should cost nothing")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    costs()

    figure = go.Figure()
    for name, (dtype, accumulate) in PRECISIONS.items():
        u = energy(accumulate)
        for kind, integrator in (
            ("velocity Verlet", md.velocity_verlet(u, DT, accumulate=accumulate)),
            ("Nose-Hoover", md.nose_hoover(u, DT, KT, 100 * DT, accumulate=accumulate)),
        ):
            frames: list[md.Frame] = []
            state = md.simulate(integrator, start(integrator, dtype), 200, every=50).state  # melts, and compiles
            began = time.perf_counter()
            end = 200 + arguments.steps
            md.simulate(integrator, state, end, start=200, every=50, reporters=[frames.append])
            rate = arguments.steps / (time.perf_counter() - began)
            conserved = np.array([float(f.info.conserved_energy) for f in frames]) / SIDE**3
            temperature = np.array([float(f.info.kT) for f in frames])
            mean = temperature[len(temperature) // 2 :].mean()
            print(
                f"{kind}, {name}: {rate:.0f} steps a second, conserved energy within {np.ptp(conserved):.1e} "
                f"a particle, kT {mean:.3f}"
            )
            figure.add_scatter(x=[f.step * DT for f in frames], y=temperature, name=f"{kind}, {name}")
            if not np.ptp(conserved) < 5e-3:
                sys.exit("the conserved energy should be conserved")
            if kind == "Nose-Hoover" and abs(mean / KT - 1) > 0.05:
                sys.exit("the mean temperature should be the thermostat's")
    figure.update_layout(xaxis_title="time", yaxis_title="kT", template="plotly_white")
    save(figure, arguments.output, "lennard_jones_liquid.html")

    wrong = md.velocity_verlet(md.Forces(gradient(energy())), DT)
    try:
        md.simulate(wrong, start(wrong, np.float32), arguments.steps, every=10)
    except offjax.SimulationError as error:
        print(f"with the wrong sign: {error}")
    else:
        sys.exit("a run with the wrong sign should have stopped")


if __name__ == "__main__":
    main()
