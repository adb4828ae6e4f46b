"""Images that cannot be read: the run stops, or the next one of the class takes their place."""

import logging
from pathlib import Path

import pytest
import torch

from harness.cli import main
from harness.config import DataConfig
from harness.data.image_folder import open_image_folder
from harness.data.verify import verify
from harness.errors import UserError
from tests.alone import world_of_one
from tests.data.test_folder import config, write_tree


def spoil(path: Path) -> Path:
    """Keeps both ends of the file, so that only decoding it finds out."""
    content = path.read_bytes()
    middle = content.index(b"IDAT") + 6
    path.write_bytes(content[:middle] + bytes(8) + content[middle + 8 :])
    return path


def skipping(root: Path, **changes: object) -> DataConfig:
    return config(root, on_corrupt="skip", cache=str(root.parent / "cache"), **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "photos")


def test_the_next_readable_one_of_the_class_takes_its_place(folder):
    whole = open_image_folder(config(folder)).train.read(torch.arange(12))[0]
    for number in (1, 3):
        spoil(folder / "train" / "bee" / f"{number}.png")
    train = open_image_folder(skipping(folder)).train
    images, labels = train.read(torch.arange(12))
    expected = whole[[0, 1, 2, 3, 4, 6, 6, 4, 8, 9, 10, 11]]
    assert torch.equal(images, expected)
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert sorted(train.skipped) == [5, 7]
    assert torch.equal(train.read(torch.tensor([7]))[0], whole[[4]])


def test_a_class_of_which_nothing_can_be_read(folder):
    for path in (folder / "train" / "bee").iterdir():
        path.write_bytes(b"no image")
    train = open_image_folder(skipping(folder)).train
    with pytest.raises(UserError, match=r"no image of the class of .*bee/0\.jpg can be read"):
        train.read(torch.tensor([4]))


def test_skipped_files_are_counted_and_listed_before_training(folder):
    broken = spoil(folder / "train" / "bee" / "1.png")
    settings = skipping(folder, verify="full")
    (note,) = verify(open_image_folder(settings), world_of_one(), settings)
    (listed,) = (folder.parent / "cache").glob("*.unreadable.txt")
    assert note.startswith(f"1 of 18 image files cannot be read: {broken} (")
    assert note.endswith(
        f"; all of them are listed in {listed}; the next one of its class that can be read "
        f"replaces each"
    )
    assert str(broken) in listed.read_text()
    stopping = settings.model_copy(update={"on_corrupt": "stop"})
    with pytest.raises(UserError, match=r"1 of 18 image files .*; replace or remove them"):
        verify(open_image_folder(stopping), world_of_one(), stopping)


def test_a_lost_class_stops_the_run_before_training(folder):
    for path in (folder / "val" / "cat").iterdir():
        path.write_bytes(b"no image")
    settings = skipping(folder)
    with pytest.raises(UserError, match=r"2 of 18 image files cannot be read.*replace or remove"):
        verify(open_image_folder(settings), world_of_one(), settings)


def test_a_run_reports_what_it_replaced_and_keeps_the_names(folder, monkeypatch, capfd):
    """The whole command, with all that section `data` offers of photographs."""
    broken = spoil(folder / "train" / "bee" / "1.png")
    (folder.parent / "run.yaml").write_text(
        "name: r\n"
        "data: {dataset: image_folder, root: photos, num_classes: 3, image_size: 32, "
        "validation_size: 48, recipe: imagenet, extras: [trivial_augment, random_erasing], "
        "on_corrupt: skip, class_balance: 1.0, cache: cache}\n"
        "backbone: {name: mobilenet_v3_small, feature_dim: 16}\n"
        "train: {batch_size: 4, steps: 6, matmul_seconds: 0.0}\n"
        "tracking: {enabled: false}\n"
    )
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(logging.root, "handlers", [])
    assert main(["train", "run.yaml", "--folder", "out"]) == 0
    err = capfd.readouterr().err
    assert "warning: 1 images could not be read; others of their class replaced them; " in err
    assert "out/skipped.tsv lists them" in err
    place, why = Path("out/skipped.tsv").read_text().rstrip("\n").split("\t")
    assert place == str(broken.relative_to(folder.parent))
    assert why
    assert Path("out/classes.txt").read_text() == "ant\nbee\ncat\n"
