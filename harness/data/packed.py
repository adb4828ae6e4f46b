"""The pictures of a pack, by number: bytes that the operating system keeps once for all ranks."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from harness.data.classes import PARTS, check_number
from harness.data.cut import Frame, cut, picture
from harness.data.decoder import Decoder
from harness.data.images import Part
from harness.data.pack import Description, ShardFile, read_description
from harness.data.picture_source import CHANNELS, PictureFolder
from harness.data.pixels import Undecodable


def read_pack(root: Path, num_classes: int, decoder: Decoder) -> PictureFolder:
    """Raises UserError for a damaged pack, and for another number of classes."""
    pack = read_description(root)
    check_number(root, len(pack.classes), num_classes)
    train, val = (PackedPictures(root, pack, part, decoder) for part in PARTS)
    return PictureFolder(train, val, pack.classes, pack.notes)


class ShardFiles:
    """The files of one part of a pack, as far as a check of them takes it."""

    def __init__(self, root: Path, shards: list[ShardFile]) -> None:
        self.root = bytes(root)
        self._paths = [shard.path for shard in shards]
        found = [path.stat() for path in self._paths]
        self.stats = np.array(
            [[each.st_ino, each.st_size, each.st_mtime_ns] for each in found], np.uint64
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> str:
        return str(self._paths[number])

    def name(self, number: int) -> bytes:
        return self._paths[number].name.encode()

    def identity(self) -> str:
        names = b"\0".join(map(self.name, range(len(self))))
        return hashlib.sha256(names + self.stats.tobytes()).hexdigest()


class PackedPictures:
    """The pictures of one part of a pack."""

    files_are_pictures, together = False, 1

    def __init__(self, root: Path, pack: Description, part: str, decoder: Decoder) -> None:
        self._shards = [ShardFile(root, shard) for shard in pack.shards[part]]
        self._sums = pack.shards[part]
        self._pixels = pack.kind == "pixels"
        self._decoder = decoder
        self._ends = np.cumsum([len(shard.index) for shard in self._shards])
        labels = np.concatenate([shard.index["label"] for shard in self._shards])
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.files = ShardFiles(root, self._shards)

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self, number: int, frame: Frame, size: int) -> np.ndarray:
        shard, place = self._place(number)
        stored = shard.stored(place)
        if not self._pixels:
            return picture(stored.tobytes(), frame, size, self._decoder)
        height, width = int(shard.index["height"][place]), int(shard.index["width"][place])
        return cut(stored.reshape(height, width, CHANNELS), frame, size)

    def shown(self, number: int) -> str:
        shard, place = self._place(number)
        return f"image {place} of {shard.path}"

    def check(self, number: int, closely: bool) -> None:
        """Raises Undecodable for a shard whose content is damaged; only `closely` reads it."""
        wrong = self._shards[number].damaged() if closely else None
        if wrong is not None:
            raise Undecodable(f"its image {wrong} does not match its checksum")

    def remedy(self, them: str) -> str:
        return f"delete {them} and run harness pack again"

    def parts(self) -> Iterator[Part]:
        if not self._pixels:
            yield self._decoder.part
        for shard in self._sums:
            yield Part(shard.name, f"{shard.crc32:08x}")

    def _place(self, number: int) -> tuple[ShardFile, int]:
        """The picture's shard and its number there."""
        at = int(np.searchsorted(self._ends, number, side="right"))
        return self._shards[at], number - (int(self._ends[at - 1]) if at else 0)
