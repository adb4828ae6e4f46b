"""Section `data`: the images, how they are prepared and how they are read."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.section import PathText, Section
from harness.config.sections.values import PerHost

TWO_LABELS = ("mixup", "cutmix")
"""Extras of torchvision's that give an image two labels."""


class DataConfig(Section):
    dataset: Literal["glyphs", "image_folder", "fashion_mnist", "synthetic"] = "glyphs"
    """Data set: printed characters, an ImageFolder tree, Fashion-MNIST files, or noise."""
    root: Annotated[PathText | None, PerHost()] = None
    """Folder of `image_folder` (contains train/ and val/) or of the `fashion_mnist` idx files."""
    num_classes: int = Field(default=1000, ge=2, le=10**9)
    """Number of classes. Glyphs: the first characters in GB2312 order, at most 20,902."""
    image_size: int = Field(default=32, ge=8, le=16_384)
    """Height and width of an image, pixels."""
    validation_size: int | None = Field(default=None, ge=8, le=16_384)
    """image_folder: height and width of an image in validation, pixels; null: image_size."""
    recipe: Literal["own", "imagenet"] = "own"
    """own: the data set's own augmentation; image_folder: the middle square, shifted and mirrored.
    imagenet: image_folder as torchvision trains its models on: random parts of random shape,
    mirrored; validation on the middle; the mean and deviation of ImageNet."""
    extras: tuple[Literal["trivial_augment", "random_erasing", "mixup", "cutmix"], ...] = ()
    """What recipe=imagenet does besides: trivial_augment (wide), random_erasing (chance 0.1)."""
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
    on_corrupt: Literal["stop", "skip"] = "stop"
    """image_folder: what an image file that cannot be read does. stop: ends the run, before the
    training where `verify` finds it. skip: the next readable file of its class replaces it."""
    class_balance: float = Field(default=0.0, ge=0, le=1)
    """How far rare classes come as often as others: a class with n images comes in proportion to
    n ** (1 - class_balance). 0: every image once in an epoch; 1: all classes equally often."""
    decoder: Literal["auto", "pillow", "simplejpeg"] = "auto"
    """image_folder: program that decodes JPEGs. All give the same pixels to the bit; auto is
    simplejpeg, the faster one, where it is installed."""
    synthetic_images: int = Field(default=65536, ge=1, le=10**9)
    """Synthetic: images in an epoch."""
    prefetch: int = Field(default=2, ge=0, le=1000)
    """Micro-batches that are read ahead of the step for a GPU, and decoded ahead of it for any
    device; 0 reads them within the step."""

    @property
    def size_in_validation(self) -> int:
        """Height and width of an image in validation, pixels."""
        return self.validation_size or self.image_size

    @model_validator(mode="after")
    def _recipe_fits(self) -> "DataConfig":
        folder = self.dataset == "image_folder"
        for key, usual in (("recipe", "own"), ("validation_size", None)):
            if getattr(self, key) != usual and not folder:
                raise ValueError(
                    f"data.{key}={getattr(self, key)} belongs to data.dataset=image_folder, "
                    f"data.dataset is {self.dataset}; leave it out"
                )
        if self.extras and self.recipe != "imagenet":
            raise ValueError(
                f"data.extras belongs to data.recipe=imagenet, data.recipe is {self.recipe}; set "
                f"recipe=imagenet or leave extras out"
            )
        if self.recipe == "imagenet" and self.augment not in (0, 1):
            raise ValueError(
                f"data.recipe=imagenet has no strength: data.augment is {self.augment:g}; set it "
                f"to 1, or to 0 for none"
            )
        return self

    @model_validator(mode="after")
    def _one_label(self) -> "DataConfig":
        for extra in TWO_LABELS:
            if extra in self.extras:
                raise ValueError(
                    f"data.extras={extra} gives an image two labels, and the loss over sliced "
                    f"classes takes one: a second would double the classifier's work, which is "
                    f"what is measured here; use trivial_augment or random_erasing"
                )
        return self
