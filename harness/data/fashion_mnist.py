"""Fashion-MNIST, or any set of four idx files with its names, compressed or not."""

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.image_folder import required_root
from harness.data.images import ArraySource, Dataset, WrappedSource
from harness.errors import UserError

NUM_CLASSES, CHANNELS = 10, 1
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
"""unsigned bytes (8) in 3 dimensions and in 1."""


def open_fashion_mnist(config: DataConfig) -> Dataset:
    """60,000 and 10,000 grey images of ten kinds of clothes, from the idx files at `data.root`."""
    root = required_root(config)
    if config.num_classes != NUM_CLASSES:
        raise UserError(
            f"Fashion-MNIST has {NUM_CLASSES} classes, but data.num_classes is "
            f"{config.num_classes}; set data.num_classes={NUM_CLASSES}"
        )
    return Dataset(
        num_classes=NUM_CLASSES,
        channels=CHANNELS,
        image_size=config.image_size,
        train=_open_part(root, "train", config.image_size),
        validation={"validation": _open_part(root, "t10k", config.image_size)},
        augment=CropAndFlip(config.augment),
    )


def read_idx(path: Path, magic: int) -> Tensor:
    """The unsigned bytes of an idx file, in its shape; unpacked if the name ends in .gz."""
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {error}; download it again") from error
    dimensions = magic & 0xFF
    length = 4 * (1 + dimensions)
    header = np.frombuffer(content[:length].ljust(length, b"\0"), ">u4")
    if len(content) < length or header[0] != magic:
        raise UserError(
            f"{path} is not an idx file of {dimensions} dimensions: it starts with "
            f"{content[:4].hex()}, not {magic:08x}; download it again"
        )
    shape = tuple(int(side) for side in header[1:])
    values = np.frombuffer(content[length:], np.uint8)
    if len(values) != math.prod(shape):
        raise UserError(
            f"{path} has {len(values)} values, its header says {shape}; download it again"
        )
    return torch.from_numpy(values.reshape(shape).copy())


class ResizedSource(WrappedSource):
    """Another source's images at another size."""

    def __init__(self, source: ArraySource, image_size: int) -> None:
        super().__init__(source)
        self._size = image_size

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self._source.read(indices)
        size = (self._size, self._size)
        resized = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        return resized.round_().clamp_(0, 255).to(torch.uint8), labels


def _open_part(root: Path, part: str, image_size: int) -> ArraySource | ResizedSource:
    images_path = _find(root, f"{part}-images-idx3-ubyte")
    labels_path = _find(root, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, IMAGES_MAGIC), read_idx(labels_path, LABELS_MAGIC)
    if len(images) != len(labels) or not images.numel():
        raise UserError(
            f"{images_path} has {len(images)} images and {labels_path} {len(labels)} labels; "
            f"download both again"
        )
    if labels.max() >= NUM_CLASSES:
        raise UserError(f"{labels_path} has a label {labels.max()}, above 9; download it again")
    source = ArraySource(images[:, None], labels.long())
    same = images.shape[1:] == (image_size, image_size)
    return source if same else ResizedSource(source, image_size)


def _find(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if os.path.isfile(path):
            return path
    raise UserError(f"{root} contains neither {name} nor {name}.gz; set data.root to their folder")
