"""A folder of JPEGs like photographs: every class has colours, a texture and shapes of its own.

`python -m benchmarks.photographs FOLDER` writes FOLDER/train/CLASS and FOLDER/val/CLASS. An image
depends only on its class and number, so that a folder can be made again on another machine.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

SIZES = ((500, 400), (375, 500), (640, 480))
"""Width and height, pixels; images take turns."""
QUALITY = 85
OCTAVES = (8, 20, 50, 125, 300)
"""Widths, in cells, of the noise that an image is the sum of."""


def photograph(label: int, number: int) -> Image.Image:
    """Image `number` of class `label`: RGB."""
    style, own = np.random.default_rng([label]), np.random.default_rng([label, number])
    width, height = SIZES[number % len(SIZES)]
    colours = style.uniform(30, 225, (3, 3))
    strengths = style.dirichlet(np.ones(len(OCTAVES))) * 220
    picture = np.full((height, width, 3), colours[0], np.float32)
    for cells, strength in zip(OCTAVES, strengths, strict=True):
        noise = own.integers(0, 256, (cells * height // width, cells, 3), np.uint8)
        smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += (np.asarray(smooth, np.float32) / 255 - 0.5) * strength
    grain = own.normal(0, 6, (height, width, 1))
    image = Image.fromarray((picture + grain).clip(0, 255).astype(np.uint8))
    _draw_shapes(image, int(style.integers(1, 4)), colours[1:], own)
    return image


def _draw_shapes(
    image: Image.Image, kind: int, colours: np.ndarray, own: np.random.Generator
) -> None:
    """Draws a handful of shapes of one kind, anywhere in the middle of the image."""
    pen, (width, height) = ImageDraw.Draw(image), image.size
    for _ in range(int(own.integers(3, 7))):
        x, y = own.uniform(0.1, 0.7, 2) * (width, height)
        side = own.uniform(0.1, 0.3) * height
        box = (x, y, x + side * (1 + 0.5 * kind), y + side)
        fill = tuple(int(level) for level in colours[own.integers(2)] + own.normal(0, 9, 3))
        if kind == 1:
            pen.ellipse(box, fill)
        elif kind == 2:
            pen.rectangle(box, fill)
        else:
            pen.pieslice(box, 0, 270, fill)


def make(folder: Path, classes: int, train: int, val: int, processes: int) -> None:
    """Writes `train` and `val` images of each class; those that are there are left alone."""
    places = [
        (folder / part / f"{label:04d}", label, range(first, first + count))
        for label in range(classes)
        for part, first, count in (("train", 0, train), ("val", train, val))
    ]
    with ProcessPoolExecutor(processes) as pool:
        for _ in tqdm(pool.map(_make_class, places), total=len(places), unit="folder"):
            pass


def _make_class(place: tuple[Path, int, range]) -> None:
    folder, label, numbers = place
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        file = folder / f"{number:05d}.jpg"
        if not file.exists():
            photograph(label, number).save(file, quality=QUALITY)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.photographs", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--train", type=int, default=100, help="images of a class to train on")
    parser.add_argument("--val", type=int, default=5, help="images of a class to validate on")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    make(chosen.folder, chosen.classes, chosen.train, chosen.val, chosen.processes)


if __name__ == "__main__":
    main()
