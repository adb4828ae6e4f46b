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


@pytest.mark.parametrize(("share", "images", "taking_part"), [(0.5, 8, 25), (0.5, 30, 30)])
def test_operations_are_those_of_the_classes_that_take_part(
    share: float, images: int, taking_part: int
) -> None:
    """Of 50 in a slice; a rank's share of the positives is its number of images."""
    train = {"steps": 1, "batch_size": images}
    sampled = experiment(classifier={"layout": "node", "sampling": share}, train=train)
    work = workload_of(sampled, 2, 2)
    assert work.classifier_flops == 3 * 2 * 2 * images * taking_part * 256
    assembly = assemble(sampled, noise(sampled), wide_world(2, 2, "node"))
    assert assembly.flop_per_window() == work.backbone_flops + work.classifier_flops


@pytest.mark.parametrize(
    ("kind", "layout", "moving", "searched"),
    [
        # In each of two micro-batches 13 of 50, 25 of 100 and, because of 8 images, 8 of 25.
        ("synchronous", "replicated", 50 / 100, 100),
        ("synchronous", "node", 26 / 50, 50),
        ("synchronous", "world", 16 / 25, 0),
        ("delayed", "replicated", 50 / 100, 50),
        ("delayed", "world", 16 / 25, 25),
        ("averaging", "node", 13 / 50, 0),
        ("averaging", "replicated", 25 / 100, 50),
    ],
)
def test_an_optimizer_steps_few_rows_one_by_one(
    kind: str, layout: str, moving: float, searched: int
) -> None:
    """It reads the gradients of all where others' may be among them. Owners step their chunks."""
    exchange = {"kind": kind, "backward_passes_per_step": 2}
    found = [
        workload_of(
            experiment(classifier={"layout": layout, "sampling": share}, exchange=exchange), 2, 2
        )
        for share in (1.0, 0.25)
    ]
    classes = {"replicated": 100, "node": 50, "world": 25}[layout]
    classes /= 2 if layout == "replicated" and kind != "synchronous" else 1
    assert found[0].owned - found[1].owned == classes * 257
    assert found[1].rows.moving == pytest.approx(moving * classes * 257)
    assert [work.rows.searched for work in found] == [0, searched * 257]


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
