"""Section `data`: the images, how they are prepared and how they are read."""

from typing import Annotated, Literal

from pydantic import Field

from harness.config.section import PathText, Section
from harness.config.sections.values import PerHost


class DataConfig(Section):
    dataset: Literal["glyphs", "image_folder", "fashion_mnist", "synthetic"] = "glyphs"
    """Data set: printed characters, an ImageFolder tree, Fashion-MNIST files, or noise."""
    root: Annotated[PathText | None, PerHost()] = None
    """Folder of `image_folder` (contains train/ and val/) or of the `fashion_mnist` idx files."""
    num_classes: int = Field(default=1000, ge=2, le=10**9)
    """Number of classes. Glyphs: the first characters in GB2312 order, at most 20,902."""
    image_size: int = Field(default=32, ge=8, le=16_384)
    """Height and width of an image, pixels."""
    augment: float = Field(default=1.0, ge=0, le=100)
    """Strength of the training augmentation: 0 disables it, 1 is the design, above 1 is harder."""
    train_fonts: Annotated[tuple[PathText, ...], PerHost()] = ()
    """Glyphs: more font files, or folders of them, to train on."""
    validation_fonts: Annotated[tuple[PathText, ...], PerHost()] = ()
    """Glyphs: more font files, or folders of them, for the validation set of unseen designs."""
    cache: Annotated[PathText, PerHost()] = ".cache/data"
    """Folder of the prepared images and of the list of readable image files."""
    verify: Literal["headers", "full", "none"] = "headers"
    """image_folder: check of the image files before training. headers: opens each file, reads it to
    its end if it is not where it was before, and decodes those of val/. full: decodes all files."""
    decoder: Literal["auto", "pillow", "simplejpeg"] = "auto"
    """image_folder: program that decodes JPEGs. All give the same pixels to the bit; auto is
    simplejpeg, the faster one, where it is installed."""
    synthetic_images: int = Field(default=65536, ge=1, le=10**9)
    """Synthetic: images in an epoch."""
    prefetch: int = Field(default=2, ge=0, le=1000)
    """Micro-batches that are read ahead of the step for a GPU, and decoded ahead of it for any
    device; 0 reads them within the step."""
