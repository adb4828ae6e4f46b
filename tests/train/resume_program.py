"""Started by horovodrun: runs each case undisturbed and resumed, and says in what they differ."""

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import harness.model.backbone
import harness.train.assembly
import harness.train.checkpoint.writing
from harness.config import BackboneConfig, Config
from harness.data.open import open_dataset
from harness.doctor.shared_folder import check_shared_folder
from harness.errors import ReportedByAnotherRank, RunFailed, UserError
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.backbone import Backbone, make_backbone
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import Links, World, open_links
from harness.train.step import make_step
from harness.train.training import Training
from tests.train.checkpoint_program import Journal, held
from tests.train.resume_cases import CASES, SAVED, WINDOWS, Case


def with_dropout(config: BackboneConfig, channels: int, image_size: int, seed: int) -> Backbone:
    backbone = make_backbone(config, channels, image_size, seed)
    backbone.embedding = nn.Sequential(nn.Dropout(0.3), *backbone.embedding.children())
    return backbone


def trained(config: Config, world: World, folder: Path) -> tuple[dict[str, Tensor], Journal]:
    """All that a rank holds when the run has ended, and what it said."""
    journal = Journal()
    step = make_step(config, open_dataset(config.data), world)
    Training(step, folder).run(journal)
    found = held(step, world)
    for number, strip in enumerate(step.exchange.carried()):
        found[f"{number} {strip.key}"] = strip.tensor.clone()
    return found, journal


def differing(case: Case, links: Links, folder: Path) -> list[str]:
    """Names of what differs on this rank to the bit, or all losses that do."""
    world = links.world(case.layout)
    whole, journal = trained(case.config(), world, folder / "whole")
    saved = folder / "whole" / "checkpoints" / f"{SAVED:09d}"
    again = case.config(resume=str(saved))
    resumed, later = trained(again, world, folder / "resumed")
    assert whole.keys() == resumed.keys()
    wrong = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    expected = {window: journal.by_window[window] for window in range(SAVED + 1, WINDOWS + 1)}
    if world.is_first and later.by_window != expected:
        wrong.append(f"losses {later.by_window} {expected}")
    wrong += [line for name, line in later.warnings if name.startswith("resume")]
    return wrong


@contextmanager
def full_disk(rank: int, window: int | None) -> Iterator[None]:
    """On one rank nothing more can be written; of one window's checkpoint, or of all."""
    write = harness.train.checkpoint.writing.write_tensors

    def failing(path: Path, tensors: dict[str, Tensor]) -> None:
        write(path, tensors)
        here = launched_topology().rank == rank
        if here and (window is None or path.parent.name.startswith(f"{window:09d}")):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with mock.patch("harness.train.checkpoint.writing.write_tensors", failing):
        yield


def disks(links: Links, folder: Path) -> dict[str, object]:
    """A run whose checkpoints cannot all be written by all: what it said, left and ended with."""
    world = links.world("world")
    case = Case("", "world", {})
    every = case.config(checkpoint_every=2, save=True, steps=6)
    found: dict[str, object] = {}
    with full_disk(rank=3, window=4):
        _, journal = trained(every, world, folder / "once")
    found["once"] = journal.warnings
    found["left"] = sorted(path.name for path in (folder / "once" / "checkpoints").iterdir())
    with full_disk(rank=1, window=6):
        step = make_step(every, open_dataset(every.data), world)
        training = Training(step, folder / "last")
        training.run(Journal())
        try:
            training.check_saved()
        except RunFailed as error:
            found["last"] = str(error)
    found["last left"] = sorted(path.name for path in (folder / "last" / "checkpoints").iterdir())
    return found


def folders(links: Links, folder: Path) -> dict[str, str]:
    """What a rank is told before a training of which every node writes a part."""
    world, found = links.world("world"), {}
    own = folder / f"of node {world.topology.node}"
    own.mkdir(exist_ok=True)
    config = Case("", "world", {}).config(save=True).train
    silent = Case("", "world", {}).config(checkpoint_every=0).train
    for name, train, place in (
        ("shared", config, folder / "runs" / "run"),
        ("apart", config, own / "run"),
        ("apart, nothing saved", silent, own / "run"),
    ):
        found[name] = ""
        place.mkdir(parents=True, exist_ok=True)
        try:
            check_shared_folder(train, place, world)
        except UserError as error:
            found[name] = str(error)
        except ReportedByAnotherRank:
            found[name] = "said by another"
    found["left"] = str(sorted(path.name for path in folder.rglob(".*")))
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    with (
        open_links(topology, device, Meters(clock_for(device), Traffic())) as links,
        mock.patch.object(harness.train.assembly, "make_backbone", with_dropout),
        mock.patch.object(harness.model.backbone, "SMALL_WIDTHS", (8, 16, 24, 32)),
    ):
        for number, (name, case) in enumerate(CASES.items()):
            wrong = differing(case, links, folder / str(number))
            print(json.dumps({"case": name, "differing": wrong}), flush=True)
        print(json.dumps({"case": "disks", **disks(links, folder / "disks")}), flush=True)
        print(json.dumps({"case": "folders", **folders(links, folder)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
