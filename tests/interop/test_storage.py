"""A saved System comes back equal to the last bit, without the toolkit; damaged files are named."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import offjax
from offjax.interop import storage
from offjax.nonbonded import PairList
from tests.interop.test_offxml import everything
from tests.parameterize.molecules import molecule, shaken

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def system():
    kinds = [molecule("[Na+]"), molecule("O"), molecule("CC(=O)Nc1ccc(O)cc1")]
    order = [kinds[i] for i in (0, 1, 2, 1)]
    return offjax.System.from_smirnoff(
        ("openff-2.2.1.offxml", "tip3p.offxml"), order, charge_from_molecules=kinds, box=[3.0, 3.1, 3.2]
    )


@pytest.fixture
def file(system, tmp_path):
    system.save(tmp_path / "system.h5")
    return tmp_path / "system.h5"


def same(a, b, where=""):
    """Equality of everything that a System is made of, values and types."""
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a, b, err_msg=where)
    elif isinstance(a, offjax.ParameterSet):
        assert a.schema is b.schema
        same(a.to_vector(), b.to_vector(), where)
    elif isinstance(a, PairList) or isinstance(a, tuple):
        assert len(a) == len(b), where
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{n}]")
    elif hasattr(a, "keys"):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif hasattr(a, "__dataclass_fields__"):
        assert type(a) is type(b)
        for f in fields(a):
            same(getattr(a, f.name), getattr(b, f.name), f"{where}.{f.name}")
    else:
        assert type(a) is type(b) and (a == b or a is b), where


def test_everything_comes_back(system, file):
    loaded = offjax.System.load(file)
    same(system, loaded)
    assert loaded.digest == system.digest
    same(system.slots(), loaded.slots())
    same(dict(system.active), dict(loaded.active))


def test_bond_orders_none_ids_and_changed_values_come_back(tmp_path):
    from dataclasses import replace

    made = everything()
    made = replace(made, parameters=made.parameters.from_vector(1.1 * made.parameters.to_vector()))
    made.save(tmp_path / "a.h5")
    same(made, offjax.System.load(tmp_path / "a.h5"))


def test_energies_are_bitwise_equal_and_exports_work(system, tmp_path):
    made = molecule("CCO")
    ethanol = offjax.System.from_smirnoff("openff-2.0.0.offxml", made, charge_from_molecules=[made])
    ethanol.save(tmp_path / "ethanol.h5")
    loaded = offjax.System.load(tmp_path / "ethanol.h5")
    x = shaken(made)
    p = loaded.parameters.from_vector(1.01 * loaded.parameters.to_vector())
    evaluate = jax.jit(lambda e, q: e(q, x))
    assert float(evaluate(ethanol.to_jax(), p)) == float(evaluate(loaded.to_jax(), p))
    import openmm

    assert openmm.XmlSerializer.serialize(ethanol.to_openmm(p)) == openmm.XmlSerializer.serialize(loaded.to_openmm(p))
    assert ethanol.to_force_field(p).to_string() == loaded.to_force_field(p).to_string()


def test_loading_needs_no_toolkit(tmp_path):
    made = molecule("C")
    offjax.System.from_smirnoff("openff-2.0.0.offxml", made, charge_from_molecules=[made]).save(tmp_path / "m.h5")
    code = f"""
import sys, numpy as np, jax
jax.config.update("jax_enable_x64", True)
import offjax
system = offjax.System.load({str(tmp_path / "m.h5")!r})
print(float(system.to_jax()(system.parameters, np.random.default_rng(0).normal(size=(5, 3)))))
assert not [m for m in sys.modules if m.split(".")[0] in ("openff", "rdkit", "pint", "openmm")], sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_the_example_of_the_documentation_reads_the_file(system, file, monkeypatch, capsys):
    text = (ROOT / "docs" / "data-format.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(file.parent)
    exec(compile(example, "data-format.md", "exec"), {})
    printed = capsys.readouterr().out.strip().splitlines()
    lengths = system.instances()["Bonds"]["length"]
    expected = [f"{a} {x} nm" for a, x in zip(system.terms["Bonds"].atoms, lengths, strict=True)]
    assert printed == expected


def test_every_dataset_is_plain_and_described(file):
    with h5py.File(file) as opened:
        seen = []

        def check(name, item):
            if isinstance(item, h5py.Dataset):
                seen.append(name)
                assert item.attrs["description"]
                assert item.dtype.kind in "iufb" or h5py.check_string_dtype(item.dtype).encoding == "utf-8", name

        opened.visititems(check)
        assert len(seen) > 50
        assert opened["terms/Bonds/length/offset"].attrs["unit"] == "nm"


def test_copies_do_not_make_the_file_larger(tmp_path):
    sizes = []
    for n in (1, 1000):
        offjax.System.from_smirnoff("tip3p.offxml", [molecule("O")] * n).save(tmp_path / f"{n}.h5")
        sizes.append((tmp_path / f"{n}.h5").stat().st_size)
    assert sizes[1] < sizes[0] + 10_000


# --- files that cannot be read ----------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(offjax.InputError, match=r"missing\.h5: no such file"):
        offjax.System.load(tmp_path / "missing.h5")


def test_a_file_that_is_not_hdf5_is_named(tmp_path):
    (tmp_path / "text.h5").write_text("no\n" * 100)
    with pytest.raises(offjax.InputError, match=r"text\.h5: not an HDF5 file"):
        offjax.System.load(tmp_path / "text.h5")


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95, 0.999])
def test_a_truncated_file_is_named(file, part):
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(offjax.InputError, match=r"system\.h5: (truncated|not an HDF5)"):
        offjax.System.load(file)


def test_another_schema_is_named(file):
    with h5py.File(file, "r+") as opened:
        opened.attrs["format"] = "something-else"
    with pytest.raises(offjax.InputError, match=r"system\.h5: .*something-else"):
        offjax.System.load(file)
    with h5py.File(file, "r+") as opened:
        del opened.attrs["format"]
    with pytest.raises(offjax.InputError, match="no attribute 'format'"):
        offjax.System.load(file)


def test_a_newer_version_asks_for_a_newer_offjax(file):
    with h5py.File(file, "r+") as opened:
        opened.attrs["version"] = storage.VERSION + 1
    with pytest.raises(offjax.InputError, match=r"system\.h5: .*version 4 .*upgrade offjax"):
        offjax.System.load(file)


@pytest.mark.parametrize("member", ["terms/Bonds/k/values", "molecules/smiles", "copies", "source", "nonbonded"])
def test_a_missing_member_is_named(file, member):
    with h5py.File(file, "r+") as opened:
        del opened[member]
    with pytest.raises(offjax.InputError, match=r"system\.h5: .*damaged"):
        offjax.System.load(file)


def test_changed_labels_are_noticed(file):
    with h5py.File(file, "r+") as opened:
        opened["parameters/loaded"][0] += 1.0
    with pytest.raises(offjax.InputError, match="digest"):
        offjax.System.load(file)


def test_a_missing_directory_is_named(system, tmp_path):
    with pytest.raises(offjax.InputError, match="nowhere does not exist"):
        system.save(tmp_path / "nowhere" / "x.h5")
