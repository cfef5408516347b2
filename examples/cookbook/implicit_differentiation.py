"""Derivatives of an energy minimum: soft spheres that touch in a periodic square.

    python examples/cookbook/implicit_differentiation.py [--output cookbook-output] [--particles 1000]

The minimum of U(x; sigma, alpha) depends on every diameter sigma_ij and exponent alpha_ij. offjax differentiates it
by the implicit function theorem: no step of the minimisation is stored. The jax-md cookbook has the same systems; the
numbers below are those that it prints, and the script fails where ours differ.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drawing import disks, save

from offjax import md
from offjax.nonbonded.neighbors import neighbor_list

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_threefry_partitionable", False)  # the random numbers of the published run

METHOD = md.fire()


def spheres(n: int, density: float):
    """Side of the square, random start, displacement and energy of n soft spheres."""
    side = (n / density) ** 0.5
    key, _ = jax.random.split(jax.random.PRNGKey(5))
    x0 = jax.random.uniform(key, (n, 2), maxval=side, dtype=jnp.float64)
    displacement, _ = md.periodic(side)
    return side, x0, displacement, md.pair_energy(md.soft_sphere, displacement)


def check(name: str, found, expected, tolerance: float) -> None:
    """Print a number beside what it must be; stop the script where they differ."""
    difference = np.abs(np.asarray(found) - np.asarray(expected)).max()
    print(f"{name}: {np.array2string(np.asarray(found), precision=12)} (difference {difference:.1e})")
    if not difference <= tolerance:
        sys.exit(f"{name} should be {expected}")


def seven() -> None:
    """Energy and its derivative in the pair matrices sigma and alpha."""
    side, x0, displacement, energy = spheres(7, 0.3)

    def at_minimum(sigma, alpha, neighbors=None):
        def of(x):
            listed = None if neighbors is None else neighbors.update(x, side)
            return energy(x, box=side, neighbors=listed, sigma=sigma, alpha=alpha)

        found = md.minimize(of, x0, method=METHOD, tolerance=1e-12)
        return found.energy, found

    two = jnp.full((7, 7), 2.0)
    derivative = jax.jit(jax.value_and_grad(at_minimum, argnums=(0, 1), has_aux=True))
    (value, found), (d_sigma, d_alpha) = derivative(two, two)
    print(f"7 spheres: {found.steps} steps, largest force {found.largest_force:.1e}")
    check("energy", value, 0.0615943027340254, 1e-15)
    row = np.array([0, 0.00297984, 0.00736627, 0.015354, 0, 0.015354, 0.00297984])
    check("dE/dsigma, row 0", d_sigma[0], row, 5e-9)
    check("dE/dalpha, row 0", d_alpha[0], [0, -0.00017895, -0.00092201, -0.00348099, 0, -0.00348099, -0.00017895], 5e-9)
    # With a symmetric matrix, a pair's two elements are one parameter: twice the derivative.
    check("the same in the symmetric convention", (d_sigma + d_sigma.T)[0], 2 * row, 1e-8)
    neighbors = neighbor_list(x0, side, cutoff=2.0, skin=0.3, headroom=3.0)
    (value, _), (d_sigma, _) = derivative(two, two, neighbors)
    check("energy with a neighbour list", value, 0.0615943027340254, 1e-15)
    check("its derivative in the symmetric convention", (d_sigma + d_sigma.T)[0], 2 * row, 1e-8)

    def distance(sigma):
        found = md.minimize(lambda x: energy(x, sigma=sigma), x0, method=METHOD, tolerance=1e-12)
        return jnp.linalg.norm(displacement(found.positions[0], found.positions[3]))

    slope, h = jax.jit(jax.grad(distance))(2.0), 1e-5
    difference = (jax.jit(distance)(2.0 + h) - jax.jit(distance)(2.0 - h)) / (2 * h)
    check("distance of particles 0 and 3: derivative in the diameter", slope, -0.29586, 1e-5)
    check("the same by finite differences", difference, slope, 1e-6)


def fifty_five(output: Path) -> None:
    """The system whose unrolled derivative does not fit into memory."""
    n = 55
    side, x0, _, energy = spheres(n, 0.5)

    def at_minimum(sigma):
        found = md.minimize(lambda x: energy(x, sigma=sigma), x0, method=METHOD, tolerance=1e-12)
        return found.energy, found

    function = jax.jit(jax.value_and_grad(at_minimum, has_aux=True))
    start = time.perf_counter()
    (value, found), gradient = jax.block_until_ready(function(jnp.full((n, n), 2.0)))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"55 spheres: {found.steps} steps in {seconds:.1f} s with compilation; peak memory {memory:.2f} GiB in all")
    check("energy", value, 4.725423394698031, 2e-15)
    pressed = np.asarray(jnp.sum(gradient, axis=1))
    low, high = pressed.min(), pressed.max()
    colours = [f"rgb({int(255 * c)}, 90, {int(255 * (1 - c))})" for c in (pressed - low) / (high - low)]
    title = f"spheres at half their size; dE/dsigma from {low:.3f} (blue) to {high:.3f} (red)"
    picture = disks(np.asarray(found.positions) % side, np.full(n, 1.0), side, colours, title)
    save(picture, output, "implicit_differentiation.html")


def many(n: int) -> None:
    """The same for n spheres and all n^2 diameters, by L-BFGS; checked by a finite difference along all of them."""
    _, x0, _, energy = spheres(n, 0.5)

    def at_minimum(sigma, start):
        found = md.minimize(lambda x: energy(x, sigma=sigma), start, tolerance=1e-9)
        return found.energy, found

    function = jax.jit(jax.value_and_grad(at_minimum, has_aux=True))
    sigma, h = jnp.full((n, n), 2.0), 1e-6
    began = time.perf_counter()
    (value, found), gradient = jax.block_until_ready(function(sigma, x0))
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{n} spheres: energy {value:.12f}, {found.steps} steps, {n * n} derivatives in {seconds:.1f} s with "
        f"compilation; peak memory {memory:.2f} GiB in all"
    )
    if not found.converged:
        sys.exit("the minimisation should converge")
    up, down = (function(sigma + change, found.positions)[0][0] for change in (h, -h))
    check(f"sum of the derivatives of {n} spheres", jnp.sum(gradient), (up - down) / (2 * h), 1e-5 * abs(float(value)))


def box_of_the_diameter() -> None:
    """The box, the pair diameters and the start depend on the diameter that is differentiated."""
    n = 32

    def at_minimum(diameter):
        side = jnp.sqrt(n / 2 * jnp.pi * (diameter**2 + 1) / 4 / 0.98)
        x0 = side * jax.random.uniform(jax.random.PRNGKey(0), (n, 2))
        mixed = (diameter + 1) / 2
        sigma = jnp.array([[diameter, mixed], [mixed, 1.0]])
        displacement, _ = md.periodic(side)
        energy = md.pair_energy(md.soft_sphere, displacement, species=np.repeat([0, 1], n // 2))
        found = md.minimize(lambda x: energy(x, sigma=sigma), x0, method=METHOD, tolerance=1e-12)
        return found.energy

    slope, h = jax.jit(jax.grad(at_minimum))(1.3), 1e-5
    difference = (jax.jit(at_minimum)(1.3 + h) - jax.jit(at_minimum)(1.3 - h)) / (2 * h)
    check("32 spheres, D = 1.3, box at packing fraction 0.98: dE/dD", slope, difference, 1e-7)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("cookbook-output"))
    parser.add_argument("--particles", type=int, help="instead: this many soft spheres, for time and memory")
    arguments = parser.parse_args()
    if arguments.particles:
        many(arguments.particles)
        return
    seven()
    fifty_five(arguments.output)
    box_of_the_diameter()


if __name__ == "__main__":
    main()
