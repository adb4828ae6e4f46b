"""Which program decodes JPEGs, the files that photographs are in.

Pillow and simplejpeg both run libjpeg-turbo with the same settings: what simplejpeg decodes is
equal to Pillow's result to the bit, and tests compare the two. simplejpeg takes half the time. It
decodes only what it finds without a flaw; all else is left to Pillow, which decides whether a file
is readable.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import PIL
from PIL import Image

from harness.data.images import Part
from harness.errors import UserError

PLAIN = ("RGB", "L")
"""Pillow's modes of JPEGs that are brightness with or without two colour channels; CMYK is not."""


@dataclass(frozen=True)
class Decoder:
    """A program that decodes JPEGs."""

    name: str
    version: str
    library: ModuleType | None = None

    @property
    def part(self) -> Part:
        """By which ranks compare what they decode with."""
        return Part("the decoder", f"{self.name} {self.version}")

    def pixels(self, image: Image.Image, content: bytes, factor: int) -> np.ndarray | None:
        """The RGB pixels of the file `content`, which `image` has opened, as they are stored:
        uint8 [height, width, 3], reduced by `factor`. None leaves it to Pillow."""
        if self.library is None or image.mode not in PLAIN:
            return None
        smallest = {
            "min_height": -(-image.height // factor),
            "min_width": -(-image.width // factor),
        }
        try:
            pixels: np.ndarray = self.library.decode_jpeg(
                content, "RGB", min_factor=factor, **smallest
            )
        except ValueError:
            return None
        return pixels


PILLOW = Decoder("pillow", PIL.__version__)


def open_decoder(asked: str) -> Decoder:
    """The decoder `data.decoder` asks for; `auto` is simplejpeg where it is installed.

    Raises UserError if it is not installed.
    """
    if asked == "pillow":
        return PILLOW
    try:
        library = importlib.import_module("simplejpeg")
    except ImportError as error:
        if asked == "auto":
            return PILLOW
        raise UserError(
            f"data.decoder={asked} is not installed here ({error}); install it, or set "
            f"data.decoder=auto"
        ) from error
    return Decoder("simplejpeg", library.__version__, library)
