"""Sends datagrams from one host to another; prints the share that is lost on the way.

On the receiver: `datagrams.py SENDER ADDRESS COUNT`; SENDER must be reachable by ssh.
"""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SIZE = 200
SILENT_SECONDS = 1.0
"""Time without a datagram after which no more are expected."""


def send(address: str, port: int, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(count):
            sender.sendto(bytes(SIZE), (address, port))


def receive(sender: str, address: str, count: int) -> None:
    before = overflown()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((address, 0))
        port = receiver.getsockname()[1]
        there = [sys.executable, __file__, "send", address, str(port), str(count)]
        with subprocess.Popen(["ssh", sender, *there]), suppress(TimeoutError):
            arrived = len(receiver.recv(SIZE)) // SIZE
            receiver.settimeout(SILENT_SECONDS)
            while True:
                arrived += len(receiver.recv(SIZE)) // SIZE
    print(1 - (arrived + overflown() - before) / count)


def overflown() -> int:
    """Datagrams that arrived while the receiver's buffer was full."""
    names, figures = (
        line.split()
        for line in Path("/proc/net/snmp").read_text().splitlines()
        if line.startswith("Udp:")
    )
    return int(figures[names.index("RcvbufErrors")])


if sys.argv[1] == "send":
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    receive(sys.argv[1], sys.argv[2], int(sys.argv[3]))
