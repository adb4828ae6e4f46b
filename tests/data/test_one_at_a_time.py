"""Two threads that read one source take turns, as its protocol promises whoever writes one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from harness.data.images import OneAtATime, Part


class Counting:
    """Notes how many reads are under way at once."""

    def __init__(self) -> None:
        self.under_way = 0
        self.most = 0
        self.labels = torch.arange(8)

    def __len__(self) -> int:
        return 8

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(0.002)  # gives another thread the processor
        self.under_way -= 1
        return torch.zeros(len(indices), 1, 8, 8, dtype=torch.uint8), indices

    def parts(self) -> Iterator[Part]:
        yield Part("class", "file")


def most_at_once(source: Counting | OneAtATime) -> list[Tensor]:
    with ThreadPoolExecutor(4) as threads:
        asked = [torch.tensor([number % 8]) for number in range(32)]
        return [labels for _, labels in threads.map(source.read, asked)]


def test_threads_take_turns_and_get_what_they_asked_for() -> None:
    alone = Counting()
    most_at_once(alone)
    assert alone.most > 1, "the threads never met: this cannot fail"
    counted = Counting()
    found = most_at_once(OneAtATime(counted))
    assert counted.most == 1
    assert torch.equal(torch.cat(found), torch.arange(32) % 8)


def test_it_is_the_source_in_all_else() -> None:
    counted = Counting()
    source = OneAtATime(counted)
    assert len(source) == 8
    assert source.labels is counted.labels
    assert list(source.parts()) == [Part("class", "file")]
