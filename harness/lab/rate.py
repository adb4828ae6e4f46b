"""The rate of a link: how users write it and how the lab's status shows it."""

import re

from harness.errors import UserError

RATE = re.compile(r"(\d+(?:\.\d+)?)([kmg])bit", re.IGNORECASE)
SLOWEST = 1e3
"""Smallest rate, bits per second: below, the shaper's times do not fit into its 32 bits."""
FASTEST = 34e9
"""Largest rate, bits per second: the kernel's shaper holds bytes per second in 32 bits."""


def bits_per_second(rate: str) -> float:
    """The number in e.g. `200mbit`. Raises UserError if the text is not a rate."""
    found = RATE.fullmatch(rate)
    if not found or float(found[1]) == 0:
        raise UserError(f"{rate!r} is not a rate; write e.g. 200mbit, 1.5gbit, 500kbit, or none")
    bits = float(found[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()]
    if bits < SLOWEST:
        raise UserError(f"a rate of {rate} is less than 1kbit; write 1kbit or more")
    if bits > FASTEST:
        raise UserError(f"a rate of {rate} is more than 34gbit; write none, for no limit")
    return bits


def format_rate(bits: float) -> str:
    """`200Mbit`."""
    for unit, size in (("Gbit", 1e9), ("Mbit", 1e6)):
        if bits >= size:
            return f"{bits / size:g}{unit}"
    return f"{bits / 1e3:g}Kbit"
