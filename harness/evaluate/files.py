"""Image files by number, cut as the validation of a run cuts its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.config import DataConfig
from harness.data.cut import Frame, picture
from harness.data.decoder import Decoder, open_decoder
from harness.data.image_folder import validation_frame
from harness.data.picture_source import CHANNELS, Threads
from harness.data.pixels import Undecodable, content_of
from harness.errors import UserError
from harness.evaluate.trained import BATCH


@dataclass(frozen=True)
class ImageFiles:
    """Files that are decoded on demand, in threads."""

    paths: Sequence[Path]
    size: int
    """Height and width of the images, pixels."""
    frame: Frame
    decoder: Decoder

    @classmethod
    def of(cls, paths: Sequence[Path], config: DataConfig) -> "ImageFiles":
        size, frame = config.size_in_validation, validation_frame(config)
        return cls(paths, size, frame, open_decoder(config.decoder))

    def batches(self) -> Iterator[Tensor]:
        """All of them in order, uint8 [B, 3, size, size]. Raises UserError for a file that cannot
        be read."""
        threads = Threads()
        for start in range(0, len(self.paths), BATCH):
            found = threads.map(self._image, self.paths[start : start + BATCH])
            yield torch.stack(found)

    def _image(self, path: Path) -> Tensor:
        try:
            pixels = picture(content_of(path), self.frame, self.size, self.decoder)
        except (OSError, Undecodable) as error:
            raise UserError(f"cannot read the image {path}: {error}; replace it") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        assert len(image) == CHANNELS
        return image
