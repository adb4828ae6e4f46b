"""Image folders: decoded as Pillow shows them; a tree that does not fit is one clear line."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config import DataConfig
from harness.data.image_folder import open_image_folder
from harness.errors import UserError

CLASSES = ["ant", "bee", "cat"]
COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


def write_tree(root, classes=CLASSES, size=(40, 24)):
    for part, count in (("train", 4), ("val", 2)):
        for name, colour in zip(classes, COLOURS, strict=False):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                suffix = ("jpg", "png")[number % 2]
                Image.new("RGB", size, colour).save(folder / f"{number}.{suffix}", quality=95)
    return root


def config(root, **changes):
    values = {"dataset": "image_folder", "root": str(root), "num_classes": 3, "image_size": 16}
    return DataConfig(**values | changes)


def test_labels_are_the_folders_in_sorted_order(tmp_path):
    dataset = open_image_folder(config(write_tree(tmp_path)))
    images, labels = dataset.train.read(torch.tensor([11, 0, 5]))
    assert images.shape == (3, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [2, 0, 1]
    for image, label in zip(images, labels, strict=True):
        expected = torch.tensor(COLOURS[label]).view(3, 1, 1)
        assert (image.int() - expected).abs().max() <= 6
    assert (len(dataset.train), len(dataset.validation["validation"])) == (12, 6)


def test_the_middle_square_is_taken(tmp_path):
    write_tree(tmp_path)
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = np.arange(16)[None, :, None] * 10
    Image.fromarray(wide).save(tmp_path / "train" / "ant" / "0.png")
    (tmp_path / "train" / "ant" / "0.jpg").unlink()
    images, _ = open_image_folder(config(tmp_path)).train.read(torch.tensor([0]))
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), wide[:, 16:32])


def test_grey_and_palette_images_become_rgb(tmp_path):
    write_tree(tmp_path)
    Image.new("L", (20, 20), 99).save(tmp_path / "train" / "ant" / "0.png")
    Image.new("P", (20, 20)).save(tmp_path / "train" / "ant" / "1.png")
    (tmp_path / "train" / "ant" / "0.jpg").unlink()
    images, _ = open_image_folder(config(tmp_path)).train.read(torch.tensor([0, 1]))
    assert (images[0] == 99).all()


def test_validation_may_lack_classes(tmp_path):
    shutil.rmtree(write_tree(tmp_path) / "val" / "ant")
    dataset = open_image_folder(config(tmp_path))
    assert dataset.validation["validation"].labels.tolist() == [1, 1, 2, 2]
    (note,) = dataset.notes
    assert note.startswith(
        "val/ has 2 of the 3 classes of train/, so accuracy is measured on these"
    )
    assert note.endswith("it lacks ant")


def test_training_images_among_those_of_validation_are_told(tmp_path):
    """By links of either kind; a copy is another file."""
    write_tree(tmp_path)
    train, val = tmp_path / "train", tmp_path / "val"
    shutil.copy2(train / "cat" / "2.jpg", val / "cat" / "2.jpg")
    assert open_image_folder(config(tmp_path)).notes == ()
    (val / "bee" / "2.jpg").hardlink_to(train / "bee" / "0.jpg")
    (val / "ant" / "1.png").unlink()
    (val / "ant" / "1.png").symlink_to(train / "ant" / "1.png")
    (note,) = open_image_folder(config(tmp_path)).notes
    assert note == (
        "2 of 8 images of val/ are images of train/ too, linked into both, so accuracy is not that "
        "on unseen images; the first is val/ant/1.png"
    )


def test_no_root():
    with pytest.raises(UserError, match=r"set data\.root"):
        open_image_folder(DataConfig(dataset="image_folder"))


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_image_folder(config(tmp_path / "absent"))


def test_a_tree_without_train(tmp_path):
    with pytest.raises(UserError, match="must contain train/ and val/"):
        open_image_folder(config(tmp_path))


def test_another_number_of_classes(tmp_path):
    with pytest.raises(
        UserError, match=r"train has 3 classes, but .* is 4; set data.num_classes=3"
    ):
        open_image_folder(config(write_tree(tmp_path), num_classes=4))


def test_validation_with_other_classes(tmp_path):
    write_tree(tmp_path)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "dog")
    message = r"in only one of train/ and val/ \(only in train/: bee; only in val/: dog\); every"
    with pytest.raises(UserError, match=message):
        open_image_folder(config(tmp_path))


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        ("caf\u00e9", "cafe\u0301", r"'caf\\xe9' and 'cafe\\u0301' .* \(Unicode NFC and NFD\)"),
        ("\uac00", "\u1100\u1161", "composed differently"),
        ("Bee", "bee", "'Bee' and 'bee' differ in upper and lower case"),
        ("STRASSE", "stra\u00dfe", "differ in upper and lower case"),
        ("bee", "bee ", "'bee' and 'bee ' differ in spaces"),
        ("bee", "bee\u200b", r"only in train/: bee; only in val/: bee\\u200b"),
    ],
)
def test_names_that_a_person_takes_for_one(tmp_path, train, val, message):
    write_tree(tmp_path)
    (tmp_path / "train" / "bee").rename(tmp_path / "train" / train)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / val)
    with pytest.raises(UserError, match=message):
        open_image_folder(config(tmp_path))


def test_two_classes_that_look_the_same(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301"):
        write_tree(tmp_path, [name])
    with pytest.raises(UserError, match=r"train has two classes that look the same: .*merge"):
        open_image_folder(config(tmp_path, num_classes=2))


def test_capitals_and_small_letters_are_classes_of_their_own(tmp_path):
    dataset = open_image_folder(config(write_tree(tmp_path, ["A", "a", "b"])))
    assert dataset.class_names == ("A", "a", "b")


def test_images_without_class_folders(tmp_path):
    write_tree(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "ant").rename(tmp_path / f"flat-{part}")
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / part)
        (tmp_path / f"flat-{part}").rename(tmp_path / part)
    with pytest.raises(UserError, match=r"no class folder, but 4 other entries; put .*train/CLASS"):
        open_image_folder(config(tmp_path))


def test_one_class_folder_too_many_in_between(tmp_path):
    write_tree(tmp_path / "inside")
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
        (tmp_path / "inside" / part).rename(tmp_path / part / "images")
    with pytest.raises(UserError, match="one class folder, images; a classifier needs at least"):
        open_image_folder(config(tmp_path))


def test_parts_of_another_name(tmp_path):
    (write_tree(tmp_path) / "val").rename(tmp_path / "validation")
    with pytest.raises(UserError, match=r"no folder .*/val; .* it contains train, validation"):
        open_image_folder(config(tmp_path))


def test_a_class_without_images(tmp_path):
    write_tree(tmp_path)
    for path in (tmp_path / "train" / "bee").iterdir():
        path.unlink()
        (path.parent / f"{path.stem}.heic").touch()
    with pytest.raises(UserError, match=r"bee has no images \(but files of type \.heic \(4\)\)"):
        open_image_folder(config(tmp_path))


def test_a_file_that_does_not_decode_is_named(tmp_path):
    broken = write_tree(tmp_path) / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    train = open_image_folder(config(tmp_path)).train
    with pytest.raises(UserError, match=f"cannot decode {broken}"):
        train.read(torch.arange(len(train)))


def test_both_parts_decode_in_the_same_threads_as_many_as_torch_computes_with(tmp_path):
    dataset = open_image_folder(config(write_tree(tmp_path)))
    threads = dataset.train.threads
    assert threads is dataset.validation["validation"].threads
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = threading.Barrier(3, timeout=60)
        threads.map(lambda _: together.wait(), range(3))
    finally:
        torch.set_num_threads(before)
    assert len([each for each in threading.enumerate() if each in threads._pool._threads]) == 3


def test_validation_is_read_while_training_reads(tmp_path):
    """Two threads at once, as where a loader reads ahead while an evaluation is under way."""
    dataset = open_image_folder(config(write_tree(tmp_path)))
    sources = (dataset.train, dataset.validation["validation"])
    alone = [source.read(torch.arange(len(source)))[0] for source in sources]
    with ThreadPoolExecutor(2) as readers:
        for _ in range(10):
            both = readers.map(lambda source: source.read(torch.arange(len(source)))[0], sources)
            assert all(torch.equal(*pair) for pair in zip(alone, both, strict=True))
