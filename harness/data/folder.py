"""Any folder of images by class: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.classes import PARTS, common_classes
from harness.data.images import Dataset, Part
from harness.data.pixels import Undecodable, middle_square
from harness.data.tree import ImageTree, format_counts, shown
from harness.errors import UserError

CHANNELS = 3
Item = TypeVar("Item")
Result = TypeVar("Result")


def open_image_folder(config: DataConfig) -> Dataset:
    """RGB images of the tree at `data.root`; classes are the folders of train/, in sorted order."""
    root = required_root(config)
    # A warning of Pillow for each odd but readable file would bury everything else.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    left_out: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    classes = common_classes(root, config.num_classes, left_out)
    decoders = Decoders()
    sources = []
    for part in PARTS:
        tree = ImageTree(str(root / part), classes)
        left_out[part] += tree.left_out
        sources.append(ImageFiles(tree, tree.labels, config.image_size, decoders))
    return Dataset(
        num_classes=config.num_classes,
        channels=CHANNELS,
        image_size=config.image_size,
        train=sources[0],
        validation={"validation": sources[1]},
        augment=CropAndFlip(config.augment),
        class_names=tuple(map(shown, classes)),
        notes=tuple(
            f"left out of {root / part}: {format_counts(found)}"
            for part, found in left_out.items()
            if found
        ),
    )


def required_root(config: DataConfig) -> Path:
    """The folder `data.root`. Raises UserError if there is none."""
    if config.root is None:
        raise UserError(f"data.dataset={config.dataset} reads a folder; set data.root to it")
    root = Path(config.root)
    if not os.path.isdir(root):
        raise UserError(f"data.root={config.root} is not a folder; correct it")
    return root


class Decoders:
    """Threads that decode images, shared by the parts of a data set.

    They start with the first image; their number is torch's number of threads at that time, a
    rank's share of the machine's cores. Two parts may use them at the same time, first come, first
    served.
    """

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Applies the function to each item, in order. It should release the GIL, as Pillow
        does."""
        return list(self._pool.map(function, items))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads(), "decode")


class ImageFiles:
    """Image files that are decoded on demand: RGB, the middle square, resized."""

    def __init__(
        self,
        files: ImageTree,
        labels: Tensor,
        image_size: int,
        decoders: Decoders | None = None,
    ) -> None:
        self.files = files
        self.labels = labels
        self.image_size = image_size
        self.decoders = decoders or Decoders()

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        paths = [self.files[i] for i in indices.tolist()]
        images_BHWC = np.stack(self.decoders.map(self._decoded, paths))
        images = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).contiguous()
        return images, self.labels[indices]

    def parts(self) -> Iterator[Part]:
        sizes = self.files.stats[:, 1].tolist()
        for number, size in enumerate(sizes):
            name, _, inside = self.files.name(number).partition(b"/")
            yield Part(shown(name), f"{shown(inside)} ({size} bytes)")

    def _decoded(self, path: str) -> np.ndarray:
        try:
            return middle_square(path, self.image_size)
        except Undecodable as error:
            raise UserError(
                f"cannot decode {shown(os.fsencode(path))}: {error}; replace or remove it"
            ) from error
