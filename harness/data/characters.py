"""Which printed characters are learned, in an order that goes from common to rare."""

from functools import cache

from harness.errors import UserError

# GB2312 orders hanzi in rows of 94: level 1 (common) by pronunciation, level 2 by radical.
LEVEL_1_ROWS = range(0xB0, 0xD8)
LEVEL_2_ROWS = range(0xD8, 0xF8)
COLUMNS = range(0xA1, 0xFF)
UNIFIED = range(0x4E00, 0x9FA5 + 1)


def characters(count: int) -> str:
    """The first `count`: GB2312 level 1 (to 3,755), level 2 (to 6,763), other CJK (to 20,902)."""
    ordered = _all_characters()
    if count > len(ordered):
        raise UserError(
            f"data.dataset=glyphs has {len(ordered)} characters, data.num_classes is {count}; "
            f"lower it"
        )
    return ordered[:count]


@cache
def _all_characters() -> str:
    # The last cells of level 1 are empty: nothing decodes there.
    listed = "".join(
        bytes([row, column]).decode("gb2312", "ignore")
        for row in (*LEVEL_1_ROWS, *LEVEL_2_ROWS)
        for column in COLUMNS
    )
    return listed + "".join(sorted(set(map(chr, UNIFIED)) - set(listed)))
