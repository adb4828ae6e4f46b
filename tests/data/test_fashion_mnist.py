"""idx files, written here byte by byte."""

import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import DataConfig
from harness.data.fashion_mnist import open_fashion_mnist
from harness.errors import UserError


def idx(values):
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim)
    return header + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def some_images(count):
    return np.arange(count * 28 * 28, dtype=np.uint64).astype(np.uint8).reshape(count, 28, 28)


def some_labels(count):
    return (np.arange(count) * 3 % 10).astype(np.uint8)


def write_files(root, packed):
    for part, count in (("train", 20), ("t10k", 7)):
        for name, values in (
            (f"{part}-images-idx3-ubyte", some_images(count)),
            (f"{part}-labels-idx1-ubyte", some_labels(count)),
        ):
            if packed:
                (root / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (root / name).write_bytes(idx(values))
    return root


def config(root, **changes):
    values = {"dataset": "fashion_mnist", "root": str(root), "num_classes": 10, "image_size": 28}
    return DataConfig(**values | changes)


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_are_read_as_written(tmp_path, packed):
    dataset = open_fashion_mnist(config(write_files(tmp_path, packed)))
    images, labels = dataset.train.read(torch.arange(20))
    assert np.array_equal(images[:, 0].numpy(), some_images(20))
    assert np.array_equal(labels.numpy(), some_labels(20))
    assert len(dataset.validation["validation"]) == 7


def test_another_size_resizes(tmp_path):
    dataset = open_fashion_mnist(config(write_files(tmp_path, True), image_size=14))
    images, _ = dataset.train.read(torch.tensor([3, 4]))
    assert images.shape == (2, 1, 14, 14)
    assert images.dtype == torch.uint8
    flat = some_images(20)[3:5].mean()
    assert abs(images.float().mean() - flat) < 2


def broken(name, content):
    return lambda root: (root / name).write_bytes(content)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken(IMAGES, b""), "not an idx file of 3 dimensions"),
        (broken(IMAGES, idx(some_labels(20))), "starts with 00000801, not 00000803"),
        (broken(IMAGES, idx(some_images(20))[:-1]), r"15679 values, its header says \(20, 28, 28"),
        (broken(IMAGES, idx(some_images(20)) + b"x"), "15681 values"),
        (broken(LABELS, idx(some_labels(19))), "20 images and .* 19 labels"),
        (broken(LABELS, idx(some_labels(20) + 1)), "a label 10, above 9"),
        (lambda root: (root / LABELS).unlink(), f"neither {LABELS} nor"),
    ],
)
def test_damage_is_named(tmp_path, damage, message):
    damage(write_files(tmp_path, packed=False))
    with pytest.raises(UserError, match=message):
        open_fashion_mnist(config(tmp_path))


def test_a_cut_gzip_file_is_named(tmp_path):
    path = write_files(tmp_path, packed=True) / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"cannot read {path}"):
        open_fashion_mnist(config(tmp_path))


def test_another_number_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"set data\.num_classes=10"):
        open_fashion_mnist(config(write_files(tmp_path, True), num_classes=11))


@settings(max_examples=100, deadline=None)
@given(
    damage=st.lists(
        st.tuples(
            st.sampled_from([IMAGES, LABELS]),
            st.sampled_from(["cut", "header", "pack", "rubbish"]),
            st.binary(max_size=24),
            st.floats(0, 1),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_damaged_files_are_one_line_or_read_well(damage):
    """Cut anywhere, any header, packed or not: images of the right shape, or UserError."""
    with tempfile.TemporaryDirectory() as name:
        root = write_files(Path(name), packed=False)
        for file, how, content, share in damage:
            path = root / file
            before = path.read_bytes()
            path.write_bytes(
                {
                    "cut": before[: int(share * len(before))],
                    "header": before[:4] + content + before[4 + len(content) :],
                    "pack": gzip.compress(before)[: int(share * 200)],
                    "rubbish": content,
                }[how]
            )
        try:
            dataset = open_fashion_mnist(config(root, image_size=9))
        except UserError:
            return
        images, labels = dataset.train.read(torch.arange(len(dataset.train)))
        assert images.shape == (len(labels), 1, 9, 9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08\x03\0", "is not an idx file of 3 dimensions"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "has 0 values"),
        (struct.pack(">4I", 0x803, 20, 0, 5), "has 20 images"),
    ],
)
def test_headers_that_numbers_cannot_follow(tmp_path, content, message):
    (write_files(tmp_path, packed=False) / IMAGES).write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_fashion_mnist(config(tmp_path))
