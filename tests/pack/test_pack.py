"""A pack holds what its folder holds, can be continued, and says in one line what is wrong."""

import gc
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

import harness.data.verify
import harness.pack.shard
from harness.cli import main
from harness.data.decoder import PILLOW
from harness.data.image_folder import open_image_folder
from harness.data.images import Dataset
from harness.data.pack import INDEX, read_description
from harness.data.pixels import Undecodable
from harness.data.verify import verify
from harness.errors import UserError
from harness.pack import parallel
from harness.pack.packing import pack
from harness.pack.shard import make_shard
from harness.parallel.world import World
from harness.seeding import seeded_generator
from tests.alone import world_of_one
from tests.data.test_folder import config, write_tree

CLASSES = ("ant", "bee", "cat")
SIZES = ((60, 44), (44, 60), (63, 63), (50, 40))
"""No side is as long as two of SIZE: no JPEG is reduced while it is decoded."""
SIZE, SIDE = 32, 64
TRAIN, VAL = 5, 2


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def write_photographs(root: Path) -> Path:
    number = 0
    for part, count in (("train", TRAIN), ("val", VAL)):
        for name in CLASSES:
            (root / part / name).mkdir(parents=True)
            for _ in range(count):
                kind = ("jpg", "png", "webp")[number % 3]
                exif = Image.Exif()
                exif[0x0112] = 1 + number % 8
                file = root / part / name / f"{number}.{kind}"
                photograph(number, SIZES[number % 4]).save(file, exif=exif)
                number += 1
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos")


def opened(root: Path, **changes: object) -> Dataset:
    return open_image_folder(config(root, image_size=SIZE, **changes))


def everything(dataset: Dataset) -> list[tuple[torch.Tensor, torch.Tensor]]:
    sources = (dataset.train, *dataset.validation.values())
    return [source.read(torch.arange(len(source))) for source in sources]


def parts_at_random(root: Path) -> torch.Tensor:
    dataset = opened(root, recipe="imagenet")
    assert dataset.read_random is not None
    return dataset.read_random(torch.arange(15), seeded_generator(0, "cut"))[0]


def content(root: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in root.iterdir() if not path.name.startswith(".")
    }


@pytest.mark.parametrize("kind", ["pixels", "jpeg"])
def test_a_pack_gives_the_numbers_of_its_folder(folder, tmp_path, kind):
    """To the bit, where no picture is larger than the pack's side."""
    sentence = pack(folder, tmp_path / "p", SIDE, kind, processes=1, images=4)
    assert sentence.startswith("15 + 6 images of 3 classes are packed in ")
    plain, packed = opened(folder), opened(tmp_path / "p")
    assert packed.class_names == plain.class_names == CLASSES
    for (one, labels), (other, other_labels) in zip(
        everything(plain), everything(packed), strict=True
    ):
        assert torch.equal(one, other)
        assert torch.equal(labels, other_labels)
    assert torch.equal(parts_at_random(folder), parts_at_random(tmp_path / "p"))
    assert [len(packed.train), len(packed.validation["validation"])] == [15, 6]


def test_files_that_training_decodes_reduced_give_its_numbers_where_they_are_kept(folder, tmp_path):
    """Kept pixels are those of the whole picture, which is scaled then."""
    photograph(1, (150, 130)).save(folder / "train" / "ant" / "0.jpg")
    for kind in ("jpeg", "pixels"):
        pack(folder, tmp_path / kind, 256, kind, processes=1)
    plain, jpeg, pixels = (
        everything(opened(root))[0][0].float()
        for root in (folder, tmp_path / "jpeg", tmp_path / "pixels")
    )
    assert torch.equal(jpeg, plain)
    assert torch.equal(pixels[1:], plain[1:])
    assert 0 < (pixels[0] - plain[0]).abs().mean() < 6


def test_a_million_files_become_a_few(folder, tmp_path):
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    names = sorted(content(tmp_path / "p"))
    assert names == [
        *("left_out.tsv", "pack.json"),
        *(f"train-0000{n}.images" for n in range(4)),
        *(f"val-0000{n}.images" for n in range(2)),
    ]


def test_larger_pictures_are_reduced_to_the_side(folder, tmp_path):
    photograph(1, (300, 200)).save(folder / "train" / "ant" / "0.jpg")
    photograph(1, (90, 400)).save(folder / "train" / "ant" / "00.png")
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    train = opened(tmp_path / "p").train
    index = train.pictures._shards[0].index
    assert index["height"][:2].tolist() == [64, 284]
    assert index["width"][:2].tolist() == [96, 64]
    small = train.read(torch.tensor([0]))[0].float()
    # The middle is half a pixel off where a quarter of the picture is decoded.
    assert (small - opened(folder).train.read(torch.tensor([0]))[0].float()).abs().mean() < 6


def test_files_that_fit_are_kept_as_they_are(folder, tmp_path):
    large = folder / "train" / "ant" / "0.jpg"
    photograph(1, (500, 300)).save(large, quality=100)
    pack(folder, tmp_path / "p", SIDE, "jpeg", processes=1)
    pictures = opened(tmp_path / "p", decoder="pillow").train.pictures
    shard = pictures._shards[0]
    files = sorted((folder / "train").rglob("*.*"))
    stored = [shard.stored(number).tobytes() for number in range(15)]
    assert stored[1:] == [file.read_bytes() for file in files[1:]]
    with Image.open(io.BytesIO(stored[0])) as reduced:
        assert (reduced.format, reduced.size) == ("JPEG", (107, 64))
    assert next(pictures.parts()) == PILLOW.part


def test_what_cannot_be_read_is_left_out_and_listed(folder, tmp_path):
    broken = folder / "train" / "bee" / "x.png"
    broken.write_bytes(b"no image")
    sentence = pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    assert sentence.endswith(f"1 files could not be read; {tmp_path}/p/left_out.tsv lists them")
    line = f"{broken}\tits content is not an image that Pillow can read\n"
    assert (tmp_path / "p" / "left_out.tsv").read_text() == line
    assert len(opened(tmp_path / "p").train) == 15


def test_a_class_of_which_nothing_can_be_read(folder, tmp_path):
    for file in (folder / "train" / "bee").iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[:50])
    with pytest.raises(UserError, match=r"class bee of train/ has no image that can be read"):
        pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    file.write_bytes(whole)
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    assert len(opened(tmp_path / "p").train) == 11


class Interrupted:
    """Counts the shards that are made; interrupts one of them in the middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int = -1) -> None:
        self.made: list[str] = []
        self._at = at
        monkeypatch.setattr(parallel, "make_shard", self)

    def __call__(self, job, folder, tell):
        self.made.append(job.name)

        def stop(pictures):
            raise KeyboardInterrupt

        return make_shard(job, folder, stop if len(self.made) == self._at else tell)


def test_an_interrupted_pack_is_continued(folder, tmp_path, monkeypatch):
    pack(folder, tmp_path / "whole", SIDE, "pixels", processes=1, images=4)
    Interrupted(monkeypatch, at=3)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    with pytest.raises(UserError, match=r"is not finished; run the same harness pack again"):
        opened(tmp_path / "p")
    counted = Interrupted(monkeypatch)
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    assert counted.made == ["train-00002", "train-00003", "val-00000", "val-00001"]
    assert content(tmp_path / "p") == content(tmp_path / "whole")


def test_an_interrupted_change_of_a_pack_keeps_what_is_finished(folder, packed, monkeypatch):
    photograph(77, (50, 50)).save(sorted((folder / "train" / "cat").iterdir())[-1])
    Interrupted(monkeypatch, at=1)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, packed, SIDE, "pixels", processes=1, images=8)
    with pytest.raises(UserError, match=r"is not finished; run the same harness pack again"):
        opened(packed)
    counted = Interrupted(monkeypatch)
    pack(folder, packed, SIDE, "pixels", processes=1, images=8)
    assert counted.made == ["train-00001"]
    assert len(content(packed)) == 5


def test_what_was_left_out_is_tried_again(folder, tmp_path, monkeypatch):
    """An error may pass without any change of the file, as that of a disk that was away."""
    target, away = tmp_path / "p", folder / "train" / "bee" / "7.png"
    read = harness.pack.shard.content_of

    def fails(path):
        if Path(path) == away:
            raise Undecodable("Stale file handle")
        return read(path)

    counted = Interrupted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(harness.pack.shard, "content_of", fails)
        assert "1 files could not be read" in pack(folder, target, SIDE, "pixels", 1, images=4)
    counted.made.clear()
    sentence = pack(folder, target, SIDE, "pixels", processes=1, images=4)
    assert sentence.startswith("15 + 6 images")
    assert "could not be read" not in sentence
    assert counted.made == ["train-00001"]


def test_another_pillow_packs_again(folder, packed, monkeypatch):
    counted = Interrupted(monkeypatch)
    monkeypatch.setattr(PIL, "__version__", "another")
    pack(folder, packed, SIDE, "pixels", processes=1, images=8)
    assert counted.made == ["train-00000", "train-00001", "val-00000"]


def test_only_what_changed_is_packed_again(folder, tmp_path, monkeypatch):
    counted = Interrupted(monkeypatch)
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    assert len(counted.made) == 6
    before = content(tmp_path / "p")
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    assert len(counted.made) == 6
    assert content(tmp_path / "p") == before
    photograph(77, (50, 50)).save(sorted((folder / "train" / "cat").iterdir())[-1])
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=4)
    assert counted.made[6:] == ["train-00003"]
    pack(folder, tmp_path / "p", SIDE, "jpeg", processes=1, images=40)
    assert counted.made[7:] == ["train-00000", "val-00000"]
    assert len(content(tmp_path / "p")) == 4


@pytest.mark.parametrize("name", ["training_notes.txt", "train-00000.txt", "val", "values.csv"])
def test_files_of_the_user_are_never_removed(folder, tmp_path, name):
    target = tmp_path / "p"
    target.mkdir()
    (target / name).write_text("mine")
    with pytest.raises(UserError, match=rf"p holds other files, the first is {name}; give"):
        pack(folder, target, SIDE, "pixels", processes=1)
    assert (target / name).read_text() == "mine"


def test_what_comes_while_it_packs_stays(folder, tmp_path, monkeypatch):
    class Writes(Interrupted):
        def __call__(self, job, folder, tell):
            (folder / "train.log").write_text("mine")
            return super().__call__(job, folder, tell)

    Writes(monkeypatch)
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    assert (tmp_path / "p" / "train.log").read_text() == "mine"


def test_a_pack_that_was_interrupted_at_its_end_is_its_own(packed, folder):
    (packed / "pack.json").rename(packed / "pack.json.partial")
    for name in ("train-00009.images", "val-00000.partial-record", "val-00000.json.partial"):
        (packed / name).touch()
    pack(folder, packed, SIDE, "pixels", processes=1, images=8)
    assert len(content(packed)) == 5


def test_what_says_that_something_is_finished_is_on_the_disk_before_it_has_its_name(
    folder, tmp_path, monkeypatch
):
    """Otherwise a host that loses power leaves an empty pack.json."""
    synced, fsync = set(), os.fsync

    def noted(handle):
        synced.add(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=40)
    assert {"pack.json.partial", "train-00000.json.partial", "p"} <= synced


def test_several_processes_pack_the_same(folder, tmp_path):
    pack(folder, tmp_path / "one", SIDE, "pixels", processes=1, images=8)
    pack(folder, tmp_path / "two", SIDE, "pixels", processes=2, images=8)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.fixture
def packed(folder, tmp_path) -> Path:
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=8)
    return tmp_path / "p"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_a_damaged_pack_is_found_when_it_is_opened(packed):
    shard = packed / "train-00001.images"
    whole, description = shard.read_bytes(), packed / "pack.json"
    shard.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{shard} is damaged: it has .* bytes, not .*; delete it"):
        opened(packed)
    shard.unlink()
    with pytest.raises(UserError, match=rf"cannot read {shard}: No such file"):
        opened(packed)
    shard.write_bytes(whole)
    flip(shard, -3)
    with pytest.raises(UserError, match=r"its index does not match its checksum; delete it and"):
        opened(packed)
    shard.write_bytes(whole)
    text = description.read_text()
    description.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"pack\.json is damaged: .*; delete it and run harness"):
        opened(packed)
    description.write_text(json.dumps(json.loads(text) | {"format": 99}))
    with pytest.raises(UserError, match=r"is of format 99, and this version reads 1"):
        opened(packed)
    description.write_text("[]")
    with pytest.raises(UserError, match=r"pack\.json is damaged"):
        opened(packed)


def test_what_replaces_a_shard_is_not_read_with_the_index_of_the_former(packed):
    expected, train = opened(packed).train.read(torch.arange(15))[0], opened(packed).train
    for shard in packed.glob("train-*"):
        other = packed / "other"
        other.write_bytes(bytes(shard.stat().st_size))
        other.replace(shard)
    assert torch.equal(train.read(torch.arange(15))[0], expected)


def test_an_open_pack_keeps_no_file_open(packed):
    gc.collect()  # what earlier tests left open is not closed in between
    before = len(os.listdir("/proc/self/fd"))
    dataset = opened(packed)
    everything(dataset)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_shard_of_which_nothing_can_be_read_is_empty(folder, tmp_path):
    for file in (folder / "val" / "bee").iterdir():
        file.write_bytes(b"no image")
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1, images=2)
    assert (tmp_path / "p" / "val-00001.images").stat().st_size == 0
    assert opened(tmp_path / "p").validation["validation"].labels.tolist() == [0, 0, 2, 2]


def test_a_class_of_val_of_which_nothing_can_be_read_is_told(folder, tmp_path):
    for file in (folder / "val" / "bee").iterdir():
        file.write_bytes(b"no image")
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    (note,) = opened(tmp_path / "p").notes
    assert note == (
        "of 1 of the 3 classes of val/ no image could be read when this pack was made, so accuracy "
        "is measured on the others: bee; left_out.tsv lists the files"
    )


def test_ranks_hear_of_each_other_after_each_file(packed, tmp_path, monkeypatch):
    """One has up to a gigabyte: several in a round would take longer than a round should."""
    left, gather = [], World.launch_gather

    def counted(world, vector, name):
        if name == "verify":
            left.append(int(vector))
        return gather(world, vector, name)

    monkeypatch.setattr(World, "launch_gather", counted)
    monkeypatch.setattr(harness.data.verify, "ROUND_SECONDS", -1.0)
    settings = config(packed, image_size=SIZE, verify="full", cache=str(tmp_path / "cache"))
    assert verify(opened(packed), world_of_one(), settings) == ()
    assert left == [3, 2, 1, 0]


@pytest.mark.parametrize(("part", "level"), [("train", "full"), ("val", "headers")])
def test_a_damaged_picture_is_found_before_training(packed, tmp_path, part, level):
    settings = config(packed, image_size=SIZE, verify=level, cache=str(tmp_path / "cache"))
    assert verify(opened(packed), world_of_one(), settings) == ()
    shard = packed / f"{part}-00000.images"
    second = int(read_index(shard, packed)["offset"][1])
    flip(shard, second + 5)
    with pytest.raises(UserError) as caught:
        verify(opened(packed), world_of_one(), settings)
    assert str(caught.value) == (
        f"1 of 3 image files cannot be read: {shard} (its image 1 does not match its checksum); "
        f"delete them and run harness pack again"
    )


def read_index(shard: Path, packed: Path) -> np.ndarray:
    (found,) = [
        each
        for shards in read_description(packed).shards.values()
        for each in shards
        if each.name == shard.name
    ]
    return np.frombuffer(shard.read_bytes()[-found.images * INDEX.itemsize :], INDEX)


def test_another_number_of_classes(packed):
    with pytest.raises(UserError, match=r"has 3 classes, but .* is 4; set data\.num_classes=3"):
        opened(packed, num_classes=4)


def test_validation_may_lack_classes(folder, tmp_path):
    shutil.rmtree(folder / "val" / "ant")
    pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)
    dataset = opened(tmp_path / "p")
    assert dataset.notes == opened(folder).notes
    assert dataset.validation["validation"].labels.tolist() == [1, 1, 2, 2]


def test_the_command(folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "photos", "--side", "32", "--processes", "1"]) == 0
    out = capfd.readouterr().out
    assert "packed in photos.pack" in out
    assert "data.root=photos.pack data.num_classes=3" in out
    assert len(opened(tmp_path / "photos.pack").train) == 15


def test_the_folder_that_the_command_stands_in(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["pack", ".", "--processes", "1"]) == 0
    assert len(opened(tmp_path / "photos.pack").train) == 15


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none is not a folder; name one that contains train/ and val/"),
        (["photos/train"], "data.root must contain train/ and val/"),
        (["photos", "--to", "photos"], "photos holds other files, the first is train; give the"),
        (["photos", "--to", "file"], "file is a file; give the pack another name with --to"),
        (["photos", "--to", "file/inside"], "cannot write file/inside"),
        (["photos", "--side", "7"], "7 does not fit; give a whole number from 8 to"),
        (["photos", "--keep", "png"], "invalid choice: 'png'"),
    ],
)
def test_what_a_user_gets_wrong(folder, tmp_path, capfd, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["pack", *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def test_a_disk_that_is_too_small(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"the pack takes up to 0\.0 GB, and .* free; lower --side"):
        pack(folder, tmp_path / "p", SIDE, "pixels", processes=1)


def test_small_pictures_need_little_room(tmp_path, monkeypatch):
    """Eighteen of the pack's side would take five megabytes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=500_000))
    pack(write_tree(tmp_path / "small"), tmp_path / "p", 256, "pixels", processes=1)
    size = sum(path.stat().st_size for path in (tmp_path / "p").glob("*.images"))
    assert 18 * 40 * 24 * 3 < size < 100_000
