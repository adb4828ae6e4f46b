"""Started by horovodrun: the curvature of each layout beside the dense program's; its traces."""

import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from harness.config import Config
from harness.curvature import Curvature
from harness.ledger import Unheard
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.network import Network
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_links
from harness.trainer import Trainer
from tests.laws.oracles import Dense, joined
from tests.laws.task import config, dataset, world_batches

PRODUCTS = 100
SCALE = 1e-6
"""So short a step meets no kink of the rectifiers."""
ESTIMATES = {"curvature_at_start": True, "curvature_every": 1, "sample_every": 1}
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


def state(trainer: Trainer) -> list[Tensor]:
    flats = trainer.shared.values, trainer.shared.grads, trainer.sliced.values, trainer.sliced.grads
    return [each.clone() for each in (*flats, *trainer.backbone.buffers(), torch.get_rng_state())]


def beside_dense(settings: Config, world: World, folder: Path) -> dict[str, object]:
    trainer = Trainer(settings, dataset(), world, folder)
    trainer.shared.grads.fill_(0.25)
    before = state(trainer)
    curvature = Curvature(
        Network(trainer.backbone, trainer.classifier), trainer.shared, trainer.sliced, world
    )
    own = world_batches(world.topology.world_size, 0)[world.topology.rank]
    found = curvature.largest(itertools.repeat(own, PRODUCTS), seed=0, scale=SCALE)
    traces = sum(int((a != b).sum()) for a, b in zip(before, state(trainer), strict=True))
    rows = world.launch_gather(torch.tensor([traces]), "traces").wait()
    return {"found": found, "traces": int(rows.sum())}


def changed_by_estimating(settings: Config, world: World, folder: Path) -> tuple[int, float | None]:
    """Elements in which a training that was measured all along ends differently, to the bit.

    And how far nodes were apart when it ended, where they may be.
    """
    ends, distance = [], None
    for staleness in (QUIET, ESTIMATES):
        update = {"staleness": settings.staleness.model_copy(update=staleness)}
        trainer = Trainer(settings.model_copy(update=update), dataset(), world, folder)
        distance = trainer.train(Unheard()).final.get("exchange/distance")
        ends.append(torch.cat((trainer.shared.values, trainer.sliced.values)))
    rows = world.launch_gather((ends[0] != ends[1]).sum(), "changed").wait()
    return int(rows.sum()), distance


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
            result = beside_dense(settings, world, folder)
            # Running statistics are a state of their own.
            normed = settings.backbone.model_copy(update={"norm": "batch"})
            result["changed"], result["distance"] = changed_by_estimating(
                settings.model_copy(update={"backbone": normed}), world, folder
            )
            if world.is_first:
                result["expected"] = expected(settings, world)
                print(json.dumps({"layout": layout, **result}), flush=True)


if __name__ == "__main__":
    main()
