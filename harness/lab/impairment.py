"""What a link does to packets besides limiting their rate: latency, jitter and loss."""

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
    """Latency, jitter and loss of a host's link.

    Between two hosts, the worse of the two links' values applies, separately for each of the three
    and in either direction. Raises UserError for values that no link can have.
    """

    latency: float = 0.0
    """Mean seconds one way between two hosts; a ping takes twice that."""
    jitter: float = 0.0
    """Seconds: delays are uniform between latency - jitter and latency + jitter."""
    loss: float = 0.0
    """Share of packets lost, 0 to 1."""

    def __post_init__(self) -> None:
        if self.latency > MOST_SECONDS:
            raise UserError(
                f"a latency of {self.latency:g} s is more than {MOST_SECONDS:g} s; write e.g. 20ms"
            )
        if self.jitter > self.latency:
            raise UserError(
                f"a jitter of {milliseconds(self.jitter)} is more than the latency of "
                f"{milliseconds(self.latency)}: packets would arrive before they leave; give at "
                f"least --latency {self.jitter * 1e3:g}ms"
            )
        if self.loss >= 1:
            raise UserError(f"a loss of {100 * self.loss:g} % drops every packet; write e.g. 0.1%")

    def __bool__(self) -> bool:
        return self != Impairment()

    def __str__(self) -> str:
        """`latency 20 ms, jitter 5 ms, loss 0.1 %`; empty without any."""
        parts = [f"latency {milliseconds(self.latency)}"] if self.latency else []
        parts += [f"jitter {milliseconds(self.jitter)}"] if self.jitter else []
        parts += [f"loss {100 * self.loss:g} %"] if self.loss else []
        return ", ".join(parts)

    def changed(self, figures: Mapping[str, float]) -> "Impairment":
        """This impairment with these figures replaced; latency 0 also sets jitter to 0."""
        if figures.get("latency") == 0:
            figures = {"jitter": 0.0, **figures}
        return replace(self, **figures)

    def worse(self, other: "Impairment") -> "Impairment":
        """The larger value of each of the three figures."""
        mine, theirs = asdict(self), asdict(other)
        return Impairment(**{name: max(mine[name], theirs[name]) for name in mine})


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:g} ms"


def figures(given: Mapping[str, str | None]) -> dict[str, float]:
    """The figures that were given, e.g. by --latency 20ms --loss 0.1%, in seconds and shares."""
    readers = {"latency": _seconds, "jitter": _seconds, "loss": _share}
    return {
        name: 0.0 if text == "none" else readers[name](name, text)
        for name in OPTIONS
        if (text := given[name]) is not None
    }


def _seconds(name: str, text: str) -> float:
    found = DURATION.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is not a {name}; write e.g. 20ms, 1.5s, 500us, or none")
    return float(found[1]) * SECONDS[found[2].lower()]


def _share(name: str, text: str) -> float:
    found = PERCENTAGE.fullmatch(text)
    if not found:
        raise UserError(f"{text!r} is not a {name}; write e.g. 0.1%, or none")
    return float(found[1]) / 100
