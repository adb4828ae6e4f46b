"""What runs must have in common for their times and accuracies to be compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.config import Config
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.tracking.recorded import RecordedRun

SAME_IMAGES = (
    *("dataset", "num_classes", "root", "image_size", "validation_size", "recipe"),
    *("train_fonts", "validation_fonts", "synthetic_images"),
)
"""Keys of `data` that must be equal, or accuracies mean different things."""


def check_same_images(first: Config, other: Config) -> None:
    """Raises UserError if the two configs differ in a key of SAME_IMAGES."""
    for key in SAME_IMAGES:
        here, there = getattr(first.data, key), getattr(other.data, key)
        if here != there:
            raise UserError(
                f"{first.name} has data.{key}={here}, {other.name} has {there}: their accuracies "
                f"are not comparable; give both the same value"
            )


def check_comparable(runs: Sequence["RecordedRun"]) -> None:
    """Raises UserError if runs of a recorded study differ in ranks, nodes or images."""
    ended = [(run, run.summary) for run in runs if run.summary is not None]
    for run, summary in ended[1:]:
        first, whole = ended[0]
        here, there = (f"{each.ranks} ranks on {each.nodes} nodes" for each in (whole, summary))
        if here != there:
            raise UserError(
                f"{first.name} with seed {first.seed} ran with {here}, {run.name} with seed "
                f"{run.seed} with {there}: their times are not comparable; give each a --study of "
                f"its own"
            )
        check_same_images(first.config, run.config)
