"""Cuts a rectangle out of a picture and scales it to the size that the network takes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from harness.data.decoder import PILLOW, Decoder
from harness.data.pixels import reduction_within, upright

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""
Frame = Callable[[int, int], Box]
"""Where to cut an upright picture, given its width and height. It is asked again for the reduced
picture where a JPEG is reduced while it is decoded."""


@dataclass(frozen=True)
class Cut:
    """How a picture becomes an image."""

    frame: Frame
    mirrored: bool = False


def middle(width: int, height: int, wide: int, tall: int) -> Box:
    """The part of this size in the middle of a picture."""
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def middle_square(width: int, height: int) -> Box:
    """The largest square in the middle."""
    side = min(width, height)
    return middle(width, height, side, side)


def picture(content: bytes, frame: Frame, size: int, decoder: Decoder = PILLOW) -> np.ndarray:
    """What `frame` cuts out of an image file, uint8 [size, size, 3]. Raises Undecodable."""

    def reduction(width: int, height: int) -> int:
        left, top, right, bottom = frame(width, height)
        return reduction_within(min(right - left, bottom - top), size)

    return cut(upright(content, reduction, decoder), frame, size)


def cut(pixels: np.ndarray, frame: Frame, size: int) -> np.ndarray:
    """What `frame` cuts out of pixels uint8 [height, width, 3], as uint8 [size, size, 3]."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = frame(width, height)
    return scaled(np.ascontiguousarray(pixels[top:bottom, left:right]), size, size)


def scaled(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Contiguous pixels uint8 [rows, columns, 3] as uint8 [height, width, 3].

    Bilinear; where it shrinks, each pixel is a weighted mean of all that it covers.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    result = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    return result[0].permute(1, 2, 0).numpy()
