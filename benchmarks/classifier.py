"""The sliced classifier, forward and backward, against its matrix products and other engines.

Two ranks of one node own half of the classes each; variants alternate in one run. torch's fused
loss does not support slices, so it does the work of one rank: its half of the classes, all images.
"""

import argparse
import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn import functional

from benchmarks.alternating import alternate
from benchmarks.recording import keep
from harness.config import ClassifierConfig
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group, Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import open_world

MARGINS = ("none", "cosface", "arcface")
SCALE = 32.0
SHARE = 0.1
"""Share of the classes that take part in the sampled variant."""


class Task:
    """This rank's images, and its slice's weight with a gradient already allocated."""

    def __init__(self, group: Group, classes: int, features: int, images: int) -> None:
        """`images` is the number of all ranks."""
        generator = torch.Generator().manual_seed(group.index)
        own = images // group.size
        self.group = group
        self.classes = classes
        self.features = torch.randn(own, features, generator=generator).requires_grad_()
        self.labels = torch.randint(classes, (own,), generator=generator)
        plain = self._classifier("none")
        self.owned, self.weight = plain.owned, plain.weight
        self.classifiers = {
            margin: plain if margin == "none" else self._classifier(margin) for margin in MARGINS
        }
        self.sampled = self._classifier("none", SHARE)
        self.gathered = torch.cat([self.features.detach()] * group.size)
        self.targets = torch.randint(self.owned.size, (images,), generator=generator)

    def _classifier(self, margin: str, sampling: float = 1.0) -> SlicedClassifier:
        values = {"margin": margin, "margin_scale": SCALE, "sampling": sampling}
        config = ClassifierConfig.model_validate(values)
        made = SlicedClassifier(self.features.shape[1], self.classes, config, self.group, seed=0)
        if hasattr(self, "weight"):
            made.weight = self.weight  # one in memory for all
        for parameter in made.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        made.in_place = True
        return made

    def sliced(self, classifier: SlicedClassifier) -> Callable[[], None]:
        """Each micro-batch draws classes of its own, if they are sampled."""
        numbers = count()

        def step() -> None:
            classifier.micro_batch = next(numbers)
            classifier.gradients_are_stale, self.features.grad = True, None
            classifier(self.features, self.labels).loss.backward()

        return step

    def products(self) -> Callable[[], None]:
        """The three matrix products that any exact classifier needs for a slice."""
        weight, features = self.weight.detach(), self.gathered
        slopes = torch.randn(len(features), len(weight))
        logits, mixed = torch.empty_like(slopes), torch.empty_like(features)
        gradient = torch.empty_like(weight)

        def multiply() -> None:
            torch.mm(features, weight.T, out=logits)
            torch.mm(slopes, weight, out=mixed)
            torch.mm(slopes.T, features, out=gradient)

        return multiply

    def three_sums(self) -> None:
        """The usual way: whole logits, and three all-reduces: maximum, sum, and target's logit.

        Gradients of the loss with respect to the logits are (softmax - one-hot) / images; autograd
        does the rest.
        """
        self.features.grad = self.weight.grad = None
        features = self.group.all_gather(self.features.detach()).requires_grad_()
        labels = self.group.all_gather(self.labels) - self.owned.start
        logits = features @ self.weight.T
        with torch.no_grad():
            largest = self.group.maximum(logits.max(dim=1).values)
            shares = (logits - largest[:, None]).exp_()
            sums = self.group.launch_sum(shares.sum(dim=1)).wait()
            inside = (labels >= 0) & (labels < self.owned.size)
            rows = torch.arange(len(labels))[inside]
            target = torch.zeros_like(sums)
            target[rows] = logits[rows, labels[inside]] - largest[rows]
            self.group.launch_sum(target).wait()
            shares /= sums[:, None]
            shares[rows, labels[inside]] -= 1
            shares /= len(labels)
        logits.backward(shares)
        assert features.grad is not None
        self.group.launch_reduce_scatter(features.grad).wait()

    def loss_parallel(self) -> Callable[[], None]:
        """torch's `loss_parallel`, over logits that are sliced by class."""
        assert self.group.process_group is not None
        mesh = DeviceMesh.from_group(self.group.process_group, "cpu")
        labels = self.group.all_gather(self.labels)

        def step() -> None:
            self.features.grad = self.weight.grad = None
            features = self.group.all_gather(self.features.detach()).requires_grad_()
            logits = DTensor.from_local(features @ self.weight.T, mesh, [Shard(1)])
            with loss_parallel():
                functional.cross_entropy(
                    logits, DTensor.from_local(labels, mesh, [Replicate()])
                ).backward()
            assert features.grad is not None
            self.group.launch_reduce_scatter(features.grad).wait()

        return step

    def fused(self, options: Any) -> Callable[[], None]:
        """torch's fused product and loss on one rank, without any exchange."""

        def step() -> None:
            self.weight.grad = None
            features = self.gathered.clone().requires_grad_()
            functional.linear_cross_entropy(
                features, self.weight, self.targets, options=options
            ).backward()

        return step


def in_place_again(task: Task, step: Callable[[], None]) -> Callable[[], None]:
    """Restores the gradient after `step`, because the sliced classifier writes to it in place."""

    def after() -> None:
        step()
        if task.weight.grad is None:
            task.weight.grad = torch.zeros_like(task.weight)

    return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--images", type=int, default=128, help="images of all ranks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    with open_world(topology, "node", device, meters) as world:
        task = Task(world.slices, chosen.classes, chosen.features, chosen.images)
        ours = {f"harness, {name}": task.sliced(own) for name, own in task.classifiers.items()}
        ours[f"sliced classifier, sampling {SHARE:g}"] = task.sliced(task.sampled)
        options = torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=chosen.images, chunking_method=None
        )
        others = {
            "three all-reduces": task.three_sums,
            "torch loss_parallel": task.loss_parallel(),
            "torch linear_cross_entropy, one rank": task.fused(None),
            "torch linear_cross_entropy, one rank, in one chunk": task.fused(options),
        }
        variants = {"three products": task.products(), **ours}
        variants |= {name: in_place_again(task, step) for name, step in others.items()}
        timing = alternate(variants, chosen.rounds, 1, dist.barrier)
        if world.is_first:
            found = {
                "settings": {key: value for key, value in vars(chosen).items() if key != "output"},
                "rounds": timing.rounds,
            }
            print(json.dumps(found))
            keep(json.dumps(found), chosen.output)


if __name__ == "__main__":
    main()
