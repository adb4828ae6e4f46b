"""What one number of ranks in one layout saved, any other number in any layout loads whole.

A checkpoint belongs to elements, not to ranks: loading it anywhere and saving it at once gives the
same numbers for every class and every parameter, to the bit, and so the same function.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config import ClassifierConfig, OptimizerConfig
from harness.exchange.flat import Flat
from harness.measure.phase import Phase
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group
from harness.parallel.slices import Slice
from harness.train.checkpoint.checkpoint import Checkpoint
from harness.train.checkpoint.files import BACKBONE, Rows, Whole
from harness.train.checkpoint.meta import Meta, read_meta
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.writing import Writer
from harness.train.optimizer import make_optimizer
from tests.alone import meters, world_of_one
from tests.horovodrun import horovodrun
from tests.train.reslice_program import FIRST, KINDS, LAYOUTS, saved_again

WAYS = [(kind, *pair) for kind in KINDS for pair in product(LAYOUTS[kind], LAYOUTS[kind])]
"""The exchange, the layout that saved, the layout that loads."""
OWED = "exchange.unsent."
RANKS = (4, 3, 1)
"""Two nodes of two ranks; one node of three, whose slices are uneven; one process."""


def contents(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, all classes put together."""
    meta = read_meta(folder)
    backbone = Whole(folder / BACKBONE)
    rows = Rows(folder, meta.names_in(folder), Slice(0, meta.num_classes))
    found = {name: backbone.read(name) for name in backbone.names}
    return found | {f"classifier {name}": rows.read(name) for name in rows.names}


def checkpoint_in(folder: Path) -> Path:
    return folder / "checkpoints" / f"{FIRST:09d}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of all checkpoints, and what was found of each."""
    folder, found = tmp_path_factory.mktemp("reslice"), dict[str, Any]()
    program = ["-m", "tests.train.reslice_program", str(folder)]
    for command, ranks, hosts in (
        ([*program, "first"], 4, "localhost:2,127.0.0.1:2"),
        (program, 3, "localhost:3"),
    ):
        ended = horovodrun(
            command, ranks, hosts, timeout=600, environment={"HOROVOD_CYCLE_TIME": "5"}
        )
        (line,) = [line for line in ended.lines(0) if line[:1] == "{"]
        found |= json.loads(line)
    for kind, written, layout in WAYS:
        source, name = checkpoint_in(folder / f"{kind} {written}"), f"{kind} {written} {layout} 1"
        found[name] = saved_again(kind, layout, world_of_one(), source, folder / name)
    return folder, found


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("kind", "written", "layout"), WAYS)
def test_nothing_is_lost_on_the_way(
    runs: tuple[Path, dict[str, Any]], kind: str, written: str, layout: str, ranks: int
) -> None:
    folder, found = runs
    before = contents(checkpoint_in(folder / f"{kind} {written}"))
    after = contents(checkpoint_in(folder / f"{kind} {written} {layout} {ranks}"))
    for state in ("optimizer.momentum_buffer.", OWED if kind == "late" else "exchange.velocity."):
        assert any(state in name and before[name].any() for name in before)
    of_wires = {name for name in before.keys() | after.keys() if OWED in name}
    assert before.keys() - of_wires == after.keys() - of_wires
    both = before.keys() & after.keys()
    assert [name for name in both if not torch.equal(before[name], after[name])] == []
    # What a lossy wire owes is kept where there is such a wire, and begins with 0 where there was
    # none. Between nodes there is one for what all of them have, which a slice of the world is not.
    assert not any(after[name].any() for name in after.keys() - before.keys())
    crossing = {name for name in of_wires if layout != "world" or "classifier" not in name}
    assert after.keys() & of_wires == (crossing if ranks == 4 else set())
    lost = before.keys() - after.keys()
    again = found[f"{kind} {written} {layout} {ranks}"]
    assert list(again["left out"]) == (["exchange.unsent"] if lost else [])


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize(("kind", "written", "layout"), WAYS)
def test_the_function_is_the_same(
    runs: tuple[Path, dict[str, Any]], kind: str, written: str, layout: str, ranks: int
) -> None:
    """The loss of all validation images, but for the order in which it is added up."""
    _, found = runs
    again, expected = found[f"{kind} {written} {layout} {ranks}"], found[f"{kind} {written}"]
    assert again["loss"] == pytest.approx(expected, rel=1e-12)


class Rank:
    """The backbone, a slice, and their optimizer, of one of `owners` ranks: all of random numbers.

    The rank steps one of so many `chunks` of the backbone.
    """

    def __init__(
        self, classes: int, owners: int, owner: int, config: OptimizerConfig, chunks: int = 1
    ) -> None:
        group = None if owners == 1 else torch.distributed.ProcessGroup(owner, owners)
        ranks = tuple(range(owners))
        among = Group(ranks, owner, 1, group, meters(), Phase.SLICE_WAIT)
        torch.manual_seed(owner)
        self.backbone = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(5, 2))
        self.classifier = SlicedClassifier(2, classes, ClassifierConfig(), among, seed=0)
        like = torch.zeros(1)
        self.flats = (
            Flat(list(self.backbone.parameters()), chunks, like, owner if chunks > 1 else None),
            Flat(list(self.classifier.parameters()), 1, like),
        )
        self.optimizer = make_optimizer(config, self.flats)
        self.checkpoint = Checkpoint(
            self.backbone, self.classifier, self.flats, self.optimizer, world_of_one()
        )

    def step(self) -> None:
        for flat in self.flats:
            flat.grads.normal_()
        self.optimizer.step()

    def state(self, number: int, key: str) -> Tensor:
        """Of the chunk of a flat that this rank steps, without padding."""
        flat = self.flats[number]
        views = [view for view in (*flat.decayed, *flat.undecayed) if view.numel()]
        return torch.cat([self.optimizer.state[view][key] for view in views] or [torch.zeros(0)])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_slicing_reads_what_any_other_wrote(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """So many owners of classes write, so many others read, and step chunks of the backbone."""
    classes = data.draw(st.integers(2, 17), "classes")
    writers, readers = (data.draw(st.integers(1, classes)) for _ in range(2))
    key, config = data.draw(
        st.sampled_from(
            [
                ("momentum_buffer", OptimizerConfig()),
                ("exp_avg_sq", OptimizerConfig(name="adamw")),
            ]
        )
    )
    folder = tmp_path_factory.mktemp("any") / "000000001"
    wrote = [Rank(classes, writers, owner, config) for owner in range(writers)]
    files: dict[str, dict[str, Tensor]] = {}
    for rank in reversed(wrote):  # the first one's backbone is the one that stays
        rank.step()
        files |= rank.checkpoint.copies(Places.shared(1))
    meta = Writer(lambda value: [value], leads=True).write(
        folder, files, Meta(window=1, num_classes=classes)
    )
    read = [Rank(classes, readers, owner, config, chunks=readers) for owner in range(readers)]
    for rank in read:
        rank.checkpoint.load(folder, meta)
    for name in ("weight", "bias"):
        values = (torch.cat([getattr(r.classifier, name) for r in of]) for of in (wrote, read))
        assert torch.equal(*values)
    first = wrote[0]
    for rank in read:
        assert torch.equal(rank.flats[0].values[: first.flats[0].elements], first.flats[0].values)
    # The slice's flat tensor has the weight's rows first, then the bias.
    rows = [torch.cat([weights(rank, key) for rank in of]) for of in (wrote, read)]
    assert torch.equal(*rows)
    assert torch.equal(torch.cat([r.state(0, key) for r in read]), first.state(0, key))


def weights(rank: Rank, key: str) -> Tensor:
    """The state of a slice's weight, one row for each class."""
    state = rank.state(1, key)
    return torch.cat(
        (
            state[: rank.classifier.weight.numel()].view(-1, 2),
            state[rank.classifier.weight.numel() :].view(-1, 1),
        ),
        dim=1,
    )
