"""The metadata of a checkpoint: its progress, and the list of its files."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from harness.config import Config
from harness.data.classes import check_names
from harness.data.levels import Levels
from harness.errors import UserError
from harness.measure.redaction import masked
from harness.measure.summary import Evaluation
from harness.parallel.topology import Topology
from harness.tracking.run_folder import META
from harness.train.checkpoint.files import CLASSES, plain_file
from harness.train.checkpoint.manifest import BadCheckpoint, StoredFile, sha256_of
from harness.train.course import Passed
from harness.whole_files import PARTIAL

CHECKSUM = "sha256"
"""The key in the metadata's file with the checksum of all others."""
FileName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


class Progress(BaseModel):
    """Time and evaluations of a training, over all the runs that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_seconds: float | None = Field(ge=0, allow_inf_nan=False)
    """None if unknown: the checkpoint is older than this field."""
    evaluations: tuple[Evaluation, ...] = ()
    dropped_steps: int = Field(default=0, ge=0)
    """Steps that were dropped because they were not finite (`train.on_nonfinite=skip`)."""
    dropped_in_a_row: int = Field(default=0, ge=0)
    """Of these the last ones, after which no step took place."""


STARTED = Progress(train_seconds=0.0)


class Origin(BaseModel):
    """The run that wrote a checkpoint, and what the model must be given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: dict[str, Any]
    """Its settings by their dotted keys, with secrets masked."""
    nodes: int
    ranks_per_node: int
    channels: int
    mean: tuple[float, ...]
    """Pixels in [0, 1] less this, divided by `deviation`, are what the model takes: one number for
    all channels, or one for each."""
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, config: Config, topology: Topology, channels: int, levels: Levels) -> "Origin":
        values = {
            key: masked(value) if isinstance(value, str) else value
            for key, value in config.flattened().items()
        }
        return cls(
            config=values,
            nodes=topology.nodes,
            ranks_per_node=topology.ranks_per_node,
            channels=channels,
            mean=levels.mean,
            deviation=levels.deviation,
        )


class Meta(BaseModel):
    """The file that makes a folder a checkpoint; it is written last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=0, le=2**53)
    """Windows trained before it was written."""
    num_classes: int
    at: float | None = Field(default=None, allow_inf_nan=False)
    """When it was copied, or evaluated after that, in seconds since 1970. None if the checkpoint is
    older than this field."""
    progress: Progress = Progress(train_seconds=None)
    passed: Passed | None = None
    """None if unknown: the checkpoint is older than this field."""
    next_warning: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Ratio of lr to the largest stable lr at which staleness is warned of next; None: the initial
    one."""
    pretrained: tuple[str, ...] = ()
    """The backbone's parameters that `backbone.weights` gave; see `backbone.lr_factor`."""
    origin: Origin | None = None
    """None if unknown: the checkpoint is older than this field."""
    files: dict[FileName, StoredFile] | None = None
    """All files beside this one. None if the checkpoint is older than this field: then nothing
    shows whether they are as they were written."""

    def to_json(self) -> str:
        # Not pydantic's own JSON: json.dumps writes NaN, and a NaN loss must be read back as NaN.
        values = self.model_dump()
        return json.dumps(values | {CHECKSUM: _checksum(values)})

    def names_in(self, folder: Path) -> list[str]:
        """The names of its files; those in the folder if it lists none. Raises OSError."""
        return os.listdir(folder) if self.files is None else list(self.files)

    def class_names(self, folder: Path) -> list[str]:
        """The names of its classes; [] if they have none. Raises BadCheckpoint."""
        if not (self.files and CLASSES in self.files):
            return []
        try:
            found: list[str] = json.loads(plain_file(folder / CLASSES).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"its {CLASSES} cannot be read") from error
        return found

    @property
    def known_origin(self) -> Origin:
        """The run that wrote it. Raises BadCheckpoint if it does not say which."""
        if self.origin is None:
            raise BadCheckpoint("it is too old to say which model it is")
        return self.origin

    @property
    def identity(self) -> str:
        """The same for all copies of a checkpoint, whatever was evaluated after it."""
        files = {name: each.sha256 for name, each in sorted((self.files or {}).items())}
        return sha256_of(json.dumps([self.window, self.num_classes, files]))


def described(checkpoint: Path) -> Meta:
    """The metadata of a checkpoint that is complete. Raises BadCheckpoint."""
    if checkpoint.name.endswith(PARTIAL):
        raise BadCheckpoint("it is incomplete: its writing was interrupted, or goes on")
    return read_meta(checkpoint)


def read_meta(folder: Path) -> Meta:
    """Reads a checkpoint's metadata. Raises BadCheckpoint if there is none, or it is damaged."""
    try:
        text = plain_file(folder / META).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"it is not a checkpoint (no readable {META})") from error
    try:
        values = json.loads(text)
        written = values.pop(CHECKSUM, None) if isinstance(values, dict) else None
        meta = Meta.model_validate(values)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(
            f"its {META} is damaged, or was written by another version of this harness"
        ) from error
    if written != _checksum(values) and (written is not None or meta.files is not None):
        raise BadCheckpoint(f"its {META} is damaged: it does not match its own checksum")
    return meta


def _checksum(values: dict[str, Any]) -> str:
    return sha256_of(json.dumps(values))


def resumed_meta(config: Config) -> Meta | None:
    """The metadata of the checkpoint that the config resumes, if any.

    Raises UserError if there is none, or it is for another task.
    """
    resume, classes = config.train.resume, config.data.num_classes
    if resume is None:
        return None
    try:
        meta = read_meta(Path(resume))
    except BadCheckpoint as error:
        raise UserError(f"train.resume={resume}: {error}; give another checkpoint") from error
    if meta.num_classes != classes:
        raise UserError(
            f"train.resume={resume} has {meta.num_classes} classes, but data.num_classes is "
            f"{classes}; set data.num_classes={meta.num_classes}"
        )
    return meta


def check_resumed_names(config: Config, meta: Meta, names: Sequence[str]) -> None:
    """Raises UserError if labels mean other classes than in the checkpoint that the config resumes:
    `names` are those of this run's images."""
    assert config.train.resume is not None
    folder = Path(config.train.resume)
    try:
        known = meta.class_names(folder)
    except BadCheckpoint as error:
        raise UserError(f"train.resume={folder}: {error}; give another checkpoint") from error
    check_names(
        f"data.root={config.data.root}",
        names,
        folder,
        known,
        "give the class folders the names that they had, or train anew, without train.resume and "
        "--continue",
    )


def passed_alike(config: Config, ranks: int) -> Passed | None:
    """The progress of the checkpoint that the config resumes; None unless it had `ranks` ranks."""
    meta = resumed_meta(config)
    passed = meta.passed if meta else None
    return passed if passed and passed.ranks == ranks else None
