"""Folders as users have them, and worse: a data set that reads, or one line; no hang, no trace."""

import io
import os
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.config import DataConfig
from harness.data.image_folder import open_image_folder
from harness.data.images import Dataset
from harness.data.verify import verify
from harness.errors import UserError
from tests.alone import world_of_one
from tests.data.test_folder import config

SIZE = 16


def picture(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (12, 10), 1).save(file, kind)
    return file.getvalue()


PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")]
PICTURES += [picture("TIFF", mode) for mode in ("1", "I", "F", "I;16", "CMYK", "LAB")]

SUFFIXES = st.sampled_from([".png", ".JPG", ".tif", ".gif", ".heic", ".txt", "", "."])
PLAIN = st.sampled_from(["a", "b", ".hidden", "__MACOSX", "caf\u00e9", "cafe\u0301", "A", "train"])
STRANGE = st.one_of(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=8).map(
        str.encode
    ),
    st.binary(min_size=1, max_size=8).map(lambda name: name.translate(None, b"/\0")),
    st.just(b"n" * 240),
)
NAMES = st.builds(
    lambda name, suffix: (name + suffix.encode())[:255],
    st.one_of(PLAIN.map(str.encode), STRANGE),
    SUFFIXES,
).filter(lambda name: name not in (b"", b".", b".."))
CONTENTS = st.one_of(
    st.sampled_from(PICTURES),
    st.builds(lambda whole, n: whole[: n % len(whole)], st.sampled_from(PICTURES), st.integers(0)),
    st.binary(max_size=64),
    st.just(b""),
)
TARGETS = st.sampled_from(
    [".", "..", "../..", "../../..", "nowhere", "a", "b", "/dev/zero", "a.png"]
)
BELOW = st.lists(NAMES, min_size=1, max_size=3)
ENTRIES = st.tuples(
    st.sampled_from(["train", "val"]),
    st.one_of(
        # Most within the classes that are there, where they can do the most harm.
        st.builds(lambda top, rest: [top, *rest], st.sampled_from([b"k1", b"k2"]), BELOW),
        st.builds(lambda top, rest: [top, *rest], st.sampled_from([b"k1", b"k2"]), BELOW),
        BELOW,
    ),
    st.one_of(
        st.tuples(st.just("file"), CONTENTS),
        st.tuples(st.just("link"), TARGETS),
        st.tuples(st.sampled_from(["folder", "pipe"]), st.just(b"")),
    ),
)


def make(root: bytes, part: str, names: list[bytes], kind: str, content: bytes | str) -> None:
    path = os.path.join(root, part.encode(), *names)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "link":
            os.symlink(content, path)
        elif kind == "folder":
            os.mkdir(path)
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            # Never into a pipe of that name, which would wait for a reader.
            with open(path, "xb") as file:
                file.write(content)
    except OSError:
        event("an entry that cannot be made beside the others")


def whole(root: bytes, classes: list[bytes]) -> None:
    for part in ("train", "val"):
        for name in classes:
            make(root, part, [name, b"0.png"], "file", PICTURES[0])


@pytest.mark.timeout(120)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    classes=st.one_of(
        st.just([b"k1", b"k2"]), st.just([b"k1", b"k2"]), st.lists(NAMES, max_size=2)
    ),
    entries=st.lists(ENTRIES, max_size=6),
)
def test_any_folder_is_a_data_set_or_one_line(classes, entries):
    with tempfile.TemporaryDirectory() as name:
        root = os.fsencode(name)
        whole(root, classes)
        for part, names, (kind, content) in entries:
            make(root, part, names, kind, content)
        values = config(name, num_classes=2, image_size=SIZE, cache=os.path.join(name, "cache"))
        dataset, line = opened(values)
        if dataset is None:
            event(" ".join(line.replace(name, "").split()[:2]))
            assert line.isprintable(), "one line, and nothing that moves the cursor"
            return
        event("reads")
        assert all(note.isprintable() for note in dataset.notes)
        assert len(dataset.class_names) == 2
        for source in (dataset.train, *dataset.validation.values()):
            images, labels = source.read(torch.arange(len(source)))
            assert images.shape == (len(labels), 3, SIZE, SIZE)
            assert set(labels.tolist()) == {0, 1}


def opened(settings: DataConfig) -> tuple[Dataset | None, str]:
    try:
        dataset = open_image_folder(settings)
        verify(dataset, world_of_one(), settings)
    except UserError as error:
        return None, str(error)
    return dataset, ""
