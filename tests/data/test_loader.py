"""Batches arrive in order, as the shares say; a reader's thread neither hides errors nor stays."""

import itertools
import threading
import traceback
from dataclasses import replace

import pytest
import torch

from harness.config import DataConfig
from harness.data.levels import Levels
from harness.data.loader import (
    Augmentation,
    evaluation_batches,
    read_ahead,
    train_batches,
)
from harness.data.open import open_dataset
from harness.data.shares import BatchSplit

CPU = torch.device("cpu")
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def dataset():
    return open_dataset(
        DataConfig(dataset="synthetic", synthetic_images=200, num_classes=10, image_size=8)
    )


def first(batches, count):
    taken = [(images.cpu(), labels.cpu()) for images, labels in itertools.islice(batches, count)]
    batches.close()
    return taken


def batches_of(dataset, *, rank=0, world_size=2, batch_size=8, seed=5, augment=True, **options):
    shares = BatchSplit(len(dataset.train), batch_size, rank, world_size, seed=5)
    augmentation = Augmentation(seed, rank) if augment else None
    return train_batches(dataset, shares, augmentation=augmentation, **{"device": CPU} | options)


def assert_equal(one, other):
    for (images_a, labels_a), (images_b, labels_b) in zip(one, other, strict=True):
        assert torch.equal(images_a, images_b)
        assert torch.equal(labels_a, labels_b)


def test_images_are_those_of_the_shares_in_the_backbones_range(dataset):
    shares = BatchSplit(len(dataset.train), 8, 1, 2, seed=5)
    for t, (images, labels) in enumerate(first(batches_of(dataset, rank=1, augment=False), 30)):
        expected, expected_labels = dataset.train.read(shares.indices(t))
        torch.testing.assert_close(images, expected.float() / 127.5 - 1)
        assert torch.equal(labels, expected_labels)


def test_normalise_maps_black_and_white_to_the_ends():
    assert Levels().of_floats(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


def test_starting_later_gives_the_same_as_going_on(dataset):
    whole = first(batches_of(dataset), 30)
    assert_equal(whole[17:], first(batches_of(dataset, start=17), 13))


def test_augmentation_differs_between_ranks_micro_batches_and_seeds(dataset):
    images = torch.rand(8, 3, 8, 8)
    draws = []

    def recorded(batch, generator):
        draws.append(dataset.augment(images.clone(), generator).numpy().tobytes())
        return batch

    watched = type(dataset)(**{**vars(dataset), "augment": recorded})
    for rank, seed in itertools.product((0, 1), (5, 6)):
        first(batches_of(watched, rank=rank, seed=seed), 3)
    assert len(set(draws)) == len(draws) == 12
    first(batches_of(watched, rank=1, seed=6), 3)
    assert draws[-3:] == draws[-6:-3]


def test_augmentation_draws_on_the_cpu_whatever_the_device(dataset):
    """Here for a device that has no generators of its own."""
    seen = []

    def recorded(batch, generator):
        seen.append(generator.device)
        return dataset.augment(batch, generator)

    watched = replace(dataset, augment=recorded)
    elsewhere = first(batches_of(watched, device=torch.device("meta")), 3)
    assert seen == [CPU] * 3
    assert_equal(elsewhere, first(batches_of(dataset), 3))


def test_evaluation_counts_every_image_once_over_the_ranks(dataset):
    source = dataset.validation["validation"]
    everything, all_labels = source.read(torch.arange(len(source)))
    seen, seen_labels = [], []
    for rank in range(3):
        batches = evaluation_batches(source, rank=rank, world_size=3, batch_size=4, device=CPU)
        for images, labels, valid in batches:
            assert images.shape == (4, 3, 8, 8)
            seen.append(images[valid])
            seen_labels.append(labels[valid])
    torch.testing.assert_close(torch.cat(seen), everything.float() / 127.5 - 1)
    assert torch.equal(torch.cat(seen_labels), all_labels)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_read_ahead_keeps_order_and_ends():
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))
    assert not reading_threads()


def test_read_ahead_is_ahead_by_no_more_than_its_depth():
    made = []
    ahead_enough = threading.Event()

    def numbers():
        for number in itertools.count():
            made.append(number)
            if number == 7:
                ahead_enough.set()
            yield number

    ahead = read_ahead(numbers(), 3)
    for wanted in range(5):
        assert next(ahead) == wanted
    assert ahead_enough.wait(20)  # item 4 is out, 5, 6 and 7 are ready
    assert made[-1] == 7
    ahead.close()
    assert made[-1] == 7
    assert not reading_threads()


def fails_at(number):
    yield from range(number)
    raise ValueError("the disk is gone")


def test_an_error_in_the_thread_is_raised_in_the_caller_with_its_own_traceback():
    ahead = read_ahead(fails_at(2), 4)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="the disk is gone") as caught:
        next(ahead)
    assert "fails_at" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not reading_threads()


def test_a_caller_that_fails_ends_the_thread():
    def fail():
        for _ in read_ahead(itertools.count(), 2):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not reading_threads()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_decoding_ahead_changes_no_number(dataset, prefetch):
    ahead = batches_of(replace(dataset, decodes=True), start=5, prefetch=prefetch)
    next(ahead)
    assert len(reading_threads()) == (prefetch > 0)
    assert_equal(first(ahead, 30), first(batches_of(dataset, start=6), 30))
    assert not reading_threads()


def test_a_processor_does_not_read_ahead_what_is_ready(dataset):
    batches = batches_of(dataset, prefetch=3)
    next(batches)
    assert not reading_threads()


@pytest.mark.parametrize("prefetch", [1, 3])
def test_evaluating_ahead_changes_no_number(dataset, prefetch):
    source = dataset.validation["validation"]
    share = {"rank": 1, "world_size": 2, "batch_size": 1, "device": CPU}
    whole, ahead = (
        list(evaluation_batches(source, **share, prefetch=each)) for each in (0, prefetch)
    )
    assert len(whole) > prefetch
    for one, other in zip(whole, ahead, strict=True):
        assert all(map(torch.equal, one, other))
    assert not reading_threads()


@needs_card
@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_card_gets_what_a_cpu_gets(dataset, prefetch, augment):
    given = {"augment": augment, "prefetch": prefetch}
    on_card = batches_of(dataset, device=torch.device("cuda"), **given)
    assert_equal(first(on_card, 40), first(batches_of(dataset, augment=augment), 40))
    assert not reading_threads()


@needs_card
def test_a_busy_card_does_not_overwrite_batches_in_use(dataset):
    device = torch.device("cuda")
    weight = torch.rand(3000, 3000, device=device)
    ahead = batches_of(dataset, device=device, augment=False, prefetch=3)
    kept = []
    for images, labels in itertools.islice(ahead, 60):
        for _ in range(5):
            weight = (weight @ weight).clamp(0, 1)
        kept.append((images * 1, labels * 1))
        del images, labels
    ahead.close()
    cpu = [(images.cpu(), labels.cpu()) for images, labels in kept]
    assert_equal(cpu, first(batches_of(dataset, augment=False), 60))
