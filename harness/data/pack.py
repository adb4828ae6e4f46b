"""A pack: an image folder in a few files, which all ranks of a host map into memory together.

    PACK/pack.json            what it holds; written last
    PACK/train-00000.images   one shard: the pictures, one behind the other, then their index
    PACK/val-00000.images
    PACK/left_out.tsv         the files that could not be read, and why

A picture is its pixels (height x width x 3 bytes) or the bytes of an image file.
"""

import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError, one_line

FORMAT = 1
DESCRIPTION, LEFT_OUT = "pack.json", "left_out.tsv"
SUFFIX = ".images"
INDEX = np.dtype(
    [
        ("offset", "<u8"),
        ("bytes", "<u8"),
        ("height", "<u4"),
        ("width", "<u4"),
        ("label", "<u4"),
        ("crc32", "<u4"),
    ]
)
"""The place, size, label and checksum of one picture of a shard."""
AGAIN = "delete it and run harness pack again"

Kind = Literal["pixels", "jpeg"]


class Facts(BaseModel):
    """A part of the description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(Facts):
    """One file with pictures."""

    name: str
    images: int
    bytes: int
    crc32: int
    """Checksum of its index, which has those of the pictures."""
    key: str
    """A digest of the files that it was made from and of how it was made."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Files that could not be read, and why."""


class Description(Facts):
    """What a pack holds."""

    format: int
    kind: Kind
    side: int
    """Longest shorter side of a picture, pixels: larger ones were reduced to it."""
    classes: tuple[str, ...]
    """The names of labels 0, 1, ..."""
    notes: tuple[str, ...] = ()
    """What was said about the folder when it was packed."""
    shards: dict[str, tuple[Shard, ...]]
    """By part: train and val."""

    def images(self, part: str) -> int:
        return sum(shard.images for shard in self.shards[part])


def is_pack(folder: Path) -> bool:
    """Whether the folder is a pack. Raises UserError if it is one that was never finished."""
    if (folder / DESCRIPTION).exists():
        return True
    if any(folder.glob(f"*{SUFFIX}")):
        raise UserError(f"the pack {folder} is not finished; run the same harness pack again")
    return False


def read_description(folder: Path) -> Description:
    """Raises UserError for a file that is not the description of a pack of this version."""
    path = folder / DESCRIPTION
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.get("format") != FORMAT:
            raise UserError(
                f"{path} is of format {content.get('format')}, and this version reads {FORMAT}; "
                f"pack the folder again"
            )
        return Description.model_validate(content)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise UserError(f"{path} is damaged: {one_line(error, 200)}; {AGAIN}") from error


class ShardFile:
    """One shard, mapped into memory when it is opened: what replaces the file later is not read."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Raises UserError if the file is not as long as it was written, or its index damaged."""
        self.path = folder / shard.name
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found != shard.bytes:
                    raise _damaged(self.path, f"it has {found} bytes, not {shard.bytes}")
                file.seek(shard.bytes - shard.images * INDEX.itemsize)
                content = file.read()
                self._bytes = _mapped(file, found)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}; fix it or pack") from error
        except RuntimeError as error:
            raise UserError(
                f"cannot map {self.path} into memory: {one_line(error, 160)}; copy the pack to a "
                f"local disk, or use the folder that it was made from"
            ) from error
        if zlib.crc32(content) != shard.crc32:
            raise _damaged(self.path, "its index does not match its checksum")
        self.index: np.ndarray = np.frombuffer(content, INDEX)

    def stored(self, number: int) -> np.ndarray:
        """The bytes of a picture, uint8, mapped."""
        start = int(self.index["offset"][number])
        return self._bytes[start : start + int(self.index["bytes"][number])]

    def damaged(self) -> int | None:
        """The first picture that does not match its checksum, or None; reads the whole file."""
        sums = self.index["crc32"].tolist()
        wrong = (i for i, crc32 in enumerate(sums) if zlib.crc32(self.stored(i).data) != crc32)
        return next(wrong, None)


def _mapped(file: BinaryIO, size: int) -> np.ndarray:
    """The bytes of an open file. Raises RuntimeError if its file system cannot map it."""
    # Not np.memmap, which keeps a descriptor of each file open: a pack may have more files than a
    # process may open. Not shared: torch does not take read-only memory, so changes stay private.
    path = f"/proc/self/fd/{file.fileno()}"
    mapped: np.ndarray = torch.from_file(path, shared=False, size=size, dtype=torch.uint8).numpy()
    return mapped


def _damaged(path: Path, found: str) -> UserError:
    return UserError(f"{path} is damaged: {found}; {AGAIN}")
