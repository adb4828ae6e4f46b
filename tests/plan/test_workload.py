"""What a config asks for against the real parts: buckets, arrivals, bytes, operations."""

import pytest
import torch

from harness.config import Config
from harness.exchange.buckets import Buckets
from harness.exchange.flat import Flat
from harness.model.backbone import make_backbone
from harness.model.flops import micro_batch_flops
from harness.model.sliced_classifier import SlicedClassifier
from harness.plan.workload import workload_of
from harness.train.assembly import assemble
from tests.alone import group_of_one
from tests.measured_need import noise
from tests.plan.clusters import exchanging, experiment
from tests.wide import wide_world


def test_operations_are_those_of_a_micro_batch() -> None:
    config = experiment(classifier={"layout": "world"})
    backbone = make_backbone(config.backbone, 3, 32, 0)
    work = workload_of(config, 2, 3)
    expected = micro_batch_flops(backbone, 3, 32, 8, 48, 17)
    assert work.backbone_flops == expected.backbone
    assert work.classifier_flops == expected.classifier


@pytest.mark.parametrize("bucket_mb", [0.05, 1.0, 4.0])
def test_buckets_are_those_of_the_exchange(bucket_mb: float) -> None:
    config = experiment(exchange={"bucket_mb": bucket_mb})
    backbone = make_backbone(config.backbone, 3, 32, 0)
    classifier = SlicedClassifier(backbone.features, 100, config.classifier, group_of_one(), seed=0)
    parameters = [*backbone.parameters(), *classifier.parameters()]
    flat = Flat(parameters, 4, parameters[0])
    cut: list[int] = []

    def carry(bucket: torch.Tensor):  # type: ignore[no-untyped-def]
        cut.append(len(bucket))
        return lambda: None

    Buckets(flat, bucket_mb * 1e6, 1, carry)
    assert [bucket.elements for bucket in workload_of(config, 2, 2).buckets] == cut


@pytest.mark.parametrize("layout", ["replicated", "node", "world"])
@pytest.mark.parametrize("compression", ["none", "int8", "int4"])
@pytest.mark.parametrize("route", ["flat", "hierarchical"])
def test_a_run_expects_to_send_what_was_planned(layout: str, compression: str, route: str) -> None:
    """In several buckets, each in whole blocks: how they are cut shows."""
    exchange = {"route": route, "compression": compression, "bucket_mb": 0.3}
    config = experiment(classifier={"layout": layout}, exchange=exchange)
    work = workload_of(config, 2, 2)
    assert len(work.buckets) > 2
    assembly = assemble(config, noise(config), wide_world(2, 2, config.classifier.layout))
    assert assembly.expected_bytes() == work.window


def test_gradients_come_from_the_end_of_the_backbone_on() -> None:
    """The bucket of all norms is the last: it waits for the first layer's gradients."""
    arrivals = [
        bucket.arrival
        for bucket in workload_of(experiment(exchange={"bucket_mb": 0.1}), 2, 2).buckets
    ]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] < 0.1
    assert 0.9 < arrivals[-1] <= 1


@pytest.mark.parametrize("layout", ["replicated", "node", "world"])
def test_elements_of_the_whole_model_are_somebody_s(layout: str) -> None:
    config: Config = exchanging("synchronous", layout)
    work = workload_of(config, 2, 2)
    backbone = sum(p.numel() for p in make_backbone(config.backbone, 3, 32, 0).parameters())
    owners = {"replicated": 0, "node": 2, "world": 4}[layout]
    classes = 100 * 257
    assert work.shared == backbone + (classes if layout == "replicated" else 0)
    assert work.sliced * owners == (0 if layout == "replicated" else classes)
