"""Random generators that are functions of (seed, purpose, numbers)."""

import hashlib

import torch


def seeded_generator(
    seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator on `device` whose draws depend on nothing but the arguments."""
    digest = hashlib.blake2b(repr((seed, purpose, numbers)).encode(), digest_size=8).digest()
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(digest, "little", signed=True))
    return generator
