"""This machine: what distinguishes it from others, and its address on the way to another."""

import socket
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Distinguishes machines, also of one name, and boots of one machine; empty if unknown.

    Hosts that share it, such as containers, share a clock and cores.
    """
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def address_towards(other: str) -> str:
    """This machine's address in packets to `other`, a host name or an address. Sends nothing.

    Raises OSError without a route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # a UDP socket only chooses its route here
        return str(probe.getsockname()[0])
