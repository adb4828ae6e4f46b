"""Randomness that is a function of (seed, purpose, numbers)."""

import hashlib

import torch


def seeded_generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A generator of the CPU whose draws depend only on the arguments."""
    generator = torch.Generator()
    generator.manual_seed(hashed(seed, purpose, *numbers))
    return generator


def seed_default(seed: int, purpose: str, *numbers: int, device: torch.device) -> None:
    """Makes the next draws of torch's default generators, on the CPU and on `device`, depend only
    on the arguments. Does not wait for a card."""
    drawn = hashed(seed, purpose, *numbers)
    # Not torch.manual_seed, which takes a millisecond without a card.
    torch.default_generator.manual_seed(drawn)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(drawn)


def hashed(seed: int, purpose: str, *numbers: int) -> int:
    """A signed 64-bit hash of the arguments, for seeds of any size."""
    digest = hashlib.blake2b(repr((seed, purpose, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
