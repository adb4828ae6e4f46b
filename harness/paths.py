"""Paths from texts: a leading ~, which no shell expands after `=`, names that stay inside their
folder, and the nearest file to a path that does not exist."""

import difflib
import hashlib
import os
import re
from pathlib import Path

LONGEST_NAME = 100
"""Most characters of a folder name made from a text."""


def expanded(path: str) -> str:
    """The path, with a leading ~ or ~user replaced by the home folder. Raises ValueError if there
    is none."""
    if "\0" in path:
        raise ValueError("it contains a byte of value 0; remove that")
    if not path.startswith("~"):
        return path
    whole = os.path.expanduser(path)
    if whole == path:
        user = path.partition("/")[0]
        raise ValueError(
            f"this machine has no home folder {user}; write the path in full, and ./{user} for a "
            f"folder of that name"
        )
    return whole


def expanded_uri(uri: str) -> str:
    """The same for the address of a store, which may be an SQLite file: sqlite:///~/file.db."""
    scheme, mark, path = uri.partition(":///")
    return f"{scheme}{mark}{expanded(path)}" if mark and scheme.startswith("sqlite") else uri


def nearest_file(path: Path) -> Path | None:
    """The existing file most like a missing one, name by name; None if no name is similar."""
    found = Path(path.anchor)
    for name in path.relative_to(found).parts:
        near = name if os.path.exists(found / name) else _nearest_name(name, found)
        if near is None:
            return None
        found /= near
    return found if os.path.isfile(found) else None


def _nearest_name(name: str, folder: Path) -> str | None:
    try:
        names = os.listdir(folder)
    except OSError:
        return None
    # Without suffixes: .yaml alone would make any two short names similar.
    stems = difflib.get_close_matches(Path(name).stem, [Path(each).stem for each in names], n=1)
    alike = [each for each in names if Path(each).stem in stems]
    return max(alike, key=lambda each: _likeness(name, each), default=None)


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name, other).ratio()


def folder_name(text: str) -> str:
    """The text as the name of one folder. Characters that could leave the folder or that file
    systems refuse are replaced; different texts have different names."""
    name = re.sub(r"[^\w .+=,@-]", "_", text)[:LONGEST_NAME].encode()[:LONGEST_NAME]
    plain = name.decode(errors="ignore").strip(" .")
    if text and plain == text:
        return text
    return f"{plain or 'study'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
