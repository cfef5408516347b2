"""Two-dimensional structures (RDKit SVG) with the atoms of a fitted pattern marked."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offjax.fit import FitResult
    from offjax.system import System

ACCENT = (0.93, 0.55, 0.22)
PALE = (0.98, 0.84, 0.68)
ELEMENTS = {
    7: (0.20, 0.42, 0.90),
    8: (0.86, 0.22, 0.20),
    9: (0.20, 0.62, 0.30),
    15: (0.80, 0.48, 0.10),
    16: (0.70, 0.56, 0.05),
    17: (0.15, 0.60, 0.25),
    35: (0.65, 0.25, 0.15),
    53: (0.50, 0.20, 0.65),
}
"""Middle tones, legible on light and on dark ground; carbon and hydrogen take the colour of the text."""


def patterns(result: FitResult, parameters: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a fitted SMIRKS: its values and the smallest molecule it matches, drawn; largest shift first.

    The atoms are those that the System's assignment says: slots of the parameter, atoms of the slots.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in parameters:
        key = row["section"], row["smirks"]
        group = groups.setdefault(key, {"section": key[0], "smirks": key[1], "id": row["id"], "rows": []})
        group["rows"].append(row)
    smallest = sorted(result.molecules, key=lambda m: (m.system.n_particles, m.name))
    found = []
    for group in groups.values():
        indices = [row["index"] for row in group["rows"]]
        for m in smallest:
            if slots := touched(m.system, indices):
                group["molecule"] = m.name
                group["matches"] = len(slots)
                group["svg"] = molecule(m.smiles, slots)
                found.append(group)
                break
    return found


def touched(system: System, indices: Collection[int]) -> list[tuple[int, ...]]:
    """The atoms (local indices) of every slot that one of these parameters makes, without repetition."""
    found: dict[tuple[int, ...], None] = {}
    for section, attributes in system.assignment.items():
        if section == "Constraints":
            continue
        for matrix in attributes.values():
            for index in indices:
                for slot in matrix.slots_of(index):
                    atoms = tuple(map(int, system.terms[section].slot_atoms[slot]))
                    if section == "ImproperTorsions":  # three cyclic orders of one improper
                        atoms = (atoms[0], *sorted(atoms[1:]))
                    found.setdefault(atoms)
    return list(found)


def molecule(mapped_smiles: str, slots: Sequence[tuple[int, ...]] = ()) -> str:
    """An SVG element; the atoms of the first slot are marked strongly, those of the others lightly.

    Hydrogens are drawn where they belong to the first slot only.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    parameters = Chem.SmilesParserParams()
    parameters.removeHs = False
    mol = Chem.MolFromSmiles(mapped_smiles, parameters)
    if mol is None:
        return ""
    shown = set(slots[0]) if slots else set()
    for atom in mol.GetAtoms():
        index = atom.GetAtomMapNum() - 1
        atom.SetIntProp("index", index)
        if not (atom.GetAtomicNum() == 1 and index in shown):
            atom.SetAtomMapNum(0)
    removal = Chem.RemoveHsParameters()
    removal.removeMapped = False
    mol = Chem.RemoveHs(mol, removal)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
    place = {atom.GetIntProp("index"): atom.GetIdx() for atom in mol.GetAtoms()}

    atoms: dict[int, tuple[float, ...]] = {}
    bonds: dict[int, tuple[float, ...]] = {}
    for n, slot in reversed(list(enumerate(slots))):
        colour = ACCENT if n == 0 else PALE
        here = [place[a] for a in slot if a in place]
        atoms.update(dict.fromkeys(here, colour))
        for bond in mol.GetBonds():
            if bond.GetBeginAtomIdx() in here and bond.GetEndAtomIdx() in here:
                bonds[bond.GetIdx()] = colour
    rdDepictor.Compute2DCoords(mol)
    drawer = rdMolDraw2D.MolDraw2DSVG(-1, -1)
    options = drawer.drawOptions()
    options.clearBackground = False
    options.fixedBondLength = 36
    options.fixedFontSize = 17
    options.bondLineWidth = 1.8
    options.highlightRadius = 0.32
    options.highlightBondWidthMultiplier = 11
    options.padding = 0.06
    options.updateAtomPalette(ELEMENTS)
    prepared = rdMolDraw2D.PrepareMolForDrawing(mol, kekulize=True, addChiralHs=False)
    drawer.DrawMolecule(
        prepared,
        highlightAtoms=list(atoms),
        highlightAtomColors=atoms,
        highlightBonds=list(bonds),
        highlightBondColors=bonds,
    )
    drawer.FinishDrawing()
    svg = drawer.GetDrawingText()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    return svg.replace("#000000", "currentColor").replace("<svg ", '<svg class="structure" ', 1)
