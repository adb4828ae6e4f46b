"""The recipe `imagenet`: how torchvision's models see photographs, in training and validation.

In training a random part of the picture, of random shape, is scaled to the image's size and half of
the time mirrored; in validation it is the middle of the picture.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data.cut import Box, Cut, Frame, middle
from harness.data.levels import HALF, Levels

# Shape letters: B images, H rows, W columns.

LEVELS = Levels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's images, red, green and blue."""
CENTRE = 0.875
"""Side of the middle square that validation takes, as a share of the shorter side: 224 of 256."""
AREAS = 0.08, 1.0
"""Smallest and largest part of the picture, as a share of its area."""
SHAPES = 3 / 4, 4 / 3
"""Least and greatest width of a part over its height."""
MIRRORED = 0.5
"""Chance of mirroring."""
TRIES = 10
"""Parts that are drawn until one lies in the picture."""

Alteration = Callable[[Tensor, torch.Generator], Tensor]
"""Of a batch of images, by draws from a generator; may be in place."""


@dataclass(frozen=True)
class Recipe:
    """How pictures become what the network sees."""

    frame: Frame
    """In validation, and wherever nothing is random."""
    augment: Alteration | None = None
    """As in `Dataset`."""
    alter: Alteration | None = None
    """As in `Dataset`."""
    draw: Callable[[int, torch.Generator], Sequence[Cut]] | None = None
    """Random cuts of that many pictures to train on."""
    levels: Levels = HALF


def centre(width: int, height: int) -> Box:
    """The middle square that validation takes."""
    side = max(1, round(CENTRE * min(width, height)))
    return middle(width, height, side, side)


@dataclass(frozen=True)
class RandomPart:
    """A random part of a picture, as torchvision's RandomResizedCrop takes it."""

    numbers: Sequence[Sequence[float]]
    """For each try four numbers from 0 to 1, uniform: area, shape, place across and down."""

    def __call__(self, width: int, height: int) -> Box:
        low, high = (math.log(shape) for shape in SHAPES)
        for area, shape, across, down in self.numbers:
            pixels = width * height * (AREAS[0] + area * (AREAS[1] - AREAS[0]))
            ratio = math.exp(low + shape * (high - low))
            wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                left = int(across * (width - wide + 1))
                top = int(down * (height - tall + 1))
                return left, top, left + wide, top + tall
        return self._largest(width, height)

    def _largest(self, width: int, height: int) -> Box:
        """The largest part in the middle whose shape is allowed."""
        wide = max(1, min(width, round(height * SHAPES[1])))
        tall = max(1, min(height, round(width / SHAPES[0])))
        return middle(width, height, wide, tall)


def random_cuts(count: int, generator: torch.Generator) -> list[Cut]:
    """`count` random parts, some mirrored, drawn from a generator of the CPU."""
    numbers = torch.rand(count, TRIES, 4, generator=generator).tolist()
    mirrored = (torch.rand(count, generator=generator) < MIRRORED).tolist()
    return [Cut(RandomPart(each), turned) for each, turned in zip(numbers, mirrored, strict=True)]


@dataclass(frozen=True)
class OneAfterAnother:
    """Several alterations, which draw from one generator."""

    alterations: Sequence[Alteration]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        for alter in self.alterations:
            images = alter(images, generator)
        return images


@dataclass(frozen=True)
class RandomErasing:
    """Paints a rectangle of some images in the mean colour, as torchvision's RandomErasing with
    value 0 behind the normalisation does.

    Images are uint8 [B, 3, height, width] on any device, and change in place; the generator is the
    CPU's.
    """

    chance: float = 0.1
    areas: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest rectangle, as a share of the image's area."""
    shapes: tuple[float, float] = (0.3, 3.3)
    """Least and greatest height of a rectangle over its width."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        drawn = torch.rand(5, batch, generator=generator).to(images.device)
        area_B, shape_B, down_B, across_B, chance_B = drawn
        pixels_B = height * width * _between(area_B, *self.areas)
        ratio_B = _between(shape_B, *map(math.log, self.shapes)).exp()
        rows_BH = _span(height, (pixels_B * ratio_B).sqrt(), down_B)
        columns_BW = _span(width, (pixels_B / ratio_B).sqrt(), across_B)
        erased_BHW = rows_BH[:, :, None] & columns_BW[:, None, :]
        erased_BHW &= (chance_B < self.chance).view(-1, 1, 1)
        for channel, mean in zip(images.unbind(1), LEVELS.mean, strict=True):
            channel.masked_fill_(erased_BHW, round(255 * mean))
        return images


def _between(uniform: Tensor, low: float, high: float) -> Tensor:
    return low + uniform * (high - low)


def _span(side: int, length_B: Tensor, place_B: Tensor) -> Tensor:
    """Which of `side` pixels lie in a stretch of this length, bool [B, side]."""
    length_B = length_B.round().clamp_(1, side)
    first_B = (place_B * (side - length_B + 1)).floor_()
    pixels = torch.arange(side, device=length_B.device)
    return (pixels >= first_B[:, None]) & (pixels < (first_B + length_B)[:, None])
