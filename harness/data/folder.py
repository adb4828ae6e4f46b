"""Any folder of images by class: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.images import Dataset, Part
from harness.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


def open_image_folder(config: DataConfig) -> Dataset:
    """RGB images of the tree at `data.root`; classes are the folders of train/, in sorted order."""
    root = required_root(config)
    classes = _class_names(root / "train")
    if len(classes) != config.num_classes:
        raise UserError(
            f"{root / 'train'} has {len(classes)} class folders, data.num_classes is "
            f"{config.num_classes}; set data.num_classes={len(classes)}"
        )
    differing = set(_class_names(root / "val")) ^ set(classes)
    if differing:
        raise UserError(
            f"{root} has {len(differing)} classes in only one of train/ and val/, such as "
            f"{min(differing)}; give both the same class folders"
        )
    return Dataset(
        num_classes=config.num_classes,
        channels=3,
        image_size=config.image_size,
        train=ImageFiles(*_labelled_files(root / "train", classes), config.image_size),
        validation={
            "validation": ImageFiles(*_labelled_files(root / "val", classes), config.image_size)
        },
        augment=CropAndFlip(config.augment),
    )


def required_root(config: DataConfig) -> Path:
    """The folder `data.root`, or UserError."""
    if config.root is None:
        raise UserError(f"data.dataset={config.dataset} reads a folder; set data.root to it")
    root = Path(config.root).expanduser()
    if not root.is_dir():
        raise UserError(f"data.root={config.root} is not a folder; correct it")
    return root


class ImageFiles:
    """Image files, decoded when they are asked for: RGB, the middle square, resized."""

    def __init__(self, paths: Sequence[Path], labels: Tensor, image_size: int) -> None:
        self._paths = paths
        self._labels = labels
        self._size = image_size
        # Pillow lets other threads run while it decodes.
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "decode")

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        paths = [self._paths[i] for i in indices.tolist()]
        images_BHWC = np.stack(list(self._pool.map(self._decoded, paths)))
        images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()
        return images, self._labels[indices]

    def parts(self) -> Iterator[Part]:
        for path in self._paths:
            yield Part(path.parent.name, f"{path.name} ({path.stat().st_size} bytes)")

    def _decoded(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                # A JPEG can be decoded at a half, a quarter or an eighth, much faster.
                image.draft("RGB", (self._size, self._size))
                square = image.convert("RGB").resize(
                    (self._size, self._size), Image.Resampling.BILINEAR, _middle(image.size)
                )
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot decode {path}: {error}; replace or remove it") from error
        return np.asarray(square)


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest square in the middle: left, top, right, bottom."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _class_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; data.root must hold train/ and val/")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def _labelled_files(folder: Path, classes: Sequence[str]) -> tuple[list[Path], Tensor]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise UserError(
                f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}); add some or "
                f"remove the folder"
            )
        paths += found
        labels += [label] * len(found)
    return paths, torch.tensor(labels)
