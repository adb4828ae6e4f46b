"""What carries an exchange between nodes."""

from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import ExchangeConfig
from harness.exchange.carriers import carrier_of

WORLD: Any = SimpleNamespace(
    peers="Horovod",
    across="torch.distributed",
    late=lambda: "torch.distributed, beside",
    reducing=lambda group, purpose, late: f"{group} in two hops",
)


@pytest.mark.parametrize("kind", ["delayed", "averaging", "slowmo"])
def test_only_late_results_come_through_horovod(kind: str) -> None:
    """Whoever waits would wait for its negotiation, too."""
    late = ExchangeConfig.model_validate({"kind": kind, "delay": 1})
    assert carrier_of(late, WORLD) == "Horovod"
    direct = late.model_copy(update={"carrier": "torch"})
    assert carrier_of(direct, WORLD) == "torch.distributed, beside"
    on_time = late.model_copy(update={"delay": 0})
    assert carrier_of(on_time, WORLD) == "torch.distributed"
    lossy = on_time.model_copy(update={"compression": "int8"})
    assert carrier_of(lossy, WORLD) == "torch.distributed in two hops"
