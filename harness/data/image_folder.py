"""The data set `image_folder`: photographs by class, from a folder or from a pack of one."""

import os
import warnings
from pathlib import Path

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.decoder import open_decoder
from harness.data.folder import read_folder
from harness.data.images import Dataset
from harness.data.pack import is_pack
from harness.data.packed import read_pack
from harness.data.picture_source import CHANNELS, PictureSource, Threads
from harness.errors import UserError


def open_image_folder(config: DataConfig) -> Dataset:
    """RGB images of the tree or pack at `data.root`."""
    root = required_root(config)
    # A warning of Pillow for each odd but readable file would bury everything else.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    read = read_pack if is_pack(root) else read_folder
    found = read(root, config.num_classes, open_decoder(config.decoder))
    threads = Threads()
    return Dataset(
        num_classes=config.num_classes,
        channels=CHANNELS,
        image_size=config.image_size,
        train=PictureSource(found.train, config.image_size, threads),
        validation={"validation": PictureSource(found.val, config.image_size, threads)},
        augment=CropAndFlip(config.augment),
        class_names=found.classes,
        notes=found.notes,
        decodes=True,
    )


def required_root(config: DataConfig) -> Path:
    """The folder `data.root`. Raises UserError if there is none."""
    if config.root is None:
        raise UserError(f"data.dataset={config.dataset} reads a folder; set data.root to it")
    root = Path(config.root)
    if not os.path.isdir(root):
        raise UserError(f"data.root={config.root} is not a folder; correct it")
    return root
