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
from harness.errors import ReportedByAnotherRank, RunFailed, UserError
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.backbone import Backbone, make_backbone
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.topology import Layout
from harness.parallel.world import Links, World, open_links
from harness.train.checkpoint.choice import Chosen, choose_checkpoint
from harness.train.checkpoint.places import Places, find_places
from harness.train.step import make_step
from harness.train.training import Training
from tests.train.checkpoint_program import Journal, held
from tests.train.resume_cases import APART, CASES, SAVED, WINDOWS, Case


def with_dropout(config: BackboneConfig, channels: int, image_size: int, seed: int) -> Backbone:
    backbone = make_backbone(config, channels, image_size, seed)
    backbone.embedding = nn.Sequential(nn.Dropout(0.3), *backbone.embedding.children())
    return backbone


def trained(
    config: Config, world: World, folder: Path, places: Places | None = None
) -> tuple[dict[str, Tensor], Journal]:
    """All that a rank holds when the run has ended, and what it said."""
    journal = Journal()
    step = make_step(config, open_dataset(config.data), world)
    Training(step, folder, places=places).run(journal)
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


def apart(layout: Layout, links: Links, folder: Path) -> dict[str, object]:
    """A run whose nodes share no folder: what each keeps, and what is resumed of it."""
    world = links.world(layout)
    own = folder / f"node {world.topology.node}"
    case = Case("", layout, {"kind": "delayed", "delay": 1, "compression": "int8"}, "adamw")
    places = find_places(own / "run", world)
    every = {"checkpoint_every": 2, "keep_checkpoints": 2}
    whole, _ = trained(case.config(**every), world, own / "run", places)
    found: dict[str, object] = {"note": places.note, "files": files(own / "run")}

    def chosen(of: str = "run") -> Chosen:
        taken = choose_checkpoint(case.config(resume=str(own / of)), world)
        assert taken is not None
        return taken

    newest = chosen()
    again = case.config(resume=str(newest.folder), **every)
    resumed, _ = trained(again, world, own / "resumed", places)
    found["taken"] = [newest.folder.name, newest.note]
    found["differing"] = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    if world.topology.rank == 2:
        max((own / "run" / "checkpoints" / "000000006").glob("classifier-*")).unlink()
    world.gather_objects(None, "one file less")
    found["skipped"] = chosen().note
    try:
        chosen("run/checkpoints/000000006")
    except UserError as error:
        found["refused"] = str(error)
    except ReportedByAnotherRank:
        found["refused"] = "said by another"
    return found


def files(run: Path) -> dict[str, list[str]]:
    return {
        folder.name: sorted(path.name for path in folder.iterdir())
        for folder in (run / "checkpoints").iterdir()
    }


def folders(links: Links, folder: Path) -> dict[str, object]:
    """Which folders ranks find to be one, and what they leave in them."""
    world = links.world("node")
    own = folder / f"of node {world.topology.node}"
    shared, private = folder / "runs" / "run", own / "run"
    found: dict[str, object] = {
        "shared": find_places(shared, world).leaders,
        "apart": find_places(private, world).leaders,
    }
    world.gather_objects(None, "all have tidied up")
    found["left"] = [sorted(path.name for path in each.iterdir()) for each in (shared, private)]
    world.gather_objects(None, "all have looked")
    if world.topology.rank == 2:
        (private / "checkpoints").mkdir()
    world.gather_objects(None, "a former run on one host")
    try:
        find_places(private, world)
    except UserError as error:
        found["taken"] = str(error).replace(str(own), "")
    except ReportedByAnotherRank:
        found["taken"] = "said by another"
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
        for layout in APART:
            found = apart(layout, links, folder / layout)
            print(json.dumps({"case": f"apart {layout}", **found}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
