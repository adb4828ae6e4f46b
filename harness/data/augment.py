"""Random augmentation of training images, a whole batch at once, on any device.

Draws come from a generator of the CPU, so that they are the same for every device.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.parallel.host_memory import up

# Shape letters: B images, C channels, H rows, W columns, K functions on the image's plane.

WAVES = 4
"""The bend is a sum of cosines with 0 .. WAVES - 1 half waves in each direction."""


@dataclass(frozen=True)
class GlyphAugmentation:
    """Shifts, scales, rotates, shears and bends; blurs; thickens or thins; fades; adds noise.

    Each range grows in proportion to `strength`; with 0 images are unchanged. Black is the paper
    and fills the borders. Images are float32 in [0, 1], and so is the result. Only the grain of the
    noise is another one on a card than on a CPU.
    """

    strength: float
    shift: float = 0.12
    """Largest shift, as a share of half the image's side."""
    scale: float = 0.15
    """Largest scale as a natural logarithm, common to both axes; up to half as much stretches one
    axis and shrinks the other."""
    rotation: float = 0.12
    """Largest angle, radians."""
    shear: float = 0.15
    """Largest shear, as a tangent."""
    bend: float = 0.02
    """Standard deviation of each wave, as a share of half the image's side."""
    blur: float = 0.25
    """Largest share that a pixel gives to each of its neighbours; rows and columns differ."""
    thickness: float = 0.2
    """Largest shift of the grey levels: upward fills strokes, downward thins them."""
    fade: float = 0.3
    """Largest loss of contrast."""
    noise: float = 0.1
    """Largest standard deviation of the noise."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.strength == 0:
            return images
        grid_BHW2 = self._grid(images, generator)
        images = F.grid_sample(images, grid_BHW2, align_corners=False)
        uniform_B5 = up(torch.rand(len(images), 5, generator=generator), images.device)
        images = self._blurred(images, uniform_B5[:, :2])
        images = self._restroked(images, uniform_B5[:, 2:4])
        sigma = (uniform_B5[:, 4] * self.noise * self.strength).view(-1, 1, 1, 1)
        grain = torch.empty_like(images).normal_(generator=_beside(images, generator))
        return images.addcmul_(grain, sigma).clamp_(0, 1)

    def _grid(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The source position of each pixel, [B, H, W, 2], as a linear combination of
        `plane_functions`."""
        batch, _, height, width = images.shape
        device, s = images.device, self.strength
        u = up(torch.rand(batch, 6, generator=generator), device).mul_(2).sub_(1).mul_(s)
        growth_x = torch.exp(self.scale * (u[:, 0] + 0.5 * u[:, 1]))
        growth_y = torch.exp(self.scale * (u[:, 0] - 0.5 * u[:, 1]))
        angle, lean = self.rotation * u[:, 2], self.shear * u[:, 3]
        affine_B23 = torch.stack(
            [
                torch.cos(angle) * growth_x,
                (torch.cos(angle) * lean - torch.sin(angle)) * growth_x,
                self.shift * u[:, 4],
                torch.sin(angle) * growth_y,
                (torch.sin(angle) * lean + torch.cos(angle)) * growth_y,
                self.shift * u[:, 5],
            ],
            dim=1,
        ).view(batch, 2, 3)
        waves = up(torch.randn(batch, 2, WAVES**2 - 1, generator=generator), device)
        coefficients_B2K = torch.cat([affine_B23, waves.mul_(self.bend * s)], dim=2)
        functions_KP = plane_functions(height, width, device)
        grid_B2P = coefficients_B2K.flatten(0, 1) @ functions_KP
        return grid_B2P.view(batch, 2, height, width).permute(0, 2, 3, 1)

    def _blurred(self, images: Tensor, uniform_B2: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        side_B2 = uniform_B2 * min(self.blur * self.strength, 1 / 3)
        taps_B23 = torch.stack([side_B2, 1 - 2 * side_B2, side_B2], dim=2)
        kernels = taps_B23[:, 0, :, None] * taps_B23[:, 1, None, :]
        kernels = kernels[:, None].repeat_interleave(channels, dim=0)
        rows = images.reshape(1, batch * channels, height, width)
        return F.conv2d(rows, kernels, padding=1, groups=batch * channels).view_as(images)

    def _restroked(self, images: Tensor, uniform_B2: Tensor) -> Tensor:
        """Stretches grey levels from one end, which thickens or thins the strokes, then fades
        them."""
        level_B = (2 * uniform_B2[:, 0] - 1) * min(self.thickness * self.strength, 0.45)
        slope_B = 1 / (1 - 2 * level_B.abs())
        # Paper stays 0 and full ink stays 1: level > 0 lifts the greys, level < 0 lowers them.
        offset_B = (level_B - 0.5) * slope_B + 0.5
        images = images.mul_(slope_B.view(-1, 1, 1, 1)).add_(offset_B.view(-1, 1, 1, 1))
        remaining_B = 1 - uniform_B2[:, 1] * min(self.fade * self.strength, 0.9)
        return images.clamp_(0, 1).mul_(remaining_B.view(-1, 1, 1, 1))


@dataclass(frozen=True)
class CropAndFlip:
    """Crops the image's size out of the padded image, and mirrors it half of the time.

    The margin and the chance of mirroring grow in proportion to `strength`.
    """

    strength: float
    margin: float = 0.125
    """Black margin on each side, as a share of the image's side."""
    mirror: float = 0.5
    """Chance of mirroring."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.strength == 0:
            return images
        batch, _, height, width = images.shape
        pads = [round(self.margin * self.strength * side) for side in (height, width)]
        uniform_3B = up(torch.rand(3, batch, generator=generator), images.device)
        top_B, left_B = (
            (uniform_B * (2 * pad + 1)).long().clamp_(max=2 * pad)
            for uniform_B, pad in zip(uniform_3B, pads, strict=False)
        )
        padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]))
        # All crops as a view, [B, C, tops, lefts, H, W]; indexing it copies whole rows.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        cropped = crops[torch.arange(batch, device=images.device), :, top_B, left_B]
        mirrored_B = uniform_3B[2] < min(self.mirror * self.strength, 0.5)
        return torch.where(mirrored_B.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def _beside(images: Tensor, generator: torch.Generator) -> torch.Generator:
    """A generator of the images' device, for a number for each pixel: drawing these on the host
    would take longer than all else takes a card. On a CPU it is `generator` itself."""
    if not images.is_cuda:
        return generator
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.Generator(images.device).manual_seed(seed)


@lru_cache(maxsize=8)
def plane_functions(height: int, width: int, device: torch.device) -> Tensor:
    """x, y, 1 and cosines at the pixels' centres, in grid_sample's coordinates: [K, H * W]."""
    y, x = torch.meshgrid(_centres(height), _centres(width), indexing="ij")
    waves = [
        torch.cos(math.pi / 2 * i * (y + 1)) * torch.cos(math.pi / 2 * j * (x + 1))
        for i in range(WAVES)
        for j in range(WAVES)
        if i or j
    ]
    return torch.stack([x, y, torch.ones_like(x), *waves]).flatten(1).to(device)


def _centres(length: int) -> Tensor:
    return (2 * torch.arange(length) + 1) / length - 1
