"""Pairs of images: read from a list, or drawn from a folder of classes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import UserError
from harness.evaluate.verification import FOLDS
from harness.seeding import seeded_generator

MOST_SAME = 100_000
"""Most pairs of one class that are drawn from a folder: all classes have equal shares of them, at
least a pair each."""
MOST_DIFFERENT = 1_000_000
"""Most pairs of two classes."""
BLOCK = 1 << 16
"""Pairs whose scores are computed at once."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, by their places in a list of images."""

    first: Tensor
    """int64 [pairs]."""
    second: Tensor
    same: Tensor
    """Whether both are of one class, bool [pairs]."""

    def scores(self, features: Tensor) -> Tensor:
        """The cosine of each pair [pairs], given normalised features [images, D]."""
        both = zip(self.first.split(BLOCK), self.second.split(BLOCK), strict=True)
        return torch.cat([(features[a] * features[b]).sum(1) for a, b in both])


def read_pairs(file: Path) -> tuple[list[Path], Pairs]:
    """The images of a list, each once, and its pairs.

    A line has two paths, relative to the list's folder, and 1 or 0, separated by tabs or, if there
    are none, by blanks. Raises UserError for a line that does not fit.
    """
    try:
        # Only "\n" ends a line: splitlines() would also cut names at the separators of Unicode.
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the pairs in {file} ({error}); correct the path") from error
    places: dict[str, int] = {}
    rows = []
    for number, line in enumerate((line.removesuffix("\r") for line in lines), start=1):
        if not line.strip():
            continue
        cells = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
        if len(cells) != 3 or cells[2].strip() not in ("0", "1"):
            raise UserError(
                f"{file}, line {number}: {line[:60]!r} does not fit; write two image files, and 1 "
                f"if both are of one class or else 0, separated by tabs"
            )
        first, second = (places.setdefault(cell, len(places)) for cell in cells[:2])
        rows.append((first, second, int(cells[2])))
    if not rows:
        raise UserError(f"{file} has no pairs; write one a line")
    table = torch.tensor(rows)
    pairs = Pairs(table[:, 0], table[:, 1], table[:, 2] == 1)
    _check_enough(pairs.same, str(file))
    return [file.parent / name for name in places], pairs


def drawn_pairs(labels: Tensor, folder: Path) -> Pairs:
    """Pairs of images with these labels, each once, in random order, the same each time: all, or
    some drawn at random.

    A class has all its pairs, or its share of `MOST_SAME`. Pairs of two classes are those among all
    pairs, or among twice `MOST_DIFFERENT` that are drawn, up to that number. Raises UserError if
    there are too few of a kind.
    """
    generator = seeded_generator(0, "pairs")
    same = _within(labels, generator)
    drawn = _some_pairs(len(labels), 2 * MOST_DIFFERENT, generator)
    different = drawn[labels[drawn[:, 0]] != labels[drawn[:, 1]]][:MOST_DIFFERENT]
    whole = torch.cat((same, different))
    pairs = Pairs(whole[:, 0], whole[:, 1], torch.arange(len(whole)) < len(same))
    _check_enough(pairs.same, str(folder))
    return pairs


def _within(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs [pairs, 2] of one class, in random order."""
    counts = labels.unique(return_counts=True)[1].tolist()
    share = max(1, MOST_SAME // len(counts))
    whole = torch.cat(
        [
            own[_some_pairs(len(own), share, generator)]
            for own in labels.argsort(stable=True).split(counts)
        ]
    )
    return whole[torch.randperm(len(whole), generator=generator)]


def _some_pairs(count: int, most: int, generator: torch.Generator) -> Tensor:
    """All pairs [pairs, 2] of the numbers below `count`, or `most` of them, in random order."""
    numbers = _distinct(count * (count - 1) // 2, most, generator)
    # Pair number n (n - 1) / 2 + m is (m, n), with m < n: each pair of numbers has one, from 0 on.
    second = (((8 * numbers + 1).double().sqrt() + 1) / 2).long()
    return torch.stack((numbers - second * (second - 1) // 2, second), dim=1)


def _distinct(count: int, most: int, generator: torch.Generator) -> Tensor:
    """All numbers below `count`, or `most` of them, in random order: takes memory for twice `most`
    of them, not for all."""
    if count <= 2 * most:
        return torch.randperm(count, generator=generator)[:most]
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < most:
        more = torch.randint(count, (most,), generator=generator)
        found = torch.cat((found, more)).unique()
    return found[torch.randperm(len(found), generator=generator)[:most]]


def _check_enough(same: Tensor, place: str) -> None:
    counts = int(same.sum()), int((~same).sum())
    if min(counts) < FOLDS:
        raise UserError(
            f"{place} has {counts[0]} pairs of one class and {counts[1]} of two, but {FOLDS} folds "
            f"need {FOLDS} of each; add images"
        )


def embedded(images: Sequence[Tensor]) -> Tensor:
    """Features of batches as one tensor [images, D]. Raises UserError if they are not finite."""
    whole = torch.cat(list(images))
    if not whole.isfinite().all():
        raise UserError("the model's features are not finite: it diverged; use another checkpoint")
    return whole
