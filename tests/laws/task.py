"""A small exact task: images of noise, a backbone without batch statistics, float64 throughout."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file

from harness.config import BackboneConfig, Config
from harness.data.images import ArraySource, Dataset
from harness.data.levels import Levels
from harness.data.shares import BatchSplit
from harness.model.backbone import make_backbone

SIZE, CLASSES, FEATURES, IMAGES, BATCH, WINDOWS = 8, 13, 6, 96, 3, 6
"""13 classes divide by no number of ranks here; 12 images a micro-batch leave some class out."""


def dataset() -> Dataset:
    """Labels are noise too, and class 5 never occurs."""
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (IMAGES, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES - 1, (IMAGES,), generator=generator)
    labels[labels == 5] = CLASSES - 1
    source = ArraySource(images, labels)
    return Dataset(CLASSES, 1, SIZE, source, {"same": source}, lambda images, generator: images)


FOLDER = tempfile.TemporaryDirectory()
"""Of this process; ranks find equal files in folders of their own."""


@cache
def weights(norm: str = "group", channels: int = 1, whole: bool = True) -> str:
    """A file with the body of another seed, with or without its first convolution."""
    config = BackboneConfig.model_validate({"feature_dim": FEATURES, "norm": norm})
    other = make_backbone(config, channels, SIZE, seed=99)
    body = {f"body.{name}": each for name, each in other.body.state_dict().items()}
    for name in [name for name in body if "running" in name]:
        body[name] = body[name] + 0.01
    if not whole:
        del body["body.0.weight"]
    path = Path(FOLDER.name) / f"{norm}-{channels}-{whole}.safetensors"
    save_file(body, path)
    return str(path)


def config(
    layout: str, kind: str, passes: int, delay: int, route: str = "auto", **changes: object
) -> Config:
    """One case; `changes` are dotted keys with dots written as two underscores."""
    values: dict[str, dict[str, object]] = {
        "data": {"num_classes": CLASSES, "image_size": SIZE, "augment": 0.0},
        "backbone": {"feature_dim": FEATURES, "norm": "group"},
        "classifier": {"layout": layout},
        "exchange": {
            "kind": kind,
            "backward_passes_per_step": passes,
            "delay": delay,
            "route": route,
            "bucket_mb": 0.2,
        },
        "optimizer": {"lr": 0.02, "momentum": 0.9, "warmup_windows": 2},
        "train": {
            "batch_size": BATCH,
            "steps": WINDOWS,
            "precision": "fp64",
            "log_every": 1,
            "untimed_windows": 4,
        },
    }
    for dotted, value in changes.items():
        section, key = dotted.split("__")
        values[section][key] = value
        if dotted in ("backbone__frozen", "backbone__lr_factor"):
            values[section]["weights"] = weights(whole=key == "frozen")
    return Config.model_validate(values)


def world_batches(ranks: int, micro_batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each rank sees in a micro-batch, images float64."""
    batches = []
    source = dataset().train
    for rank in range(ranks):
        images, labels = source.read(
            BatchSplit(IMAGES, BATCH, rank, ranks, seed=0).indices(micro_batch)
        )
        batches.append((Levels().of_bytes(images).double(), labels))
    return batches
