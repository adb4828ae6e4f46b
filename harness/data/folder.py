"""A folder of image files by class: root/train/CLASS/*.jpg and root/val/CLASS/*.jpg."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from harness.data.classes import PARTS, Classes, check_number, classes_of
from harness.data.cut import Frame, picture
from harness.data.decoder import Decoder
from harness.data.images import Part
from harness.data.picture_source import PictureFolder
from harness.data.pixels import check_file, content_of, most_reduced, upright
from harness.data.tree import ImageTree, format_counts, shown


def read_folder(root: Path, num_classes: int, decoder: Decoder) -> PictureFolder:
    """Raises UserError for a folder that does not fit, and for another number of classes."""
    left_out: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    classes = classes_of(root, left_out)
    check_number(root / PARTS[0], len(classes.train), num_classes)
    trees = trees_of(root, classes, left_out)
    train, val = (FilePictures(tree, classes.labels(part), decoder) for part, tree in trees.items())
    names = tuple(map(shown, classes.train))
    return PictureFolder(train, val, names, notes_of(root, classes, trees, left_out))


def trees_of(
    root: Path, classes: Classes, left_out: dict[str, Counter[str]]
) -> dict[str, ImageTree]:
    """The files of each part. Counts what is no image in `left_out`."""
    trees = {part: ImageTree(str(root / part), classes.of(part)) for part in PARTS}
    for part, tree in trees.items():
        left_out[part] += tree.left_out
    return trees


def notes_of(
    root: Path,
    classes: Classes,
    trees: Mapping[str, ImageTree],
    left_out: Mapping[str, Counter[str]],
) -> tuple[str, ...]:
    """What the user should know about the folder, one line each."""
    notes = [
        f"left out of {root / part}: {format_counts(found)}"
        for part, found in left_out.items()
        if found
    ]
    return (*notes, *filter(None, [classes.note(), _in_both(trees)]))


def _in_both(trees: Mapping[str, ImageTree]) -> str:
    """One line if files of val/ are files of train/ too; else empty. Copies are not noticed."""
    train, val = (trees[part].stats for part in PARTS)
    # Another disk may have a file of the same inode, and hardly of the same size and time.
    alike = train[np.isin(train[:, 0], val[:, 0])]
    row = [("inode", np.int64), ("bytes", np.int64), ("changed", np.int64)]
    both = np.isin(val.view(row).ravel(), alike.view(row).ravel())
    if not both.any():
        return ""
    first = shown(trees[PARTS[1]].name(int(both.argmax())))
    return (
        f"{both.sum():,} of {len(both):,} images of val/ are images of train/ too, linked into "
        f"both, so accuracy is not that on unseen images; the first is val/{first}"
    )


class FilePictures:
    """The image files of a tree of class folders."""

    files_are_pictures, together = True, 128

    def __init__(self, files: ImageTree, labels: Tensor, decoder: Decoder) -> None:
        """`labels`: of each class of the tree, int64."""
        self.files = files
        self.labels = labels[files.labels]
        self._decoder = decoder

    def __len__(self) -> int:
        return len(self.files)

    def cut(self, number: int, frame: Frame, size: int) -> np.ndarray:
        return picture(content_of(self.files[number]), frame, size, self._decoder)

    def shown(self, number: int) -> str:
        return shown(os.fsencode(self.files[number]))

    def check(self, number: int, closely: bool) -> None:
        """Raises Undecodable for a file that cannot be read; `closely` decodes it."""
        if closely:
            upright(content_of(self.files[number]), most_reduced, self._decoder)
        else:
            check_file(self.files[number])

    def remedy(self, them: str) -> str:
        return f"replace or remove {them}"

    def parts(self) -> Iterator[Part]:
        yield self._decoder.part
        sizes = self.files.stats[:, 1].tolist()
        for number, size in enumerate(sizes):
            name, _, inside = self.files.name(number).partition(b"/")
            yield Part(shown(name), f"{shown(inside)} ({size} bytes)")
