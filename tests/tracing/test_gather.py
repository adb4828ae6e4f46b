"""The content of every rank arrives at the first, in order and complete, whatever its size."""

import torch.distributed as dist

from harness.tracing.gather import collect
from tests.ranks import run_on_ranks

CONTENTS = (b"of the first", b"", b"x" * 3_000_000, b"of the last")


def collected() -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    rank = dist.get_rank()
    collect(rank, len(CONTENTS), CONTENTS[rank], lambda of, content: found.append((of, content)))
    return found


def test_the_first_rank_takes_one_after_the_other() -> None:
    first, *others = run_on_ranks(collected, len(CONTENTS))
    assert first == list(enumerate(CONTENTS))
    assert others == [[]] * 3


def test_a_rank_alone_keeps_its_own() -> None:
    found: list[tuple[int, bytes]] = []
    collect(0, 1, b"own", lambda of, content: found.append((of, content)))
    assert found == [(0, b"own")]
