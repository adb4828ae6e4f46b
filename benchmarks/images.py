"""Images/s of every way to read photographs, beside torchvision's ImageFolder and DataLoader.

`python -m benchmarks.images` makes the folder and its packs once (in `--folder`), then lets all
ways take turns. Each yields batches that a network can take: random parts of photographs, mirrored,
normalised. Ours come from `train_batches`, on one rank; torchvision's from its own recipe with two
workers. Before each turn, as many batches are thrown away as a way may have ready.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.photographs import make
from benchmarks.recording import commit_of, keep, number_of_rounds
from harness.config import DataConfig
from harness.data.image_folder import open_image_folder
from harness.data.loader import Augmentation, train_batches
from harness.data.recipe import LEVELS
from harness.data.shares import BatchSplit
from harness.launch.hosts import cores
from harness.measure.machine import environment
from harness.model.torchvision import torchvision
from harness.pack.packing import pack

CLASSES, SIDE = 200, 256
READY, WORKERS = 2, 2
"""Batches that are prepared ahead: by us, and by each of torchvision's workers."""
THEIRS = "torchvision, 2 workers"
SOURCES = {
    "folder, Pillow": ("photographs", "pillow"),
    "folder, simplejpeg": ("photographs", "simplejpeg"),
    "pack of JPEGs, simplejpeg": ("jpeg.pack", "simplejpeg"),
    "pack of pixels": ("pixels.pack", "auto"),
}


@dataclass(frozen=True)
class Way:
    """One way to read photographs."""

    name: str
    size: int
    threads: int
    batches: Iterator[Any]
    ready: int
    """Batches that it may have ready."""

    def images_per_second(self, batches: int, batch_size: int) -> float:
        torch.set_num_threads(self.threads)
        for _ in range(self.ready):
            next(self.batches)
        started = time.perf_counter()
        for _ in range(batches):
            next(self.batches)
        return batches * batch_size / (time.perf_counter() - started)


def ours(root: Path, decoder: str, size: int, threads: int, batch_size: int) -> Iterator[Any]:
    values = {"dataset": "image_folder", "root": str(root), "num_classes": CLASSES}
    values |= {"image_size": size, "recipe": "imagenet", "decoder": decoder}
    config = DataConfig.model_validate(values)
    dataset = open_image_folder(config)
    shares = BatchSplit(len(dataset.train), batch_size, rank=0, world_size=1, seed=0)
    torch.set_num_threads(threads)
    device, augmentation = torch.device("cpu"), Augmentation(seed=0, rank=0)
    yield from train_batches(
        dataset, shares, augmentation=augmentation, device=device, prefetch=READY
    )


def theirs(root: Path, size: int, batch_size: int) -> Iterator[Any]:
    """As torchvision's reference training of classifiers reads images."""
    v2 = import_module(f"{torchvision.__name__}.transforms.v2")
    transforms = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float, scale=True),
            v2.Normalize(LEVELS.mean, LEVELS.deviation),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(str(root / "train"), transforms)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True)
    while True:
        yield from loader


def ways(folder: Path, sizes: list[int], threads: list[int], batch_size: int) -> list[Way]:
    made = []
    for size in sizes:
        batches = theirs(folder / "photographs", size, batch_size)
        made.append(Way(THEIRS, size, cores(), batches, ready=2 * WORKERS))
        for (name, (root, decoder)), number in product(SOURCES.items(), threads):
            batches = ours(folder / root, decoder, size, number, batch_size)
            made.append(Way(name, size, number, batches, ready=READY))
    return made


def prepare(folder: Path, train: int) -> None:
    photographs = folder / "photographs"
    make(photographs, CLASSES, train, val=1, processes=cores())  # only those that are missing
    for kind in ("pixels", "jpeg"):
        print(pack(photographs, folder / f"{kind}.pack", SIDE, kind, cores()), flush=True)


def table(rates: Mapping[tuple[str, int, int], list[float]]) -> list[str]:
    lines = [
        "| size, px | source | threads | images/s, median (quartiles) | this / torchvision |",
        "|--:|:--|--:|--:|--:|",
    ]
    for (name, size, threads), found in rates.items():
        usual = next(rates[key] for key in rates if key[:2] == (THEIRS, size))
        low, middle, high = statistics.quantiles(found, n=4)
        ratio = statistics.median(a / b for a, b in zip(found, usual, strict=True))
        number = "" if name == THEIRS else str(threads)
        lines.append(
            f"| {size} | {name} | {number} | {middle:,.0f} ({low:,.0f} - {high:,.0f}) | "
            f"{ratio:.2f} |"
        )
    return lines


def measured(
    made: list[Way], rounds: int, batches: int, batch_size: int, tell: Callable[[str], None]
) -> dict[tuple[str, int, int], list[float]]:
    rates: dict[tuple[str, int, int], list[float]] = {
        (way.name, way.size, way.threads): [] for way in made
    }
    for number in range(1 + rounds):
        for way in made:
            rate = way.images_per_second(batches, batch_size)
            if number:  # the first round warms up
                rates[way.name, way.size, way.threads].append(rate)
        tell(f"round {number} of {rounds}")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/images"))
    parser.add_argument("--train", type=int, default=100, help="images of each of 200 classes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 112])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores()}))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=16, help="batches of a turn")
    parser.add_argument("--rounds", type=number_of_rounds, default=7)
    parser.add_argument("--output", type=Path, help="JSON file for the rates of all rounds")
    chosen = parser.parse_args()
    prepare(chosen.folder, chosen.train)
    made = ways(chosen.folder, chosen.sizes, chosen.threads, chosen.batch_size)
    size = chosen.batches, chosen.batch_size
    rates = measured(made, chosen.rounds, *size, tell=partial(print, flush=True))
    facts = environment()
    print(
        f"\nCommit {commit_of(facts)}; "
        f"{facts['cpu']}, {cores()} cores; torch {facts['versions']['torch']}; {chosen.rounds} "
        f"turns of {chosen.batches} batches of {chosen.batch_size}.\n"
    )
    print("\n".join(table(rates)), flush=True)
    settings = {key: value for key, value in vars(chosen).items() if key != "output"}
    rows = [
        {"source": name, "size": size, "threads": threads, "images_per_second": found}
        for (name, size, threads), found in rates.items()
    ]
    found = {"settings": settings, "environment": facts, "rates": rows}
    keep(json.dumps(found, indent=1, default=str), chosen.output)


if __name__ == "__main__":
    main()
