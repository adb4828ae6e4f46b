"""Links with latency, jitter and loss: round trips, streams, order, changes while the lab runs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cluster.testhost import SWITCH, processes, tool
from tests.lab import harness, in_lab, lab_of

ROUND_TRIPS = Path(__file__).with_name("round_trips.py")
TRANSFER = Path(__file__).with_name("transfer.py")
LINK = ("--latency", "20ms", "--jitter", "none", "--loss", "none")
LATE_MS = 8.0
"""What a busy machine may add to the fastest of many round trips."""
PAYLOAD = 1448 / 1514
"""Of the bytes on a link, what TCP carries."""


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    with lab_of("--hosts", "3", "--slots", "1", "--rate", "50mbit", *LINK):
        yield


@pytest.fixture
def as_before() -> Iterator[None]:
    """Links may be changed; afterwards they are as they were."""
    yield
    harness("lab", "rate", "50mbit", *LINK)


def round_trips(host: str, count: int = 40) -> list[float]:
    """Milliseconds, of a byte from h1 to this host and back."""
    address = f"10.77.0.{host[1:]}"
    told = in_lab(sys.executable, str(ROUND_TRIPS), host, address, str(count))
    return [float(word) for word in told.split()]


def bits_per_second(sender: str, size: int) -> float:
    """Over the link, to h1."""
    return float(in_lab(sys.executable, str(TRANSFER), sender, "10.77.0.1", str(size))) / PAYLOAD


def out_of_order() -> int:
    """Segments that h1 has got before one that was sent earlier."""
    names, figures = (
        line.split()
        for line in in_lab("cat", "/proc/net/netstat").splitlines()
        if line.startswith("TcpExt:")
    )
    return int(figures[names.index("TCPOFOQueue")])


def test_a_round_trip_takes_twice_the_latency() -> None:
    assert 40 <= min(round_trips("h2")) < 40 + LATE_MS


def test_a_link_keeps_its_rate() -> None:
    assert bits_per_second("h2", 20_000_000) == pytest.approx(50e6, rel=0.1)


@pytest.mark.usefixtures("as_before")
def test_of_two_links_the_worse_counts() -> None:
    harness("lab", "rate", "50mbit", "h3", "--latency", "60ms")
    assert [line.split("latency ")[1][:5] for line in status()] == ["20 ms", "20 ms", "60 ms"]
    assert 120 <= min(round_trips("h3")) < 120 + LATE_MS
    assert 40 <= min(round_trips("h2")) < 40 + LATE_MS


def status() -> list[str]:
    return harness("lab", "status").stdout.splitlines()


@pytest.mark.usefixtures("as_before")
def test_what_is_not_named_stays() -> None:
    harness("lab", "rate", "none", "--jitter", "5ms", "--loss", "0.1%")
    harness("lab", "rate", "20mbit")
    assert all("link 20Mbit, latency 20 ms, jitter 5 ms, loss 0.1 %" in line for line in status())


@pytest.mark.usefixtures("as_before")
def test_without_latency_the_hosts_are_on_the_bridge_again() -> None:
    assert in_switch() == (1, 0)
    harness("lab", "rate", "50mbit", "--latency", "none")
    assert in_switch() == (0, 3)
    assert min(round_trips("h2")) < LATE_MS
    harness("lab", "rate", "50mbit", "--latency", "20ms")
    assert in_switch() == (1, 0)
    assert 40 <= min(round_trips("h2")) < 40 + LATE_MS


def in_switch() -> tuple[int, int]:
    """Relays and bridged ports."""
    ports = tool("ip", "-o", "-n", SWITCH, "link", "show", "master", "bridge").splitlines()
    return len(processes(SWITCH)), len(ports)


@pytest.mark.usefixtures("as_before")
def test_jitter_varies_round_trips_within_its_bounds_and_puts_nothing_out_of_order() -> None:
    harness("lab", "rate", "50mbit", "--jitter", "15ms")
    found = round_trips("h2", 100)
    assert 10 <= min(found) < 25
    assert max(found) > 50
    before = out_of_order()
    assert bits_per_second("h2", 5_000_000) > 20e6
    assert out_of_order() == before


@pytest.mark.usefixtures("as_before")
def test_loss_slows_a_stream_that_still_arrives_whole() -> None:
    reno = "echo reno > /proc/sys/net/ipv4/tcp_congestion_control"
    kept = in_lab("ssh", "h2", f"cat /proc/sys/net/ipv4/tcp_congestion_control; {reno}").strip()
    stream = "ssh h2 head -c 2000000 /dev/zero | wc -c"  # ssh checks every byte
    try:
        whole = bits_per_second("h2", 2_000_000)
        harness("lab", "rate", "50mbit", "--latency", "10ms", "--loss", "2%")
        assert bits_per_second("h2", 2_000_000) < whole / 2
        assert in_lab("sh", "-c", stream) == "2000000\n"
        assert out_of_order() > 0
    finally:
        in_lab("ssh", "h2", f"echo {kept} > /proc/sys/net/ipv4/tcp_congestion_control")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--latency", "abc"], "'abc' is no latency; write e.g. 20ms"),
        (["--latency", "20"], "'20' is no latency"),
        (["--latency=-5ms"], "'-5ms' is no latency"),
        (["--latency", "11s"], "a latency of 11 s is more than 10 s"),
        (["--jitter", "25ms"], "a jitter of 25 ms with a latency of 20 ms"),
        (["--latency", "none", "--jitter", "5ms"], "a jitter of 5 ms with a latency of 0 ms"),
        (["--loss", "0.1"], "'0.1' is no loss; write e.g. 0.1%"),
        (["--loss", "100%"], "a loss of 100 % lets nothing pass"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(options: list[str], told: str) -> None:
    before = harness("lab", "status").stdout
    done = harness("lab", "rate", "20mbit", *options, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert harness("lab", "status").stdout == before
