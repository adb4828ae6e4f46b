"""Which rank computes on which card: each card belongs to one rank, however hosts are named."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch

from harness.errors import UserError


@dataclass(frozen=True)
class View:
    """The cards that one rank sees."""

    host: str
    cards: tuple[str, ...]
    """Their UUIDs, in the order of torch's numbers for them."""


@dataclass(frozen=True)
class Placement:
    """Of all ranks, the same on all of them."""

    cards: tuple[int | None, ...]
    """Each rank's card by torch's number for it there; None is the processor."""
    warning: str = ""
    """One line, where the ranks do not get what they could have been meant to get."""

    def device(self, rank: int) -> torch.device:
        card = self.cards[rank]
        return torch.device("cpu") if card is None else torch.device("cuda", card)


def view_of(choice: str, host: str) -> View:
    """This process's; no card is looked at where none is wanted."""
    if choice == "cpu" or not torch.cuda.is_available():
        return View(host, ())
    numbers = range(torch.cuda.device_count())
    return View(host, tuple(str(torch.cuda.get_device_properties(n).uuid) for n in numbers))


def place(choice: str, views: Sequence[View]) -> Placement:
    """`choice`: `train.device`. `views`: of all ranks.

    Raises UserError where cards are demanded and not every rank can have one of its own.
    """
    cards = _assigned([view.cards for view in views])
    if choice == "cpu" or None not in cards:
        return Placement(cards if choice != "cpu" else (None,) * len(views))
    lacking = _lacking(views, cards)
    if choice == "cuda":
        raise UserError(
            f"train.device=cuda needs a card for each rank, but {lacking}; start fewer ranks "
            f"there, let CUDA_VISIBLE_DEVICES show more cards, or set train.device=cpu"
        )
    seen = any(view.cards for view in views)
    warning = (
        f"train.device=auto uses the processor on all ranks, because {lacking}; start a rank for "
        f"each card, or set train.device=cpu"
    )
    return Placement((None,) * len(views), warning if seen else "")


def _assigned(seen: Sequence[Sequence[str]]) -> tuple[int | None, ...]:
    """To each rank the first card it sees that no rank has; those that see few choose first.

    UUIDs tell cards apart, so that neither emulated nodes nor containers of one machine, nor ranks
    that see one card each, under one number, share a card.
    """
    given: dict[int, int | None] = {}
    taken: set[str] = set()
    for rank in sorted(range(len(seen)), key=lambda rank: len(seen[rank])):
        free = (number for number, card in enumerate(seen[rank]) if card not in taken)
        given[rank] = next(free, None)
        if (number := given[rank]) is not None:
            taken.add(seen[rank][number])
    return tuple(given[rank] for rank in range(len(seen)))


def _lacking(views: Sequence[View], cards: Sequence[int | None]) -> str:
    """Names the first host with a rank that has no card of its own."""
    host = next(view.host for view, card in zip(views, cards, strict=True) if card is None)
    there = [rank for rank, view in enumerate(views) if view.host == host]
    without = [str(rank) for rank in there if cards[rank] is None]
    visible = {card for rank in there for card in views[rank].cards}
    others = [
        str(r) for r, view in enumerate(views) if view.host != host and visible & {*view.cards}
    ]
    shared = f", which rank{_s(others)} {', '.join(others)} see too" if others else ""
    return (
        f"{host} has {len(visible)} card{_s(visible)} for its {len(there)} rank{_s(there)}"
        f"{shared}: rank{_s(without)} {', '.join(without)} would have none"
    )


def _s(several: Sized) -> str:
    return "" if len(several) == 1 else "s"
