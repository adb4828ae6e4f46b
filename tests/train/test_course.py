"""Laws of a resumed run: its length, images and learning rate go on from those before it."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import Config
from harness.data.shares import BatchSplit, Place
from harness.train.course import Course, course_of, what_changed

SEED = 3


@st.composite
def resumed(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Images in an epoch, world batches of two runs, and micro-batches of the first one."""
    first, second = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    length = draw(st.integers(max(first, second), 80))
    return length, first, second, draw(st.integers(0, 3 * (length // first)))


def world(length: int, ranks: int, batch: int, begun: Place) -> list[BatchSplit]:
    return [BatchSplit(length, batch, rank, ranks, SEED, begun) for rank in range(ranks)]


@given(resumed(), st.integers(1, 3))
def test_an_epoch_goes_on_with_what_was_not_seen(
    given: tuple[int, int, int, int], ranks: int
) -> None:
    """In whatever batches: no image twice in an epoch, and fewer than a batch left out."""
    length, first, batch, taken = given
    if length < ranks * batch:
        return
    before = BatchSplit(length, first, 0, 1, SEED)
    begun = before.place(taken)
    shares = world(length, ranks, batch, begun)
    whole = BatchSplit(length, length, 0, 1, SEED)
    for epoch in (begun.epoch, begun.epoch + 1):
        seen = [before.indices(t).tolist() for t in range(taken) if before.place(t).epoch == epoch]
        end = (epoch + 1) * shares[0].micro_batches_per_epoch
        start = max(shares[0].first, end - shares[0].micro_batches_per_epoch)
        seen += [each.indices(t).tolist() for t in range(start, end) for each in shares]
        images = list(chain(*seen))
        assert len(set(images)) == len(images)
        assert length - len(images) < ranks * batch
        assert set(images) <= set(whole.indices(epoch).tolist())
    assert shares[0].place(end) == Place(begun.epoch + 2)


@given(resumed())
def test_the_same_batches_go_on_as_if_nothing_had_been(given: tuple[int, int, int, int]) -> None:
    length, batch, _, taken = given
    whole = BatchSplit(length, batch, 0, 1, SEED)
    resumed = BatchSplit(length, batch, 0, 1, SEED, whole.place(taken))
    assert resumed.first == taken
    for t in range(taken, taken + 2 * whole.micro_batches_per_epoch + 1):
        assert resumed.place(t) == whole.place(t)
        assert resumed.indices(t).tolist() == whole.indices(t).tolist()


def config(passes: int = 1, batch: int = 4, **sections: dict[str, object]) -> Config:
    values: dict[str, dict[str, object]] = {
        "exchange": {"backward_passes_per_step": passes},
        "optimizer": {"lr": 1.0, "warmup_windows": 4},
        "train": {"batch_size": batch, "epochs": 4.0},
    }
    for name, section in sections.items():
        values[name] = values[name] | section
    return Config.model_validate(values)


def goes_on(before: Course, at: int, settings: Config, ranks: int, length: int = 160) -> Course:
    return course_of(settings, length, 0, ranks, at, before.passed(at))


@given(
    st.integers(1, 4),
    st.floats(0.5, 5.0),
    st.integers(0, 30),
    st.sampled_from(["cosine", "step", "constant"]),
    st.integers(0, 12),
    st.booleans(),
)
def test_a_run_with_the_same_numbers_is_the_same_run(
    passes: int, epochs: float, at: int, schedule: str, warmup: int, twice: bool
) -> None:
    length = {"epochs": epochs} if not twice else {"epochs": None, "steps": 40}
    settings = config(
        passes, train=length, optimizer={"schedule": schedule, "warmup_windows": warmup}
    )
    whole = course_of(settings, 150, 0, 2)
    at = min(at, whole.windows)
    later = goes_on(whole, at, settings, 2, 150)
    assert later.windows == whole.windows
    assert what_changed(later, whole.passed(at)) == ""
    for window in range(at, whole.windows + 1):
        assert later.lr(window) == whole.lr(window)
        assert later.images(window) == whole.images(window)
        assert later.micro_batch(window) == whole.micro_batch(window)
        assert later.passed(window) == whole.passed(window)


@pytest.mark.parametrize(("before", "after", "at", "left"), [(2, 1, 30, 100), (1, 2, 60, 50)])
def test_epochs_are_counted_in_images(before: int, after: int, at: int, left: int) -> None:
    """4 epochs of 160 images are 80 windows of 8 images or 160 of 4; behind are 240 images."""
    settings = config()
    first = course_of(settings, 160, 0, before)
    then = goes_on(first, at, settings, after)
    assert then.windows == at + left
    assert then.images(then.windows) == 640
    assert then.lr(at) == pytest.approx(first.lr(at), rel=1e-12), "the learning rate jumps"
    assert then.lr(then.windows) == pytest.approx(0.0, abs=1e-12)


def test_a_warm_up_goes_on_by_windows() -> None:
    first = course_of(config(), 160, 0, 1)
    then = goes_on(first, 2, config(), 2)
    assert [then.lr(window) for window in (2, 3, 4)] == [0.75, 1.0, 1.0]
    assert then.passed(2).warmup_images is None
    assert then.warmup_images == 2 * 4 + 2 * 8


def test_steps_are_counted_in_windows() -> None:
    """6 windows of 16 images and 6 of 8."""
    settings = config(batch=8, train={"epochs": None, "steps": 12})
    then = goes_on(course_of(settings, 256, 0, 2), 6, settings, 1, 256)
    assert (then.first, then.windows) == (6, 12)
    assert then.images(12) == 6 * 16 + 6 * 8 == 144
    assert then.shares.place(then.micro_batch(6)) == Place(0, 96)


def test_what_changed_is_one_line() -> None:
    first = course_of(config(), 160, 0, 2)
    then = goes_on(first, 10, config(passes=2).model_copy(update={"seed": 5}), 1, 170)
    line = what_changed(then, first.passed(10))
    assert line.startswith(
        "resumed at window 10, after 80 images, with ranks 1 instead of 2, "
        "exchange.backward_passes_per_step 2 instead of 1, seed 5 instead of 0, "
        "training images 170 instead of 160: the order of images changes"
    )
    assert "\n" not in line


def test_fewer_images_than_were_seen_of_the_epoch() -> None:
    first = course_of(config(), 160, 0, 1)
    then = goes_on(first, 39, config(), 1, length=20)
    assert then.shares.place(then.micro_batch(39)) == Place(1)
