"""Makes one shard of a pack: the pictures of some files, then their index."""

import hashlib
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from harness.data.cut import scaled
from harness.data.decoder import Decoder, open_decoder
from harness.data.pack import FORMAT, INDEX, SUFFIX, Kind, Shard
from harness.data.pixels import VERSION, Undecodable, content_of, reduction_within, upright
from harness.data.tree import shown
from harness.whole_files import write_text

QUALITY = 95
"""Of pictures that are encoded anew."""
TOLD = 16
"""Pictures between two reports."""


@dataclass(frozen=True)
class Job:
    """One shard and the files that it is made of."""

    part: str
    number: int
    root: str
    """The folder of the part."""
    files: tuple[bytes, ...]
    """Paths below it."""
    labels: tuple[int, ...]
    stats: bytes
    """The state of the files, by which a change is noticed: of each its size and the time of its
    last change, int64."""
    side: int
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.part}-{self.number:05d}"

    @property
    def file_bytes(self) -> np.ndarray:
        """The sizes of the files, int64."""
        return np.frombuffer(self.stats, np.int64)[::2]

    @property
    def key(self) -> str:
        """A digest of the files and of what is made of them."""
        by = FORMAT, VERSION, PIL.__version__
        made = *by, self.kind, self.side, self.files, self.labels, self.stats
        return hashlib.sha256(repr(made).encode()).hexdigest()


def record_of(folder: Path, job: Job) -> Path:
    """The file that says that a shard is finished, until the whole pack is."""
    return folder / f"{job.name}.json"


def write_record(folder: Path, job: Job, shard: Shard) -> None:
    write_text(record_of(folder, job), shard.model_dump_json())


def make_shard(job: Job, folder: Path, tell: Callable[[int], None]) -> Shard:
    """Writes the shard, then its record. Calls `tell` with numbers of pictures as it goes on."""
    index, left_out, decoder = [], [], open_decoder("auto")
    partial = folder / f"{job.name}.partial"
    with partial.open("wb") as file:
        for number, (name, label) in enumerate(zip(job.files, job.labels, strict=True), 1):
            path = os.path.join(job.root, os.fsdecode(name))
            try:
                stored, height, width = _picture(content_of(path), job.side, job.kind, decoder)
            except Undecodable as error:
                left_out.append((shown(os.fsencode(path)), str(error)))
            else:
                place = file.tell(), len(stored), height, width
                index.append((*place, label, zlib.crc32(stored)))
                file.write(stored)
            if number % TOLD == 0 or number == len(job.files):
                tell((number - 1) % TOLD + 1)
        content = np.array(index, INDEX).tobytes()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    final = partial.replace(folder / f"{job.name}{SUFFIX}")
    shard = Shard(
        name=final.name,
        images=len(index),
        bytes=size,
        crc32=zlib.crc32(content),
        key=job.key,
        left_out=tuple(left_out),
    )
    write_record(folder, job, shard)
    return shard


def _picture(content: bytes, side: int, kind: Kind, decoder: Decoder) -> tuple[bytes, int, int]:
    """What is stored of an image file, and the picture's height and width."""

    def reduction(width: int, height: int) -> int:
        # Less one: what was reduced is still too large, and is not taken for the whole picture.
        return reduction_within(min(width, height) - 1, side)

    pixels = np.ascontiguousarray(upright(content, reduction, decoder))
    height, width = pixels.shape[:2]
    most = min(height, width)
    if most > side:
        height, width = (max(side, round(each * side / most)) for each in (height, width))
        pixels = scaled(pixels, height, width)
    elif kind == "jpeg":
        return content, height, width
    return (pixels.tobytes() if kind == "pixels" else _encoded(pixels)), height, width


def _encoded(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
