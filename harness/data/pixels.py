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
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

VERSION = 1
"""Version of the rules; incremented whenever a file would be refused or accepted differently."""

ORIENTATION, UPRIGHT = 0x0112, 1
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that undoes each EXIF orientation except 1, which is upright."""

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


def middle_square(path: str | Path, size: int) -> np.ndarray:
    """The middle of the image as it is shown, uint8 [size, size, 3].

    Raises Undecodable.
    """
    try:
        # Given a name, Pillow maps plain TIFFs into memory and mixes up the rows of those that its
        # reader has to turn by a quarter; given an open file, it reads them correctly.
        with open(path, "rb") as file, Image.open(file) as image:
            return _square(image, size)
    except Exception as error:  # Pillow raises errors of any type for damaged files
        raise Undecodable(_why(error)) from error


def check_file(path: str | Path, size: int) -> None:
    """Like `middle_square`, but decodes only if a look at both ends of the file leaves doubt.

    Finds files that cannot be opened, have a refused mode or were cut short. Does not find bytes
    altered in the middle of a JPEG, PNG, GIF or WebP file. Raises Undecodable.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            if image.mode == "F" or not _ends_well(file, image.format or ""):
                _square(image, size)
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


def _square(image: Image.Image, size: int) -> np.ndarray:
    # A JPEG can be decoded at a half, a quarter or an eighth, much faster.
    image.draft("RGB", (size, size))
    # Loaded before the orientation is read: TIFF's reader turns the pixels while loading, and PNG's
    # EXIF block may come after the pixels.
    image.load()
    shown, turn = as_rgb(image), TURNS.get(_orientation(image))
    if turn is not None:
        shown = shown.transpose(turn)
    box = _middle(shown.size)
    return np.asarray(shown.resize((size, size), Image.Resampling.BILINEAR, box))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # a damaged EXIF block makes Pillow raise errors of any type
        return UPRIGHT


def _middle(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The largest square in the middle of an image: left, top, right, bottom."""
    width, height = size
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


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
