"""What ranks must have in common before they train, and how the first difference is reported."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.config import Config, DataConfig, TrainConfig
from harness.config.section import keys_of
from harness.data.images import ArraySource, Part
from harness.data.open import open_dataset
from harness.doctor.agreement import (
    VARIABLES,
    Difference,
    contents_of,
    first_difference,
    settings_of,
)
from tests.horovodrun import horovodrun

PER_HOST = {
    "backbone.weights",
    "data.root",
    "data.cache",
    "data.train_fonts",
    "data.validation_fonts",
    "train.threads",
    "train.resume",
    "tracking.uri",
    "tracking.folder",
}


def test_every_key_must_be_alike_but_paths_stores_and_threads() -> None:
    """A new key is compared unless its field says that hosts may differ in it."""
    config = Config(train=TrainConfig(steps=1))
    assert config.flattened().keys() - config.alike().keys() == PER_HOST
    assert set(keys_of(Config)) >= PER_HOST


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([{"a": 1, "b": 2}] * 3, None),
        ([{"a": 1}, {"a": 1}, {"a": 2}], Difference("a", 0, 2)),
        ([{"a": 9}, {"a": 1}, {"a": 1}], Difference("a", 1, 0)),
        ([{"a": 1}, {"a": 2}], Difference("a", 0, 1)),
        ([{"a": 1, "b": 1}, {"b": 2, "a": 1}], Difference("b", 0, 1)),
        ([{"a": 1}, {"a": 1.0}], Difference("a", 0, 1)),
        ([{"a": 1}, {}], Difference("a", 0, 1)),
        ([{}, {"a": 1}], Difference("a", 0, 1)),
        ([{"a": 1}], None),
    ],
)
def test_the_one_that_is_not_as_most_is_the_odd_one(
    values: Sequence[dict[str, object]], expected: Difference | None
) -> None:
    assert first_difference(values) == expected


def test_variables_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(train=TrainConfig(steps=1))
    before = settings_of(config)
    monkeypatch.setenv(VARIABLES[0], "1")
    assert first_difference([before, settings_of(config)]) == Difference(VARIABLES[0], 0, 1)


def make_images(root: Path) -> None:
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")


def contents(root: Path) -> dict[str, object]:
    dataset = open_dataset(
        DataConfig(dataset="image_folder", root=str(root), num_classes=2, image_size=8)
    )
    sets = {"train": dataset.train, **dataset.validation}
    return {name: contents_of(source) for name, source in sets.items()}


def test_a_copy_of_a_folder_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    make_images(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "elsewhere" / "two")


@pytest.mark.parametrize("change", ["class", "missing", "added", "renamed", "cut", "moved"])
def test_another_copy_of_a_folder_is_another(tmp_path: Path, change: str) -> None:
    make_images(tmp_path)
    before = contents(tmp_path)
    file = tmp_path / "val/a/3.png"
    if change == "class":
        for part in ("train", "val"):
            (tmp_path / part / "a").rename(tmp_path / part / "aa")
    elif change == "missing":
        file.unlink()
    elif change == "added":
        shutil.copy(file, file.with_name("4.png"))
    elif change == "renamed":
        file.rename(file.with_name("33.png"))
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif change == "moved":
        file.rename(tmp_path / "val/b/9.png")
    found = first_difference([before, contents(tmp_path)])
    assert found == Difference("train" if change == "class" else "validation", 0, 1)


def test_arrays_are_compared_by_what_they_hold() -> None:
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    one = contents_of(ArraySource(images, labels))
    assert one == contents_of(ArraySource(images.clone(), labels))
    assert one != contents_of(ArraySource(images + 1, labels))
    assert one != contents_of(ArraySource(images, labels.flip(0)))


def test_glyphs_are_compared_by_fonts_and_renderer(tmp_path: Path) -> None:
    dataset = open_dataset(DataConfig(num_classes=12, image_size=8, cache=str(tmp_path)))
    parts = list(dataset.train.parts())
    assert parts[0].of == "FreeType"
    assert any(part.of.endswith(".otf") and len(part.item) == 64 for part in parts)


def test_noise_is_what_the_config_says() -> None:
    dataset = open_dataset(DataConfig(dataset="synthetic", num_classes=4, image_size=8))
    assert list[Part](dataset.train.parts()) == []


def test_ranks_name_what_differs_on_which_host_and_start_from_the_same_weights() -> None:
    """All cases in one launch: see the program."""
    result = horovodrun(
        ["-m", "tests.doctor.agreement_program"],
        environment={"HOROVOD_CYCLE_TIME": "5"},
        timeout=500,
    )
    assert result.lines(0)[-1] == "all as it should be"
