"""Started by horovodrun: trainings with a window that is not finite on one rank, and is dropped."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config import Config
from harness.errors import Diverged
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import Links, World, open_links
from harness.train.checkpoint.states import optimizer_strips
from harness.train.dropping import IN_A_ROW, Dropper
from harness.train.ledger import NullJournal
from harness.train.step import Step, make_step
from tests.laws.cases import Case
from tests.laws.task import dataset
from tests.train.poison import Poison

WINDOWS, SPOILT = 6, 3
"""The windows of a training, and the one that is spoilt, counted from 1."""


def over(compression: str) -> tuple[tuple[str, object], ...]:
    return (("exchange__compression", compression),)


SAMPLED = (("classifier__sampling", 0.5),)
FLAT = (("exchange__route", "flat"),)
"""Over this route the wire joins more than two ranks, and its reducers keep errors, too."""


@dataclass(frozen=True)
class Dropped:
    case: Case
    kind: str = "gradient"

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.kind}"


CASES = [
    Dropped(Case("replicated", "synchronous", 1, 0, changes=over("int8"))),
    Dropped(Case("node", "synchronous", 2, 0), kind="loss"),
    Dropped(Case("node", "delayed", 1, 1, changes=over("int8"))),
    Dropped(Case("world", "delayed", 2, 2)),
    Dropped(Case("node", "averaging", 1, 1, changes=over("int8"))),
    Dropped(Case("node", "averaging", 2, 0)),
    Dropped(Case("node", "isolated", 1, 0), kind="loss"),
    Dropped(Case("node", "synchronous", 1, 0, changes=SAMPLED)),
    Dropped(Case("world", "synchronous", 2, 0, changes=SAMPLED)),
    Dropped(Case("node", "averaging", 1, 1, changes=SAMPLED)),
    Dropped(Case("node", "delayed", 1, 1, changes=SAMPLED)),
    Dropped(Case("replicated", "synchronous", 1, 0, changes=(*over("int8"), *FLAT))),
]


class Journal(NullJournal):
    def __init__(self) -> None:
        self.dropped: list[tuple[int, float]] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "train/dropped_steps" in metrics:
            self.dropped.append((step, metrics["train/dropped_steps"]))


class Told(Dropper):
    """Is told that a window is not finite, in which nothing is wrong."""

    def accepts(self, window: int, losses: Sequence[Tensor]) -> bool:
        told = [torch.tensor(math.nan)] if window == SPOILT - 1 else losses
        return super().accepts(window, told)


def skipping(config: Config) -> Config:
    train = config.train.model_copy(update={"on_nonfinite": "skip"})
    return config.model_copy(update={"train": train})


def trained(step: Step, journal: Journal, dropper: Dropper | None = None) -> list[Tensor]:
    """All that a training leaves behind, after the exchange is drained."""
    if dropper is not None:
        object.__setattr__(step, "dropper", dropper)
    batches = step.batches()
    step.model.backbone.train()
    for window in range(WINDOWS):
        step.window(window, batches, journal)
    batches.close()
    carried = [strip.tensor.clone() for strip in step.exchange.carried()]
    step.exchange.drain(step.update)
    step.watch.settle(WINDOWS, journal)
    states = [strip.tensor for strip in optimizer_strips(step.optimizer, step.model.flats)]
    return [*step.model.numbers, *states, *carried]


def compare(dropped: Dropped, world: World) -> dict[str, object]:
    case, journal = dropped.case, Journal()
    config = skipping(case.config())
    spoilt = make_step(config, dataset(), world)
    if world.topology.rank == world.topology.world_size - 1:
        Poison(dropped.kind, SPOILT, math.nan).into(spoilt, case.passes)
    found = trained(spoilt, journal)
    told = make_step(config, dataset(), world)
    expected = trained(told, Journal(), Told(told.model, told.exchange))
    whole = make_step(case.config(), dataset(), world)
    other = trained(whole, Journal())
    same = [torch.equal(one, two) for one, two in zip(found, expected, strict=True)]
    return {
        "case": dropped.name,
        "equal": world.gather_objects(all(same) and len(same) > 3, "equal"),
        "as_if_nothing": all(map(torch.equal, found, other)),
        "dropped": journal.dropped,
    }


def hopeless(links: Links) -> dict[str, object]:
    """Every window is spoilt from the first on."""
    case = Case("node", "delayed", 1, 1)
    world = links.world(case.layout)
    step = make_step(skipping(case.config()), dataset(), world)
    if world.topology.rank == 1:
        for window in range(1, WINDOWS + 1):
            Poison("loss", window, math.nan).into(step)
    said = ""
    try:
        trained(step, Journal())
    except Diverged as error:
        said = error.found
    return {"case": "hopeless", "said": world.gather_objects(said, "said"), "after": IN_A_ROW}


def main() -> None:
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    with open_links(topology, device, Meters(clock_for(device), Traffic())) as links:
        found = [compare(each, links.world(each.case.layout)) for each in CASES]
        found.append(hopeless(links))
    if topology.rank == 0:
        for each in found:
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
