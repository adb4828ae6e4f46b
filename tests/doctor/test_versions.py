"""A different version on one host is reported with the host's name and both versions."""

import pytest

from harness.doctor.versions import VersionFacts, judge_versions, version_facts
from tests.doctor.seats import FOUR, seats

USUAL = version_facts().versions


def facts(**others: dict[str, str]) -> list[VersionFacts]:
    """Facts of h1..h4; `others`: host -> packages with another version."""
    hosts = [seat.host for seat in FOUR]
    return [VersionFacts(versions=USUAL | others.get(host, {})) for host in hosts]


def test_equal_versions_are_one_line() -> None:
    (finding,) = judge_versions(FOUR, facts())
    assert finding.level == "ok"
    assert f"torch {USUAL['torch']}" in finding.found


def test_the_host_that_differs_is_named() -> None:
    (finding,) = judge_versions(FOUR, facts(h3={"torch": "2.12.0"}))
    assert finding.level == "fail"
    assert finding.found == f"torch is 2.12.0 on h3 and {USUAL['torch']} on h1, h2, h4"
    assert finding.advice == "install on h3 the version of the others"


def test_the_first_rank_may_be_the_one() -> None:
    (finding,) = judge_versions(FOUR, facts(h1={"harness": "source 12345678"}))
    assert "harness is source 12345678 on h1" in finding.found


def test_of_two_hosts_the_second_differs() -> None:
    two = seats(("h1", 1), ("h2", 1))
    both = [VersionFacts(versions={"torch": version}) for version in ("2.13.0", "2.12.0")]
    (finding,) = judge_versions_of(two, both)
    assert finding == "torch is 2.12.0 on h2 and 2.13.0 on h1"


def judge_versions_of(places: list, found: list[VersionFacts]) -> list[str]:
    whole = [VersionFacts(versions=USUAL | each.versions) for each in found]
    return [finding.found for finding in judge_versions(places, whole)]


@pytest.mark.parametrize("package", ["python", "numpy", "torchvision", "driver", "CUDA"])
def test_what_leaves_the_numbers_alone_is_a_warning(package: str) -> None:
    (finding,) = judge_versions(FOUR, facts(h2={package: "0.1"}))
    assert finding.level == "warn"


def test_ranks_of_a_host_are_not_told_apart() -> None:
    two = seats(("h1", 4), ("h2", 4))
    found = [VersionFacts(versions=USUAL | {"horovod": f"0.28.{seat.host}"}) for seat in two]
    assert len(judge_versions(two, found)) == 1
