"""Molecules for parity tests: name -> SMILES, chosen so that each stresses something."""

import functools

import numpy as np

MOLECULES = {
    "water": "O",
    "ammonium": "[NH4+]",
    "chloride": "[Cl-]",
    "sodium": "[Na+]",
    "methane": "C",
    "formate": "C(=O)[O-]",
    "glycine zwitterion": "[NH3+]CC(=O)[O-]",
    "betaine": "C[N+](C)(C)CC(=O)[O-]",
    "guanidinium": "NC(=[NH2+])N",
    "acetonitrile": "CC#N",
    "diyne": "CC#CC#CC",
    "allene": "C=C=CC",
    "isocyanate": "CN=C=O",
    "azide": "CN=[N+]=[N-]",
    "nitromethane": "C[N+](=O)[O-]",
    "dinitrobenzene": "c1cc(ccc1[N+](=O)[O-])[N+](=O)[O-]",
    "oxirane": "C1CO1",
    "bicyclobutane": "C1C2C1C2",
    "cyclopropene": "C1C=C1",
    "azetidine amide": "CC(=O)N1CCC1",
    "sulfonamide": "CS(=O)(=O)Nc1ccccc1",
    "dimethyl sulfoxide": "CS(=O)C",
    "thioamide": "CC(=S)N",
    "disulfide": "CSSC",
    "trimethyl phosphate": "COP(=O)(OC)OC",
    "methyl phosphonate dianion": "CP(=O)([O-])[O-]",
    "halothane": "C(C(F)(F)F)(Cl)Br",
    "iodobenzene": "Ic1ccccc1F",
    "furan thiophene": "c1coc(c1)-c1cccs1",
    "imidazolium": "c1c[nH+]c[nH]1",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "ester of salicylic acid": "CC(=O)Oc1ccccc1C(=O)O",
    "caffeine": "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "dipeptide": "CC(=O)NC(C)C(=O)NC",
    "macrocyclic lactam": "C1CCCCCC(=O)NCCCCC1",
    "crown ether": "C1COCCOCCOCCO1",
    "tetrazole": "Cc1nnn[nH]1",
    "pyridine N-oxide": "[O-][n+]1ccccc1",
    "hydrazone": "CC=NNC(C)=O",
    "enamine with a chiral centre": "C[C@H](O)C=CN(C)C",
}

FORCE_FIELDS = tuple(
    f"openff{kind}-{version}.offxml"
    for version in ("1.3.1", "2.0.0", "2.2.1", "2.3.0")
    for kind in ("", "_unconstrained")
)


@functools.cache
def force_field(name: str):
    from openff.toolkit import ForceField

    return ForceField(name)


@functools.cache
def molecule(smiles: str):
    """A molecule with one conformer and Gasteiger charges (random ones of the right sum where those fail)."""
    from openff.toolkit import Molecule

    made = Molecule.from_smiles(smiles, allow_undefined_stereo=True)
    made.generate_conformers(n_conformers=1)
    give_charges(made)
    return made


def give_charges(made) -> None:
    """Gasteiger charges, or random ones that sum to the total charge."""
    from openff.units import Quantity

    try:
        made.assign_partial_charges("gasteiger")
        charges = made.partial_charges.m
    except Exception:  # RDKit has no Gasteiger parameters for some elements
        charges = np.full(made.n_atoms, np.nan)
    if not np.all(np.isfinite(charges)):
        charges = np.random.default_rng(made.n_atoms).normal(0.0, 0.3, made.n_atoms)
        charges += (made.total_charge.m - charges.sum()) / made.n_atoms
        made.partial_charges = Quantity(charges, "elementary_charge")


def shaken(made, scale: float = 0.004) -> np.ndarray:
    """The conformer with every coordinate displaced by ``scale`` nm on average."""
    x = made.conformers[0].m_as("nanometer")
    return x + np.random.default_rng(7).normal(0.0, scale, x.shape)
