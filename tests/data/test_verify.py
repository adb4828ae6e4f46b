"""Files that cannot be read are found before the training, by ranks that share the work."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from harness.cli import main
from harness.config import DataConfig
from harness.data.folder import FilePictures
from harness.data.image_folder import open_image_folder
from harness.data.images import ArraySource, Dataset
from harness.data.synthetic import open_synthetic
from harness.data.verify import verify
from harness.errors import UserError
from tests.alone import world_of_one
from tests.data.test_folder import config as folder_config
from tests.data.test_folder import write_tree
from tests.horovodrun import horovodrun

FILES = 18


def config(root: Path, **changes) -> DataConfig:
    return folder_config(root, cache=str(root / "cache"), **changes)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that are looked at: opened, or decoded."""
    seen: list[str] = []
    check = FilePictures.check

    def looking(pictures: FilePictures, number: int, closely: bool) -> None:
        seen.append(f"{'decoded' if closely else 'opened'} {pictures.files[number]}")
        check(pictures, number, closely)

    with monkeypatch.context() as patched:
        patched.setattr(FilePictures, "check", looking)
        yield seen


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def said(root: Path, **changes) -> str:
    with pytest.raises(UserError) as caught:
        verify(open_image_folder(config(root, **changes)), world_of_one(), config(root, **changes))
    return str(caught.value)


@pytest.mark.parametrize("name", ["train/bee/1.png", "train/ant/0.jpg", "val/cat/0.jpg"])
def test_a_cut_file_is_named(tmp_path, name):
    broken = cut(write_tree(tmp_path) / name)
    line = said(tmp_path)
    assert line.startswith(f"1 of {FILES} image files cannot be read: {broken} (")
    assert "runcated" in line
    assert line.endswith("); replace or remove them")


def test_all_kinds_of_broken_files_are_found_at_once(tmp_path):
    write_tree(tmp_path)
    places = [tmp_path / part / name for part in ("train", "val") for name in ("ant/x", "bee/x")]
    places[0].with_suffix(".png").touch()
    places[1].with_suffix(".jpg").write_text("<html>404</html>")
    places[2].with_suffix(".gif").write_bytes(b"GIF89a")
    Image.fromarray(torch.full((9, 9), 70_000, dtype=torch.int32).numpy()).save(
        places[3].with_suffix(".tif")
    )
    line = said(tmp_path)
    assert line.startswith(f"4 of {FILES + 4} image files cannot be read: ")
    (listed,) = (tmp_path / "cache").glob("*.unreadable.txt")
    assert f"all of them are listed in {listed}" in line
    rows = [row.split("\t") for row in listed.read_text().splitlines()]
    assert sorted(Path(path).stem for _, path, _ in rows) == ["x"] * 4
    assert {why for *_, why in rows} == {
        "its content is not an image that Pillow can read",
        "its integers are signed, which leaves white undefined; save 8 bits",
    }


def test_only_new_and_changed_files_are_opened_again(tmp_path, monkeypatch):
    dataset = open_image_folder(config(write_tree(tmp_path)))
    with counted(monkeypatch) as seen:
        verify(dataset, world_of_one(), config(tmp_path))
    assert sorted(line.split()[0] for line in seen) == ["decoded"] * 6 + ["opened"] * 12
    with counted(monkeypatch) as seen:
        verify(open_image_folder(config(tmp_path)), world_of_one(), config(tmp_path))
    assert seen == []
    new = tmp_path / "train" / "ant" / "new.png"
    Image.new("RGB", (9, 9)).save(new)
    changed = tmp_path / "val" / "cat" / "1.png"
    Image.new("RGB", (9, 9)).save(changed)
    with counted(monkeypatch) as seen:
        verify(open_image_folder(config(tmp_path)), world_of_one(), config(tmp_path))
    assert seen == [f"opened {new}", f"decoded {changed}"]


def test_a_broken_file_is_not_on_record(tmp_path, monkeypatch):
    broken = cut(write_tree(tmp_path) / "train" / "bee" / "1.png")
    assert said(tmp_path) == said(tmp_path)
    Image.new("RGB", (9, 9)).save(broken)
    with counted(monkeypatch) as seen:
        verify(open_image_folder(config(tmp_path)), world_of_one(), config(tmp_path))
    assert seen == [f"opened {broken}"]


def test_how_closely_files_are_looked_at(tmp_path, monkeypatch):
    """Bytes that were altered in the middle show where a file is decoded."""
    spoilt = write_tree(tmp_path) / "train" / "bee" / "1.png"
    content = bytearray(spoilt.read_bytes())
    middle = content.index(b"IDAT") + 12
    content[middle : middle + 8] = b"\xff" * 8
    spoilt.write_bytes(content)
    dataset = open_image_folder(config(tmp_path))
    for level in ("headers", "none"):
        with counted(monkeypatch) as seen:
            verify(dataset, world_of_one(), config(tmp_path, verify=level))
        assert len(seen) == (FILES if level == "headers" else 0)
    assert str(spoilt) in said(tmp_path, verify="full")


def test_a_record_that_was_cut_or_spoilt_is_no_error(tmp_path, monkeypatch):
    dataset = open_image_folder(config(write_tree(tmp_path)))
    verify(dataset, world_of_one(), config(tmp_path))
    (record,) = (tmp_path / "cache").glob("*.stamps")
    for content in (record.read_bytes()[3:], b"rubbish", b""):
        record.write_bytes(content)
        with counted(monkeypatch) as seen:
            assert verify(dataset, world_of_one(), config(tmp_path)) == ()
        assert len(seen) == FILES


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (write_tree(tmp_path) / "cache").touch()
    dataset = open_image_folder(config(tmp_path))
    (note,) = verify(dataset, world_of_one(), config(tmp_path))
    assert "cannot be written" in note
    assert "set data.cache" in note
    for part in ("ant", "bee", "cat"):
        (tmp_path / "train" / part / "x.png").touch()
        (tmp_path / "val" / part / "x.png").touch()
    assert "6 of 24 image files cannot be read" in said(tmp_path)


def test_data_sets_that_are_no_files_pass():
    settings = DataConfig(dataset="synthetic", num_classes=3, image_size=8, synthetic_images=9)
    assert verify(open_synthetic(settings), world_of_one(), settings) == ()


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 2], [255, 0, 1]])
@pytest.mark.parametrize("part", ["train", "validation"])
def test_labels_that_are_no_class(labels, part):
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    good, bad = (ArraySource(images, torch.tensor(each)) for each in ([0, 1, 2], labels))
    with pytest.raises(UserError, match=f"{part} part has labels from {min(labels)} to"):
        Dataset(
            3,
            1,
            8,
            train=bad if part == "train" else good,
            validation={"validation": good if part == "train" else bad},
            augment=lambda batch, generator: batch,
        )


def test_a_part_without_images():
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    good = ArraySource(images, torch.arange(3))
    dataset = Dataset(3, 1, 8, good, {}, lambda batch, generator: batch)
    with pytest.raises(UserError, match="the data set's odd part has no images"):
        replace(dataset, validation={"odd": ArraySource(images[:0], torch.arange(0))})


def test_one_line_before_anything_is_written(tmp_path, monkeypatch, capfd):
    """The whole command, and what was left out beside what is broken."""
    write_tree(tmp_path / "im")
    (tmp_path / "im" / "train" / "ant" / "notes.txt").touch()
    (tmp_path / "run.yaml").write_text(
        "name: r\ndata: {dataset: image_folder, root: im, num_classes: 3, image_size: 16}\n"
        "train: {batch_size: 4, steps: 2, matmul_seconds: 0.0, save: true}\n"
        "tracking: {enabled: false}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])
    assert main(["train", "run.yaml"]) == 0
    err = capfd.readouterr().err
    assert err.count("left out of im/train: files of type .txt (1)") == 1
    cut(tmp_path / "im" / "val" / "cat" / "1.png")
    before = sorted(tmp_path.glob("runs/*"))
    assert main(["train", "run.yaml"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("harness: 1 of 18 image files cannot be read: im/val/cat/1.png (")
    assert sorted(tmp_path.glob("runs/*")) == before


PROGRAM = """
import json, os, sys, torch
from pathlib import Path
from harness.config import DataConfig
from harness.data import verify as module
from harness.data.folder import FilePictures
from harness.data.image_folder import open_image_folder
from harness.data.verify import verify
from harness.errors import ReportedByAnotherRank, UserError
from harness.parallel.ranks import launched_topology
from harness.parallel.world import open_world
from tests.alone import CPU, meters

seen = []
look = FilePictures.check
def check(pictures, number, closely):
    if not closely:
        seen.append(pictures.files[number])
    return look(pictures, number, closely)
FilePictures.check = check

def tried(root, cache):
    seen.clear()
    settings = {"num_classes": 3, "image_size": 16, "cache": cache}
    config = DataConfig(dataset="image_folder", root=root, **settings)
    try:
        verify(open_image_folder(config), world, config)
        end = "well"
    except ReportedByAnotherRank:
        end = "silent"
    except UserError as error:
        end = str(error)
    return sorted(seen), end

with open_world(launched_topology(), "node", CPU, meters()) as world:
    own = f"copy{world.topology.node}"
    found = [tried("copy0", "shared"), tried("copy0", "shared"), tried(own, f"cache-{own}")]
    if world.topology.rank == 3:
        path = Path("copy1/train/bee/1.png")
        path.write_bytes(path.read_bytes()[:60])
    world.gather_objects(None, "cut")
    found += [tried(own, f"cache-{own}")]
    # As if the nodes were two machines, of which one is a copy of the other, or both mount a disk.
    module.boot_id = lambda: f"machine {world.topology.node}"
    found += [tried("copy0", f"clone{world.topology.node}")]
    module.is_on_network = lambda folder: True
    found += [tried("copy0", "mounted")]
    Path(f"found{world.topology.rank}").write_text(json.dumps(found))
"""


def test_ranks_share_the_files_that_they_all_see(tmp_path):
    """Two hosts of two ranks on one folder, then each host on a copy, of which one is broken, then
    on clones of one disk, and on one that they reach by the network."""
    for copy in ("copy0", "copy1"):
        write_tree(tmp_path / copy)
    horovodrun(PROGRAM, np=4, folder=tmp_path)
    ranks = [json.loads((tmp_path / f"found{rank}").read_text()) for rank in range(4)]
    shared, again, copies, broken, clones, mounted = zip(*ranks, strict=True)
    train = sorted(
        str(path.relative_to(tmp_path)) for path in (tmp_path / "copy0" / "train").rglob("*.*")
    )
    for everyone in (shared, mounted):
        assert [len(seen) for seen, _ in everyone] == [3, 3, 3, 3]
        assert sorted(path for seen, _ in everyone for path in seen) == train
    assert [seen for seen, _ in again] == [[], [], [], []]
    for node in (0, 1):
        seen = sorted(path for seen, _ in copies[2 * node : 2 * node + 2] for path in seen)
        assert seen == [path.replace("copy0", f"copy{node}") for path in train]
        assert sorted(path for seen, _ in clones[2 * node : 2 * node + 2] for path in seen) == train
    assert {end for _, end in (*shared, *again, *copies, *clones, *mounted)} == {"well"}
    assert [end for _, end in broken[1:]] == ["silent"] * 3
    assert "1 of 18 image files cannot be read: copy1/train/bee/1.png" in broken[0][1]
