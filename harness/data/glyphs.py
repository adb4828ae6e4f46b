"""Printed Chinese characters, rendered from fonts; validated on fonts that are never trained on."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFont, features
from torch import Tensor

from harness.config import DataConfig
from harness.data.augment import GlyphAugmentation
from harness.data.fonts import FontFile, find_fonts, require_characters
from harness.data.images import ArraySource, Dataset, Part
from harness.data.pixel_cache import cached_pixels
from harness.errors import UserError

CHANNELS = 1
RENDERER_VERSION = 1
"""Version of the rendering; incremented whenever the same font would give other pixels."""

EM_SHARE = 0.875
"""Side of the em square as a share of the image's side; leaves a margin for augmentation."""

COMPARED_CHARACTERS = 200
SAME_SHARE = 0.2

# GB2312 orders hanzi in rows of 94: level 1 (common) by pronunciation, level 2 by radical.
LEVEL_1_ROWS = range(0xB0, 0xD8)
LEVEL_2_ROWS = range(0xD8, 0xF8)
COLUMNS = range(0xA1, 0xFF)
UNIFIED = range(0x4E00, 0x9FA5 + 1)


def characters(count: int) -> str:
    """The first `count` characters: GB2312 level 1 (to 3,755), level 2 (to 6,763), other CJK (to
    20,902)."""
    ordered = _all_characters()
    if count > len(ordered):
        raise UserError(
            f"data.dataset=glyphs has {len(ordered)} characters, but data.num_classes is {count}; "
            f"lower it"
        )
    return ordered[:count]


@cache
def _all_characters() -> str:
    # The last cells of level 1 are empty and decode to nothing.
    listed = "".join(
        bytes([row, column]).decode("gb2312", "ignore")
        for row in (*LEVEL_1_ROWS, *LEVEL_2_ROWS)
        for column in COLUMNS
    )
    return listed + "".join(sorted(set(map(chr, UNIFIED)) - set(listed)))


def open_glyphs(config: DataConfig) -> Dataset:
    """Characters as white ink (255) on black (0), one channel; `num_classes` images per font.

    The validation sets are `unseen_design` (serif, while training has sans) and `unseen_weight` (a
    weight between those of training).
    """
    fonts = find_fonts(config.train_fonts, config.validation_fonts)
    train = _rendered(fonts.train, config)
    validation = {name: _rendered(unseen, config) for name, unseen in fonts.validation.items()}
    for name, unseen in fonts.validation.items():
        _require_unseen(fonts.train, train, unseen, validation[name])
    return Dataset(
        num_classes=config.num_classes,
        channels=CHANNELS,
        image_size=config.image_size,
        train=_source(fonts.train, train),
        validation={
            name: _source(unseen, validation[name]) for name, unseen in fonts.validation.items()
        },
        augment=GlyphAugmentation(config.augment),
    )


def _source(fonts: Sequence[FontFile], pixels_FCHW: Tensor) -> ArraySource:
    count, classes, height, width = pixels_FCHW.shape
    renderer = Part("FreeType", str(features.version("freetype2")))
    return ArraySource(
        pixels_FCHW.view(count * classes, 1, height, width),
        torch.arange(classes).repeat(count),
        (renderer, *(Part(font.path.name, font.sha256) for font in fonts)),
    )


def _rendered(fonts: Sequence[FontFile], config: DataConfig) -> Tensor:
    """The rendered characters, uint8 [fonts, classes, size, size]."""
    text, size = characters(config.num_classes), config.image_size
    versions = (RENDERER_VERSION, features.version("freetype2"))
    parts = (versions, text, size, [font.sha256 for font in fonts])
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return cached_pixels(
        Path(config.cache) / f"glyphs-{len(text)}x{len(fonts)}-{size}px-{key}.bin",
        (len(fonts), len(text), size, size),
        partial(_render_fonts, fonts, text, size),
    )


def _render_fonts(fonts: Sequence[FontFile], text: str, size: int) -> Iterator[np.ndarray]:
    for font in fonts:
        require_characters(font.path, text)
        yield render(font.path, text, size)


def render(path: Path, text: str, size: int) -> np.ndarray:
    """The font's characters, ink 255 and centred, uint8 [characters, size, size]."""
    try:
        font = ImageFont.truetype(
            str(path), round(size * EM_SHARE), layout_engine=ImageFont.Layout.BASIC
        )
    except OSError as error:
        raise UserError(f"cannot open the font {path}: {error}; replace or remove it") from error
    images = np.zeros((len(text), size, size), np.uint8)
    for image, character in zip(images, text, strict=True):
        mask = font.getmask(character, mode="L")
        width, height = mask.size
        ink = np.frombuffer(bytes(mask), np.uint8).reshape(height, width)
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        if not len(rows):
            raise UserError(f"the font {path} draws nothing for {character}; take it out")
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        _paste_centred(image, ink)
    return images


def _paste_centred(image: np.ndarray, ink: np.ndarray) -> None:
    """Pastes ink into the middle of an image; ink larger than the image loses its outermost rows
    and columns."""
    source, target = [], []
    for room, length in zip(image.shape, ink.shape, strict=True):
        start = (room - length) // 2
        source.append(slice(max(-start, 0), max(-start, 0) + min(room, length)))
        target.append(slice(max(start, 0), max(start, 0) + min(room, length)))
    image[tuple(target)] = ink[tuple(source)]


def _require_unseen(
    train: Sequence[FontFile],
    train_pixels: Tensor,
    unseen: Sequence[FontFile],
    unseen_pixels: Tensor,
) -> None:
    """Raises UserError if a validation font draws the same as a training font.

    The same design is sold under several names, in files that differ, so what they draw is
    compared.
    """
    for (seen, seen_CHW), (new, new_CHW) in product(
        zip(train, train_pixels[:, :COMPARED_CHARACTERS], strict=True),
        zip(unseen, unseen_pixels[:, :COMPARED_CHARACTERS], strict=True),
    ):
        share = (seen_CHW == new_CHW).flatten(1).all(dim=1).double().mean().item()
        if share > SAME_SHARE:
            raise UserError(
                f"the validation font {new.path} draws {share:.0%} of the characters exactly as "
                f"the training font {seen.path}; take one of them out"
            )
