"""JSON messages over a socket, each after its length; nothing that is received is executed."""

import json
import socket
import struct
from typing import Any

from harness.errors import one_line

LENGTH = struct.Struct("!I")
MOST_BYTES = 1 << 26
"""Longest message; a longer one does not come from this program."""


class Broken(Exception):
    """Another rank did not come, or has left; the message is one line."""


def send(connection: socket.socket, message: Any) -> None:
    content = json.dumps(message).encode()
    connection.sendall(LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket) -> Any:
    """The next message. Raises OSError if the connection fails, ValueError for other data."""
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


def short_reason(error: Exception) -> str:
    """The error as one phrase, e.g. `Connection refused`, without its number."""
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__
