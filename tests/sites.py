"""Force fields with virtual sites, and systems of molecules that they decorate."""

import functools

import numpy as np
from openff.toolkit import ForceField, Molecule

HEAD = '<?xml version="1.0" encoding="utf-8"?><SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">'

SITES = """
  <VirtualSite smirks="[#17:1]-[#6:2]" type="BondCharge" match="all_permutations" name="EP1" distance="1.6*angstrom"
    charge_increment1="-0.05*elementary_charge" charge_increment2="-0.02*elementary_charge"/>
  <VirtualSite smirks="[#17:1]-[#6:2]" type="BondCharge" match="all_permutations" name="EP2" distance="0.09*nanometer"
    charge_increment1="0.03*elementary_charge" charge_increment2="0.01*elementary_charge"
    sigma="0.8*angstrom" epsilon="0.05*kilocalorie_per_mole"/>
  <VirtualSite smirks="[#8:1]=[#6X3+0:2]-[*:3]" type="MonovalentLonePair" match="all_permutations"
    distance="0.5*angstrom" outOfPlaneAngle="10*degree" inPlaneAngle="120*degree"
    charge_increment1="0.1*elementary_charge" charge_increment2="0.05*elementary_charge"
    charge_increment3="0.02*elementary_charge" rmin_half="0.7*angstrom" epsilon="0.02*kilocalorie_per_mole"/>
  <VirtualSite smirks="[#7X2:1](~[*:2])~[*:3]" type="DivalentLonePair" match="once" distance="0.45*angstrom"
    outOfPlaneAngle="0*degree" charge_increment1="0.2*elementary_charge"
    charge_increment2="0.03*elementary_charge" charge_increment3="0.03*elementary_charge"/>
  <VirtualSite smirks="[#8X2:1](-[*:2])-[*:3]" type="DivalentLonePair" match="all_permutations"
    distance="0.4*angstrom" outOfPlaneAngle="50*degree" charge_increment1="0.1*elementary_charge"
    charge_increment2="0.02*elementary_charge" charge_increment3="0.01*elementary_charge"/>
  <VirtualSite smirks="[#7X3:1]([*:2])([*:3])[*:4]" type="TrivalentLonePair" match="once" distance="0.4*angstrom"
    charge_increment1="0.15*elementary_charge" charge_increment2="0.03*elementary_charge"
    charge_increment3="0.03*elementary_charge" charge_increment4="0.03*elementary_charge"/>"""
"""All four kinds, two sites on one parent, in and out of the plane, with and without Lennard-Jones parameters."""


@functools.cache
def force_field(sites: str = SITES, base: str = "openff_unconstrained-2.2.1.offxml", policy: str = "parents"):
    """``base`` with a section of virtual sites."""
    section = f'<VirtualSites version="0.3" exclusion_policy="{policy}">{sites}</VirtualSites>'
    return ForceField(base, f"{HEAD}{section}</SMIRNOFF>")


@functools.cache
def molecule(smiles: str) -> Molecule:
    """A molecule with one conformer and Gasteiger charges."""
    made = Molecule.from_smiles(smiles)
    made.generate_conformers(n_conformers=1)
    made.assign_partial_charges("gasteiger")
    return made


def arranged(molecules, spacing: float = 0.45, displacement: float = 0.003) -> np.ndarray:
    """Atom positions (n_atoms, 3) nm: molecules on a square grid, every coordinate shaken."""
    rng = np.random.default_rng(3)
    side = int(np.ceil(np.sqrt(len(molecules))))
    parts = []
    for n, made in enumerate(molecules):
        x = made.conformers[0].m_as("nanometer")
        shift = spacing * np.array([n % side, n // side, 0.0])
        parts.append(x - x.mean(axis=0) + shift + rng.normal(scale=displacement, size=x.shape))
    return np.concatenate(parts)
