"""What a link does to packets besides its rate: latency, jitter, loss; as users write them."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from harness.errors import UserError

DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)", re.IGNORECASE)
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
PERCENTAGE = re.compile(r"(\d+(?:\.\d+)?)%")
MOST_SECONDS = 10.0
OPTIONS = ("latency", "jitter", "loss")


@dataclass(frozen=True)
class Impairment:
    """Of a host's link. Between two hosts the worse figure of their two links counts, each by
    itself, in either direction. Raises UserError for what no link does."""

    latency: float = 0.0
    """Seconds one way between two hosts, on average; a ping takes twice that."""
    jitter: float = 0.0
    """Seconds: packets take latency - jitter to latency + jitter, all equally often."""
    loss: float = 0.0
    """Of the packets, the share that is lost."""

    def __post_init__(self) -> None:
        if self.latency > MOST_SECONDS:
            raise UserError(
                f"a latency of {self.latency:g} s is more than {MOST_SECONDS:g} s; write e.g. 20ms"
            )
        if self.jitter > self.latency:
            raise UserError(
                f"a jitter of {milliseconds(self.jitter)} with a latency of "
                f"{milliseconds(self.latency)} has packets arrive before they left; give at least "
                f"--latency {self.jitter * 1e3:g}ms"
            )
        if self.loss >= 1:
            raise UserError(f"a loss of {100 * self.loss:g} % lets nothing pass; write e.g. 0.1%")

    def __bool__(self) -> bool:
        return self != Impairment()

    def __str__(self) -> str:
        """`latency 20 ms, jitter 5 ms, loss 0.1 %`; of none, nothing."""
        told = [f"latency {milliseconds(self.latency)}"] if self.latency else []
        told += [f"jitter {milliseconds(self.jitter)}"] if self.jitter else []
        told += [f"loss {100 * self.loss:g} %"] if self.loss else []
        return ", ".join(told)

    def changed(self, figures: Mapping[str, float]) -> "Impairment":
        """With these figures; without latency there is no jitter either."""
        if figures.get("latency") == 0:
            figures = {"jitter": 0.0, **figures}
        return replace(self, **figures)

    def worse(self, other: "Impairment") -> "Impairment":
        mine, theirs = asdict(self), asdict(other)
        return Impairment(**{name: max(mine[name], theirs[name]) for name in mine})


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:g} ms"


def figures(given: Mapping[str, str | None]) -> dict[str, float]:
    """Of --latency 20ms --jitter 5ms --loss 0.1%, those that were given."""
    readers = {"latency": _seconds, "jitter": _seconds, "loss": _share}
    return {
        name: 0.0 if text == "none" else readers[name](name, text)
        for name in OPTIONS
        if (text := given[name]) is not None
    }


def _seconds(name: str, text: str) -> float:
    found = DURATION.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is no {name}; write e.g. 20ms, 1.5s, 500us, or none")
    return float(found[1]) * SECONDS[found[2].lower()]


def _share(name: str, text: str) -> float:
    found = PERCENTAGE.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is no {name}; write e.g. 0.1%, or none")
    return float(found[1]) / 100
