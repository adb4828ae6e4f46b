"""The class folders of train/ and val/: the same ones in both, or fewer in val/."""

import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from torch import Tensor

from harness.data.tree import class_folders, shown, visible
from harness.errors import UserError

PARTS = ("train", "val")


@dataclass(frozen=True)
class Classes:
    """The names of class folders, sorted by their bytes."""

    train: list[bytes]
    """Label 0 is the first of them, and so on."""
    val: list[bytes]
    """All of `train`, or some of them."""

    def of(self, part: str) -> list[bytes]:
        return self.train if part == PARTS[0] else self.val

    def labels(self, part: str) -> Tensor:
        """The label of each class of a part, int64."""
        numbers = {name: number for number, name in enumerate(self.train)}
        return torch.tensor([numbers[name] for name in self.of(part)])

    def note(self) -> str:
        """One line if validation has fewer classes; else empty."""
        missing = sorted(set(self.train) - set(self.val))
        if not missing:
            return ""
        return (
            f"val/ has {len(self.val):,} of the {len(self.train):,} classes of train/, so accuracy "
            f"is measured on these; it lacks {', '.join(map(shown, missing[:3]))}"
            f"{' ...' if len(missing) > 3 else ''}"
        )


def classes_of(root: Path, left_out: Mapping[str, Counter[str]]) -> Classes:
    """The class folders of both parts. Counts other entries in `left_out[part]`.

    Raises UserError if there are fewer than two, if val/ has one that train/ lacks, or if two look
    the same.
    """
    train, val = (_class_folders(root, part, left_out[part]) for part in PARTS)
    for part, names in zip(PARTS, (train, val), strict=True):
        _check_lookalikes(root / part, names)
    if not set(val) <= set(train):
        raise UserError(_differing(root, set(train), set(val)))
    if len(train) < 2:
        raise UserError(
            f"{root / 'train'} has one class folder, {shown(train[0])}; a classifier needs at "
            f"least two, each directly in train/ and val/"
        )
    return Classes(train, val)


def check_number(where: Path, found: int, num_classes: int) -> None:
    """Raises UserError if `where` has another number of classes than the config says."""
    if found != num_classes:
        raise UserError(
            f"{where} has {found} classes, but data.num_classes is {num_classes}; "
            f"set data.num_classes={found}"
        )


def check_names(
    where: str, found: Sequence[str], trained: Path, expected: Sequence[str], advice: str
) -> None:
    """Raises UserError if the classes of the images in `where` are others, or in another order,
    than those of the checkpoint `trained`. Without names on either side nothing is compared."""
    if not found or not expected:
        return
    pairs = enumerate(zip_longest(found, expected))
    other = next(((label, *names) for label, names in pairs if len(set(names)) > 1), None)
    if other is not None:
        label, here, there = other
        raise UserError(
            f"the classes of {where} are others than those of {trained}: label {label} is "
            f"{_named(here)} in the images and {_named(there)} in the checkpoint; {advice}"
        )


def _named(name: str | None) -> str:
    return "no class" if name is None else repr(name)


def _class_folders(root: Path, part: str, left_out: Counter[str]) -> list[bytes]:
    folder = root / part
    if not os.path.isdir(folder):
        found = [shown(entry.name) for entry in visible(os.fsencode(root))]
        held = ", ".join(found[:4]) + (" ..." if len(found) > 4 else "")
        raise UserError(
            f"there is no folder {folder}; data.root must contain train/ and val/, but it "
            f"contains {held or 'nothing'}"
        )
    names = class_folders(str(folder), left_out)
    if not names:
        others = f", but {left_out.total():,} other entries" if left_out else ""
        raise UserError(
            f"{folder} has no class folder{others}; put the images of each class into a "
            f"folder {folder}/CLASS"
        )
    return names


def _check_lookalikes(folder: Path, names: list[bytes]) -> None:
    first_of: dict[str, bytes] = {}
    for name in names:
        twin = first_of.setdefault(_composed(name), name)
        if twin != name:
            raise UserError(
                f"{folder} has two classes that look the same: {_difference(twin, name)}; "
                f"merge or rename them"
            )


def _differing(root: Path, train: set[bytes], val: set[bytes]) -> str:
    only = [sorted(train - val), sorted(val - train)]
    for alike in (_composed, _small, _trimmed):
        twins = {alike(name): name for name in only[1]}
        for name in only[0]:
            if alike(name) in twins:
                return (
                    f"{root} has a class that is written in two ways, first in train/, then in "
                    f"val/: {_difference(name, twins[alike(name)])}; rename one of the folders"
                )
    missing = "; ".join(
        f"only in {part}/: {', '.join(map(shown, names[:3]))}{' ...' if len(names) > 3 else ''}"
        for part, names in zip(PARTS, only, strict=True)
        if names
    )
    return (
        f"{root} has {len(train ^ val)} classes in only one of train/ and val/ ({missing}); every "
        f"class of val/ must be in train/ too"
    )


def _composed(name: bytes) -> str:
    return unicodedata.normalize("NFC", shown(name))


def _small(name: bytes) -> str:
    return _composed(name).casefold()


def _trimmed(name: bytes) -> str:
    return "".join(_small(name).split())


def _difference(first: bytes, second: bytes) -> str:
    """Describes how two names differ that look the same to a person."""
    names = f"{shown(first)!a} and {shown(second)!a}"
    if _composed(first) == _composed(second):
        return f"{names} are the same letters, composed differently (Unicode NFC and NFD)"
    if _small(first) == _small(second):
        return f"{names} differ in upper and lower case"
    return f"{names} differ in spaces"
