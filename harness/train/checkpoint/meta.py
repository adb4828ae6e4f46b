"""What a checkpoint says of itself."""

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
    """What a training has come to, in all the runs that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_seconds: float | None = Field(ge=0, allow_inf_nan=False)
    """None: not known, of a checkpoint that is older than this field."""
    evaluations: tuple[Evaluation, ...] = ()


STARTED = Progress(train_seconds=0.0)


class Meta(BaseModel):
    """The file that makes a folder a checkpoint: it is written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=0, le=2**53)
    """Windows trained before it was written."""
    num_classes: int
    progress: Progress = Progress(train_seconds=None)
    passed: Passed | None = None
    """None: not known, of a checkpoint that is older than this field."""
    next_warning: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The learning rate over the largest stable one at which staleness is warned of next; None: as
    at a run's start."""

    def to_json(self) -> str:
        # By json itself: a loss that is no number comes back as what it was.
        return json.dumps(self.model_dump())


def read_meta(folder: Path, num_classes: int) -> Meta:
    """What a checkpoint says of itself. Raises UserError where it is none, or another task's."""
    try:
        meta = Meta.model_validate_json(plain_file(folder / META).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"train.resume={folder} is no checkpoint (no readable {META}); "
            f"give a folder checkpoints/<window> of a run"
        ) from error
    except ValueError as error:
        raise UserError(
            f"train.resume={folder} cannot be read (its {META} is damaged, or of another version "
            f"of this harness); give another checkpoint, or resume with that version"
        ) from error
    if meta.num_classes != num_classes:
        raise UserError(
            f"train.resume={folder} has {meta.num_classes} classes, data.num_classes is "
            f"{num_classes}; set data.num_classes={meta.num_classes}"
        )
    return meta


def passed_alike(config: Config, ranks: int) -> Passed | None:
    """What was decided for the training that a run goes on from, where it had as many ranks."""
    if config.train.resume is None:
        return None
    passed = read_meta(Path(config.train.resume), config.data.num_classes).passed
    return passed if passed and passed.ranks == ranks else None
