"""Pairs of a list are its lines, whatever names hold; those of a folder are each there once."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.evaluate import pairs as module
from harness.evaluate.pairs import Pairs, drawn_pairs, read_pairs

LINES = "a.png\tb.png\t1\na.png\tc.png\t0\n" * 10


def read(folder: Path, text: str) -> tuple[list[str], Pairs]:
    file = folder / "pairs.txt"
    file.write_bytes(text.encode())
    paths, pairs = read_pairs(file)
    assert {path.parent for path in paths} == {folder}
    return [path.name for path in paths], pairs


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_as_other_systems_write_it(tmp_path: Path, begin: str, end: str) -> None:
    names, pairs = read(tmp_path, begin + LINES.replace("\n", end))
    assert names == ["a.png", "b.png", "c.png"]
    assert pairs.second.tolist() == [1, 2] * 10
    assert pairs.same.tolist() == [True, False] * 10


@pytest.mark.parametrize("odd", ["\u2028", "\u3000", "\x85", "\x0b", "\x1c"])
@pytest.mark.parametrize("between", ["\t", " "])
def test_what_separates_for_unicode_is_part_of_a_name(
    tmp_path: Path, odd: str, between: str
) -> None:
    lines = LINES.replace("a.png", f"a{odd}a.png").replace("\t", between)
    assert read(tmp_path, lines)[0] == [f"a{odd}a.png", "b.png", "c.png"]


def couples(first: Tensor, second: Tensor) -> list[frozenset[int]]:
    return [frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)]


def drawn(labels: Tensor) -> tuple[list[frozenset[int]], list[frozenset[int]]]:
    """Pairs of one class and of two; none twice, none of an image with itself."""
    found = drawn_pairs(labels, Path("photographs"))
    of_one = labels[found.first] == labels[found.second]
    assert torch.equal(found.same, of_one)
    whole = couples(found.first, found.second)
    assert {len(pair) for pair in whole} == {2}
    assert len(set(whole)) == len(whole)
    return tuple(couples(found.first[each], found.second[each]) for each in (of_one, ~of_one))


def test_few_images_give_all_pairs() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1] * 4)
    same, different = drawn(labels)
    assert set(same) | set(different) == {frozenset(pair) for pair in combinations(range(20), 2)}
    assert len(same) == 2 * 28 + 6


def test_many_images_give_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each class its share at most; what a small one leaves no other takes."""
    monkeypatch.setattr(module, "MOST_SAME", 1500)
    monkeypatch.setattr(module, "MOST_DIFFERENT", 4000)
    labels = torch.tensor([0] * 2000 + [1] * 40 + [2] * 5 + [3] * 2000)
    same, different = drawn(labels)
    counts = labels[torch.tensor([min(pair) for pair in same])].bincount().tolist()
    assert counts == [375, 375, 10, 375]
    assert 3900 < len(different) <= 4000
    middles = [sum(pair) / 2 for pair in same if max(pair) < 2000]
    assert sum(middles) / len(middles) == pytest.approx(999.5, abs=80)
    again = drawn_pairs(labels, Path("photographs"))
    assert couples(again.first, again.second) == same + different


def test_classes_of_a_hundred_thousand_images_take_no_memory_for_all_their_pairs() -> None:
    same, different = drawn(torch.arange(200_000) % 2)
    assert len(same) == 100_000
    assert 990_000 < len(different) <= 1_000_000


def test_every_number_has_a_pair_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the ends of the rows of pairs, where a root is whole but for the last digit."""
    second = torch.tensor([2, 3, 1000, 1_000_003, 9_999_999])
    ends = second * (second + 1) // 2 - 1
    for numbers, first in ((ends, second - 1), (ends + 1, torch.zeros_like(second))):
        monkeypatch.setattr(module, "_distinct", lambda *_, found=numbers: found)
        expected = torch.stack((first, second + (numbers > ends)), dim=1)
        assert torch.equal(module._some_pairs(10**7 + 1, 5, torch.Generator()), expected)
