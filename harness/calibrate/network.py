"""Times the work of a rank: network, optimizer, encoding for the wire."""

import statistics
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.calibrate.repeated import barrier, mean, timed
from harness.calibrate.result import Point
from harness.config import Config
from harness.data.images import Dataset
from harness.exchange.compression import WireParts, make_wire
from harness.exchange.feedback import Feedback
from harness.exchange.flat import Flat
from harness.measure.clock import now
from harness.measure.phase import Phase
from harness.model.anatomy import autocast
from harness.model.backbone import make_backbone
from harness.model.flops import Flops, micro_batch_flops
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.cores import Cores
from harness.parallel.group import Group
from harness.parallel.pending import Pending
from harness.parallel.world import World
from harness.train.course import course_of
from harness.train.optimizer import make_optimizer
from harness.train.step import micro_batches

NORMAL_QUARTILES = 1.349
"""Distance between the quartiles of a normal distribution, in standard deviations. Dividing by it
estimates a standard deviation on which outliers have no effect."""
CLASSES = {"cpu": (512, 4096), "cuda": (32_768, 262_144)}
"""Classes of the two classifiers that are timed; with fewer on a card, kernel launches would
dominate."""
ALONE = 12
"""Passes of a rank while the ranks that share its cores rest."""
ENCODED_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 25}
OPTIMIZER_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""More parameters than caches hold."""


@dataclass(frozen=True)
class NetworkTimes:
    """Times of one micro-batch; the fields have the same names as in `Calibration`."""

    backbone: Point
    backbone_alone_seconds: float
    backbone_variation: float
    classifier: tuple[Point, ...]


class NetworkPasses:
    """The backbone and two classifiers on one micro-batch of this rank."""

    def __init__(
        self, config: Config, world: World, dataset: Dataset, cores: Cores, seconds: float
    ) -> None:
        self._config = config
        self._cores = cores
        self._seconds_each = seconds
        self._world = world
        data, device = config.data, world.device
        backbone = make_backbone(config.backbone, dataset.channels, data.image_size, config.seed)
        self.backbone = backbone.to(device)
        # Flattened as in training, so that filters have the same memory layout.
        self._flat = Flat(self.backbone.trained, 1, torch.zeros(1, device=device))
        topology = world.topology
        course = course_of(config, len(dataset.train), topology.rank, topology.world_size)
        with closing(micro_batches(dataset, course, world)) as batches:
            self._images, _ = next(batches)
        self._seconds: list[float] = []

    def measured(self) -> NetworkTimes:
        """Times the backbone and both classifiers. Collective over the world."""
        world = self._world
        operations = self._operations(0).backbone
        backbone = timed(world, self._backbone_pass, operations, 3 * self._seconds_each)
        low, middle, high = statistics.quantiles(self._seconds[4:], n=4)
        variation = (high - low) / NORMAL_QUARTILES / middle
        return NetworkTimes(
            backbone=backbone,
            backbone_alone_seconds=self._alone_seconds(),
            backbone_variation=mean(world, variation),
            classifier=tuple(map(self._classifier, CLASSES[world.device.type])),
        )

    def _operations(self, classes: int) -> Flops:
        data, batch = self._config.data, self._config.train.batch_size
        channels = self._images.shape[1]
        return micro_batch_flops(self.backbone, channels, data.image_size, batch, batch, classes)

    def _backbone_pass(self) -> None:
        began = now(self._world.device)
        features = self._features()
        if features.requires_grad:
            features.sum().backward()
        self._seconds.append(now(self._world.device) - began)

    def _features(self) -> Tensor:
        with self._autocast():
            features: Tensor = self.backbone(self._images)
        return features

    def _autocast(self) -> torch.autocast:
        return autocast(self._config.train.precision, self._world.device)

    def _alone_seconds(self) -> float:
        """Median seconds of a pass while the ranks that share the rank's cores rest.

        Ranks take turns; in each turn as many ranks run as there are cores, so that the other cores
        are as busy as usual. Collective over the world.
        """
        own = 0.0
        for turn in range(self._cores.turns):
            barrier(self._world)
            if turn == self._cores.turn:
                self._seconds.clear()
                for _ in range(ALONE):
                    self._backbone_pass()
                own = statistics.median(self._seconds[2:])
        barrier(self._world)
        return mean(self._world, own)

    def _classifier(self, classes: int) -> Point:
        world, config = self._world, self._config
        batch, features = config.train.batch_size, self.backbone.features
        alone = Group(
            (world.topology.rank,), world.topology.rank, 1, None, world.meters, Phase.OTHER
        )
        classifier = SlicedClassifier(features, classes, config.classifier, alone, config.seed)
        classifier.to(world.device)
        given = torch.randn(batch, features, device=world.device, requires_grad=True)
        labels = torch.arange(batch, device=world.device) % classes

        def one_pass() -> None:
            with self._autocast():
                loss = classifier(given, labels).loss
            loss.backward()

        operations = self._operations(classes).classifier
        return timed(world, one_pass, operations, self._seconds_each)


def optimizer_time(config: Config, world: World, seconds: float) -> Point:
    elements = OPTIMIZER_ELEMENTS[world.device.type]
    parameter = torch.nn.Parameter(torch.zeros(1, elements, device=world.device))
    flat = Flat([parameter], 1, parameter.detach())
    optimizer = make_optimizer(config.optimizer, [flat])
    return timed(world, optimizer.step, 4.0 * elements, seconds)


class _Nowhere:
    """A group of `size` ranks in which nothing is sent: every other rank's part is this rank's."""

    index = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def launch_sum(self, buffer: Tensor, name: str) -> Pending:
        return Pending(None, buffer, nullcontext())

    def launch_gather(self, row: Tensor, name: str) -> Pending:
        return Pending(None, row.expand(self.size, -1), nullcontext())

    def launch_reduce(self, rows: Tensor, reduce: Callable[[Tensor], Tensor], name: str) -> Pending:
        return Pending(None, reduce(rows).expand_as(rows), nullcontext())


def encoding_time(name: str, world: World, seconds: float) -> Point:
    elements = ENCODED_ELEMENTS[world.device.type]
    part = torch.randn(elements, device=world.device)
    result = torch.empty_like(part)
    carrier, parts = _Nowhere(max(2, world.topology.nodes)), WireParts(elements, part)
    wire = Feedback(make_wire(name, parts, carrier, name), elements, like=part)
    return timed(world, lambda: wire.launch(part, 0).mean(into=result), elements, seconds)
