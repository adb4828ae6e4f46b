"""The trainer's step on one card, and timers for work on the card."""

import statistics
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from harness.config import Config
from harness.data.open import open_dataset
from harness.doctor.need import need_of
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Group, Meters
from harness.parallel.world import World
from harness.train.trial import Trial

FEATURES, SCALE, MARGIN = 512, 64.0, 0.35
CARD = torch.device("cuda", 0)
STEPS: tuple[dict[str, dict[str, Any]], ...] = (
    {"classifier": {"margin": "none"}, "exchange": {"kind": "synchronous"}},
    {"classifier": {"margin": "arcface"}, "exchange": {"kind": "synchronous"}},
    {
        "classifier": {"margin": "none"},
        "exchange": {"kind": "synchronous", "backward_passes_per_step": 2},
    },
)


def meters() -> Meters:
    return Meters(clock_for(CARD), Traffic())


def group() -> Group:
    return Group((0,), 0, 1, None, meters(), None)


def milliseconds(step: Callable[[], None]) -> float:
    """Milliseconds of a step on the card's timeline, including gaps."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def card_milliseconds(step: Callable[[], None], steps: int = 3) -> float:
    """Milliseconds in which the card computed during a step, without gaps."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in found.key_averages()) / steps / 1e3


def step_config(classes: int, batch: int, pixels: int, changes: Mapping[str, Any]) -> Config:
    """ResNet-50 with a slice of `classes` classes, in bf16."""
    values: dict[str, Any] = {
        "data": {"dataset": "synthetic", "num_classes": classes, "image_size": pixels},
        "backbone": {"name": "resnet50", "feature_dim": FEATURES},
        "train": {"batch_size": batch, "steps": 100_000, "precision": "bf16"},
        "staleness": {"curvature_after_warmup": False},
    }
    classifier = {"layout": "node", "margin_scale": SCALE, "margin_size": MARGIN}
    return Config.model_validate(
        values | {"classifier": classifier | changes["classifier"], "exchange": changes["exchange"]}
    )


def world() -> World:
    """A world of one rank on the card."""
    return World.alone(CARD, meters(), group())


def step(config: Config) -> dict[str, Any]:
    """Measures a window: its time, the card's time, host waits, and peak and predicted memory."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trial = Trial(config, open_dataset(config.data), world())
    window = trial.window
    for _ in range(6):
        window()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(3):
            window()
        torch.cuda.set_sync_debug_mode("default")
    waits = [each for each in seen if "synchronizing" in str(each.message)]

    def four_windows() -> None:
        for _ in range(4):
            window()

    times = [milliseconds(four_windows) / 4 for _ in range(5)]
    found = {
        "ms": statistics.median(times),
        "card_ms": card_milliseconds(window),
        "host_waits": len(waits),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "predicted_gb": need_of(config, 1, 1, cards=True).on_card / 1e9,
    }
    trial.close()
    return found
