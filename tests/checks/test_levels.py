"""How finely integers round is told before a training, and coarse ones are warned of."""

import pytest

from harness.checks.levels import judge_levels
from harness.config import Config
from harness.exchange.compression import few_levels, levels_of
from harness.exchange.lanes import largest


def config(compression: str) -> Config:
    return Config.model_validate({"exchange": {"compression": compression}, "train": {"steps": 1}})


@pytest.mark.parametrize(
    ("compression", "nodes", "levels", "level", "advice"),
    [
        ("none", 64, None, None, ""),
        ("fp16", 64, None, None, ""),
        ("int8", 1, None, None, ""),
        ("int8", 2, 63, "ok", ""),
        ("int8", 18, 7, "ok", ""),
        ("int8", 19, 6, "warn", "use fp16"),
        ("int8", 64, 1, "warn", "use fp16"),
        ("int4", 2, 3, "warn", "use fp16 or int8"),
        ("int4", 7, 1, "warn", "use fp16 or int8"),
    ],
)
def test_few_levels_are_told(
    compression: str, nodes: int, levels: int | None, level: str | None, advice: str
) -> None:
    assert levels_of(compression, nodes) == levels
    found = judge_levels(config(compression), nodes)
    assert [each.level for each in found] == ([level] if level else [])
    line = few_levels(compression, nodes)
    assert bool(line) == (level == "warn")
    if level == "warn":
        assert f"over {nodes} nodes rounds to {2 * levels + 1} values" in found[0].found
        assert found[0].advice == advice
        assert "\n" not in line


def test_a_sum_over_all_nodes_fits_its_bits() -> None:
    """Why there are so few: 2 L of every node add up in one byte, or half of one."""
    for bits in (8, 4):
        for nodes in range(2, 2**bits):
            assert 2 * largest(bits, nodes) * nodes < 2**bits
