"""Sends messages after pauses; prints the median milliseconds until one is there and acknowledged.

On one host: `after_pauses.py HOST ADDRESS BYTES`; HOST must be reachable by ssh.
"""

import socket
import subprocess
import sys
import time
from statistics import median

COUNT = 9
PAUSE_SECONDS = 0.2


def answer(address: str, size: int) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            while connection.recv(size, socket.MSG_WAITALL):
                connection.sendall(b"x")


def ask(host: str, address: str, size: int) -> None:
    there = ["ssh", host, sys.executable, __file__, "answer", address, str(size)]
    with subprocess.Popen(there, stdout=subprocess.PIPE) as answering:
        assert answering.stdout is not None
        port = int(answering.stdout.readline())
        with socket.create_connection((address, port)) as connection:
            found = []
            for _ in range(COUNT):
                time.sleep(PAUSE_SECONDS)
                start = time.perf_counter()
                connection.sendall(bytes(size))
                connection.recv(1)
                found.append(1e3 * (time.perf_counter() - start))
            print(median(found))


if sys.argv[1] == "answer":
    answer(sys.argv[2], int(sys.argv[3]))
else:
    ask(sys.argv[1], sys.argv[2], int(sys.argv[3]))
