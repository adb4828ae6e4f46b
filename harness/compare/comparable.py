"""What runs must have in common for their times and accuracies to be compared."""

from collections.abc import Sequence

from harness.compare.levers import BOOKKEEPING
from harness.config import Config
from harness.errors import UserError
from harness.tracking.recorded import CHOSEN, RecordedRun

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


def check_comparable(runs: Sequence[RecordedRun]) -> None:
    """Raises UserError if runs of a recorded study differ in ranks, nodes or images, or runs of one
    variant in any other setting that their experiment gives."""
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
        _check_repeats(next(each for each, _ in ended if each.name == run.name), run)


def _check_repeats(first: RecordedRun, run: RecordedRun) -> None:
    here, there = first.config.alike(), run.config.alike()
    for key, value in here.items():
        if value != there[key] and key not in CHOSEN and not key.startswith(BOOKKEEPING):
            raise UserError(
                f"{run.name} ran with {key}={value} with seed {first.seed} and with {there[key]} "
                f"with seed {run.seed}: its runs are not repeats of one experiment; train its "
                f"seeds with the same settings, or in a --study of their own"
            )
