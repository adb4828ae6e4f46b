"""Types and limits of values that several sections take."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, Field

from harness.config.section import Text
from harness.paths import expanded_uri

MAX_COUNT = 10**12
"""Largest number of windows or images: thirty years of windows of one millisecond."""
MAX_SEED = 2**63 - 1
"""Largest seed that stores and random generators keep, which have 64 bits."""

Address = Annotated[Text, Field(max_length=4096), AfterValidator(expanded_uri)]
"""Address of a store; a leading ~ in the path of an SQLite file is expanded."""
Share = Annotated[float, Field(ge=0, le=1)]
Rank = Annotated[int, Field(ge=0, le=10**6)]


@dataclass(frozen=True)
class PerHost:
    """Marks a key whose value may differ between hosts; all other keys must agree."""
