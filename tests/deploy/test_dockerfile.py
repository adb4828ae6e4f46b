"""The Dockerfile's own examples start containers in which ranks can train."""

import re
import shlex

import pytest

from tests.horovodrun import ROOT

COMMENTS = "\n".join(
    line[1:] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("#")
)
RUNS = [
    shlex.split(line)
    for line in re.findall(r"^ +docker run .*", COMMENTS.replace("\\\n", " "), re.MULTILINE)
]


def test_there_are_examples_for_one_machine_and_for_several() -> None:
    assert len(RUNS) == 3
    assert any("/usr/sbin/sshd" in words for words in RUNS)


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_ranks_get_shared_memory_and_cards(words: list[str]) -> None:
    """Ranks of a machine exchange in shared memory, of which a container has 64 MB by default."""
    assert "--shm-size" in words
    assert ("--gpus" in words) == ("harness-gpu" in words)


def test_keys_are_said_to_be_root_s_alone() -> None:
    """Otherwise sshd refuses them, and says so only in its own log."""
    assert re.search(r"KEYS .* belongs\s+to\s+root\s+and has mode 700", COMMENTS, re.DOTALL)
