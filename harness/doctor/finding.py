"""The result of a check, and how it is printed."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

from pydantic import BaseModel, ConfigDict

Level = Literal["ok", "warn", "fail"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "fail")
MOST_LINES = 8
"""Most lines of one check: a fault of all hosts needs no line for each of them."""


class Facts(BaseModel):
    """Facts that one rank has found; sent between ranks as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(Facts):
    """One line of a diagnosis."""

    check: str
    level: Level
    found: str
    advice: str = ""
    """What to do about it; empty for level ok."""

    def line(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.level:<4}  {self.check:<9}  {self.found}{advice}"


def worst(findings: Iterable[Finding]) -> Level:
    """The most serious level; ok without findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def limit_lines(faults: Sequence[Finding], well: Finding) -> list[Finding]:
    """The faults, the worst first and at most MOST_LINES; `well` if there are none."""
    if not faults:
        return [well]
    ordered = sorted(faults, key=lambda finding: -LEVELS.index(finding.level))
    left = len(ordered) - MOST_LINES
    if left <= 0:
        return ordered
    more = Finding(check=well.check, level=ordered[-1].level, found=f"and {left} more like these")
    return [*ordered[:MOST_LINES], more]


def median_of_rest(values: Sequence[float], index: int) -> float:
    """Median of all values except the one at `index`; needs at least two values."""
    return median([*values[:index], *values[index + 1 :]])


def listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names)


def format_bytes(count: float) -> str:
    """Bytes with a unit (powers of 1000) and three digits, e.g. 1.25 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
