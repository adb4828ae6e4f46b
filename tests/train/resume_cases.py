"""What a resumed run must equal the undisturbed one for, and the two runs."""

from dataclasses import dataclass, field
from typing import Any

from harness.config import Config
from harness.parallel.topology import Layout
from tests.laws.task import weights

WINDOWS, SAVED = 7, 4
"""Saved at a window that is no multiple of the pieces or of the slots, and not at the end, where
states that nodes have not agreed on can still be compared."""
CLASSES = 13


@dataclass(frozen=True)
class Case:
    name: str
    layout: Layout
    exchange: dict[str, Any]
    optimizer: str = "sgd"
    sampling: float = 1.0
    precision: str = "fp64"
    backbone: dict[str, Any] = field(default_factory=dict)

    def config(self, **train: object) -> Config:
        values = {
            "seed": 2**60 + 7,
            "data": {
                "dataset": "synthetic",
                "num_classes": CLASSES,
                "image_size": 8,
                "synthetic_images": 100,
            },
            "backbone": {"feature_dim": 6} | self._pretrained,
            "classifier": {"layout": self.layout, "sampling": self.sampling},
            "exchange": {"bucket_mb": 0.02} | self.exchange,
            "optimizer": {"name": self.optimizer, "lr": 0.02, "warmup_windows": 5},
            "train": {"batch_size": 3, "steps": WINDOWS, "log_every": 1}
            | {"precision": self.precision}
            | {"checkpoint_every": SAVED}
            | train,
        }
        return Config.model_validate(values)

    @property
    def _pretrained(self) -> dict[str, Any]:
        if not self.backbone:
            return {}
        given = weights("batch", channels=3, whole="frozen" in self.backbone)
        return self.backbone | {"weights": given}


def _cases() -> list[Case]:
    found = []
    for optimizer, name, layout, exchange in (
        ("sgd", "flat", "replicated", {"route": "flat"}),
        ("adamw", "flat, fp16", "replicated", {"route": "flat", "compression": "fp16"}),
        ("sgd", "flat, fp16", "node", {"route": "flat", "compression": "fp16"}),
        ("adamw", "flat, fp16", "world", {"route": "flat", "compression": "fp16"}),
        ("sgd", "hierarchical", "node", {"backward_passes_per_step": 2}),
        ("adamw", "hierarchical, int8", "replicated", {"compression": "int8"}),
        ("sgd", "hierarchical, int4", "world", {"compression": "int4"}),
    ):
        found.append(Case(f"synchronous, {name}", layout, exchange, optimizer))
    for optimizer, layout, exchange in (
        ("sgd", "node", {"delay": 1}),
        ("adamw", "node", {"delay": 2, "compression": "int8"}),
        ("sgd", "replicated", {"delay": 1, "compression": "int4", "backward_passes_per_step": 2}),
        ("adamw", "world", {"delay": 1, "compression": "fp16"}),
        ("sgd", "node", {"delay": 2, "compression": "fp16", "synchronous_windows": 5}),
        ("sgd", "world", {"delay": 0, "compression": "int8"}),
    ):
        found.append(Case("delayed", layout, {"kind": "delayed"} | exchange, optimizer))
    outer = {"outer_lr": 0.7, "outer_momentum": 0.9}
    for optimizer, layout, exchange in (
        ("sgd", "node", {"delay": 0}),
        ("adamw", "node", {"delay": 1, "backward_passes_per_step": 2, "compression": "fp16"}),
        ("sgd", "replicated", {"delay": 2, "compression": "int8"}),
        ("sgd", "node", {"delay": 1, "pieces": 3, "compression": "int8"}),
        ("adamw", "replicated", {"delay": 2, "pieces": 3}),
        ("adamw", "node", {"delay": 1, "pieces": 2, "slice_pieces": 3, "compression": "int8"}),
        ("sgd", "node", {"delay": 0, "pieces": 3, "compression": "int4"}),
        ("sgd", "node", {"delay": 1, "pieces": 3, "synchronous_windows": 5} | outer),
        ("sgd", "node", {"delay": 2, "slice_pieces": 5} | outer),
        ("adamw", "replicated", {"delay": 2, "compression": "int4"} | outer),
    ):
        found.append(Case("averaging", layout, {"kind": "averaging"} | exchange, optimizer))
    slow = {"kind": "slowmo", "outer_lr": 0.7, "outer_momentum": 0.5}
    for layout, exchange, precision in (
        ("node", {"kind": "delayed", "delay": 1, "compression": "int8"}, "bf16"),
        ("node", {"kind": "averaging", "delay": 1, "pieces": 3, "compression": "int4"}, "bf16"),
        ("world", {"kind": "delayed", "delay": 2, "compression": "fp16"}, "bf16"),
        ("replicated", {"compression": "int8"}, "bf16"),
        ("replicated", {"kind": "ddp"}, "fp32"),
        ("node", slow | {"delay": 1}, "fp32"),
    ):
        found.append(Case(precision, layout, exchange, precision=precision))
    torchs = {"kind": "ddp_powersgd", "powersgd_rank": 1}, {"kind": "ddp_post_local_sgd"}
    for optimizer, layout, exchange in (
        ("sgd", "node", {"kind": "isolated", "backward_passes_per_step": 2}),
        ("adamw", "replicated", {"kind": "isolated"}),
        ("sgd", "replicated", {"kind": "ddp", "compression": "fp16"}),
        ("sgd", "replicated", torchs[0]),
        ("adamw", "replicated", torchs[0] | {"synchronous_windows": 5}),
        ("adamw", "replicated", torchs[1] | {"backward_passes_per_step": 3}),
        ("sgd", "replicated", torchs[1] | {"synchronous_windows": 5}),
    ):
        found.append(Case("", layout, exchange, optimizer))
    for optimizer, layout, exchange in (
        ("sgd", "world", {"kind": "synchronous"}),
        ("adamw", "node", {"kind": "synchronous", "backward_passes_per_step": 2}),
        ("adamw", "replicated", {"kind": "delayed", "delay": 1}),
        ("sgd", "node", {"kind": "averaging", "delay": 1, "backward_passes_per_step": 2}),
        ("sgd", "replicated", {"kind": "averaging", "compression": "int8"}),
        ("adamw", "node", {"kind": "averaging", "delay": 2, "slice_rows": "drawn", "pieces": 2}),
    ):
        found.append(Case("sampled", layout, exchange, optimizer, sampling=0.4))
    frozen, slower = {"frozen": "body"}, {"lr_factor": 0.3}
    for optimizer, layout, exchange, backbone in (
        ("adamw", "node", {"kind": "averaging", "delay": 1, "compression": "int8"}, frozen),
        ("sgd", "replicated", {"kind": "synchronous"}, frozen),
        ("sgd", "world", {"kind": "delayed", "delay": 1}, slower),
        ("adamw", "replicated", {"kind": "averaging", "delay": 1}, slower),
    ):
        found.append(Case("pretrained", layout, exchange, optimizer, backbone=backbone))
    return found


CASES = {
    " ".join(
        str(part)
        for part in (case.name, case.layout, case.optimizer, case.exchange, case.backbone)
        if part
    ): case
    for case in _cases()
}

APART: tuple[Layout, ...] = ("world", "node")
"""Layouts in which nodes that share no folder save and resume."""
