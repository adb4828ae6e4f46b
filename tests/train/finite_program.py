"""Started by horovodrun: trainings that one rank spoils, and gradient norms of several layouts."""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import Config
from harness.errors import Diverged
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import Links, World, open_links
from harness.train.ledger import NullJournal
from harness.train.step import make_step
from harness.train.training import Training
from tests.laws.cases import Case
from tests.laws.task import dataset
from tests.train.poison import Poison, checkpoints


@dataclass(frozen=True)
class Spoilt:
    """One value is not finite on one rank; a checkpoint is due every two of the six windows."""

    case: Case
    seen: int = 3
    """When it is stepped with, or when a loss or a pause shows it."""
    window: int = 3
    kind: str = "gradient"
    value: float = math.nan

    @property
    def name(self) -> str:
        return f"{self.case.name}-{self.kind}-{self.value}"


def over(compression: str) -> tuple[tuple[str, object], ...]:
    return (("exchange__compression", compression),)


SPOILT = [
    Spoilt(Case("replicated", "synchronous", 1, 0)),
    Spoilt(Case("replicated", "synchronous", 1, 0, changes=over("fp16")), value=math.inf),
    Spoilt(Case("replicated", "synchronous", 2, 0, changes=over("int8"))),
    Spoilt(Case("node", "synchronous", 1, 0), kind="loss", value=math.inf),
    Spoilt(Case("world", "delayed", 1, 1), seen=4),
    Spoilt(Case("node", "delayed", 1, 1, changes=over("int8")), seen=4, value=-math.inf),
    Spoilt(Case("node", "delayed", 1, 2, changes=over("int4")), seen=4),
    Spoilt(Case("node", "averaging", 1, 1, changes=over("int8"))),
    Spoilt(Case("node", "averaging", 1, 0, changes=(*over("fp16"), ("exchange__pieces", 2)))),
    Spoilt(Case("node", "isolated", 1, 0)),
    Spoilt(Case("replicated", "ddp_post_local_sgd", 1, 0)),
    Spoilt(Case("replicated", "ddp_powersgd", 1, 0)),
    Spoilt(Case("node", "averaging", 1, 1), kind="parameters", seen=4),
    # After a pause nothing is under way: the window that follows does not step.
    Spoilt(Case("node", "delayed", 1, 1), kind="parameters", window=4, seen=4),
]
LAYOUTS = [
    Case(layout, "synchronous", passes, 0, route)
    for layout in ("replicated", "node", "world")
    for passes in (1, 2)
    for route in ("flat", "hierarchical")
]
"""All train alike, so that their gradients have the same norm."""


class Norms(NullJournal):
    def __init__(self) -> None:
        self.found: list[float] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "train/gradient_norm" in metrics:
            self.found.append(metrics["train/gradient_norm"])


def with_checkpoints(config: Config) -> Config:
    train = config.train.model_copy(update={"checkpoint_every": 2, "save": True})
    quiet = config.staleness.model_copy(update={"curvature_after_warmup": False})
    return config.model_copy(update={"train": train, "staleness": quiet})


def spoil(spoilt: Spoilt, world: World) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as own:
        folder = Path(world.broadcast(own, "spoilt folder"))
        config = with_checkpoints(spoilt.case.config())
        step = make_step(config, dataset(), world)
        if world.topology.rank == world.topology.world_size - 1:
            Poison(spoilt.kind, spoilt.window, spoilt.value).into(step, spoilt.case.passes)
        said = ""
        try:
            Training(step, folder).run(NullJournal())
        except Diverged as error:
            said = error.found
        every = world.gather_objects(said, "said")
        kept = checkpoints(folder) if world.is_first else []
        world.gather_objects("looked", "looked")
    return {"case": spoilt.name, "said": every, "checkpoints": kept}


def norms(case: Case, links: Links) -> list[float]:
    heard = Norms()
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(case.config(), dataset(), links.world(case.layout))
        Training(step, Path(folder)).run(heard)
    return heard.found


def main() -> None:
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    with open_links(topology, device, Meters(clock_for(device), Traffic())) as links:
        found = [spoil(each, links.world(each.case.layout)) for each in SPOILT]
        found += [{"case": case.name, "norms": norms(case, links)} for case in LAYOUTS]
    if topology.rank == 0:
        for each in found:
            print(json.dumps(each), flush=True)


if __name__ == "__main__":
    main()
