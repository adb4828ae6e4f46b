"""Assigns cards to ranks: each card belongs to one rank, however hosts are named."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import torch

from harness.errors import RunFailed, UserError


@dataclass(frozen=True)
class View:
    """The cards that one rank can see."""

    host: str
    cards: tuple[str, ...]
    """UUIDs of the cards, in the order of torch's numbers."""


@dataclass(frozen=True)
class Placement:
    """The placement of all ranks; the same on all ranks."""

    cards: tuple[int | None, ...]
    """Each rank's card by torch's number on that rank; None is the CPU."""
    warning: str = ""
    """One line, if the ranks did not get the cards that may have been intended; else ""."""

    def device(self, rank: int) -> torch.device:
        card = self.cards[rank]
        return torch.device("cpu") if card is None else torch.device("cuda", card)


def view_of(choice: str, host: str) -> View:
    """The cards of this process. With `choice` cpu, cards are not looked at."""
    if choice == "cpu" or not torch.cuda.is_available():
        return View(host, ())
    numbers = range(torch.cuda.device_count())
    return View(host, tuple(str(torch.cuda.get_device_properties(n).uuid) for n in numbers))


def place(choice: str, views: Sequence[View]) -> Placement:
    """Assigns a device to each rank; `choice` is `train.device`, `views` are those of all ranks.

    Raises UserError if cards are required and not every rank can have its own.
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
        f"train.device=auto uses the CPU on all ranks, because {lacking}; start a rank for "
        f"each card, or set train.device=cpu"
    )
    return Placement((None,) * len(views), warning if seen else "")


def place_again(began: str, views: Sequence[View]) -> Placement:
    """The same for a run that goes on, which `began` on cpu or on cuda, whatever is there now.

    Raises RunFailed, on all ranks alike, if it began on cards and not every rank can have its own:
    on processors it would be another run, many times as slow.
    """
    cards = _assigned([view.cards for view in views])
    if began == "cuda" and None in cards:
        raise RunFailed(
            f"the run began on cards, but now {_lacking(views, cards)}; mend that, or let the run "
            f"go on on other hosts"
        )
    return place(began, views)


def _assigned(seen: Sequence[Sequence[str]]) -> tuple[int | None, ...]:
    """Gives each rank the first free card that it sees; ranks that see few cards choose first.

    Cards are identified by UUID. So neither emulated nodes nor containers of one machine share a
    card, nor ranks that each see a single card under the same number.
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
    """Describes the first host that has a rank without a card."""
    host = next(view.host for view, card in zip(views, cards, strict=True) if card is None)
    there = [rank for rank, view in enumerate(views) if view.host == host]
    without = [str(rank) for rank in there if cards[rank] is None]
    visible = {card for rank in there for card in views[rank].cards}
    others = [
        str(r) for r, view in enumerate(views) if view.host != host and visible & {*view.cards}
    ]
    shared = f", which rank{_s(others)} {', '.join(others)} also see" if others else ""
    return (
        f"{host} has {len(visible)} card{_s(visible)} for its {len(there)} rank{_s(there)}"
        f"{shared}: rank{_s(without)} {', '.join(without)} would have none"
    )


def _s(several: Sized) -> str:
    return "" if len(several) == 1 else "s"
