"""Carries frames between the lab's hosts in place of the bridge: later, and not all of them.

`python -m harness.lab.relay FOLDER HOST ...` in the switch's namespace. A process, because many
kernels have no netem. The rates stay with tbf at the two ends of each cable, as with the bridge: a
sender feels them at its own card, what waits longer than QUEUE_SECONDS is dropped there as in a
switch, and a relay that the scheduler lets wait costs no throughput. So frames come from and go to
packet sockets at the switch's ends; a TUN device would take a sender's feeling for its queue.

FOLDER/impairments.json says what each link does; SIGHUP has it read anew.
"""

import heapq
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.lab.direction import Direction
from harness.lab.impairment import Impairment
from harness.lab.links import QUEUE_SECONDS
from harness.lab.superframe import NOTE

# From Linux' if_ether.h, if_packet.h and socket.h; Python does not name them.
ALL_PROTOCOLS = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35
ALLOWED = {SO_SNDBUFFORCE: socket.SO_SNDBUF, SO_RCVBUFFORCE: socket.SO_RCVBUF}
TIMESPEC = struct.Struct("@ll")
FRAME_BYTES = 1 << 17
RECEIVE_BYTES = 1 << 26
"""What one host may send while the relay waits for a core."""
SEND_BYTES = 1 << 30
"""More than tbf lets wait: the kernel counts that as the socket's."""
FULL_SECONDS = 0.001
"""Until a port that takes nothing is tried again: with small buffers tbf's queue fills them."""
HELD_BYTES = 1 << 29
"""On the way between all hosts together; more is dropped. Only links without a rate get there."""
FRAMES_AT_ONCE = 32
LATE_SECONDS = 1.0
"""A frame that says it came earlier came while the clock was set."""
READY = b"ready\n"
FIGURES = "impairments.json"


def read_impairments(folder: Path) -> dict[str, Impairment]:
    """Of each host's link. Raises FileNotFoundError where nothing was ever asked for."""
    found = json.loads((folder / FIGURES).read_text())
    return {host: Impairment(**each) for host, each in found.items()}


class Relay:
    """A switch that learns where addresses are, and takes its time."""

    def __init__(
        self, ports: Mapping[str, socket.socket], impairments: Mapping[str, Impairment]
    ) -> None:
        self._hosts = {port: host for host, port in ports.items()}
        self._port_of: dict[bytes, socket.socket] = {}
        """By Ethernet address, as seen."""
        self._directions = {
            (source, target): Direction(
                impairments[here].worse(impairments[there]), random.Random(f"{here} {there}")
            )
            for source, here in self._hosts.items()
            for target, there in self._hosts.items()
            if source is not target
        }
        self._held: list[tuple[float, int, float, socket.socket, bytes]] = []
        """Heap of the time to send at, order, arrival time, port, frame."""
        self._held_bytes = 0
        self._order = itertools.count()
        self._full_until = dict.fromkeys(self._hosts, 0.0)

    def change(self, impairments: Mapping[str, Impairment]) -> None:
        for (source, target), direction in self._directions.items():
            here, there = self._hosts[source], self._hosts[target]
            direction.change(impairments[here].worse(impairments[there]))

    def run(self) -> None:
        while True:
            self._send_what_arrives()
            seconds = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
            for port in select.select(list(self._hosts), [], [], seconds)[0]:
                self._receive(port)

    def _receive(self, source: socket.socket) -> None:
        for _ in range(FRAMES_AT_ONCE):
            try:
                received = source.recvmsg(FRAME_BYTES, socket.CMSG_SPACE(TIMESPEC.size))
            except BlockingIOError:
                return
            frame, left_at = received[0], _left_at(received[1][0][2])
            target, sender = frame[NOTE.size : NOTE.size + 6], frame[NOTE.size + 6 : NOTE.size + 12]
            self._port_of[sender] = source
            known = self._port_of.get(target)
            for port in self._hosts if known is None else (known,):
                if port is not source:
                    self._hold(self._directions[source, port], port, frame, left_at)

    def _hold(
        self, direction: Direction, port: socket.socket, frame: bytes, left_at: float
    ) -> None:
        arrival = direction.arrival(left_at)
        for piece in direction.surviving(frame):
            if self._held_bytes + len(piece) <= HELD_BYTES:
                self._held_bytes += len(piece)
                held = (arrival, next(self._order), arrival, port, piece)
                heapq.heappush(self._held, held)

    def _send_what_arrives(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0][0] <= now:
            _, order, arrival, port, frame = heapq.heappop(self._held)
            if self._sent(port, frame, now) or now - arrival > QUEUE_SECONDS:
                self._held_bytes -= len(frame)
            else:
                held = (self._full_until[port], order, arrival, port, frame)
                heapq.heappush(self._held, held)

    def _sent(self, port: socket.socket, frame: bytes, now: float) -> bool:
        """Or lost; False where it has to wait, behind those that wait already."""
        if now < self._full_until[port]:
            return False
        try:
            port.send(frame)
        except BlockingIOError:
            self._full_until[port] = now + FULL_SECONDS
            return False
        except OSError:  # the queue before the host is full, or it is being taken down
            return True
        return True


def _left_at(stamp: bytes) -> float:
    """On the monotonic clock. By the kernel's stamp: a relay that wakes late is early enough as
    long as the frame is not due."""
    seconds, nanoseconds = TIMESPEC.unpack(stamp)
    age = time.time() - seconds - 1e-9 * nanoseconds
    return time.monotonic() - min(max(age, 0.0), LATE_SECONDS)


def open_port(device: str) -> socket.socket:
    """All that comes over the cable, and nothing of what is sent into it."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    _set_buffer(port, SO_RCVBUFFORCE, RECEIVE_BYTES)
    _set_buffer(port, SO_SNDBUFFORCE, SEND_BYTES)
    port.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    port.setblocking(False)
    port.bind((device, ALL_PROTOCOLS))
    return port


def _set_buffer(port: socket.socket, which: int, size: int) -> None:
    try:
        port.setsockopt(socket.SOL_SOCKET, which, size)
    except PermissionError:  # in a user namespace; then as much as the machine allows everybody
        port.setsockopt(socket.SOL_SOCKET, ALLOWED[which], size)


def _go_before_the_ranks() -> None:
    """They keep all cores busy, and waiting for one would be latency that nobody asked for: 2 ms a
    frame beside six busy processes on a core at the highest nice value, 3 us in real time."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        with suppress(PermissionError):  # some containers allow neither
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def main(folder: Path, hosts: Sequence[str]) -> None:
    os.chdir("/")
    _go_before_the_ranks()
    relay = Relay({host: open_port(host) for host in hosts}, read_impairments(folder))
    signal.signal(signal.SIGHUP, lambda *_: relay.change(read_impairments(folder)))
    os.write(1, READY)
    os.dup2(2, 1)  # so that whoever waits for READY is let go
    relay.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
