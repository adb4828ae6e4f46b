"""Our baseline against Horovod's DistributedOptimizer and torch's DDP: same model, same images.

DDP has its default buckets: 25 MB, the first 1 MB. `--model resnet50` has enough gradients for
buckets to matter. To measure on a limited link, start it in the lab.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import horovod.torch as hvd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.alternating import alternate
from benchmarks.recording import keep
from benchmarks.task import batch, config
from harness.config import BackboneConfig, Config, ExchangeConfig
from harness.exchange.exchange import make_exchange
from harness.exchange.flat import Flat, RankParameters
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_world
from harness.train.optimizer import make_optimizer

CLASSES, FEATURES = 1000, 256


@dataclass(frozen=True)
class Task:
    """The model that all of them train."""

    backbone: BackboneConfig
    channels: int
    size: int
    """Height and width of an image, pixels."""

    @classmethod
    def of(cls, model: str, size: int) -> "Task":
        backbone = BackboneConfig(name=model, feature_dim=FEATURES)
        return cls(backbone, 1 if model == "small_cnn" else 3, size)

    def network(self) -> nn.Module:
        return make_backbone(self.backbone, self.channels, self.size, seed=0)


class Dense(nn.Module):
    """A dense model as a user of the other two writes it, with channels last as in ours.

    Horovod refuses gradients in that memory format. For it the filters stay as they are and the
    first convolution's output is converted instead; oneDNN then computes in the same way.
    """

    def __init__(self, task: Task, filters_too: bool) -> None:
        super().__init__()
        self.backbone = task.network()
        self.classifier = nn.Linear(FEATURES, CLASSES)
        if filters_too:
            # torch's types do not know this form of `to`.
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        else:
            first = next(each for each in self.modules() if isinstance(each, nn.Conv2d))
            first.register_forward_hook(
                lambda layer, given, output: output.contiguous(memory_format=torch.channels_last)
            )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.classifier(self.backbone(images)), labels)


class Ours:
    """The parts of `classifier.layout=replicated`, `exchange.kind=synchronous`."""

    def __init__(
        self, task: Task, exchange: ExchangeConfig, world: World, images: Tensor, labels: Tensor
    ) -> None:
        settings: Config = config(classes=CLASSES)
        self.backbone = task.network()
        self.classifier = SlicedClassifier(
            FEATURES, CLASSES, settings.classifier, world.slices, seed=0
        )
        parameters = [*self.backbone.parameters(), *self.classifier.parameters()]
        self.shared = Flat(parameters, world.node.size, parameters[0])
        sliced = Flat([], 1, parameters[0])
        self.optimizer = make_optimizer(settings.optimizer, (self.shared, sliced))
        own = RankParameters(self.shared, sliced, settings.classifier.layout)
        self.exchange = make_exchange(exchange, own, world)
        self.batch = images, labels

    def __call__(self) -> None:
        images, labels = self.batch
        self.shared.grads.zero_()
        self.classifier(self.backbone(images), labels).loss.backward()
        self.exchange.gradients_ready(True)
        self.optimizer.step()


class Step:
    """Forward, backward and update, as in the examples of both libraries."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
    ) -> None:
        self.model, self.optimizer, self.batch = model, optimizer, (images, labels)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model(*self.batch).backward()
        self.optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)


def horovods(task: Task, images: Tensor, labels: Tensor) -> Step:
    model = Dense(task, filters_too=False)
    optimizer = hvd.DistributedOptimizer(
        sgd(model), named_parameters=model.named_parameters(), op=hvd.Average
    )
    return Step(model, optimizer, images, labels)


def torchs(task: Task, images: Tensor, labels: Tensor) -> Step:
    model = Dense(task, filters_too=True)
    return Step(DistributedDataParallel(model), sgd(model), images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument(
        "--bucket-mb", type=float, action="append", help="size of our buckets (default: 4)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for a copy of the printed line")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    task = Task.of(chosen.model, chosen.image_size)
    with open_world(topology, "replicated", device, meters) as world:
        size = task.channels, task.size
        images, labels = batch(CLASSES, chosen.batch_size, topology.rank, *size)
        given = task, images, labels
        variants: dict[str, Callable[[], object]] = {
            f"harness {route}, {mb:g} MB": Ours(
                task, ExchangeConfig(route=route, bucket_mb=mb), world, images, labels
            )
            for mb in chosen.bucket_mb or [4.0]
            for route in ("hierarchical", "flat")
        }
        others = {"torch DDP": torchs(*given), "hvd.DistributedOptimizer": horovods(*given)}
        timing = alternate(
            variants | others, chosen.rounds, chosen.steps, barrier=lambda: hvd.barrier()
        )
        if world.is_first:
            found = json.dumps(timing.rounds)
            print(found, flush=True)
            keep(found, chosen.output)


if __name__ == "__main__":
    main()
