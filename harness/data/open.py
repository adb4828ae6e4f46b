"""Opens the data set that the config names."""

from harness.config import DataConfig
from harness.data import fashion_mnist, glyphs, picture_source, synthetic
from harness.data.fashion_mnist import open_fashion_mnist
from harness.data.glyphs import open_glyphs
from harness.data.image_folder import open_image_folder
from harness.data.images import Dataset
from harness.data.synthetic import open_synthetic

OPENERS = {
    "glyphs": open_glyphs,
    "image_folder": open_image_folder,
    "fashion_mnist": open_fashion_mnist,
    "synthetic": open_synthetic,
}
CHANNELS = {
    "glyphs": glyphs.CHANNELS,
    "image_folder": picture_source.CHANNELS,
    "fashion_mnist": fashion_mnist.CHANNELS,
    "synthetic": synthetic.CHANNELS,
}


def open_dataset(config: DataConfig) -> Dataset:
    """The data set that the config names. Does not communicate.

    Raises UserError for anything that is missing or does not fit.
    """
    return OPENERS[config.dataset](config)


def channels_of(config: DataConfig) -> int:
    """Channels of the images of the data set that the config names, found without opening it."""
    return CHANNELS[config.dataset]
