"""The levers that separate data parallelism from the method, and which of them a config pulls."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.config import Config, ExchangeConfig
from harness.exchange.codecs import COMPRESSIONS

BOOKKEEPING = ("name", "seed", "tracking.", "data.cache", "data.root", "train.resume", "doctor.")
"""Prefixes of settings that only name or locate things and do not change how a variant trains."""
SET_BY_LEVERS = (
    "classifier.layout",
    "exchange.kind",
    "exchange.route",
    "exchange.compression",
    "exchange.backward_passes_per_step",
    "exchange.delay",
    "exchange.pieces",
    "exchange.slice_pieces",
    "exchange.max_pieces",
)
"""Settings that the levers determine."""


class Lever(StrEnum):
    """One change to how nodes exchange, in the order in which a ladder pulls them."""

    HIERARCHICAL = "hierarchical"
    FEWER_BYTES = "fewer bytes"
    RARER = "rarer"
    SLICED = "sliced"
    LOCAL_STEPS = "local steps"
    LATE = "late"


@dataclass(frozen=True)
class Levers:
    """The levers that one config pulls, and how far it pulls them."""

    pulled: frozenset[Lever]
    compression: str
    passes: int
    """K, micro-batches per step."""
    pieces: int
    slice_pieces: int
    """Pieces of a slice; as many as `pieces` if it has no pace of its own."""
    delay: int
    """Delay in windows."""
    carrier: str
    """The library that carries what crosses between nodes."""

    @property
    def in_order(self) -> tuple[Lever, ...]:
        return tuple(lever for lever in Lever if lever in self.pulled)

    def how_far(self, lever: Lever) -> tuple[int, ...]:
        """How far the lever is pulled, number by number comparable between configs that both pull
        it; empty for a lever with only two settings."""
        found: dict[Lever, tuple[int, ...]] = {
            Lever.FEWER_BYTES: (COMPRESSIONS.index(self.compression),),
            Lever.RARER: (self.passes,),
            Lever.LOCAL_STEPS: (self.pieces, self.slice_pieces),
            Lever.LATE: (self.delay,),
        }
        return found.get(lever, ())

    def setting(self, lever: Lever) -> str:
        """How far the lever is pulled, as text; empty for a lever with only two settings."""
        found = {
            Lever.FEWER_BYTES: self.compression,
            Lever.RARER: f"K = {self.passes}",
            Lever.LOCAL_STEPS: pieces_text(self.pieces, self.slice_pieces),
            Lever.LATE: f"delay {self.delay}",
        }
        return found.get(lever, "")

    def above(self, lower: "Levers") -> bool:
        """Whether this pulls all levers of `lower`, at least as far, and at least one more."""
        kept = all(
            own >= other
            for lever in lower.pulled
            for own, other in zip(self.how_far(lever), lower.how_far(lever), strict=True)
        )
        return kept and lower.pulled < self.pulled

    def agrees_with(self, top: "Levers") -> bool:
        """Whether this pulls each of its levers exactly as far as `top` does."""
        return all(self.how_far(lever) == top.how_far(lever) for lever in self.pulled)


def levers_of(config: Config) -> Levers | None:
    """The levers that a config pulls; None if the config cannot be on a ladder.

    That is so for late gradients, no exchange, an exchange of torch's own, slices over the world,
    and an outer optimizer.
    """
    exchange, layout = config.exchange, config.classifier.layout
    if not exchange.traits.on_ladder or layout == "world" or exchange.has_outer:
        return None
    settings = {
        Lever.HIERARCHICAL: _hierarchical(exchange, layout),
        Lever.FEWER_BYTES: exchange.compression != "none",
        Lever.RARER: exchange.backward_passes_per_step > 1,
        Lever.SLICED: layout == "node",
        Lever.LOCAL_STEPS: exchange.traits.local_steps,
        Lever.LATE: exchange.delay > 0,
    }
    return Levers(
        frozenset(lever for lever, pulled in settings.items() if pulled),
        exchange.compression,
        exchange.backward_passes_per_step,
        exchange.pieces,
        exchange.slice_pieces or exchange.pieces,
        exchange.delay,
        exchange.carried_by,
    )


def pieces_text(pieces: int, slice_pieces: int | None) -> str:
    """The numbers of pieces as text, that of a slice only if it has a pace of its own."""
    found = f"{pieces} piece{'s' * (pieces > 1)}"
    return found if slice_pieces in (None, pieces) else f"{found}, slices {slice_pieces}"


def _hierarchical(exchange: ExchangeConfig, layout: str) -> bool:
    """Whether the exchange takes the hierarchical route.

    Records from before runs stored the route that they chose contain `auto`; at that time only
    plain data parallelism took the flat route.
    """
    if exchange.traits.has_routes and exchange.route == "auto":
        return (layout, exchange.compression) != ("replicated", "none")
    return not exchange.traits.has_routes or exchange.route == "hierarchical"


def beside_levers(configs: Sequence[Config]) -> list[str]:
    """Training settings other than levers in which the configs differ, as dotted keys."""
    values = [
        config.flattened() | {"exchange.carrier": config.exchange.carried_by} for config in configs
    ]
    keys = dict.fromkeys(key for each in values for key in each)
    return [
        key
        for key in keys
        if key not in SET_BY_LEVERS
        and not key.startswith(BOOKKEEPING)
        and len({str(each.get(key)) for each in values}) > 1
    ]
