"""Carries frames between the lab's hosts in place of the bridge: with delay and with losses.

`python -m harness.lab.relay FOLDER HOST ...` in the switch's namespace. It is a process because
many kernels lack netem. Rates are still enforced by tbf at the two ends of each cable, as with the
bridge: a sender gets back-pressure at its own card, packets that wait longer than QUEUE_SECONDS are
dropped there as in a switch, and a relay that waits for the scheduler costs no throughput. Frames
therefore come from and go to packet sockets at the switch's ends of the cables; with a TUN device
a sender would get no back-pressure from its queue.

FOLDER/impairments.json holds the impairment of each link; SIGHUP makes the relay read it again.
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
from harness.lab.superframe import VNET_HEADER

# From Linux' if_ether.h, if_packet.h and socket.h; Python does not name them.
ALL_PROTOCOLS = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 32, 33, 35
ALLOWED = {SO_SNDBUFFORCE: socket.SO_SNDBUF, SO_RCVBUFFORCE: socket.SO_RCVBUF}
TIMESPEC = struct.Struct("@ll")
FRAME_BYTES = 1 << 17
RECEIVE_BYTES = 1 << 26
"""Receive buffer of a port: what one host may send while the relay waits for a core."""
SEND_BYTES = 1 << 30
"""Send buffer of a port: more than tbf's queue holds, which the kernel charges to the socket."""
FULL_SECONDS = 0.001
"""Pause before a port with a full buffer is tried again: if the buffer is small, tbf's queue fills
it."""
HELD_BYTES = 1 << 29
"""Most bytes under way between all hosts together; more are dropped. Only links without a rate
reach it."""
FRAMES_AT_ONCE = 32
"""Frames read from one port before the others have their turn."""
LATE_SECONDS = 1.0
"""Largest age of a frame by its time stamp: an older one means that the clock was set meanwhile."""
READY = b"ready\n"
FIGURES = "impairments.json"


def read_impairments(folder: Path) -> dict[str, Impairment]:
    """The impairment of each host's link. Raises FileNotFoundError if none was ever set."""
    found = json.loads((folder / FIGURES).read_text())
    return {host: Impairment(**each) for host, each in found.items()}


class Relay:
    """A learning switch that delays and drops frames."""

    def __init__(
        self, ports: Mapping[str, socket.socket], impairments: Mapping[str, Impairment]
    ) -> None:
        self._hosts = {port: host for host, port in ports.items()}
        self._port_of: dict[bytes, socket.socket] = {}
        """Port behind each Ethernet address, learned from the frames that came from there."""
        self._directions = {
            (source, target): Direction(
                impairments[here].worse(impairments[there]), random.Random(f"{here} {there}")
            )
            for source, here in self._hosts.items()
            for target, there in self._hosts.items()
            if source is not target
        }
        self._held: list[tuple[float, int, float, socket.socket, bytes]] = []
        """Heap of (time to send at, order, arrival time, port, frame)."""
        self._held_bytes = 0
        self._order = itertools.count()
        """Breaks ties between frames with the same time, so that frames never overtake."""
        self._full_until = dict.fromkeys(self._hosts, 0.0)
        """Until when a port with a full buffer is not tried again."""

    def change(self, impairments: Mapping[str, Impairment]) -> None:
        """Applies other impairments to frames that come from now on."""
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
            # A frame begins with the virtio header, then come the target's and sender's address.
            frame, left_at = received[0], _left_at(received[1][0][2])
            start = VNET_HEADER.size
            target, sender = frame[start : start + 6], frame[start + 6 : start + 12]
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
            # Sent, or older than a switch's queue would hold it: done with. Otherwise it is held
            # again with its old order, so that later frames for the port stay behind it.
            if self._sent(port, frame, now) or now - arrival > QUEUE_SECONDS:
                self._held_bytes -= len(frame)
            else:
                held = (self._full_until[port], order, arrival, port, frame)
                heapq.heappush(self._held, held)

    def _sent(self, port: socket.socket, frame: bytes, now: float) -> bool:
        """Whether the frame was sent, or lost; False if it has to wait for room in the port."""
        if now < self._full_until[port]:
            return False
        try:
            port.send(frame)
        except BlockingIOError:
            self._full_until[port] = now + FULL_SECONDS
            return False
        except OSError:  # tbf's queue is full, or the host is being taken down: the frame is lost
            return True
        return True


def _left_at(stamp: bytes) -> float:
    """When the frame left its sender, on the monotonic clock, by the kernel's time stamp.

    A relay that the scheduler wakes late therefore adds no delay, as long as the frame is not due.
    """
    seconds, nanoseconds = TIMESPEC.unpack(stamp)
    age = time.time() - seconds - 1e-9 * nanoseconds
    return time.monotonic() - min(max(age, 0.0), LATE_SECONDS)


def open_port(device: str) -> socket.socket:
    """A packet socket that receives what comes over the cable, but not what is sent into it."""
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
    except PermissionError:  # in a user namespace: at most what the machine allows every user
        port.setsockopt(socket.SOL_SOCKET, ALLOWED[which], size)


def _go_before_the_ranks() -> None:
    """Gives the relay real-time priority over the ranks, which keep all cores busy.

    Waiting for a core would add latency that was not configured. Measured with six busy processes
    on the core: 2 ms per frame at the highest nice priority, 3 us in real time.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        with suppress(PermissionError):  # some containers allow neither priority
            os.setpriority(os.PRIO_PROCESS, 0, -20)


def main(folder: Path, hosts: Sequence[str]) -> None:
    os.chdir("/")
    _go_before_the_ranks()
    relay = Relay({host: open_port(host) for host in hosts}, read_impairments(folder))
    signal.signal(signal.SIGHUP, lambda *_: relay.change(read_impairments(folder)))
    os.write(1, READY)
    os.dup2(2, 1)  # closes the pipe to the process that waits for READY
    relay.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
