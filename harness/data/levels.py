"""The mean and deviation by which brightness becomes what the network takes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """One mean and deviation for all channels, or one for each, of brightness from 0 to 1."""

    mean: tuple[float, ...] = (0.5,)
    deviation: tuple[float, ...] = (0.5,)

    def of_floats(self, images: Tensor) -> Tensor:
        """Images [B, channels, height, width] in [0, 1], in place."""
        if len(self.mean) == 1:
            return images.sub_(self.mean[0]).div_(self.deviation[0])
        for channel, mean, deviation in self._channels(images):
            channel.sub_(mean).div_(deviation)
        return images

    def of_bytes(self, images: Tensor) -> Tensor:
        """Images uint8 [B, channels, height, width] as float32."""
        if len(self.mean) == 1:
            return self.of_floats(images.float().div_(255))
        floats = torch.empty(images.shape, device=images.device)
        # On a CPU image by image, because one image stays in the cache and a batch does not.
        together = 1 if images.device.type == "cpu" else len(images)
        for few, result in zip(images.split(together), floats.split(together), strict=True):
            result.copy_(few)
            for channel, mean, deviation in self._channels(result):
                channel.mul_(1 / (255 * deviation)).sub_(mean / deviation)
        return floats

    def _channels(self, images: Tensor) -> "zip[tuple[Tensor, float, float]]":
        # Numbers, not a tensor of three, which would have to be copied to a card.
        return zip(images.unbind(1), self.mean, self.deviation, strict=True)


HALF = Levels()
"""Maps [0, 1] to [-1, 1]."""
