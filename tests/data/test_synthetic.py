"""Benchmark noise: a function of the index, with labels spread over the classes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import DataConfig
from harness.data.shares import BatchSplit
from harness.data.synthetic import WINDOWS, NoiseSource, open_synthetic


def test_an_image_depends_on_its_index_alone():
    one, two = (NoiseSource(0, 1000, 7, 16) for _ in range(2))
    together, labels = one.read(torch.tensor([3, 999, 5]))
    alone, label = two.read(torch.tensor([999]))
    assert torch.equal(together[1], alone[0])
    assert labels[1] == label[0]
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.uint8


def test_images_differ_and_are_noise():
    images, _ = NoiseSource(0, 3 * WINDOWS, 7, 8).read(torch.arange(0, 3 * WINDOWS, 97))
    assert len(images.flatten(1).unique(dim=0)) == len(images)
    assert abs(images.float().mean() - 127.5) < 1
    assert abs(images.float().std() - 73.9) < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5000), st.integers(0, 10**6))
def test_neighbours_have_each_label_once(num_classes, first):
    _, labels = NoiseSource(0, 10**7, num_classes, 8).read(first + torch.arange(num_classes))
    assert torch.equal(labels.sort().values, torch.arange(num_classes))


def test_every_slice_of_classes_gets_its_part_of_a_micro_batch():
    dataset = open_synthetic(DataConfig(dataset="synthetic", num_classes=1000, image_size=8))
    shares = BatchSplit(len(dataset.train), 256, 0, 1, seed=0)
    _, labels = dataset.train.read(shares.indices(0))
    positives = (labels // 250).bincount(minlength=4)  # 64 in each of four slices on average
    assert positives.min() > 35


def test_validation_has_other_images():
    dataset = open_synthetic(DataConfig(dataset="synthetic", synthetic_images=320, image_size=8))
    train, _ = dataset.train.read(torch.arange(320))
    validation, _ = dataset.validation["validation"].read(torch.arange(20))
    both = torch.cat([train, validation]).flatten(1)
    assert len(both.unique(dim=0)) == 340
