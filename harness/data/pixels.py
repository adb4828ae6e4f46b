"""Turns any image file that Pillow opens into upright 8-bit RGB with the right brightness.

* Grey of 16 or 12 bits keeps its highest 8 bits: brightness follows from what the file declares,
  never from the range that one image happens to use.
* Floats must be brightness from 0 to 1. Other floats, and integers of 32 bits or with a sign,
  declare no range that would define white: they are refused.
* Transparent pixels are blended over white.
* Colour spaces (CMYK, YCbCr, LAB, HSV, palettes) become sRGB as Pillow converts them; an embedded
  colour profile is not applied.
* The EXIF orientation is applied in every format; an EXIF block that cannot be read is ignored.
* Of an animation or a file of several pages, the first image is used.
"""

import os
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from harness.data.decoder import PILLOW, Decoder

REDUCTIONS = (8, 4, 2)
"""Factors by which a JPEG can be reduced while it is decoded, which is much faster."""
Reduction = Callable[[int, int], int]
"""The factor for a JPEG of a width and a height: one of REDUCTIONS, or 1."""

VERSION = 3
"""Version of the rules; incremented whenever a file would be refused or accepted differently."""

ORIENTATION, UPRIGHT = 0x0112, 1
SIDEWAYS = (5, 6, 7, 8)
"""Orientations of images that are stored lying on a side."""
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: partial(np.rot90, k=2),
    4: np.flipud,
    5: partial(np.swapaxes, axis1=0, axis2=1),
    6: partial(np.rot90, k=3),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""The operation that undoes each EXIF orientation except 1, which is upright."""

JPEGS = ("JPEG", "MPO")
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
"""Numbers of TIFF tags."""
WHITE_IS_ZERO, SIGNED = 0, 2
"""Values of the last two tags."""

LAST_BYTES = {
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82",
    "GIF": b"\x3b",
}
"""The bytes at the end of a complete file. A file with something behind them is decoded instead."""


class Undecodable(Exception):
    """Raised if a file gives no image; the message says why, without the file's name."""


def upright(content: bytes, reduction: Reduction, decoder: Decoder = PILLOW) -> np.ndarray:
    """The pixels of an image file as they are shown, uint8 [height, width, 3].

    Raises Undecodable.
    """
    try:
        with Image.open(BytesIO(content)) as image:
            return _upright(image, content, reduction, decoder)
    except Exception as error:  # Pillow raises errors of any type for damaged files
        raise Undecodable(_why(error)) from error


def reduction_within(side: int, least: int) -> int:
    """The largest factor by which a side of so many pixels keeps at least `least`."""
    return next((factor for factor in REDUCTIONS if factor * least <= side), 1)


def most_reduced(width: int, height: int) -> int:
    """The reduction that only looks whether a file decodes."""
    return REDUCTIONS[0]


def content_of(path: str | Path) -> bytes:
    """The bytes of a file. Raises Undecodable."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Undecodable(_why(error)) from error


def check_file(path: str | Path) -> None:
    """Like `upright`, but decodes only if a look at both ends of the file leaves doubt.

    Finds files that cannot be opened, have a refused mode or were cut short. Does not find bytes
    altered in the middle of a JPEG, PNG, GIF or WebP file. Raises Undecodable.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.mode == "F" or not _ends_well(file, image.format or ""):
                image.draft("RGB", (1, 1))
                image.load()
                as_rgb(image)
    except Exception as error:  # as above
        raise Undecodable(_why(error)) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """The image's pixels as 8-bit RGB, by the rules above, in stored orientation; may return
    `image`."""
    if getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (1,))[0] == SIGNED:
        raise ValueError("its integers are signed, which leaves white undefined; save 8 bits")
    if image.mode == "F":
        image = _from_floats(image)
    elif image.mode.startswith("I"):
        image = _from_integers(image)
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(
    image: Image.Image, content: bytes, reduction: Reduction, decoder: Decoder
) -> np.ndarray:
    pixels = None
    if image.format in JPEGS:
        lying = _orientation(image) in SIDEWAYS
        factor = reduction(*(image.size[::-1] if lying else image.size))
        pixels = decoder.pixels(image, content, factor)
        image.draft("RGB", (max(1, image.width // factor), max(1, image.height // factor)))
    if pixels is None:
        # Loaded before the orientation is read: TIFF's reader turns the pixels while loading, and
        # PNG's EXIF block may come after the pixels.
        image.load()
        pixels = np.array(as_rgb(image))
    turn = TURNS.get(_orientation(image))
    return pixels if turn is None else turn(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # a damaged EXIF block makes Pillow raise errors of any type
        return UPRIGHT


def _from_integers(image: Image.Image) -> Image.Image:
    """Converts grey of more than 8 bits to L, or LA if one grey is marked as transparent."""
    bits, white_is_zero = 16, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2[BITS_PER_SAMPLE][0]
        white_is_zero = image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    # Pillow widens 16-bit PGM to 32 bits, scaled to 0 .. 65,535 whatever its largest value is.
    if bits > 16 or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        raise ValueError(f"its integers have 32 bits (mode {image.mode}); save 8 or 16 bits")
    values = np.asarray(image).astype(np.uint16)
    grey = (values >> (bits - 8)).astype(np.uint8)
    shown = Image.fromarray(255 - grey if white_is_zero else grey)
    if "transparency" in image.info:
        opaque = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
        shown.putalpha(Image.fromarray(opaque))
    return shown


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    # Written so that NaN fails the test.
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"its floats (mode F) go from {values.min():g} to {values.max():g}, but brightness "
            f"goes from 0 to 1; scale them or save 8 or 16 bits"
        )
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = 1 - values
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _over_white(image: Image.Image) -> Image.Image:
    # Pillow cannot convert premultiplied grey to RGBA directly, and its indirect way loses the
    # alpha.
    coloured = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    white = Image.new("RGBA", coloured.size, "white")
    return Image.alpha_composite(white, coloured).convert("RGB")


def _ends_well(file: BinaryIO, kind: str) -> bool:
    """Whether the file visibly reaches the end of its format; False if that cannot be seen."""
    here = file.tell()
    length = file.seek(0, os.SEEK_END)
    if kind == "WEBP":
        file.seek(4)
        ends = int.from_bytes(file.read(4), "little") + 8 == length
    else:
        last = LAST_BYTES.get(kind, b"")
        file.seek(max(length - len(last), 0))
        ends = bool(last) and file.read() == last
    file.seek(here)
    return ends


def _why(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its content is not an image that Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
