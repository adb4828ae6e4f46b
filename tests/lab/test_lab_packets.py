"""What the relay does to single frames: when they arrive, and which packets are lost."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UserError
from harness.lab.direction import Direction
from harness.lab.impairment import Impairment, figures
from harness.lab.superframe import VNET_HEADER, around, packets_in

SIZE = 1448
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
SEQUENCE, NUMBER = 0xFFFF_F000, 0xFFFE


def frame_of(payload: bytes) -> bytes:
    """A frame as the kernel delivers it, with TCP's checksum begun; sequence number and
    identification overflow within it."""
    length = 20 + 32 + len(payload)
    addresses = bytes([10, 77, 0, 1, 10, 77, 0, 2])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, NUMBER, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", 0xFFFF - words(ip)) + ip[12:]
    flags = FIN | PSH | ACK | CWR
    tcp = struct.pack("!HHIIBBHHH", 1, 2, SEQUENCE, 3, 8 << 4, flags, 9, 0, 0) + bytes(12)
    tcp = tcp[:16] + struct.pack("!H", pseudo(addresses, length - 20)) + tcp[18:]
    cut = (1, 66, SIZE) if len(payload) > SIZE else (0, 0, 0)
    return VNET_HEADER.pack(1, *cut, 34, 16) + bytes(12) + b"\x08\x00" + ip + tcp + payload


def pseudo(addresses: bytes, length: int) -> int:
    return words(addresses + struct.pack("!BBH", 0, 6, length))


def words(content: bytes) -> int:
    total = sum(struct.unpack(f"!{len(content) // 2}H", content))
    return total % 0xFFFF or (0xFFFF if total else 0)


@given(st.integers(1, 45 * SIZE), st.data())
def test_a_lost_packet_leaves_the_others_as_they_were(size: int, data: st.DataObject) -> None:
    payload = random.Random(size).randbytes(size)
    frame = frame_of(payload)
    count = packets_in(frame)
    assert count == -(-size // SIZE)
    lost = data.draw(st.integers(0, count - 1))
    before, after = around(frame, lost)
    places = [(before, 0, lost * SIZE), (after, (lost + 1) * SIZE, size)]
    for piece, start, end in places:
        if piece is None:
            assert start >= end
        else:
            check(piece, payload[start:end], start, last=end == size)


def check(piece: bytes, payload: bytes, start: int, last: bool) -> None:
    flags, kind, header, size, _, _ = VNET_HEADER.unpack_from(piece)
    assert (flags, kind, size) == ((1, 1, SIZE) if len(payload) > SIZE else (1, 0, 0))
    assert header in (0, 66)
    ip, tcp = piece[24:44], piece[44:]
    assert tcp[32:] == payload
    assert words(ip) == 0xFFFF
    assert struct.unpack("!HH", ip[2:6]) == (len(ip + tcp), (NUMBER + start // SIZE) % 2**16)
    assert struct.unpack("!I", tcp[4:8])[0] == (SEQUENCE + start) % 2**32
    assert struct.unpack("!H", tcp[16:18])[0] == pseudo(ip[12:20], len(tcp))
    assert bool(tcp[13] & CWR) == (start == 0)
    assert tcp[13] & (FIN | PSH) == ((FIN | PSH) if last else 0)
    assert tcp[13] & ACK


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=50), st.floats(0, 1), st.floats(0, 1))
def test_arrivals_are_in_order_and_within_bounds(
    gaps: list[float], latency: float, part: float
) -> None:
    direction = Direction(Impairment(latency, latency * part), random.Random(1))
    now, before = 100.0, 0.0
    for gap in gaps:
        now += gap
        arrival = direction.arrival(now)
        assert arrival >= before
        assert now + latency * (1 - part) - 1e-9 <= arrival <= now + latency * (1 + part) + 1e-9
        before = arrival


def test_a_latency_made_shorter_lets_nothing_overtake() -> None:
    direction = Direction(Impairment(2.0), random.Random(1))
    assert direction.arrival(10.0) == 12.0
    direction.change(Impairment(0.5))
    assert [direction.arrival(now) for now in (10.1, 11.4, 11.6)] == [12.0, 12.0, 12.1]


def test_the_delay_is_everywhere_in_its_range_equally_often() -> None:
    direction = Direction(Impairment(1.0, 1.0), random.Random(1))
    # Ten seconds apart, so that neither the last place nor the order constrains the next.
    delays = [direction.arrival(10.0 * n) - 10.0 * n for n in range(4000)]
    for quarter in range(4):
        inside = sum(quarter / 2 <= delay < (quarter + 1) / 2 for delay in delays)
        assert inside == pytest.approx(1000, abs=120)  # 4 deviations


@pytest.mark.parametrize("size", [1, 40 * SIZE])
def test_so_many_packets_are_lost_however_they_are_bundled(size: int) -> None:
    direction = Direction(Impairment(loss=0.01), random.Random(1))
    frame = frame_of(bytes(size))
    sent = left = 0
    while sent < 40_000:
        sent += packets_in(frame)
        left += sum(packets_in(piece) for piece in direction.surviving(frame))
    assert sent - left == pytest.approx(400, abs=80)  # 4 deviations


def test_figures_are_read_with_their_unit() -> None:
    read = figures({"latency": "1.5s", "jitter": "500us", "loss": "0.1%"})
    assert read == {"latency": 1.5, "jitter": 500e-6, "loss": pytest.approx(0.001)}
    assert figures({"latency": "none", "jitter": None, "loss": None}) == {"latency": 0.0}
    with pytest.raises(UserError, match="is not a loss"):
        figures({"latency": None, "jitter": None, "loss": "2"})


def test_a_latency_that_is_lifted_takes_its_jitter_along() -> None:
    assert Impairment(0.02, 0.005, 0.1).changed({"latency": 0.0}) == Impairment(loss=0.1)
