"""The files of a checkpoint with their sizes and checksums, and whether they are as written."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.train.checkpoint.files import plain_file


class BadCheckpoint(Exception):
    """A checkpoint that cannot be used; the message says in half a line what was found."""


class StoredFile(BaseModel):
    """A file as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str
    """Processors have instructions for it, so it is faster than zlib's crc32, and `sha256sum`
    checks a file without this program."""


Manifest = Mapping[str, StoredFile]
"""By the file's name."""


def stored(path: Path) -> StoredFile:
    """Describes a file that was just written. Raises OSError if it cannot be read."""
    return StoredFile(bytes=path.stat().st_size, sha256=_sha256(path))


def check_file(path: Path, expected: StoredFile | None) -> None:
    """Raises BadCheckpoint if a file is not as it was written; None: it was not."""
    if expected is None:
        raise BadCheckpoint(f"{path.name} is not in its list of files")
    try:
        size = plain_file(path).stat().st_size
        if size != expected.bytes:
            raise BadCheckpoint(f"{path.name} has {size:,} bytes instead of {expected.bytes:,}")
        found = _sha256(path)
    except FileNotFoundError:
        raise BadCheckpoint(f"{path.name} is missing") from None
    except OSError as error:
        raise BadCheckpoint(f"{path.name} cannot be read ({error.strerror})") from error
    if found != expected.sha256:
        raise BadCheckpoint(
            f"{path.name} has other content than was written "
            f"(sha256 {found[:8]}... instead of {expected.sha256[:8]}...)"
        )


def sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
