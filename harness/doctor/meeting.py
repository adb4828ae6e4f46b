"""Connects all ranks of a launch with the first one, without Horovod, which may be at fault.

Every rank can reach the launcher's key-value store by its IP address, so no name is looked up; the
first rank publishes its address there.
"""

import json
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import Any

from harness.doctor.messages import Broken, receive, send, short_reason
from harness.doctor.names import interface_address
from harness.doctor.seat import Seat
from harness.parallel.machine import address_towards

ARRIVAL_SECONDS = 240.0
"""Time for all ranks to come: many ranks on few cores take long to import torch."""
STEP_SECONDS = 180.0
"""Time to wait for a rank in a collective step; longer than any check takes."""
HTTP_SECONDS = 10.0
"""Time for a request to the launcher, and for a rank to introduce itself."""
PLACE = "/doctor/meeting"
"""Key under which the first rank publishes its address, port and token."""


class Meeting:
    """Connections in a star: every rank has one to the first rank, which has one to each."""

    def __init__(self, seat: Seat, token: str, connections: dict[int, socket.socket]) -> None:
        self.seat = seat
        self.token = token
        """Secret that only the ranks of this launch know."""
        self._connections = connections
        """Connections by rank; ranks other than the first have only that to rank 0."""

    def gather(self, value: Any, name: str) -> list[Any]:
        """The values of all ranks, on all ranks. Collective. Raises Broken if a rank has left.

        `value` must be JSON. `name` must be the same on all ranks: it detects ranks that are out of
        step.
        """
        if self.seat.size == 1:
            return [json.loads(json.dumps(value))]  # tuples become lists, as they do over a socket
        try:
            if self.seat.rank:
                send(self._connections[0], [name, value])
                return list(receive(self._connections[0]))
            return self._collect(value, name)
        except (OSError, ValueError) as error:
            raise Broken(
                f"rank {self.seat.rank} on {self.seat.host} lost the first rank at step {name!r} "
                f"({short_reason(error)})"
            ) from error

    def _collect(self, value: Any, name: str) -> list[Any]:
        values = [value]
        for rank in range(1, self.seat.size):
            try:
                at, found = receive(self._connections[rank])
            except (OSError, ValueError) as error:
                raise Broken(
                    f"rank {rank} left at step {name!r} ({short_reason(error)})"
                ) from error
            if at != name:
                raise Broken(f"rank {rank} is at step {at!r}, the first rank at {name!r}")
            values.append(found)
        for connection in self._connections.values():
            send(connection, values)
        return values


@contextmanager
def open_meeting(seat: Seat) -> Iterator[Meeting]:
    """Connects all ranks of a launch. Collective. Raises Broken if they do not come together."""
    if seat.size == 1:
        yield Meeting(seat, secrets.token_hex(16), {})
        return
    if seat.rendezvous is None:
        raise Broken("the launcher gave no address to meet at; start with horovodrun --gloo")
    token, connections = _receive_all(seat) if seat.rank == 0 else _go(seat)
    try:
        yield Meeting(seat, token, connections)
    finally:
        for connection in connections.values():
            connection.close()


def own_address(seat: Seat) -> str:
    """This host's address on the launcher's interface, else the one that leads to the launcher."""
    address = interface_address(seat.interface)
    if address is not None:
        return address
    return address_towards(seat.rendezvous[0] if seat.rendezvous else "127.0.0.1")


def _receive_all(seat: Seat) -> tuple[str, dict[int, socket.socket]]:
    token, connections = secrets.token_hex(16), dict[int, socket.socket]()
    deadline = time.monotonic() + ARRIVAL_SECONDS
    with socket.create_server((own_address(seat), 0), backlog=seat.size) as server:
        _publish(seat, [*server.getsockname()[:2], token])
        while len(connections) < seat.size - 1:
            server.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = [str(n) for n in range(1, seat.size) if n not in connections]
                raise Broken(
                    f"ranks {', '.join(missing)} did not connect to {seat.host} within "
                    f"{ARRIVAL_SECONDS:.0f} s; check their hosts, and allow all ports between "
                    f"hosts in the firewall"
                ) from None
            rank = _greeted(connection, token)
            if rank is not None:
                connections[rank] = connection
    return token, connections


def _greeted(connection: socket.socket, token: str) -> int | None:
    """The rank that has connected; None, and disconnected, if it is not of this launch."""
    connection.settimeout(HTTP_SECONDS)
    try:
        given, rank = receive(connection)
    except (OSError, ValueError, TypeError):
        connection.close()
        return None
    if not secrets.compare_digest(str(given), token):
        connection.close()
        return None
    connection.settimeout(STEP_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return int(rank)


def _go(seat: Seat) -> tuple[str, dict[int, socket.socket]]:
    host, port, token = _look_up(seat)
    try:
        connection = socket.create_connection((host, port), timeout=HTTP_SECONDS)
        connection.settimeout(STEP_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send(connection, [token, seat.rank])
    except OSError as error:
        raise Broken(
            f"rank {seat.rank} on {seat.host} cannot reach the first rank at {host} "
            f"({short_reason(error)}); allow all ports between hosts in the firewall"
        ) from error
    return token, {0: connection}


def _publish(seat: Seat, place: list[Any]) -> None:
    status, _ = _request(seat, "PUT", json.dumps(place).encode())
    if status != 200:
        raise Broken(
            f"the launcher's store answered with status {status}; start with horovodrun --gloo"
        )


def _look_up(seat: Seat) -> tuple[str, int, str]:
    deadline = time.monotonic() + ARRIVAL_SECONDS
    while time.monotonic() < deadline:
        status, content = _request(seat, "GET", None)
        if status == 200:
            host, port, token = json.loads(content)
            return str(host), int(port), str(token)
        time.sleep(0.1)
    raise Broken(f"the first rank did not come within {ARRIVAL_SECONDS:.0f} s; check its host")


def _request(seat: Seat, method: str, body: bytes | None) -> tuple[int, bytes]:
    assert seat.rendezvous is not None
    connection = HTTPConnection(*seat.rendezvous, timeout=HTTP_SECONDS)
    try:
        connection.request(method, PLACE, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise Broken(
            f"rank {seat.rank} on {seat.host} cannot reach the launcher at "
            f"{seat.rendezvous[0]} ({short_reason(error)})"
        ) from error
    finally:
        connection.close()
