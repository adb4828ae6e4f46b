"""A card's passes beside the plain ones, its kernels interpreted: prints how far they are apart."""

import json
import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from harness.config import ClassifierConfig
from harness.model import card_passes, kept, passes
from harness.model.kept import Kept
from harness.model.kernels import logits, maxima
from harness.model.margins import margin_of
from harness.model.operands import Gradients, Operands
from harness.model.statistics import over_slices, raised
from tests.alone import group_of_one

CLASSES, FEATURES, SCALE = 77, 24, 8.0


@dataclass(frozen=True)
class Case:
    margin: str
    images: int
    tile: int
    add: bool
    scratch: int
    spoilt: float = 0.0
    """Added to one bias or weight."""
    drawn: int = 0
    """Classes that take part; 0: all."""

    @property
    def name(self) -> str:
        return "-".join(str(each) for each in vars(self).values())


CASES = [
    Case(margin, images, tile, add, scratch)
    for margin, (images, tile, add, scratch) in product(
        ("none", "cosface", "arcface"),
        (
            (20, 30, False, 1 << 20),  # exponentials in the gradient
            (40, 30, False, 1 << 20),  # apart
            (40, 30, True, 0),  # again
            (20, 77, True, 1 << 20),
            (20, 7, False, 0),
        ),
    )
] + [Case("none", 20, 30, False, 0, spoilt) for spoilt in (math.nan, math.inf)]
CASES += [
    Case(margin, 20, 12, add, scratch, drawn=41)
    for margin in ("none", "arcface")
    for add, scratch in ((False, 1 << 20), (True, 1 << 20), (True, 0))
]


def found_by(engine: object, case: Case) -> dict[str, Tensor]:
    torch.manual_seed(0)
    features, weight = torch.randn(case.images, FEATURES), torch.randn(CLASSES, FEATURES)
    bias = torch.randn(CLASSES) if case.margin == "none" else None
    # Some of another slice, on both sides.
    targets = torch.randint(-9, (case.drawn or CLASSES) + 9, (case.images,))
    targets[0] = 0
    rows = torch.randperm(CLASSES)[: case.drawn].sort().values if case.drawn else None
    if bias is not None:
        bias[5] += case.spoilt
        weight[11] = weight[3]
        bias[11] = bias[3]
    else:
        features = functional.normalize(features)
    scale = None if bias is not None else SCALE
    config = ClassifierConfig(margin=case.margin, margin_size=0.4)
    given = Operands(features, targets, weight, bias, scale, margin_of(config), rows)
    into = Gradients(torch.randn(CLASSES, FEATURES), torch.randn(CLASSES), case.add)
    if bias is None:
        into = Gradients(into.weight, None, case.add)
    kept.SCRATCH_BYTES["cpu"] = case.scratch
    room = Kept(given, into, case.tile)
    found = engine.first_pass(given, case.tile, room)  # type: ignore[attr-defined]
    # As if another slice had the other targets.
    found.target = found.target.where(given.whole.inside, found.max)
    sums = raised(found.max, found.best, found.sum, targets)
    whole = over_slices(*sums, found.target, group_of_one())
    slope = torch.tensor(1 / case.images)
    slopes = passes.features_slope(given, found, whole, slope)
    engine.second_pass(given, found, whole, slope, room)  # type: ignore[attr-defined]
    results = {
        "losses": whole.losses,
        "best": found.best.float(),
        "features": slopes,
        "weight": into.weight,
    }
    return results if into.bias is None else results | {"bias": into.bias}


def main() -> None:
    # Small enough that a tile has several of each.
    logits.ROWS, logits.STRIP, logits.COLUMNS = 16, 8, 16
    maxima.BLOCKS, maxima.IMAGES = 4, 8
    rows = {}
    for case in CASES:
        own, plain = found_by(card_passes, case), found_by(passes, case)
        if case.spoilt:
            finite = [bool(each["losses"].isfinite().any()) for each in (own, plain)]
            rows[case.name] = float(any(finite))
            continue
        rows[case.name] = max(float((own[key] - plain[key]).abs().max()) for key in plain)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
