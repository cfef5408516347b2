"""Force fields of a few lines, so that a test shows every number it is about."""

from openff.toolkit import ForceField, Molecule

VALENCE = """
<Bonds version="0.4" fractional_bondorder_method="AM1-Wiberg" fractional_bondorder_interpolation="linear">
  <Bond smirks="[*:1]~[*:2]" id="b1" k="500 * kilocalories_per_mole/angstrom**2" length="1.1 * angstrom"/>{bonds}
</Bonds>
<Angles version="0.3"><Angle smirks="[*:1]~[*:2]~[*:3]" id="a1" angle="110 * degree"
  k="100 * kilocalories_per_mole/radian**2"/></Angles>"""

VDW = """<vdW version="0.4">
  <Atom smirks="[*:1]" id="n1" epsilon="0.1 * kilocalories_per_mole" rmin_half="1.7 * angstrom"/>{vdw}</vdW>"""


def force_field(*sections: str, bonds: str = "", vdw: str = "", valence: bool = False) -> ForceField:
    """A force field with these sections after a general <vdW> (and <Bonds>, <Angles>)."""
    head = '<?xml version="1.0" encoding="utf-8"?><SMIRNOFF version="0.3" aromaticity_model="OEAroModel_MDL">'
    body = (VALENCE.format(bonds=bonds) if valence else "") + VDW.format(vdw=vdw) + "".join(sections)
    return ForceField(head + body + "</SMIRNOFF>", allow_cosmetic_attributes=True)


def smiles(text: str) -> Molecule:
    """A molecule from mapped or plain SMILES."""
    make = Molecule.from_mapped_smiles if ":" in text else Molecule.from_smiles
    return make(text)
