"""From the config's words to a data set."""

from harness.config import DataConfig
from harness.data.fashion_mnist import open_fashion_mnist
from harness.data.folder import open_image_folder
from harness.data.glyphs import open_glyphs
from harness.data.images import Dataset
from harness.data.synthetic import open_synthetic

OPENERS = {
    "glyphs": open_glyphs,
    "image_folder": open_image_folder,
    "fashion_mnist": open_fashion_mnist,
    "synthetic": open_synthetic,
}


def open_dataset(config: DataConfig) -> Dataset:
    """The data set that the config names. Communicates nothing.

    Raises UserError for whatever is missing or does not fit.
    """
    return OPENERS[config.dataset](config)
