"""The memory that a run needs, computed from its config, compared with what is free."""

from pathlib import Path

import psutil
import pytest
import torch

from harness.doctor import memory
from harness.doctor.memory import MemoryFacts, judge_memory, memory_facts
from harness.doctor.need import Need
from tests.doctor.seats import EMULATED, FOUR, seats

GB = 10**9


def need(model: int = 0, **moments: int) -> Need:
    return Need(model=model, exchange=0, training=0).model_copy(update=moments)


def test_enough() -> None:
    facts = [MemoryFacts(host_free=10 * GB, card_free=None)] * 4
    (finding,) = judge_memory(FOUR, facts, need(model=GB))
    assert finding.level == "ok"
    assert "a rank of this run needs 1 GB (model 1 GB" in finding.found
    assert judge_memory(FOUR, facts, None)[0].found == "10 GB free on every host"


@pytest.mark.parametrize(
    ("wanted", "level"),
    [
        (need(model=11 * GB), "fail"),
        (need(model=9 * GB), "warn"),
        (need(model=GB, training=20 * GB), "warn"),
        (need(model=GB, evaluation=20 * GB, training=GB), "warn"),
        (need(model=GB, saving=20 * GB), "warn"),
        (need(model=GB, copies=6 * GB, training=4 * GB), "warn"),
    ],
)
def test_one_host_is_short(wanted: Need, level: str) -> None:
    facts = [MemoryFacts(host_free=100 * GB, card_free=None)] * 3
    facts.insert(2, MemoryFacts(host_free=10 * GB, card_free=None))
    (finding,) = judge_memory(FOUR, facts, wanted)
    assert finding.level == level
    assert finding.found.startswith("host h3 has 10 GB free; a rank needs")


def test_ranks_of_a_machine_share_its_memory() -> None:
    """This holds for emulated nodes, too: four ranks of 3 GB do not fit into 10 GB."""
    facts = [MemoryFacts(host_free=10 * GB, card_free=None)] * 4
    (finding,) = judge_memory(EMULATED, facts, need(model=3 * GB))
    assert finding.level == "fail"
    assert "10 GB free; 4 ranks need 3 GB" in finding.found
    assert judge_memory(FOUR, facts, need(model=3 * GB))[0].level == "ok"


def test_a_card_is_its_ranks_alone() -> None:
    two = seats(("h1", 2))
    facts = [MemoryFacts(host_free=GB, card_free=free * GB) for free in (80, 2)]
    (finding,) = judge_memory(two, facts, need(model=3 * GB))
    assert finding.found.startswith("the card of rank 1 on h1 has 2 GB free")


def test_what_lies_in_the_host_s_memory_is_not_the_card_s() -> None:
    wanted = need(model=GB, estimate=5 * GB, estimate_on_host=4 * GB, training=2 * GB)
    assert (wanted.total, wanted.on_card) == (6 * GB, 3 * GB)
    facts = [MemoryFacts(host_free=100 * GB, card_free=4 * GB)]
    (finding,) = judge_memory(seats(("h1", 1)), facts, wanted)
    assert finding.level == "ok"
    facts = [MemoryFacts(host_free=4 * GB, card_free=None)]
    (finding,) = judge_memory(seats(("h1", 1)), facts, wanted)
    assert finding.level == "warn"
    assert "one at a time: training 2 GB, the curvature's estimate 5 GB" in finding.found


def test_what_ranks_with_cards_keep_in_their_hosts_memory_is_added_up() -> None:
    wanted = need(
        model=9 * GB, estimate=8 * GB, estimate_on_host=2 * GB, copies=GB, saving=GB, pinned=GB
    )
    assert (wanted.beside_card.total, wanted.beside_card.certain) == (4 * GB, GB)

    def found(free: int) -> tuple[str, str]:
        facts = [MemoryFacts(host_free=free * GB, card_free=80 * GB)] * 2
        (finding,) = judge_memory(seats(("h1", 2)), facts, wanted)
        return finding.level, finding.found

    assert found(11)[0] == "ok"
    level, line = found(9)
    assert level == "warn"
    assert line.startswith("host h1 has 9 GB free; 2 ranks need 4 GB")
    assert found(1)[0] == "fail"


def test_this_machine_has_memory() -> None:
    facts = memory_facts(torch.device("cpu"))
    assert 1e7 < facts.host_free < 1e14
    assert facts.card_free is None


@pytest.mark.parametrize(
    ("limit", "usage", "statistics"),
    [
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ],
)
def test_a_container_s_limit_counts(
    limit: str, usage: str, statistics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both versions of control groups. Cache that can be given up counts as free."""
    monkeypatch.setattr(memory, "CONTROL_ROOT", tmp_path)
    free = psutil.virtual_memory().available
    assert memory_facts(torch.device("cpu")).host_free > free / 2
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("9000\n")
    (tmp_path / usage).write_text("7000\n")
    (tmp_path / statistics).write_text("inactive_file 500\ntotal_inactive_file 500\nrss 1\n")
    assert memory_facts(torch.device("cpu")).host_free == 2500


@pytest.mark.parametrize(
    ("listed", "folder", "limit", "usage", "cache"),
    [
        ("0::/job/step\n", "", "memory.max", "memory.current", "inactive_file"),
        (
            "7:cpu:/\n4:hugetlb,memory:/job/step\n0::/\n",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_the_tightest_of_all_groups_around_a_process_counts(
    listed: str,
    folder: str,
    limit: str,
    usage: str,
    cache: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scheduler limits a job, not the machine: the root's files say nothing of it."""
    (tmp_path / "groups").write_text(listed)
    monkeypatch.setattr(memory, "CONTROL_ROOT", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "groups")

    def group(path: str, allowed: str, used: int, cached: int) -> None:
        own = tmp_path / folder / path
        own.mkdir(parents=True, exist_ok=True)
        (own / limit).write_text(f"{allowed}\n")
        (own / usage).write_text(f"{used}\n")
        (own / "memory.stat").write_text(f"{cache} {cached}\nrss 1\n")

    group("job", "9000", 7000, 500)
    assert memory_facts(torch.device("cpu")).host_free == 2500
    group("job/step", "max", 100, 0)
    group("", "99999", 90000, 0)
    assert memory_facts(torch.device("cpu")).host_free == 2500
    group("job/step", "3000", 2900, 0)
    assert memory_facts(torch.device("cpu")).host_free == 100
    group("other", "10", 10, 0)
    assert memory_facts(torch.device("cpu")).host_free == 100
