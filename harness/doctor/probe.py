"""Measures the connection of two ranks over a plain socket: round trip, clock, bytes per second."""

import secrets
import socket
import threading
import time
from collections.abc import Callable

from harness.doctor.links import Link
from harness.doctor.messages import receive, send, short_reason

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 30.0
PINGS = 20
FIRST_BYTES, MOST_BYTES = 1 << 16, 1 << 28
ENOUGH_SECONDS = 0.15
"""Length of a transfer that measures the rate: its start and end do not matter any more."""
PORTION = memoryview(bytes(1 << 20))


class Answerer:
    """Serves the measurements of other ranks in threads, if they know the token."""

    def __init__(self, token: str, name: str) -> None:
        self._token = token
        self._name = name
        # Listens at all addresses: a name may resolve to any of them.
        self._server = socket.create_server(("", 0), backlog=128)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                _prepare(connection)
                if not secrets.compare_digest(str(receive(connection)), self._token):
                    return
                while True:
                    self._answer(connection, *receive(connection))
            except (OSError, ValueError, TypeError):
                return  # the other end is done, or is not a rank of this launch

    def _answer(self, connection: socket.socket, wish: str, count: int) -> None:
        if wish == "send":
            _send_bytes(connection, min(count, MOST_BYTES))
            return
        if wish == "take":
            _take_bytes(connection, min(count, MOST_BYTES))
        send(connection, self._name if wish == "name" else time.time())


def name_behind(address: str, port: int, token: str) -> str:
    """Name of the host that answers there. Raises OSError or ValueError if none does."""
    with socket.create_connection((address, port), timeout=CONNECT_SECONDS) as connection:
        _prepare(connection, CONNECT_SECONDS)
        send(connection, token)
        send(connection, ["name", 0])
        return str(receive(connection))


def measure(source: int, target: int, place: tuple[str, int], token: str, seconds: float) -> Link:
    """Measures the link from this rank, `source`, to `target` at `place` (address, port).

    Takes about `seconds` for each direction. Errors are reported in the link.
    """
    try:
        with socket.create_connection(place, timeout=CONNECT_SECONDS) as connection:
            _prepare(connection)
            send(connection, token)
            round_trip, ahead = _ping(connection)
            return Link(
                source=source,
                target=target,
                latency_seconds=round_trip / 2,
                clock_ahead_seconds=ahead,
                there=_rate(lambda count: _push(connection, count), seconds),
                back=_rate(lambda count: _pull(connection, count), seconds),
            )
    except (OSError, ValueError) as error:
        return Link(source=source, target=target, error=short_reason(error))


def _prepare(connection: socket.socket, seconds: float = ANSWER_SECONDS) -> None:
    connection.settimeout(seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _ping(connection: socket.socket) -> tuple[float, float]:
    """The shortest round trip in seconds, and how far the other clock is ahead by that ping.

    The other clock is read at the middle of the round trip, up to half of it.
    """
    found = []
    for _ in range(PINGS):
        sent, began = time.time(), time.perf_counter()
        send(connection, ["clock", 0])
        theirs = float(receive(connection))
        took = time.perf_counter() - began
        found.append((took, theirs - (sent + took / 2)))
    return min(found)


def _rate(transfer: Callable[[int], float], seconds: float) -> float:
    """Bytes per second of the largest transfer that fits into `seconds`; each is 2 to 4 times as
    large as the one before."""
    count, spent = FIRST_BYTES, 0.0
    while True:
        took = transfer(count)
        spent += took
        rate = count / took
        following = int(min(4 * count, max(2 * count, 1.5 * ENOUGH_SECONDS * rate), MOST_BYTES))
        fits = spent + following / rate <= seconds
        # A shaper's token bucket makes short transfers look fast: continue to a long one.
        if took >= ENOUGH_SECONDS or count == MOST_BYTES or not fits:
            return rate
        count = following


def _push(connection: socket.socket, count: int) -> float:
    began = time.perf_counter()
    send(connection, ["take", count])
    _send_bytes(connection, count)
    receive(connection)
    return time.perf_counter() - began


def _pull(connection: socket.socket, count: int) -> float:
    began = time.perf_counter()
    send(connection, ["send", count])
    _take_bytes(connection, count)
    return time.perf_counter() - began


def _send_bytes(connection: socket.socket, count: int) -> None:
    while count:
        portion = min(count, len(PORTION))
        connection.sendall(PORTION[:portion])
        count -= portion


def _take_bytes(connection: socket.socket, count: int) -> None:
    buffer = bytearray(min(count, len(PORTION)))
    while count:
        taken = connection.recv_into(buffer, min(count, len(buffer)))
        if not taken:
            raise ConnectionError("the other end is closed")
        count -= taken
