"""Names that do not resolve, or that lead to the wrong host or back to the host that looks."""

import socket

import pytest

from harness.doctor.finding import Finding
from harness.doctor.names import NameFacts, address_of, judge_names, name_facts
from harness.doctor.seat import Seat
from tests.doctor.seats import EMULATED, FOUR, seats

ADDRESSES = {f"h{n}": f"10.1.0.{n}" for n in range(1, 5)}


def facts(places: list[Seat], **changed: dict[str, str | None]) -> list[NameFacts | None]:
    """Facts of good hosts; `changed`: host -> names with another address on this host."""
    found: list[NameFacts | None] = []
    for seat in places:
        addresses = ADDRESSES | changed.get(seat.host, {})
        own = addresses.get(seat.machine)
        fact = NameFacts(addresses=addresses, own_address=own, interface_address="10.1.0.9")
        found.append(fact if seat.is_host_leader else None)
    return found


def judged(*arguments: object) -> Finding:
    (finding,) = judge_names(*arguments, True)  # type: ignore[arg-type]
    return finding


def test_all_names_lead_to_their_hosts() -> None:
    finding = judged(FOUR, facts(FOUR))
    assert finding.level == "ok"
    assert "h3 10.1.0.3" in finding.found


def test_a_host_whose_name_is_loopback_there() -> None:
    finding = judged(FOUR, facts(FOUR, h3={"h3": "127.0.0.1"}))
    assert finding.level == "fail"
    assert finding.found == "the name h3 is 127.0.0.1 on h3, which other hosts cannot reach"
    assert finding.advice == "give h3 its routable address in /etc/hosts on h3"


def test_it_is_told_who_says_it_and_of_whom() -> None:
    finding = judged(FOUR, facts(FOUR, h2={"h4": "127.0.1.1"}))
    assert finding.found.startswith("the name h4 is 127.0.1.1 on h2")


def test_ranks_that_were_started_on_the_launcher_instead() -> None:
    here = seats(("h1", 2), ("h2", 2), machine="h1")
    found = facts(here, h1={"h2": "127.0.0.1"}, h2={"h2": "127.0.0.1"})
    assert "its ranks run on h1" in judge_names(here, found, True)[0].found


def test_a_name_that_leads_nowhere() -> None:
    assert judged(FOUR, facts(FOUR, h1={"h2": None})).found == "the name h2 does not resolve on h1"


def test_an_address_that_does_not_answer() -> None:
    found = facts(FOUR)
    assert found[1] is not None
    found[1] = found[1].model_copy(update={"unreached": {"h3": "timed out"}})
    assert judged(FOUR, found).found == "h2 cannot reach h3 at 10.1.0.3 (timed out)"


@pytest.mark.parametrize("own", ["localhost", "box", "box.example.org"])
def test_emulated_nodes_may_lead_to_their_machine(own: str) -> None:
    here = seats((own, 2), ("127.0.0.1", 2), machine="box")
    loopback = dict.fromkeys([own, "127.0.0.1"], "127.0.0.1")
    fact = NameFacts(addresses=loopback, own_address="127.0.1.1", interface_address="127.0.0.1")
    finding = judged(here, [fact if seat.is_host_leader else None for seat in here])
    assert finding.level == "ok"
    assert finding.found == "4 ranks on 2 hosts, all on this machine, box"


def test_one_rank_alone() -> None:
    for address in ("127.0.1.1", None):
        fact = NameFacts(addresses={"box": address}, own_address=address)
        assert judged(seats(("box", 1)), [fact]).level == "ok"


@pytest.mark.parametrize(("mended", "level"), [(True, "warn"), (False, "fail")])
def test_a_machine_that_calls_itself_otherwise(mended: bool, level: str) -> None:
    """Stock Horovod listens at the address of that name, the mended one on the interface."""
    places = [FOUR[0], FOUR[1].model_copy(update={"machine": "ip-10-1-0-2"})]
    found = [
        NameFacts(addresses=ADDRESSES, own_address=own, interface_address="10.1.0.9")
        for own in ("10.1.0.1", "127.0.1.1")
    ]
    (finding,) = judge_names(places, found, mended)
    assert finding.level == level
    assert finding.found == "h2 calls itself ip-10-1-0-2, which is 127.0.1.1 there"


@pytest.mark.parametrize(("address", "said"), [(None, "has no address"), ("127.0.0.1", "chose")])
def test_the_interface_of_the_launcher(address: str | None, said: str) -> None:
    places = [seat.model_copy(update={"interface": "eth7"}) for seat in FOUR[:2]]
    found = [
        NameFacts(addresses=ADDRESSES, own_address="10.1.0.9", interface_address=each)
        for each in ("10.1.0.9", address)
    ]
    finding = judged(places, found)
    assert finding.level == "fail"
    assert said in finding.found


def test_hosts_of_different_size() -> None:
    uneven = seats(("h1", 3), ("h2", 1))
    assert (
        judged(uneven, facts(uneven)).found == "hosts have different numbers of ranks: h1 3, h2 1"
    )


def test_a_dead_name_server_is_few_lines() -> None:
    nowhere = dict.fromkeys(ADDRESSES, None)
    changed: dict[str, dict[str, str | None]] = {seat.host: dict(nowhere) for seat in FOUR}
    findings = judge_names(FOUR, facts(FOUR, **changed), True)
    assert len(findings) == 9
    assert findings[-1].found == "and 8 more like these"


def test_names_are_looked_up() -> None:
    assert address_of("localhost") == "127.0.0.1"
    assert address_of("no-such-host.invalid") is None
    found = name_facts(EMULATED, EMULATED[0].model_copy(update={"machine": socket.gethostname()}))
    assert found.addresses == {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1"}
