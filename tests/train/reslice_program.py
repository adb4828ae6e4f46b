"""Started by horovodrun: loads checkpoints in every layout, judges the model, saves it again."""

import json
import sys
from pathlib import Path

import torch

from harness.config import Config
from harness.data.open import open_dataset
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.topology import Layout
from harness.parallel.world import World, open_links
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.saves import Saves
from harness.train.step import make_step
from harness.train.training import Training
from tests.train.checkpoint_program import Journal
from tests.train.resume_cases import Case

LAYOUTS: tuple[Layout, ...] = ("replicated", "node", "world")
FIRST = 3
"""The window of the checkpoints that are loaded."""


def configured(layout: Layout, **train: object) -> Config:
    """Momentum, and a lossy wire that owes something to every element that crosses."""
    exchange = {"kind": "delayed", "delay": 1, "compression": "int8"}
    return Case("", layout, exchange).config(checkpoint_every=0, **train)


def trained(layout: Layout, world: World, folder: Path) -> float:
    """Trains a few windows and saves. Returns the loss of all validation images."""
    step = make_step(
        configured(layout, steps=FIRST, save=True), open_dataset(configured(layout).data), world
    )
    training = Training(step, folder)
    summary = training.run(Journal())
    training.check_saved()
    return summary.final["val/loss"]


def saved_again(layout: Layout, world: World, source: Path, folder: Path) -> dict[str, object]:
    """Loads, judges and saves without a step. Returns the loss, and what cannot be used."""
    config = configured(layout, resume=str(source))
    step = make_step(config, open_dataset(config.data), world)
    journal, training = Journal(), Training(step, folder)
    loss = training.evaluate()["val/loss"]
    step.exchange.agree_on([])
    saves = Saves(step, folder, Places.shared(world.topology.world_size))
    saves.save(training._meta(FIRST), step.exchange.carried(), journal)
    saves.settle(journal)
    saves.close()
    assert journal.warnings == []
    return {"loss": loss, "left out": step.left_out}


def main(folder: Path, first: bool) -> None:
    """With `first`, the checkpoints to load are made before."""
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    found: dict[str, object] = {}
    with open_links(topology, device, Meters(clock_for(device), Traffic())) as links:
        for written in LAYOUTS:
            source = folder / written
            if first:
                found[written] = trained(written, links.world(written), source)
            for layout in LAYOUTS:
                name = f"{written} {layout} {topology.world_size}"
                checkpoint = source / "checkpoints" / f"{FIRST:09d}"
                again = saved_again(layout, links.world(layout), checkpoint, folder / name)
                found[name] = again
    if topology.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), first=sys.argv[2:] == ["first"])
