"""Plain TCP from one host to another; prints the receiver's rate in bits per second.

The first quarter is not counted, as TCP is still finding the link's rate.

On the receiver: `transfer.py SENDER ADDRESS BYTES`; SENDER must be reachable by ssh.
"""

import socket
import subprocess
import sys
import time

PORTION = 1 << 16


def send(address: str, port: int, size: int) -> None:
    with socket.create_connection((address, port)) as connection:
        connection.sendall(bytes(size))


def receive(sender: str, address: str, size: int) -> None:
    with socket.create_server((address, 0)) as server:
        there = [sys.executable, __file__, "send", address, str(server.getsockname()[1]), str(size)]
        with subprocess.Popen(["ssh", sender, *there]):
            connection, _ = server.accept()
            with connection:
                received = 0
                while received < size // 4:
                    received += len(connection.recv(PORTION))
                early, start = received, time.perf_counter()
                while portion := connection.recv(PORTION):
                    received += len(portion)
                seconds = time.perf_counter() - start
    assert received == size
    print(8 * (received - early) / seconds)


if sys.argv[1] == "send":
    send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    receive(sys.argv[1], sys.argv[2], int(sys.argv[3]))
