"""``offjax parameterize``: a System file, and what of the force field it uses."""

from __future__ import annotations

from typing import Any

from offjax.cli import options


def parameterize(
    molecules: options.MoleculesArgument,
    output: options.OutputOption,
    force_field: options.ForceFieldOption = options.FORCE_FIELD,
    terms: options.TermsOption = None,
    charges: options.ChargesOption = options.Charges.force_field,
    flexible: options.FlexibleOption = False,
    smiles: options.SmilesOption = None,
    allow_undefined_stereo: options.StereoOption = False,
    json: options.JsonOption = False,
    debug: options.DebugOption = False,
) -> None:
    """Apply a force field to molecules and save the System.

        offjax parameterize ligand.sdf -f openff-2.2.1.offxml -o ligand.h5

    All molecules of all files become one System; a molecule that occurs many times is typed once. The table shows how
    many slots and instances each section has and how many of its parameters are used. Load the file with
    `offjax.System.load("ligand.h5")`; neither the force field nor AmberTools is needed then.
    """
    from offjax.cli import session, tables
    from offjax.interop import molecules as reader

    session.start()
    structures = reader.read(molecules, templates=smiles or (), allow_undefined_stereo=allow_undefined_stereo)
    system, _ = session.together(structures, force_field, charges, flexible, terms)
    record = describe(system, charges)
    system.save(output)
    if json:
        tables.dump({"force_field": force_field, "output": str(output), **record})
        return
    show(record)
    tables.line(f"written: {output} ({output.stat().st_size / 1024:.0f} kB)")


def describe(system, charges: options.Charges) -> dict[str, Any]:
    """What a System holds and uses, as plain data."""
    import numpy as np

    from offjax.cli.session import charge_names

    used = system.used
    sections = []
    for name in dict.fromkeys([*system.terms, *used.keys()]):
        term = system.terms.get(name)
        counts = [np.asarray(v) for v in used[name].values()] if name in used else []
        sections.append(
            {
                "section": name,
                "slots": 0 if term is None else term.n_slots,
                "instances": 0 if term is None else term.n_instances,
                "replaced_by_constraints": 0 if term is None else int(np.sum(~system.active[name][term.slot])),
                "parameters": int(sum(len(c) for c in counts)),
                "parameters_used": int(sum(np.count_nonzero(c) for c in counts)),
            }
        )
    copies = np.bincount(system.topology.copies, minlength=len(system.topology.molecules))
    return {
        "molecules": [
            {"name": m.name, "smiles": m.smiles, "n_atoms": m.n_atoms, "copies": int(n)}
            for m, n in zip(system.topology.molecules, copies, strict=True)
        ],
        "charges": charge_names(system, charges),
        "n_particles": system.n_particles,
        "box": None if system.box is None else system.box.tolist(),
        "n_parameters": system.parameters.schema.size,
        "digest": system.digest,
        "sections": sections,
    }


def show(record: dict[str, Any]) -> None:
    """The System's tables."""
    from offjax.cli.tables import show as table

    box = "" if record["box"] is None else ", box " + " x ".join(f"{record['box'][k][k]:.3f}" for k in range(3)) + " nm"
    table(
        f"Molecules: {record['n_particles']} particles, charges: {record['charges']}{box}",
        [("molecule", "left"), ("copies", "right"), ("atoms", "right")],
        [(m["name"] or _short(m["smiles"]), m["copies"], m["n_atoms"]) for m in record["molecules"]],
    )
    rows = []
    for s in record["sections"]:
        if not s["slots"] and not s["parameters"]:
            continue
        off = f"{s['replaced_by_constraints']} held by constraints" if s["replaced_by_constraints"] else ""
        rows.append((s["section"], s["slots"], s["instances"], f"{s['parameters_used']} of {s['parameters']}", off))
    table(
        f"System: {record['n_parameters']} parameters in the force field",
        [("section", "left"), ("slots", "right"), ("instances", "right"), ("parameters used", "right"), ("", "left")],
        rows,
    )


def _short(mapped: str) -> str:
    """A mapped SMILES as people write it."""
    from rdkit import Chem

    molecule = Chem.MolFromSmiles(mapped)
    for atom in molecule.GetAtoms():
        atom.SetAtomMapNum(0)
    return Chem.MolToSmiles(Chem.RemoveHs(molecule))
