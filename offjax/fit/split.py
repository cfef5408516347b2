"""Applying a split: a force field in which a child SMIRKS has a parameter of its own, and the fit of that one."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from offjax.errors import InputError
from offjax.fit.config import FitConfig
from offjax.fit.environments import SECTIONS, query
from offjax.interop import definitions
from offjax.interop.files import write_atomically
from offjax.parameterize import forcefield, plugins
from offjax.terms.user import UserTerm

if TYPE_CHECKING:
    from openff.toolkit import ForceField

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def split(
    force_field, section: str, smirks: str, child: str, user_terms: Sequence[UserTerm] = ()
) -> tuple[ForceField, str | None]:
    """A force field with one more parameter: a copy of that of ``smirks`` for the SMIRKS ``child``, right after it.

    Parameters
    ----------
    force_field
        Anything that ``System.from_smirnoff`` takes; it is not changed.
    section
        Such as "Bonds".
    smirks
        The SMIRKS of the parent, exactly as in the file, or its id.
    child
        The new SMIRKS.
    user_terms
        Definitions of sections of the force field that SMIRNOFF does not have.

    Returns
    -------
    force_field, id
        The new ForceField, and the child's id: the parent's with the first letter that makes a new one (None if the
        parent has none).

    Raises
    ------
    InputError
        No such section or parent, a SMIRKS that the section does not accept or that is there already.
    """
    old = forcefield.load(force_field, user_terms)
    if section not in old.registered_parameter_handlers or section not in SECTIONS:
        have = ", ".join(s for s in SECTIONS if s in old.registered_parameter_handlers)
        raise InputError(f"no section {section!r} to split in this force field; it has {have}")
    query(section, child)
    parameters = old.get_parameter_handler(section).parameters
    found = [n for n, p in enumerate(parameters) if smirks in (p.smirks, p.id)]
    if len(found) != 1:
        raise InputError(f"<{section}>: {len(found)} parameters have the SMIRKS or id {smirks!r}, expected one")
    if any(p.smirks == child for p in parameters):
        raise InputError(f"<{section}>: there is a parameter of SMIRKS {child!r} already")
    parent, ids = parameters[found[0]], {p.id for p in parameters}
    content, identity = parent.to_dict(discard_cosmetic_attributes=False) | {"smirks": child}, None
    if parent.id is not None:
        content["id"] = identity = next(
            n for a in ("", *LETTERS) for b in LETTERS if (n := parent.id + a + b) not in ids
        )
    new = plugins.force_field([forcefield.text(old)], user_terms)
    made = type(parent)(**content, allow_cosmetic_attributes=True)
    new.get_parameter_handler(section).add_parameter(parameter=made, after=found[0])
    return new, identity


def refit_files(config: FitConfig, section: str, smirks: str, child: str, directory) -> Path:
    """Write ``split.offxml`` and ``split.yaml``, the fit of ``config`` with one parameter split, to a directory.

    Blocks of ``[[parameters]]`` that name the parent choose the child too. Its results go to ``fit-output`` beside it.

    Raises
    ------
    InputError
        See :func:`split`; or the directory cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    force_field, identity = split(config.force_field, section, smirks, child, definitions.read(config.terms))
    write_atomically(directory / "split.offxml", forcefield.text(force_field).encode())
    content = config.model_dump(mode="json", exclude_none=True)
    content["force_field"] = "split.offxml"
    content["output"] = {"directory": "fit-output"}
    content["terms"] = [os.path.relpath(t, directory) if t.endswith(".py") else t for t in config.terms]
    for data, given in zip(content["data"], config.data, strict=True):
        data["path"] = os.path.relpath(given.path, directory)
    parent = next(p for p in force_field.get_parameter_handler(section).parameters if smirks in (p.smirks, p.id))
    for block in content["parameters"]:
        if block["path"].split("/")[0] != section or "patterns" not in block:
            continue
        for pattern in list(block["patterns"]):
            own, colon, key = pattern.rpartition(":")
            if pattern == parent.smirks:
                block["patterns"].append(child)
            elif identity is not None and fnmatch.fnmatchcase(parent.id, pattern):
                block["patterns"].append(identity)
            elif identity is not None and colon and fnmatch.fnmatchcase(parent.id, own):
                block["patterns"].append(f"{identity}:{key}")
        block["patterns"] = list(dict.fromkeys(block["patterns"]))
    path = directory / "split.yaml"
    write_atomically(path, yaml.safe_dump(content, sort_keys=False).encode())
    return path
