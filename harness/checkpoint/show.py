"""Says what is in a checkpoint, from its metadata alone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.checkpoint.shelf import shelf
from harness.doctor.finding import format_bytes
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import Meta, Origin, described


def show(folder: Path) -> int:
    """Prints one line for each checkpoint in the folder, and the content of the newest.

    Returns 1 if none of them can be read.
    """
    newest: Meta | None = None
    for checkpoint in shelf(folder):
        try:
            meta = described(checkpoint)
        except BadCheckpoint as error:
            print(f"{checkpoint}: {error}")
            continue
        newest = newest or meta
        print(f"{checkpoint}: {_in_a_line(meta)}")
    if newest is None:
        return 1
    for name, text in content(newest):
        print(f"  {name:<12} {text}")
    return 0


def _in_a_line(meta: Meta) -> str:
    images = f", {meta.passed.images:,} images" if meta.passed else ""
    size = f", {format_bytes(_size(meta))}" if meta.files else ""
    return f"{meta.window:,} windows{images}{size}"


def content(meta: Meta) -> Iterator[tuple[str, str]]:
    """Lines of what is in a checkpoint, each with its title."""
    if meta.origin is None:
        yield "origin", "unknown: the checkpoint is older than this entry"
        yield "classes", f"{meta.num_classes:,}"
    else:
        yield from _of_origin(meta.origin, meta.num_classes)
    for last in meta.progress.evaluations[-1:]:
        metrics = (f"{name} {value:.4g}" for name, value in sorted(last.metrics.items()))
        yield "evaluation", f"after {last.window:,} windows: {', '.join(metrics)}"
    for name, file in sorted((meta.files or {}).items()):
        yield "file", f"{name} {format_bytes(file.bytes)}"


def _of_origin(origin: Origin, classes: int) -> Iterator[tuple[str, str]]:
    value: Mapping[str, Any] = defaultdict(lambda: "?", origin.config)  # another version's keys
    yield "experiment", f"{value['name']}, seed {value['seed']}"
    yield (
        "ranks",
        f"{origin.nodes * origin.ranks_per_node} on {origin.nodes} nodes, "
        f"classifier.layout {value['classifier.layout']}",
    )
    yield (
        "exchange",
        f"{value['exchange.kind']}, delay {value['exchange.delay']}, "
        f"K {value['exchange.backward_passes_per_step']}, "
        f"compression {value['exchange.compression']}",
    )
    yield (
        "model",
        f"{value['backbone.name']}, {classes:,} classes, images of "
        f"{origin.channels} x {value['data.image_size']} x {value['data.image_size']}",
    )
    yield "optimizer", f"{value['optimizer.name']}, lr {value['optimizer.lr']}"


def _size(meta: Meta) -> int:
    return sum(each.bytes for each in (meta.files or {}).values())
