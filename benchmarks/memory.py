"""The memory of a rank's classifier, and the peak of its process, by layout."""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.task import config, dataset
from harness.config import Config
from harness.exchange.flat import Flat
from harness.measure.clock import clock_for
from harness.measure.machine import peak_memory_bytes
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.topology import Layout
from harness.parallel.world import open_world
from harness.train.ledger import NullJournal
from harness.train.optimizer import Optimizer
from harness.train.step import Step, make_step
from harness.train.training import Training


def classifier_bytes(step: Step) -> int:
    """Bytes allocated for weight, gradient and momentum of the classes that this rank owns."""
    owned = list(step.model.classifier.parameters())
    total = 0
    for flat in step.model.flats:
        own = [(start, stop) for parameter, start, stop in flat.spans if is_one(parameter, owned)]
        elements = sum(stop - start for start, stop in own)
        total += elements * bytes_per_element(flat, step.optimizer)
    return total


def is_one(parameter: torch.Tensor, of: list[torch.nn.Parameter]) -> bool:
    return any(parameter is other for other in of)


def bytes_per_element(flat: Flat, optimizer: Optimizer) -> int:
    """Allocated bytes per element of values, gradients and optimizer states."""
    views = [view for view in flat.stepped if view.numel()]
    states = [
        state.untyped_storage().nbytes()
        for view in views
        for state in optimizer.state[view].values()
        if isinstance(state, torch.Tensor) and state.shape == view.shape
    ]
    storages = [flat.values.untyped_storage().nbytes(), flat.grads.untyped_storage().nbytes()]
    return round(sum(storages + states) / max(1, flat.elements))


def settings(layout: Layout, classes: int) -> Config:
    train = {"steps": 3, "untimed_windows": 0, "batch_size": 8}
    return config(layout, classes, train=train)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("layout", choices=("replicated", "node", "world"))
    parser.add_argument("--classes", type=int, default=200_000)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    with (
        open_world(topology, chosen.layout, device, meters) as world,
        tempfile.TemporaryDirectory() as folder,
    ):
        data = dataset(chosen.classes, images=64)
        step = make_step(settings(chosen.layout, chosen.classes), data, world)
        Training(step, Path(folder)).run(NullJournal())
        own = torch.tensor([classifier_bytes(step), peak_memory_bytes(device)])
        rows = world.launch_gather(own, "memory").wait()
        if world.is_first:
            largest = rows.max(dim=0).values.tolist()
            print(json.dumps({"classifier_bytes": largest[0], "peak_bytes": largest[1]}))


if __name__ == "__main__":
    main()
