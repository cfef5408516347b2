"""Small parameterized molecules that many tests use."""

import functools

import numpy as np

import offjax


@functools.cache
def molecule(smiles: str):
    """A molecule with one conformer and Gasteiger charges (cheap, and different for every atom environment)."""
    from openff.toolkit import Molecule

    made = Molecule.from_smiles(smiles, allow_undefined_stereo=True)
    made.generate_conformers(n_conformers=1)
    made.assign_partial_charges("gasteiger")
    return made


@functools.cache
def system(smiles: str, force_field: str = "openff_unconstrained-2.2.1.offxml") -> offjax.System:
    made = molecule(smiles)
    return offjax.System.from_smirnoff(force_field, [made], charge_from_molecules=[made])


def positions(smiles: str, seed: int = 0, displacement: float = 0.005) -> np.ndarray:
    """The conformer in nm, displaced at random so that no term is at its minimum."""
    x = molecule(smiles).conformers[0].m_as("nanometer")
    return x + np.random.default_rng(seed).normal(scale=displacement, size=x.shape)
