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

KINDS: dict[str, dict[str, object]] = {
    "late": {"kind": "delayed", "delay": 1, "compression": "int8"},
    "outer": {"kind": "averaging", "delay": 1, "outer_lr": 0.7, "outer_momentum": 0.9},
}
"""A lossy wire that owes something to every element that crosses; an outer optimizer's velocity."""
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "late": ("replicated", "node", "world"),
    "outer": ("replicated", "node"),
}
WRITTEN = [(kind, layout) for kind, layouts in LAYOUTS.items() for layout in layouts]
FIRST = 3
"""The window of the checkpoints that are loaded."""


def configured(kind: str, layout: Layout, **train: object) -> Config:
    return Case("", layout, KINDS[kind]).config(checkpoint_every=0, **train)


def trained(kind: str, layout: Layout, world: World, folder: Path) -> float:
    """Trains a few windows and saves. Returns the loss of all validation images."""
    config = configured(kind, layout, steps=FIRST, save=True)
    step = make_step(config, open_dataset(config.data), world)
    training = Training(step, folder)
    summary = training.run(Journal())
    training.check_saved()
    return summary.final["val/loss"]


def saved_again(
    kind: str, layout: Layout, world: World, source: Path, folder: Path
) -> dict[str, object]:
    """Loads, judges and saves without a step. Returns the loss, and what cannot be used."""
    config = configured(kind, layout, resume=str(source))
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
        for kind, written in WRITTEN:
            source = folder / f"{kind} {written}"
            if first:
                found[source.name] = trained(kind, written, links.world(written), source)
            checkpoint = source / "checkpoints" / f"{FIRST:09d}"
            for layout in LAYOUTS[kind]:
                name = f"{kind} {written} {layout} {topology.world_size}"
                world = links.world(layout)
                found[name] = saved_again(kind, layout, world, checkpoint, folder / name)
    if topology.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), first=sys.argv[2:] == ["first"])
