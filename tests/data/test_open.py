"""Every data set the config can name opens, and keeps the promises of a Dataset."""

from typing import get_args

import pytest
import torch

from harness.config import DataConfig
from harness.data.open import OPENERS, open_dataset
from harness.seeding import seeded_generator
from tests.data.test_fashion_mnist import write_files
from tests.data.test_folder import write_tree


@pytest.fixture
def configs(tmp_path):
    for name in ("folder", "idx"):
        (tmp_path / name).mkdir()
    write_tree(tmp_path / "folder")
    write_files(tmp_path / "idx", packed=True)
    changes = {
        "glyphs": {"num_classes": 12, "cache": str(tmp_path / "cache")},
        "image_folder": {"num_classes": 3, "root": str(tmp_path / "folder")},
        "fashion_mnist": {"num_classes": 10, "root": str(tmp_path / "idx")},
        "synthetic": {"num_classes": 12, "synthetic_images": 50},
    }
    return {
        name: DataConfig(dataset=name, image_size=24, **values) for name, values in changes.items()
    }


def test_every_name_of_the_config_has_an_opener():
    assert set(OPENERS) == set(get_args(DataConfig.model_fields["dataset"].annotation))


@pytest.mark.parametrize("name", sorted(OPENERS))
def test_promises_of_a_dataset(configs, name):
    dataset = open_dataset(configs[name])
    assert dataset.num_classes == configs[name].num_classes
    for source in (dataset.train, *dataset.validation.values()):
        indices = torch.arange(len(source)).flip(0)[:5]
        images, labels = source.read(indices)
        assert images.shape == (len(indices), dataset.channels, 24, 24)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert 0 <= labels.min() <= labels.max() < dataset.num_classes
        images.zero_()
        assert source.read(indices)[0].max() > 0  # what is read is the caller's own
    batch = dataset.train.read(torch.arange(8))[0].float() / 255
    assert dataset.augment(batch, seeded_generator(0, "test")).shape == batch.shape
