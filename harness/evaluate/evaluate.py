"""What `harness evaluate` prints: of the run's own validation, of a folder, or of pairs."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.data.classes import check_names
from harness.data.images import Dataset
from harness.data.open import open_dataset
from harness.data.tree import ImageTree, class_folders, format_counts, shown
from harness.errors import UserError
from harness.evaluate.files import ImageFiles
from harness.evaluate.pairs import Pairs, drawn_pairs, embedded, read_pairs
from harness.evaluate.trained import BATCH, Trained
from harness.evaluate.verification import RATES, Verification, verified
from harness.train.evaluation import NONFINITE, evaluate, evaluate_sets


def evaluate_own(trained: Trained) -> Iterator[str]:
    """Top-1 and top-5 over the run's validation sets, as the run computes them."""
    data = _opened(trained)
    yield from data.notes
    with trained.autocast():
        metrics = evaluate_sets(
            trained.network,
            data,
            trained.world,
            dtype=trained.dtype,
            batch_size=BATCH,
            limit=0,
            prefetch=trained.config.data.prefetch,
        )
    for name, source in data.validation.items():
        found = {key: metrics[f"val/{name}/{key}"] for key in ("top1", "top5", "loss")}
        bad = int(metrics.get(f"val/{name}/{NONFINITE}", 0))
        yield _accuracy_line(name, found, len(source), bad)


def _opened(trained: Trained) -> Dataset:
    data = open_dataset(trained.config.data)
    if data.channels != trained.channels:
        raise UserError(
            f"{trained.checkpoint} takes images of {trained.channels} channels, those of "
            f"data.dataset={trained.config.data.dataset} have {data.channels}; give its own images"
        )
    check_names(
        f"data.root={trained.config.data.root}",
        data.class_names,
        trained.checkpoint,
        trained.class_names,
        "use --folder, which finds classes by their names",
    )
    return replace(data, levels=trained.levels)


def evaluate_folder(trained: Trained, folder: Path) -> Iterator[str]:
    """Top-1 and top-5 if the model knows the classes of a folder; else verification by pairs of
    those that it does not know."""
    left_out: Counter[str] = Counter()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one with a folder for each class")
    names = class_folders(str(folder), left_out)
    if not names:
        raise UserError(f"{folder} has no folders; give one with a folder for each class")
    known = {name: number for number, name in enumerate(trained.class_names)}
    unseen = [name for name in names if shown(name) not in known]
    tree = ImageTree(str(folder), unseen or names)
    if left := format_counts(left_out + tree.left_out):
        yield f"left out of {folder}: {left}"
    files = ImageFiles.of([Path(tree[n]) for n in range(len(tree))], trained.config.data)
    if not unseen:
        labels = torch.tensor([known[shown(name)] for name in names])[tree.labels]
        with trained.autocast():
            found = evaluate(
                trained.network.backbone,
                trained.network.classifier,
                _labelled(trained, files, labels),
                trained.world,
            )
        yield _accuracy_line(str(folder), found, len(labels), int(found.get(NONFINITE, 0)))
        return
    if len(unseen) < len(names):
        yield f"the model knows {len(names) - len(unseen)} of {len(names)} classes: left out"
    yield f"{len(unseen):,} unseen classes, {len(tree):,} images"
    yield from _verified(trained, files, drawn_pairs(tree.labels, folder))


def _labelled(
    trained: Trained, files: ImageFiles, labels: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    start = 0
    for images in files.batches():
        own = labels[start : start + len(images)].to(trained.world.device)
        start += len(images)
        yield trained.given(images), own, torch.ones_like(own, dtype=torch.bool)


def evaluate_pairs(trained: Trained, file: Path) -> Iterator[str]:
    """Verification by the pairs of a list."""
    paths, pairs = read_pairs(file)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(paths):,} images in {file} do not exist, the first is "
            f"{missing[0]}; paths are relative to the list's folder"
        )
    yield from _verified(trained, ImageFiles.of(paths, trained.config.data), pairs)


def _verified(trained: Trained, files: ImageFiles, pairs: Pairs) -> Iterator[str]:
    if trained.config.classifier.margin == "none":
        yield "the model was trained without a margin: its features are not made for cosines"
    features = embedded([trained.features(images) for images in files.batches()])
    yield from verification_lines(verified(pairs.scores(features), pairs.same))


def verification_lines(found: Verification) -> Iterable[str]:
    yield f"pairs              {found.same:,} of one class, {found.different:,} of two"
    yield (
        f"accuracy           {found.accuracy:.2%} ± {found.deviation:.2%} (mean and standard "
        f"deviation of ten folds)"
    )
    for rate in RATES:
        share = found.accept_rates[rate]
        told = f"needs {1 / rate:,.0f} pairs of two classes" if share is None else f"{share:.2%}"
        yield f"TAR at FAR {rate:.0e}   {told}"


def _accuracy_line(name: str, found: dict[str, float], images: int, bad: int) -> str:
    line = (
        f"{name}: top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%}, loss {found['loss']:.4f} "
        f"over {images:,} images"
    )
    return f"{line}; {bad:,} have a logit that is not finite" if bad else line
