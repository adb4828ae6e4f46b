"""Which files count: what a user sees, through links, once; the rest is counted by its reason."""

import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.data.image_folder import open_image_folder
from harness.data.tree import ImageTree, class_folders, format_counts, shown
from harness.errors import UserError
from tests.data.test_folder import config, write_tree
from tests.horovodrun import ROOT
from tests.rights import without_rights


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def tree(root: Path, *classes: str) -> ImageTree:
    return ImageTree(str(root / "train"), [name.encode() for name in classes or ["c"]])


def names(found: ImageTree) -> list[str]:
    return [found.name(i).decode() for i in range(len(found))]


def test_hidden_and_foreign_entries_never_count(tmp_path):
    seen = ["c/a.png", "c/deep/er/b.JPG"]
    unseen = ["c/.a.png", "c/._a.png", "c/.ipynb_checkpoints/a.png", "c/deep/.git/a.png"]
    unseen += ["c/__MACOSX/a.png", "c/@eaDir/a.png", "c/lost+found/a.png", "c/.DS_Store"]
    for name in seen + unseen:
        touch(tmp_path / "train" / name)
    found = tree(tmp_path)
    assert names(found) == seen
    assert not found.left_out


def test_hidden_folders_are_no_classes(tmp_path):
    write_tree(tmp_path)
    for name in (".ipynb_checkpoints", ".git", "__MACOSX", "lost+found"):
        (tmp_path / "train" / name).mkdir()
    touch(tmp_path / "train" / "labels.csv")
    dataset = open_image_folder(config(tmp_path))
    assert dataset.class_names == ("ant", "bee", "cat")
    (note,) = dataset.notes
    assert note == f"left out of {tmp_path}/train: entries outside the class folders (1)"


def test_a_dot_above_the_classes_hides_nothing(tmp_path):
    root = write_tree(tmp_path / ".cache" / "images")
    assert len(open_image_folder(config(root)).train) == 12


@pytest.mark.parametrize("root", [".", "train", "train/"])
def test_a_relative_path_of_one_part_is_a_folder(tmp_path, monkeypatch, root):
    write_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    if root == ".":
        assert len(open_image_folder(config(root)).train) == 12
    else:
        assert len(ImageTree(root, [b"ant", b"bee", b"cat"])) == 12


def test_what_is_left_out_is_counted_by_its_reason(tmp_path):
    folder = tmp_path / "train" / "c"
    for name in ("a.png", "b.heic", "c.HEIC", "d.txt", "README", "odd.", "e.a-very-long-suffix"):
        touch(folder / name)
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "gone-folder").symlink_to("nowhere")
    (folder / "self.png").symlink_to("self.png")
    (folder / "above").symlink_to("..")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.png"))
    found = tree(tmp_path)
    assert names(found) == ["c/a.png"]
    assert found.left_out == {
        "files of type .heic": 2,
        "files of type .txt": 1,
        "files without a type": 3,
        "broken links": 3,
        "links to folders already read": 1,
        "pipes, sockets and devices": 2,
    }
    assert format_counts(found.left_out).startswith(
        "broken links (3), files without a type (3), files of"
    )


def test_many_reasons_are_one_line():
    words = format_counts(Counter({f"files of type .{i}": 1 for i in range(40)}))
    assert words.endswith(", others (34)")


def test_a_folder_named_as_an_image_is_a_folder(tmp_path):
    touch(tmp_path / "train" / "c" / "album.jpg" / "1.jpg")
    assert names(tree(tmp_path)) == ["c/album.jpg/1.jpg"]


def test_suffixes_that_pillow_reads_count(tmp_path):
    for suffix in ("jpg", "JPEG", "jpe", "jfif", "Png", "gif", "webp", "bmp", "tif", "avif", "pgm"):
        touch(tmp_path / "train" / "c" / f"x.{suffix}")
    assert len(tree(tmp_path)) == 11


def test_links_are_followed_at_every_depth(tmp_path):
    """Class, folder, file, a link to a link, one that leaves the root and one that is relative."""
    touch(tmp_path / "store" / "c" / "0.png")
    touch(tmp_path / "more" / "1.png")
    touch(tmp_path / "more" / "below" / "2.png")
    touch(tmp_path / "single.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "c").symlink_to(tmp_path / "store" / "c")
    (tmp_path / "store" / "c" / "deep").mkdir()
    (tmp_path / "store" / "c" / "deep" / "more").symlink_to("../../../again")
    (tmp_path / "again").symlink_to(tmp_path / "more")
    (tmp_path / "store" / "c" / "3.png").symlink_to(tmp_path / "single.png")
    found = tree(tmp_path)
    assert names(found) == [
        "c/0.png",
        "c/3.png",
        "c/deep/more/1.png",
        "c/deep/more/below/2.png",
    ]
    assert not found.left_out


@pytest.mark.timeout(60)
def test_circles_of_links_end(tmp_path):
    """To itself, to the class, to train/, to the root, to what holds it, into each other."""
    folder = tmp_path / "root" / "train" / "c"
    touch(folder / "a" / "0.png")
    touch(folder / "b" / "1.png")
    touch(folder.parent / "other" / "2.png")
    touch(tmp_path / "beside" / "3.png")
    for number, target in enumerate((".", "..", "../..", "../../..", "../../../..", "/")):
        (folder / "a" / f"up{number}").symlink_to(target)
    (folder / "a" / "to-b").symlink_to("../b")
    (folder / "b" / "to-a").symlink_to("../a")
    found = tree(tmp_path / "root")
    assert names(found) == ["c/a/0.png", "c/a/to-b/1.png"]
    assert found.left_out == {
        "links to folders already read": 6,
        "links to folders that contain the class": 2,
    }


@pytest.mark.timeout(60)
def test_circles_of_a_class_that_is_a_link(tmp_path):
    """What holds the linked folder, and the tree that it is linked from."""
    touch(tmp_path / "store" / "c" / "0.png")
    touch(tmp_path / "store" / "other" / "1.png")
    touch(tmp_path / "root" / "train" / "other" / "2.png")
    (tmp_path / "root" / "train" / "c").symlink_to(tmp_path / "store" / "c")
    (tmp_path / "store" / "c" / "store").symlink_to("..")
    (tmp_path / "store" / "c" / "root").symlink_to(tmp_path / "root")
    (tmp_path / "store" / "c" / "train").symlink_to(tmp_path / "root" / "train")
    assert names(tree(tmp_path / "root")) == ["c/0.png"]


@pytest.mark.timeout(60)
def test_links_that_branch_do_not_multiply(tmp_path):
    """Sixty levels of two links to the next level: 2^60 ways to one image."""
    levels = [tmp_path / "levels" / str(i) for i in range(60)]
    for level, below in pairwise(levels):
        level.mkdir(parents=True)
        for name in ("left", "right"):
            (level / name).symlink_to(below)
    touch(levels[-1] / "0.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "c").symlink_to(levels[0])
    # The kernel follows at most 40 links in one path.
    assert len(tree_or_error(tmp_path)) <= 1


def tree_or_error(root: Path) -> list[str]:
    try:
        return names(tree(root))
    except UserError:
        return []


def test_a_folder_counts_once_a_class_and_a_file_once_a_name(tmp_path):
    touch(tmp_path / "store" / "0.png")
    for name in ("c", "d"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for link in ("one", "two"):
            (folder / link).symlink_to(tmp_path / "store")
            (folder / f"{link}.png").symlink_to(tmp_path / "store" / "0.png")
    found = tree(tmp_path, "c", "d")
    assert names(found) == [
        f"{name}/{file}" for name in "cd" for file in ("one/0.png", "one.png", "two.png")
    ]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.left_out == {"links to folders already read": 2}


def test_folders_nested_deeper_than_calls(tmp_path):
    deep = touch(tmp_path / "train" / "c" / "0.png").parent
    levels = "d/" * (sys.getrecursionlimit() + 200)
    # Python's own walks give up on such a tree, and pytest could not clear it away.
    subprocess.run(["mkdir", "-p", levels], cwd=deep, check=True, timeout=60)
    try:
        subprocess.run(["touch", f"{levels}1.png"], cwd=deep, check=True, timeout=60)
        assert names(tree(tmp_path)) == ["c/0.png", f"c/{levels}1.png"]
    finally:
        subprocess.run(["rm", "-r", "d"], cwd=deep, check=True, timeout=60)


def test_strange_names(tmp_path):
    folder = os.fsencode(tmp_path / "train" / "c")
    os.makedirs(folder)
    strange = [b"a\nb.png", b"\xff\xfe.png", "\u202egnp.png".encode(), b"x" * 251 + b".png"]
    for name in strange:
        Path(os.fsdecode(os.path.join(folder, name))).touch()
    found = tree(tmp_path)
    assert [found.name(i) for i in range(4)] == sorted(b"c/" + name for name in strange)
    assert all(os.path.exists(found[i]) for i in range(4))
    assert shown(b"a\nb\xff\x1b") == "a\\nb\\xff\\x1b"


ORDER = """
import sys
from collections import Counter
from harness.data.tree import ImageTree, class_folders
root = sys.argv[1]
print(sys.getfilesystemencoding(), ImageTree(root, class_folders(root, Counter())).identity())
"""


def test_the_order_is_the_same_in_every_locale(tmp_path):
    for name in ("B/1.png", "a/Z.png", "a/a.png", "\u00e9/1.png", "z/1.png", "a/\u00c4.png"):
        touch(tmp_path / "train" / name)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", ORDER, str(tmp_path / "train")],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **plain},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    classes = class_folders(str(tmp_path / "train"), Counter())
    assert classes == [b"B", b"a", b"z", "\u00e9".encode()]
    found = ImageTree(str(tmp_path / "train"), classes)
    assert ended.stdout.split() == ["ascii", found.identity()]


def test_only_the_very_same_files_have_the_same_identity(tmp_path):
    for root in ("here", "copy"):
        for name in ("0.png", "1.png"):
            touch(tmp_path / root / "train" / "c" / name).write_bytes(b"123")
    (tmp_path / "mounted").symlink_to(tmp_path / "here")
    here, mounted, copy = (tree(tmp_path / name) for name in ("here", "mounted", "copy"))
    assert here.identity() == mounted.identity() != copy.identity()
    before = here.identity()
    first, second = sorted((tmp_path / "here" / "train" / "c").iterdir())
    os.utime(first, ns=(1, 1))
    touched = tree(tmp_path / "here").identity()
    second.rename(second.with_name("2.png"))
    assert len({before, touched, tree(tmp_path / "here").identity()}) == 3


def test_files_may_have_numbers_of_64_bits(tmp_path, monkeypatch):
    """Some file systems make them by hashes."""
    touch(tmp_path / "train" / "c" / "a.png")
    status = SimpleNamespace(st_ino=2**64 - 1, st_size=3, st_mtime_ns=0)
    monkeypatch.setattr("harness.data.tree._images_below", lambda *_: iter([(b"a.png", status)]))
    assert len(tree(tmp_path).identity()) > 0


def test_what_may_not_be_read_is_said(tmp_path):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        closed = touch(root / "train" / "c" / "closed" / "0.png").parent
        (root / "train" / "c" / "1.png").symlink_to(closed / "0.png")
        root.chmod(0o755)
        closed.chmod(0)
        with without_rights(), pytest.raises(UserError, match=r"the folder .*closed: Permission"):
            tree(root)
        closed.chmod(0o700)
        closed.rename(root / "elsewhere")
        with without_rights(), pytest.raises(UserError, match=r"has no images \(but broken links"):
            tree(root)


def test_labels_are_counted_per_class(tmp_path):
    for name in ("a/0.png", "b/0.png", "b/1.png", "c/0.png"):
        touch(tmp_path / "train" / name)
    found = tree(tmp_path, "a", "b", "c")
    assert found.labels.dtype == torch.int64
    assert found.labels.tolist() == [0, 1, 1, 2]
