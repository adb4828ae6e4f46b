"""JSON over a socket, each message behind its length; nothing that is received is executed."""

import json
import socket
import struct
from typing import Any

from harness.errors import one_line

LENGTH = struct.Struct("!I")
MOST_BYTES = 1 << 26
"""A longer message is not one of ours."""


class Broken(Exception):
    """Another rank is not there, or not any more; the message is one line."""


def send(connection: socket.socket, message: Any) -> None:
    content = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket) -> Any:
    """The next message. Raises OSError, ValueError for what is none."""
    (length,) = LENGTH.unpack(receive_exactly(connection, LENGTH.size))
    if length > MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return json.loads(receive_exactly(connection, length))


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        portion = connection.recv(min(count - len(content), 1 << 16))
        if not portion:
            raise ConnectionError("the other end is closed")
        content += portion
    return bytes(content)


def in_short(error: Exception) -> str:
    """`Connection refused` rather than a number and a tuple."""
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__
