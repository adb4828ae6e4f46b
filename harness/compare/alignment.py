"""How a table's columns are aligned, in a terminal, in Markdown and in HTML alike."""

import re
from collections.abc import Sequence

FIGURE = re.compile(r"[+\-\N{MINUS SIGN}~<]?\d|-$|nan$|$")
"""The beginning of a cell with a number, or a cell that takes a missing number's place."""


def aligned_left(cells: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each column of a table, whose first row is its head, holds text and not numbers.

    The first column names its row, so it is text.
    """
    columns = list(zip(*cells, strict=True))
    return [
        number == 0 or not all(FIGURE.match(cell) for cell in body)
        for number, (_, *body) in enumerate(columns)
    ]
