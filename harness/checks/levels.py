"""How finely an exchange rounds: integers that are summed in place have fewer levels per node."""

from harness.checks.finding import Finding
from harness.config import Config
from harness.exchange.compression import few_levels, levels_of

CHECK = "levels"


def judge_levels(config: Config, nodes: int) -> list[Finding]:
    """Nothing where the exchange sends no integers."""
    compression = config.exchange.compression
    levels = levels_of(compression, nodes)
    if not levels:
        return []  # without any the run's own check refuses it
    if line := few_levels(compression, nodes):
        found, _, advice = line.rpartition("; ")
        return [Finding(check=CHECK, level="warn", found=found, advice=advice)]
    found = f"{compression} over {nodes} nodes rounds to {2 * levels + 1} values"
    return [Finding(check=CHECK, level="ok", found=found)]
