"""The data set `image_folder`: photographs by class, from a folder or from a pack of one."""

import os
import warnings
from functools import partial
from pathlib import Path

from harness.config import DataConfig
from harness.data.augment import CropAndFlip
from harness.data.cut import Frame, middle_square
from harness.data.decoder import open_decoder
from harness.data.folder import read_folder
from harness.data.images import Dataset
from harness.data.pack import is_pack
from harness.data.packed import read_pack
from harness.data.picture_source import CHANNELS, PictureSource, Threads
from harness.data.recipe import (
    LEVELS,
    Alteration,
    OneAfterAnother,
    RandomErasing,
    Recipe,
    centre,
    random_cuts,
)
from harness.errors import UserError


def open_image_folder(config: DataConfig) -> Dataset:
    """RGB images of the tree or pack at `data.root`."""
    root = required_root(config)
    # A warning of Pillow for each odd but readable file would bury everything else.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    read = read_pack if is_pack(root) else read_folder
    found = read(root, config.num_classes, open_decoder(config.decoder))
    recipe = _recipe(config)
    open_source = partial(
        PictureSource, threads=Threads(), frame=recipe.frame, skips=config.on_corrupt == "skip"
    )
    train = open_source(found.train, config.image_size, draw=recipe.draw)
    return Dataset(
        num_classes=config.num_classes,
        channels=CHANNELS,
        image_size=config.image_size,
        validation_size=config.size_in_validation,
        train=train,
        validation={"validation": open_source(found.val, config.size_in_validation)},
        read_random=train.read_random if recipe.draw else None,
        alter=recipe.alter,
        augment=recipe.augment,
        levels=recipe.levels,
        class_names=found.classes,
        notes=found.notes,
        decodes=True,
    )


def _recipe(config: DataConfig) -> Recipe:
    if config.recipe == "own":
        return Recipe(middle_square, CropAndFlip(config.augment))
    alterations: list[Alteration] = []
    if "trivial_augment" in config.extras:
        # Imported here because torchvision takes seconds to import.
        from harness.data.trivial_augment import trivial_augment

        alterations.append(trivial_augment)
    if "random_erasing" in config.extras:
        alterations.append(RandomErasing())
    alter = OneAfterAnother(alterations) if alterations else None
    return Recipe(centre, alter=alter, draw=random_cuts, levels=LEVELS)


def validation_frame(config: DataConfig) -> Frame:
    """Which part of a picture validation takes."""
    return _recipe(config).frame


def required_root(config: DataConfig) -> Path:
    """The folder `data.root`. Raises UserError if there is none."""
    if config.root is None:
        raise UserError(f"data.dataset={config.dataset} reads a folder; set data.root to it")
    root = Path(config.root)
    if not os.path.isdir(root):
        raise UserError(f"data.root={config.root} is not a folder; correct it")
    return root
