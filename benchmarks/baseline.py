"""Our baseline against Horovod's DistributedOptimizer and torch's DDP: same model, same images."""

import argparse
import json

import horovod.torch as hvd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.alternating import alternate
from benchmarks.task import batch, config
from harness.exchange.exchange import make_exchange
from harness.exchange.flat import Flat
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import SlicedClassifier
from harness.optimizer import make_optimizer
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_world

CLASSES, FEATURES = 1000, 256


class Dense(nn.Module):
    """What a user of the other two writes, images channels last as in ours.

    Horovod refuses gradients in that order, so its filters stay as they are and the first
    layer's output is turned instead; oneDNN then computes the same way.
    """

    def __init__(self, filters_too: bool) -> None:
        super().__init__()
        self.backbone = make_backbone(config().backbone, 1, 32, seed=0)
        self.classifier = nn.Linear(FEATURES, CLASSES)
        if filters_too:
            self.to(memory_format=torch.channels_last)
        else:
            self.backbone.body.get_submodule("0").register_forward_hook(
                lambda layer, given, output: output.contiguous(memory_format=torch.channels_last)
            )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.classifier(self.backbone(images)), labels)


class Ours:
    """The parts of `classifier.layout=replicated`, `exchange.kind=synchronous`."""

    def __init__(self, world: World, images: Tensor, labels: Tensor) -> None:
        settings = config(classes=CLASSES)
        self.backbone = make_backbone(settings.backbone, 1, 32, seed=0)
        self.classifier = SlicedClassifier(
            FEATURES, CLASSES, settings.classifier, world.slices, seed=0
        )
        parameters = [*self.backbone.parameters(), *self.classifier.parameters()]
        self.shared = Flat(parameters, world.node.size, parameters[0])
        sliced = Flat([], 1, parameters[0])
        self.optimizer = make_optimizer(settings.optimizer, (self.shared, sliced))
        self.exchange = make_exchange(
            settings.exchange, settings.classifier, self.shared, sliced, world
        )
        self.batch = images, labels

    def __call__(self) -> None:
        images, labels = self.batch
        self.shared.grads.zero_()
        self.classifier(self.backbone(images), labels).loss.backward()
        self.exchange.after_backward(True)
        self.optimizer.step()


def horovods(images: Tensor, labels: Tensor) -> "Step":
    model = Dense(filters_too=False)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True),
        named_parameters=model.named_parameters(),
        op=hvd.Average,
    )
    return Step(model, optimizer, images, labels)


def torchs(images: Tensor, labels: Tensor) -> "Step":
    model = Dense(filters_too=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True, bucket_cap_mb=4)
    return Step(parallel, optimizer, images, labels)


class Step:
    """Forward, backward and update, as in both libraries' own examples."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
    ) -> None:
        self.model, self.optimizer, self.batch = model, optimizer, (images, labels)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model(*self.batch).backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    with open_world(topology, "replicated", device, meters) as world:
        images, labels = batch(CLASSES, chosen.batch_size, topology.rank)
        timing = alternate(
            {
                "harness data_parallel": Ours(world, images, labels),
                "hvd.DistributedOptimizer": horovods(images, labels),
                "torch DDP": torchs(images, labels),
            },
            chosen.rounds,
            chosen.steps,
            barrier=lambda: hvd.barrier(),
        )
        if world.is_first:
            print(json.dumps(timing.rounds), flush=True)


if __name__ == "__main__":
    main()
