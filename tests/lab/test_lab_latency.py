"""Links with latency, jitter and loss: round trips, streams, order, changes while the lab runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from harness.lab.host import NAMESPACES, SWITCH, processes
from harness.lab.links import BRIDGE
from harness.lab.namespaces import network
from tests.labs import HERE, USER, Way, in_ways, lab_of

ROUND_TRIPS = Path(__file__).with_name("round_trips.py")
TRANSFER = Path(__file__).with_name("transfer.py")
DATAGRAMS = Path(__file__).with_name("datagrams.py")
LINK = ("--latency", "20ms", "--jitter", "none", "--loss", "none")
LATE_MS = 8.0
"""Time that a busy machine may add to the fastest of many round trips."""
PAYLOAD = 1448 / 1514
"""Share of the bytes on a link that are TCP payload."""


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Way]:
    options = ("--hosts", "3", "--slots", "1", "--rate", "50mbit", *LINK)
    with lab_of(*options, way=request.param) as way:
        yield way


@pytest.fixture
def as_before(lab: Way) -> Iterator[None]:
    """A lab whose links a test may change; they are restored afterwards."""
    yield
    lab.harness("lab", "rate", "50mbit", *LINK)


def round_trips(lab: Way, host: str, count: int = 40) -> list[float]:
    """Milliseconds of round trips of a byte from h1 to this host and back."""
    address = f"10.77.0.{host[1:]}"
    told = lab.run(sys.executable, str(ROUND_TRIPS), host, address, str(count))
    return [float(word) for word in told.split()]


def bits_per_second(lab: Way, sender: str, size: int) -> float:
    """Over the link, to h1."""
    return float(lab.run(sys.executable, str(TRANSFER), sender, "10.77.0.1", str(size))) / PAYLOAD


def out_of_order(lab: Way) -> int:
    """Number of segments that h1 has received before one that was sent earlier."""
    names, figures = (
        line.split()
        for line in lab.run("cat", "/proc/net/netstat").splitlines()
        if line.startswith("TcpExt:")
    )
    return int(figures[names.index("TCPOFOQueue")])


@in_ways(HERE, USER)
def test_a_round_trip_takes_twice_the_latency(lab: Way) -> None:
    assert 40 <= min(round_trips(lab, "h2")) < 40 + LATE_MS


@in_ways(HERE, USER)
def test_a_link_keeps_its_rate(lab: Way) -> None:
    # The faster of two, as other work on the machine can only slow a transfer down.
    fastest = max(bits_per_second(lab, "h2", 20_000_000) for _ in range(2))
    assert fastest == pytest.approx(50e6, rel=0.1)


@in_ways(HERE, USER)
@pytest.mark.usefixtures("as_before")
def test_of_two_links_the_worse_counts(lab: Way) -> None:
    lab.harness("lab", "rate", "50mbit", "h3", "--latency", "60ms")
    latencies = [line.split("latency ")[1][:5] for line in status(lab)]
    assert latencies == ["20 ms", "20 ms", "60 ms"]
    assert 120 <= min(round_trips(lab, "h3")) < 120 + LATE_MS
    assert 40 <= min(round_trips(lab, "h2")) < 40 + LATE_MS


def status(lab: Way) -> list[str]:
    return lab.harness("lab", "status").stdout.splitlines()


@in_ways(HERE)
@pytest.mark.usefixtures("as_before")
def test_what_is_not_named_stays(lab: Way) -> None:
    lab.harness("lab", "rate", "none", "--jitter", "5ms", "--loss", "0.1%")
    lab.harness("lab", "rate", "20mbit")
    told = "link 20Mbit, latency 20 ms, jitter 5 ms, loss 0.1 %"
    assert all(told in line for line in status(lab))


@in_ways(HERE)
@pytest.mark.usefixtures("as_before")
def test_without_latency_the_hosts_are_on_the_bridge_again(lab: Way) -> None:
    if lab.in_cell:
        pytest.skip("needs root: looks into the switch from outside")
    assert in_switch() == (1, 0)
    lab.harness("lab", "rate", "50mbit", "--latency", "none")
    assert in_switch() == (0, 3)
    assert min(round_trips(lab, "h2")) < LATE_MS
    lab.harness("lab", "rate", "50mbit", "--latency", "20ms")
    assert in_switch() == (1, 0)
    assert 40 <= min(round_trips(lab, "h2")) < 40 + LATE_MS


def in_switch() -> tuple[int, int]:
    """The number of relays and of ports on the bridge."""
    with network(NAMESPACES / SWITCH), IPRoute() as links:
        (bridge,) = links.link_lookup(ifname=BRIDGE)
        ports = list(links.get_links(master=bridge))
    return len(processes(SWITCH)), len(ports)


@in_ways(HERE, USER)
@pytest.mark.usefixtures("as_before")
def test_jitter_varies_round_trips_within_its_bounds_and_puts_nothing_out_of_order(
    lab: Way,
) -> None:
    lab.harness("lab", "rate", "50mbit", "--jitter", "15ms")
    found = round_trips(lab, "h2", 100)
    assert 10 <= min(found) < 25
    assert max(found) > 50
    before = out_of_order(lab)
    assert bits_per_second(lab, "h2", 5_000_000) > 20e6
    assert out_of_order(lab) == before


@in_ways(HERE, USER)
@pytest.mark.usefixtures("as_before")
def test_so_many_packets_are_lost_as_were_asked_for(lab: Way) -> None:
    lab.harness("lab", "rate", "20mbit", "--latency", "5ms", "--loss", "10%")
    lost = float(lab.run(sys.executable, str(DATAGRAMS), "h2", "10.77.0.1", "15000"))
    assert lost == pytest.approx(0.1, rel=0.1)  # 4 standard deviations


@in_ways(HERE, USER)
@pytest.mark.usefixtures("as_before")
def test_loss_slows_a_stream_that_still_arrives_whole(lab: Way) -> None:
    reno = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"
    kept = lab.run("ssh", "h2", f"cat /proc/sys/net/ipv4/tcp_congestion_control; {reno}").strip()
    stream = "ssh h2 head -c 2000000 /dev/zero | wc -c"  # real ssh checks every byte
    try:
        whole = bits_per_second(lab, "h2", 2_000_000)
        lab.harness("lab", "rate", "50mbit", "--latency", "10ms", "--loss", "2%")
        assert bits_per_second(lab, "h2", 2_000_000) < whole / 2
        assert lab.run("sh", "-c", stream) == "2000000\n"
        assert out_of_order(lab) > 0
    finally:
        lab.run("ssh", "h2", f"echo {kept} > /proc/sys/net/ipv4/tcp_congestion_control")


@in_ways(HERE)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--latency", "abc"], "'abc' is not a latency; write e.g. 20ms"),
        (["--latency", "20"], "'20' is not a latency"),
        (["--latency=-5ms"], "'-5ms' is not a latency"),
        (["--latency", "11s"], "a latency of 11 s is more than 10 s"),
        (["--jitter", "25ms"], "a jitter of 25 ms is more than the latency of 20 ms"),
        (
            ["--latency", "none", "--jitter", "5ms"],
            "a jitter of 5 ms is more than the latency of 0 ms",
        ),
        (["--loss", "0.1"], "'0.1' is not a loss; write e.g. 0.1%"),
        (["--loss", "100%"], "a loss of 100 % drops every packet"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(lab: Way, options: list[str], told: str) -> None:
    before = lab.harness("lab", "status").stdout
    done = lab.harness("lab", "rate", "20mbit", *options, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert lab.harness("lab", "status").stdout == before
