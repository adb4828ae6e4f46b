"""Sends a byte back and forth over TCP; prints the milliseconds of all round trips in one line.

On one host: `round_trips.py HOST ADDRESS COUNT`; HOST must be reachable by ssh.
"""

import socket
import subprocess
import sys
import time


def answer(address: str) -> None:
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            while content := connection.recv(1):
                connection.sendall(content)


def ask(host: str, address: str, count: int) -> None:
    there = ["ssh", host, sys.executable, __file__, "answer", address]
    with subprocess.Popen(there, stdout=subprocess.PIPE) as answering:
        assert answering.stdout is not None
        port = int(answering.stdout.readline())
        with socket.create_connection((address, port)) as connection:
            for _ in range(count):
                start = time.perf_counter()
                connection.sendall(b"x")
                connection.recv(1)
                print(1e3 * (time.perf_counter() - start), end=" ")


if sys.argv[1] == "answer":
    answer(sys.argv[2])
else:
    ask(sys.argv[1], sys.argv[2], int(sys.argv[3]))
