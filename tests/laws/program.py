"""Started by horovodrun: trains cases on this world, prints their distance from their oracles.

`program PART PARTS`: of the cases every so many'th, from that one on.
"""

import json
import sys
import tempfile
import threading
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import Tensor
from torch.nn import functional

from harness.config import Config
from harness.measure.clock import clock_for
from harness.measure.traffic import Bytes, Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.topology import Topology
from harness.parallel.world import Links, World, open_links
from harness.train.optimizer import lr_at
from harness.train.step import Step, make_step
from harness.train.training import Training
from tests.journals import Losses
from tests.laws.cases import WATCHED, Case, cases_for
from tests.laws.oracles import Dense, Trained, late_gradients, local_steps
from tests.laws.task import CLASSES, FEATURES, WINDOWS, dataset, world_batches


class RecordingTraffic(Traffic):
    """Every collective passes here: the order in which a rank enters them."""

    def __init__(self) -> None:
        super().__init__()
        self.entered: dict[str, list[tuple[float, float]]] = {}
        """By thread: each launches what it launches in an order of its own."""

    def add(self, sent: Bytes) -> None:
        super().add(sent)
        thread = threading.current_thread().name
        self.entered.setdefault(thread, []).append((sent.in_node, sent.cross_node))

    def take(self) -> list[tuple[float, float]]:
        """All since the last call, thread by thread."""
        entered, self.entered = self.entered, {}
        return [each for thread in sorted(entered) for each in entered[thread]]


def oracle(config: Config, world: World) -> tuple[Dense, list[float]]:
    """The sequential program, run by rank 0; its model and losses on all ranks."""
    topology = world.topology
    found: Trained | None = None
    if world.is_first and config.exchange.traits.local_steps:
        found = local_steps(config, topology.nodes, topology.ranks_per_node)
    elif world.is_first:
        found = late_gradients(config, topology.nodes, topology.ranks_per_node)
    state = world.broadcast((found.model.state_dict(), found.losses) if found else None, "oracle")
    model = Dense(config)
    model.load_state_dict(state[0])
    return model, state[1]


def parameter_pairs(step: Step, dense: Dense) -> list[tuple[Tensor, Tensor]]:
    backbone, classifier = step.model.backbone, step.model.classifier
    owned = classifier.owned
    pairs = list(zip(backbone.parameters(), dense.backbone.parameters(), strict=True))
    pairs.append((classifier.weight, dense.weight[owned.start : owned.stop]))
    pairs.append((classifier.bias, dense.bias[owned.start : owned.stop]))
    return pairs


def deviation(step: Step, dense: Dense, world: World) -> float:
    """Largest difference of any rank's parameters from a dense model's."""
    own = max(float((a - b).detach().abs().max()) for a, b in parameter_pairs(step, dense))
    rows = world.launch_gather(torch.tensor([own], dtype=torch.float64), "law deviation")
    return float(rows.wait().max())


def differing(step: Step, world: World) -> int:
    """Elements in which a rank differs, to the bit, from the first rank that owns the same."""
    shared, sliced = step.model.flats
    room = CLASSES * (FEATURES + 1) - sliced.elements
    own = torch.cat((shared.values, functional.pad(sliced.values, (0, room))))
    rows = world.launch_gather(own, "law replicas").wait()
    owners = world.slices.size
    return sum(int((row != rows[rank % owners]).sum()) for rank, row in enumerate(rows)) + int(
        (rows[:, : len(shared.values)] != rows[0, : len(shared.values)]).sum()
    )


def same_order(entered: list[tuple[float, float]], world: World) -> bool:
    """All ranks sent in the same pattern, peers of one local rank the very same bytes."""
    rows = world.launch_gather(torch.tensor(entered, dtype=torch.float64), "law order").wait()
    topology = world.topology
    orders = rows.view(topology.world_size, -1, 2)
    pattern = ((orders > 0) == (orders[0] > 0)).all()
    peers = all(
        bool((orders[rank] == orders[rank % topology.ranks_per_node]).all())
        for rank in range(topology.world_size)
    )
    return bool(pattern) and peers


def distributed_optimizer(config: Config, topology: Topology) -> Dense:
    """Horovod's own optimizer on the same images: the oracle of `synchronous`."""
    model = Dense(config)
    passes = config.exchange.backward_passes_per_step
    optimizer = hvd.DistributedOptimizer(
        model.sgd(config),
        named_parameters=model.named_parameters(),
        backward_passes_per_step=passes,
        op=hvd.Average,
    )
    for window in range(WINDOWS):
        for group in optimizer.param_groups:
            group["lr"] = lr_at(config.optimizer, window, WINDOWS)
        optimizer.zero_grad()
        for k in range(passes):
            images, labels = world_batches(topology.world_size, window * passes + k)[topology.rank]
            (model(images, labels) / passes).backward()
        optimizer.step()
    return model


def changed_by_watching(case: Case, step: Step, world: World) -> int:
    """Elements in which a training that was evaluated on the way ends differently, to the bit."""
    config = case.config()
    train = config.train.model_copy(update={"evaluate_every": 1})
    with tempfile.TemporaryDirectory() as folder:
        watched = make_step(config.model_copy(update={"train": train}), dataset(), world)
        Training(watched, Path(folder)).run(Losses())
    pairs = zip(step.model.flats, watched.model.flats, strict=True)
    own = sum(int((one.values != other.values).sum()) for one, other in pairs)
    return int(world.launch_gather(torch.tensor([own]), "law watched").wait().sum())


def measure(case: Case, links: Links, traffic: RecordingTraffic) -> dict[str, object]:
    config, world = case.config(), links.world(case.layout)
    losses = Losses()
    traffic.take()
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(config, dataset(), world)
        summary = Training(step, Path(folder)).run(losses)
    entered = traffic.take()
    dense, expected_losses = oracle(config, world)
    result: dict[str, object] = {
        "deviation": deviation(step, dense, world),
        "moved": deviation(step, Dense(config), world),
        "differing": differing(step, world),
        "collectives": len(entered),
        "same_order": same_order(entered, world),
        "counted": [summary.cross_node_mb_per_step, summary.in_node_mb_per_step],
        "formula": [summary.cross_node_mb_per_step_formula, summary.in_node_mb_per_step_formula],
        "phase_sum_ms": sum(spread.mean for spread in summary.phases_ms.values()),
        "step_ms": summary.step_ms.mean,
    }
    if world.is_first:
        result["loss_deviation"] = max(
            abs(losses.by_window[window + 1] - expected_losses[window]) for window in range(WINDOWS)
        )
    if case in WATCHED:
        result["changed_by_watching"] = changed_by_watching(case, step, world)
    if config.exchange.delay:
        on_time = case.without_delay().config()
        result["from_on_time"] = deviation(step, oracle(on_time, world)[0], world)
    if case.is_horovods:
        peer = distributed_optimizer(config, links.topology)
        result["from_distributed_optimizer"] = deviation(step, peer, world)
    return result


def main() -> None:
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    traffic = RecordingTraffic()
    with open_links(topology, device, Meters(clock_for(device), traffic)) as links:
        part, parts = map(int, sys.argv[1:])
        for case in cases_for(topology.world_size)[part::parts]:
            result = measure(case, links, traffic)
            if topology.rank == 0:
                print(json.dumps({"case": case.name, **result}), flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
