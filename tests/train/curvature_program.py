"""Started by horovodrun: the curvature of each layout beside the dense program's; its traces."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from harness.config import Config
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_links
from harness.train import curvature
from harness.train.curvature import Curvature
from harness.train.ledger import NullJournal
from harness.train.step import Step, make_step
from harness.train.training import Training
from tests.laws.oracles import Dense, joined
from tests.laws.task import config, dataset, world_batches

PRODUCTS = 100
SCALE = 1e-6
"""So short a step meets no kink of the rectifiers."""
ESTIMATES = {"curvature_every": 1, "sample_every": 1}
QUIET = {"curvature_after_warmup": False, "sample_every": 0}
KINDS = {"replicated": "synchronous", "node": "averaging", "world": "delayed"}


def eigenvalues(model: Dense, batch: tuple[Tensor, Tensor]) -> list[float]:
    """The Hessian's two largest, by double backward, the largest last."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model(*batch), parameters, create_graph=True)
    sizes = [parameter.numel() for parameter in parameters]

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = torch.from_numpy(vector.ravel().copy()).split(sizes)
        along = sum(
            (gradient * piece.view_as(gradient)).sum()
            for gradient, piece in zip(gradients, pieces, strict=True)
        )
        found = torch.autograd.grad(along, parameters, retain_graph=True)
        return torch.cat([each.flatten() for each in found]).numpy()

    operator = LinearOperator((sum(sizes), sum(sizes)), product, dtype=np.float64)
    found = eigsh(operator, k=2, which="LA", return_eigenvectors=False)
    return sorted(float(value) for value in found)


def expected(settings: Config, world: World) -> list[list[float]]:
    """Of each copy of the model, on the images of its ranks."""
    ranks = world.topology.world_size
    batches = world_batches(ranks, 0)
    copies = [list(range(ranks))]
    if settings.classifier.layout != "world":
        copies = [list(group) for group in world.topology.node_groups]
    model = Dense(settings)
    return [eigenvalues(model, joined([batches[rank] for rank in copy])) for copy in copies]


def state(step: Step) -> list[Tensor]:
    values = [flat.values for flat in step.model.flats]
    buffers = step.model.backbone.buffers()
    return [each.clone() for each in (*values, *buffers, torch.get_rng_state())]


def beside_dense(settings: Config, world: World) -> dict[str, object]:
    step = make_step(settings, dataset(), world)
    step.model.shared.grads.fill_(0.25)
    before = state(step)
    estimate = Curvature(step)
    own = world_batches(world.topology.world_size, 0)[world.topology.rank]
    found = estimate.largest(itertools.repeat(own, PRODUCTS), seed=0, scale=SCALE)
    traces = sum(int((a != b).sum()) for a, b in zip(before, state(step), strict=True))
    traces += sum(int(flat.grads.count_nonzero()) for flat in step.model.flats)
    rows = world.launch_gather(torch.tensor([traces]), "traces").wait()
    return {"found": found, "traces": int(rows.sum())}


class Heard(NullJournal):
    """Keeps what is logged and said."""

    def __init__(self) -> None:
        self.metrics = set[str]()
        self.lines = list[str]()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics |= metrics.keys()

    def warn(self, name: str, line: str) -> None:
        self.lines.append(line)


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    values: Tensor
    distance: float | None
    """How far nodes were apart when it ended, where they may be."""
    heard: Heard


def trained(settings: Config, staleness: dict[str, object], world: World, folder: Path) -> Trained:
    update = {"staleness": settings.staleness.model_copy(update=staleness)}
    step = make_step(settings.model_copy(update=update), dataset(), world)
    heard = Heard()
    distance = Training(step, folder).run(heard).final.get("exchange/distance")
    return Trained(torch.cat([flat.values for flat in step.model.flats]), distance, heard)


def changed(before: Trained, after: Trained, world: World) -> int:
    """Elements of all ranks that differ, to the bit."""
    return int(world.launch_gather((before.values != after.values).sum(), "changed").wait().sum())


@contextmanager
def short_of_memory(world: World) -> Iterator[None]:
    """The last rank's memory does not suffice for a gradient of an estimate."""
    real = curvature.functional_call

    def failing(*arguments: Any) -> Any:
        if world.topology.rank == world.topology.world_size - 1:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return real(*arguments)

    with mock.patch.object(curvature, "functional_call", failing):
        yield


def main() -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with (
        open_links(launched_topology(), device, Meters(clock_for(device), Traffic())) as links,
        tempfile.TemporaryDirectory() as name,
    ):
        for layout, kind in KINDS.items():
            world, folder = links.world(layout), Path(name)
            settings = config(layout, kind, 2, 0 if kind == "synchronous" else 1)
            smooth = settings.backbone.model_copy(update={"norm": "none"})
            settings = settings.model_copy(update={"backbone": smooth})
            result = beside_dense(settings, world)
            # Running statistics are a state of their own.
            normed = settings.backbone.model_copy(update={"norm": "batch"})
            # Rows that rest would keep what an estimate left in their gradients.
            share = 1.0 if layout == "replicated" else 0.4
            sampled = settings.classifier.model_copy(update={"sampling": share})
            settings_normed = settings.model_copy(
                update={"backbone": normed, "classifier": sampled}
            )
            quiet = trained(settings_normed, QUIET, world, folder)
            measured = trained(settings_normed, ESTIMATES, world, folder)
            with short_of_memory(world):
                short = trained(settings_normed, ESTIMATES, world, folder)
            result["changed"] = changed(quiet, measured, world)
            result["changed_where_short"] = changed(quiet, short, world)
            result["distance"] = measured.distance
            result["estimated"] = "staleness/curvature" in measured.heard.metrics
            result["estimated_where_short"] = "staleness/curvature" in short.heard.metrics
            result["said_where_short"] = short.heard.lines
            if world.is_first:
                result["expected"] = expected(settings, world)
                print(json.dumps({"layout": layout, **result}), flush=True)


if __name__ == "__main__":
    main()
