"""The metadata of a checkpoint."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from harness.config import Config
from harness.errors import UserError
from harness.measure.summary import Evaluation
from harness.tracking.folders import META
from harness.train.checkpoint.files import plain_file
from harness.train.course import Passed


class Progress(BaseModel):
    """Time and evaluations of a training, over all the runs that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_seconds: float | None = Field(ge=0, allow_inf_nan=False)
    """None if unknown: the checkpoint is older than this field."""
    evaluations: tuple[Evaluation, ...] = ()


STARTED = Progress(train_seconds=0.0)


class Meta(BaseModel):
    """The file that makes a folder a checkpoint; it is written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=0, le=2**53)
    """Windows trained before it was written."""
    num_classes: int
    progress: Progress = Progress(train_seconds=None)
    passed: Passed | None = None
    """None if unknown: the checkpoint is older than this field."""
    next_warning: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Ratio of lr to the largest stable lr at which staleness is warned of next; None: the initial
    one."""

    def to_json(self) -> str:
        # Not pydantic's own JSON: json.dumps writes NaN, and a NaN loss must be read back as NaN.
        return json.dumps(self.model_dump())


def read_meta(folder: Path, num_classes: int) -> Meta:
    """Reads a checkpoint's metadata. Raises UserError if there is none, or it is for another
    task."""
    try:
        meta = Meta.model_validate_json(plain_file(folder / META).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"train.resume={folder} is not a checkpoint (no readable {META}); "
            f"give a folder checkpoints/<window> of a run"
        ) from error
    except ValueError as error:
        raise UserError(
            f"train.resume={folder} cannot be read (its {META} is damaged, or was written by "
            f"another version of this harness); give another checkpoint or use that version"
        ) from error
    if meta.num_classes != num_classes:
        raise UserError(
            f"train.resume={folder} has {meta.num_classes} classes, but data.num_classes is "
            f"{num_classes}; set data.num_classes={meta.num_classes}"
        )
    return meta


def passed_alike(config: Config, ranks: int) -> Passed | None:
    """The progress of the checkpoint that the config resumes; None unless it had `ranks` ranks."""
    if config.train.resume is None:
        return None
    passed = read_meta(Path(config.train.resume), config.data.num_classes).passed
    return passed if passed and passed.ranks == ranks else None
