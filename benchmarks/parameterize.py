"""1,000 waters and 100 different small molecules: parameterization and export to OpenMM beside OpenFF Interchange.

    taskset -c 0 python benchmarks/parameterize.py [--repeats 5]

Every measurement is the first of its kind in a fresh process with an empty cache: the libraries are imported, the force
field (openff-2.2.1) is read, the molecules exist and carry Gasteiger charges (which both engines are given) before the
clock starts. Typing is included; the engines alternate. Printed are medians of seconds on the clock and of the
processor, and of the ratios of processes that ran one after the other.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

FORCE_FIELD = "openff-2.2.1.offxml"
WATERS = 1000
SMILES = """
C CC CCC CC(C)C CC(C)(C)C C1CCCC1 C1CCCCC1 CC1CCCCC1 C=C CC=C C=CC=C CC(C)=C C#C CC#C C1=CCCCC1 c1ccccc1 Cc1ccccc1
CCc1ccccc1 Cc1ccc(C)cc1 C=Cc1ccccc1 c1ccc2ccccc2c1 CO CCO CCCO CC(C)O CC(C)(C)O OCCO OCC(O)CO OC1CCCCC1 OCc1ccccc1
Oc1ccccc1 Cc1ccc(O)cc1 Oc1ccc(O)cc1 COC CCOCC C1CCOC1 C1COCCO1 COc1ccccc1 c1ccoc1 CC=O CCC=O O=Cc1ccccc1 CC(C)=O
CCC(C)=O O=C1CCCCC1 CC(=O)c1ccccc1 CC(=O)O CCC(=O)O O=C(O)c1ccccc1 OC(=O)CC(=O)O COC=O CC(=O)OC CCOC(C)=O
COC(=O)c1ccccc1 O=C1CCCO1 CN CCN CNC CN(C)C CCN(CC)CC C1CCNC1 C1CCNCC1 C1COCCN1 NCCN NCCO Nc1ccccc1 CNc1ccccc1
c1ccncc1 Cc1ccccn1 c1cc[nH]c1 c1c[nH]cn1 c1ccc2[nH]ccc2c1 c1cnccn1 NC=O CC(N)=O CNC(C)=O CN(C)C=O CN1CCCC1=O
NC(=O)c1ccccc1 CC(=O)Nc1ccccc1 NC(N)=O CC#N N#Cc1ccccc1 C[N+](=O)[O-] O=[N+]([O-])c1ccccc1 CS CSC CSSC CS(C)=O
CS(C)(=O)=O NS(=O)(=O)c1ccccc1 c1ccsc1 COP(=O)(OC)OC CF FC(F)F Fc1ccccc1 CCl ClCCl Clc1ccccc1 CBr Brc1ccccc1
CC(=O)Nc1ccc(O)cc1 CC(=O)Oc1ccccc1C(=O)O CC(=O)NC(C)C(=O)NC
""".split()


def molecules():
    """The waters (one object a molecule) and the small molecules, and the different ones with charges."""
    from openff.toolkit import Molecule

    different = [Molecule.from_smiles(smiles, allow_undefined_stereo=True) for smiles in ["O", *SMILES]]
    for molecule in different:
        molecule.assign_partial_charges("gasteiger")
    return [Molecule(different[0]) for _ in range(WATERS)] + different[1:], different


def once(engine: str) -> dict[str, float]:
    """Seconds of parameterization and of the export to OpenMM, in this process."""
    import jax  # noqa: F401
    import openmm  # noqa: F401
    from openff.toolkit import ForceField, Topology

    import offjax

    if engine == "interchange":
        from openff.interchange import Interchange
    else:
        import offjax.parameterize.smirnoff  # as System.from_smirnoff does when it is first called

        parameterize = offjax.System.from_smirnoff

    force_field = ForceField(FORCE_FIELD)
    everything, charged = molecules()
    topology = Topology.from_molecules(everything)
    times = [now()]
    if engine == "interchange":
        made = Interchange.from_smirnoff(force_field, topology, charge_from_molecules=charged)
    else:
        made = parameterize(force_field, topology, charge_from_molecules=charged)
    times.append(now())
    exported = made.to_openmm()
    times.append(now())
    assert exported.getNumParticles() == topology.n_atoms
    parts = zip(("parameterize", "to_openmm"), times, times[1:], strict=False)
    return {f"{part}, {kind}": end[kind] - start[kind] for part, start, end in parts for kind in start}


def now() -> dict[str, float]:
    return {"wall": time.perf_counter(), "CPU": time.process_time()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--once", choices=("offjax", "interchange"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.once)))
        return
    found: dict[str, list[dict[str, float]]] = {"offjax": [], "interchange": []}
    for _ in range(options.repeats):
        for engine, results in found.items():
            command = [sys.executable, __file__, "--once", engine]
            run = subprocess.run(
                command, env={**os.environ, "OFFJAX_CACHE": "off"}, check=True, capture_output=True, text=True
            )
            results.append(json.loads(run.stdout.splitlines()[-1]))
    print(f"{WATERS} waters and {len(SMILES)} molecules, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores")
    print(f"{'':<20}{'offjax':>10}{'Interchange':>14}{'ratio':>8}")
    for what in found["offjax"][0]:
        ours, theirs = ([result[what] for result in found[engine]] for engine in ("offjax", "interchange"))
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        print(f"{what:<20}{statistics.median(ours):>8.3f} s{statistics.median(theirs):>12.3f} s{ratio:>8.1f}")


if __name__ == "__main__":
    main()
