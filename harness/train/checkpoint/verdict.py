"""The mark of a checkpoint after which training diverged, though its files are as written."""

import os
from contextlib import suppress
from pathlib import Path

from harness.tracking.run_folder import BAD


def mark_bad(folder: Path, reason: str) -> None:
    """Marks a checkpoint; the first reason stays. Raises OSError if it cannot be written."""
    with suppress(FileExistsError), (folder / BAD).open("x", encoding="utf-8") as file:
        file.write(f"{reason}\n")


def why_bad(folder: Path) -> str:
    """Why a checkpoint must not be resumed, in half a line; "" if it may be."""
    if not os.path.exists(folder / BAD):
        return ""
    try:
        text = (folder / BAD).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        text = error.strerror or ""
    return f"it is marked bad ({text}; its file {BAD} can be removed)"
