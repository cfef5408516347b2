"""Where offjax's own OFFXML files are, for the toolkit's search by name.

The entry point ``openforcefield.smirnoff_forcefield_directory`` calls ``directories``, so that
``openff.toolkit.ForceField("offjax-teaching-1.0.offxml")`` works from anywhere. A wheel holds the files in
``offjax/data/forcefields``; in a checkout (an editable install) they stay in ``data/forcefields``.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def directories() -> list[str]:
    """The one directory with offjax's OFFXML files.

    >>> from pathlib import Path
    >>> [path] = directories()
    >>> (Path(path) / "offjax-teaching-1.0.offxml").is_file()
    True
    """
    candidates = (_PACKAGE / "data" / "forcefields", _PACKAGE.parent / "data" / "forcefields")
    found = next((path for path in candidates if path.is_dir()), None)
    if found is None:
        raise FileNotFoundError(
            f"offjax's force fields are in none of {[str(p) for p in candidates]}: reinstall offjax"
        )
    return [str(found)]
