"""The cost model against tables that others published: what is fitted to them, what is predicted.

A published table leaves out most of what the model needs. Each missing figure is fitted to as many
of its rows, and the others are predicted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy.optimize import brentq

from harness.config import Config
from harness.plan.cost_model import predict
from harness.plan.machines import Cluster, Line, Link

IDENTITIES = 1e6


@dataclass(frozen=True)
class Check:
    """Predicted beside published."""

    frame: pd.DataFrame
    """A row per published figure: `what`, `published`, `predicted`, `error` (a share), `fitted`
    (whether the row itself was used to find a figure)."""
    fitted: dict[str, str]
    """What was found, and from which rows."""

    @property
    def worst(self) -> float:
        """The largest error of a row that nothing was fitted to, a share."""
        return float(self._errors.max())

    @property
    def median(self) -> float:
        return float(self._errors.median())

    @property
    def _errors(self) -> "pd.Series[float]":
        return self.frame.loc[~self.frame["fitted"], "error"].abs()


V100 = Cluster(
    name="8xV100",
    nodes=1,
    ranks_per_node=8,
    product_flop_per_second=14e12,  # fp32, 0.9 of the data sheet's
    backbone_efficiency=1.0,
    classifier_efficiency=1.0,
    memory_bytes=32e9,
    memory_bytes_per_second=790e9,  # 0.88 of the data sheet's
    node=Line(latency_seconds=1.5e-5, bytes_per_second=120e9),
    link=Link(bytes_per_second=3e9),
)
P100 = Cluster(
    name="128x4xP100",
    nodes=128,
    ranks_per_node=4,
    product_flop_per_second=9.5e12,  # fp32, 0.9 of the data sheet's
    backbone_efficiency=1.0,
    classifier_efficiency=1.0,
    memory_bytes=16e9,
    memory_bytes_per_second=640e9,
    node=Line(latency_seconds=1.5e-5, bytes_per_second=10e9),
    link=Link(bytes_per_second=0.95 * 25e9 / 8, step_seconds=1e-5),
)
FUSION_MB = 64.0
"""Horovod's default buffer."""
P100_IMAGES_PER_SECOND = {"resnet50": 219.0, "resnet152": 91.8, "vgg16": 154.0}
"""One P100, 64 images a step: tensorflow/docs, site/en/r1/guide/performance/benchmarks.md."""
RESNETS = {"resnet50": 4.09, "resnet101": 7.80, "resnet152": 11.51}
"""Multiplications and additions of an image, G: torchvision's table of models."""


def _faces(layout: str, identities: float) -> Config:
    """1,024 images a step on eight cards, 512 features; ResNet-50 stands for IResNet-50."""
    return Config.model_validate(
        {
            "data": {"dataset": "synthetic", "num_classes": int(identities), "image_size": 112},
            "backbone": {"name": "resnet50", "feature_dim": 512},
            "classifier": {"layout": layout, "margin": "arcface"},
            "train": {"steps": 1, "batch_size": 128, "precision": "bf16"},
        }
    )


def _images_per_second(cluster: Cluster, layout: str, identities: float) -> float:
    return predict(cluster, _faces(layout, identities)).images_per_second


def insightface(table: pd.DataFrame) -> Check:
    """Three figures are fitted to three of the thirteen rows.

    Backbone and classifier to the fewest and the most identities of the model-parallel column; the
    rate inside the machine to the most identities of the data-parallel one.
    """
    layouts = {"model_parallel": "node", "data_parallel": "replicated"}
    rows = [
        (name, float(identities), float(rate))
        for name in layouts
        for identities, rate in zip(
            table["identities"], table[f"{name}_images_per_second"], strict=True
        )
        if rate == rate
    ]
    sliced = [row for row in rows if row[0] == "model_parallel"]
    used = (sliced[0], sliced[-1], rows[-1])
    cluster = V100
    for _ in range(3):  # each figure in turn: they hardly depend on each other
        cluster = _fit(cluster, _with_backbone, used[0], layouts)
        cluster = _fit(cluster, _with_classifier, used[1], layouts)
        cluster = _fit(cluster, _with_rate, used[2], layouts)
    frame = pd.DataFrame(
        [
            _row(
                f"{name.replace('_', ' ')}, {identities / IDENTITIES:g} M identities",
                rate,
                _images_per_second(cluster, layouts[name], identities),
                (name, identities, rate) in used,
            )
            | {"layout": layouts[name], "identities": identities}
            for name, identities, rate in rows
        ]
    )
    fitted = {
        "backbone": f"{_backbone_ms(cluster):.0f} ms for 128 images, forward and backward",
        "classifier": f"{cluster.classifier_efficiency:.2f} of fp32's products, softmax included",
        "in the machine": f"{cluster.node.bytes_per_second / 1e9:.0f} GB/s of a card in a ring, "
        "with all else that data parallelism cost there",
    }
    return Check(frame, fitted)


def _backbone_ms(cluster: Cluster) -> float:
    found = predict(cluster, _faces("node", cluster.ranks_per_node), 1, cluster.ranks_per_node)
    return found.phases_ms["forward"] + found.phases_ms["backward"]


def _with_backbone(cluster: Cluster, value: float) -> Cluster:
    return cluster.model_copy(update={"backbone_efficiency": value})


def _with_classifier(cluster: Cluster, value: float) -> Cluster:
    return cluster.model_copy(update={"classifier_efficiency": value})


def _with_rate(cluster: Cluster, value: float) -> Cluster:
    line = cluster.node.model_copy(update={"bytes_per_second": value * 1e10})
    return cluster.model_copy(update={"node": line})


def _fit(
    cluster: Cluster,
    with_value: Callable[[Cluster, float], Cluster],
    row: tuple[str, float, float],
    layouts: dict[str, str],
) -> Cluster:
    name, identities, rate = row

    def off(value: float) -> float:
        return _images_per_second(with_value(cluster, value), layouts[name], identities) - rate

    return with_value(cluster, float(brentq(off, 0.01, 20.0, xtol=1e-4)))


def _row(what: str, published: float, predicted: float, fitted: bool) -> dict[str, object]:
    return {
        "what": what,
        "published": published,
        "predicted": predicted,
        "error": predicted / published - 1,
        "fitted": fitted,
    }


def horovod(table: pd.DataFrame) -> Check:
    """One figure is fitted to ResNet-101's row: how much a rank's steps vary. VGG-16's row is
    predicted, with its 553 MB of gradients at the link's nominal rate.

    Inception V3 is left out: it is no model of torchvision's that trains without a second head.
    """
    published = dict(zip(table["model"], table["scaling_efficiency"], strict=True))

    def off(jitter: float) -> float:
        return _efficiency("resnet101", jitter) - published["ResNet-101"]

    jitter = float(brentq(off, 0.0, 0.3, xtol=1e-4))
    rows = [
        _row("ResNet-101", published["ResNet-101"], _efficiency("resnet101", jitter), True),
        _row("VGG-16", published["VGG-16"], _efficiency("vgg16", jitter), False),
    ]
    fitted = {"jitter": f"{jitter:.1%} of a rank's step, to ResNet-101's {0.9:.0%}"}
    return Check(pd.DataFrame(rows), fitted)


def _efficiency(model: str, jitter: float) -> float:
    """Images per second of all cards by as many times one card's."""
    config = Config.model_validate(
        {
            "data": {"dataset": "synthetic", "num_classes": 1000, "image_size": 224},
            "backbone": {"name": model, "feature_dim": 0},
            "exchange": {"bucket_mb": FUSION_MB},
            "train": {"steps": 1, "batch_size": 64},
        }
    )
    alone = predict(P100, config, 1, 1).step_ms
    slower = 64e3 / _one_card(model) / alone
    cluster = P100.model_copy(
        update={
            "product_flop_per_second": P100.product_flop_per_second / slower,
            "jitter": jitter,
        }
    )
    one = predict(cluster, config, 1, 1).images_per_second
    return predict(cluster, config).images_per_second / one / P100.ranks


def _one_card(model: str) -> float:
    """Images per second; ResNet-101 lies between its neighbours by its operations."""
    if model in P100_IMAGES_PER_SECOND:
        return P100_IMAGES_PER_SECOND[model]
    low, high = (1 / P100_IMAGES_PER_SECOND[name] for name in ("resnet50", "resnet152"))
    share = (RESNETS[model] - RESNETS["resnet50"]) / (RESNETS["resnet152"] - RESNETS["resnet50"])
    return 1 / (low + share * (high - low))
