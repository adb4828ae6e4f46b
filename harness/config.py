"""Every knob of a run: a YAML file and key=value overrides become frozen, validated models."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.errors import UserError


class Section(BaseModel):
    """A part of the config: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class PerHost:
    """Marks a key whose value may be another on every host; all others must be alike."""


class DataConfig(Section):
    dataset: Literal["glyphs", "image_folder", "fashion_mnist", "synthetic"] = "glyphs"
    """What is learned: printed characters, an ImageFolder tree, Fashion-MNIST files, or noise."""
    root: Annotated[str | None, PerHost()] = None
    """Folder of `image_folder` (holds train/ and val/) or of the `fashion_mnist` idx files."""
    num_classes: int = Field(default=1000, ge=2)
    """Classes. Glyphs: the first so many characters in GB2312 order, up to 20,902."""
    image_size: int = Field(default=32, ge=8)
    """Height and width of an image, pixels."""
    augment: float = Field(default=1.0, ge=0)
    """Strength of the training augmentation: 0 none, 1 as designed, above 1 harder."""
    train_fonts: Annotated[tuple[str, ...], PerHost()] = ()
    """Glyphs: further font files, or folders of them, to train on."""
    validation_fonts: Annotated[tuple[str, ...], PerHost()] = ()
    """Glyphs: further font files, or folders of them, added to the unseen designs."""
    cache: Annotated[str, PerHost()] = ".cache/data"
    """Folder of the prepared images, and of the record which image files are readable."""
    verify: Literal["headers", "full", "none"] = "headers"
    """image_folder: how image files are looked at before the training. headers: opened, and read to
    their end where it is not in its place; those of val/ are decoded. full: all are decoded."""
    synthetic_images: int = Field(default=65536, ge=1)
    """Synthetic: images in an epoch."""
    prefetch: int = Field(default=2, ge=0)
    """Micro-batches read ahead by a thread where images go to a GPU; 0 reads in the step."""


class BackboneConfig(Section):
    name: str = "small_cnn"
    """`small_cnn`, or any torchvision classification model by its name."""
    feature_dim: int = Field(default=256, ge=0)
    """Features per image after a linear embedding; 0 keeps the backbone's own."""
    norm: Literal["batch", "group", "none"] = "batch"
    """small_cnn: what follows a convolution. Batch statistics are each rank's own."""


class ClassifierConfig(Section):
    layout: Literal["replicated", "node", "world"] = "replicated"
    """Where the classes live: on every rank, sliced over a node, or sliced over all ranks."""
    margin: Literal["none", "cosface", "arcface"] = "none"
    """Plain logits with a bias, or scaled cosines with an additive margin."""
    margin_scale: float = Field(default=32.0, gt=0)
    """Factor on the cosines."""
    margin_size: float = Field(default=0.3, ge=0)
    """cosface: subtracted from the target's cosine. arcface: added to its angle, radians."""


class ExchangeConfig(Section):
    kind: Literal[
        "synchronous", "delayed", "averaging", "isolated", "ddp_powersgd", "ddp_post_local_sgd"
    ] = "synchronous"
    """How nodes come to agree. isolated: they do not, but for evaluations: the ceiling of speed.
    ddp_...: torch's own DistributedDataParallel with its PowerSGD hook, or its post-local SGD."""
    backward_passes_per_step: int = Field(default=1, ge=1)
    """K: micro-batches in a window, which is what one exchange carries."""
    delay: int = Field(default=0, ge=0)
    """Windows until an exchange's result is used. 0 waits for it at once."""
    synchronous_windows: int = Field(default=0, ge=0)
    """The first so many windows wait at once, whatever `delay` says."""
    route: Literal["auto", "flat", "hierarchical"] = "auto"
    """flat: one world all-reduce overlapped with the backward pass. hierarchical: reduce in the
    node, then each rank speaks for its part. auto: flat for replicated + synchronous."""
    bucket_mb: float = Field(default=4.0, gt=0)
    """Flat route: size of one all-reduce, MB."""
    compression: Literal["none", "fp16", "int8", "int4"] = "none"
    """What crosses between nodes. What a narrower type cannot hold is sent with the next window."""
    matrix_rank: int = Field(default=4, ge=1)
    """ddp_powersgd: rank of the matrices that stand for a gradient."""
    pieces: int = Field(default=1, ge=1)
    """averaging: every window sends one of so many pieces of the parameters, in turn."""
    most_pieces: int = Field(default=0, ge=0)
    """averaging: picks `pieces`, at most so many, from times measured at the start; 0: as given."""
    outer_lr: float = Field(default=1.0, gt=0)
    """averaging: factor on the nodes' mean movement (DiLoCo's outer optimizer: 0.7)."""
    outer_momentum: float = Field(default=0.0, ge=0, lt=1)
    """averaging: Nesterov's momentum on the nodes' mean movement (DiLoCo: 0.9)."""

    @model_validator(mode="after")
    def _delay_fits_kind(self) -> "ExchangeConfig":
        if self.kind == "synchronous" and self.delay:
            raise ValueError(
                f"exchange.kind=synchronous uses its result at once, exchange.delay is "
                f"{self.delay}; set delay=0 or kind=delayed"
            )
        if self.kind != "synchronous" and self.route == "flat":
            raise ValueError(
                f"exchange.route=flat belongs to kind=synchronous, exchange.kind is {self.kind}; "
                f"use route=auto"
            )
        if self.route == "flat" and self.compression in ("int8", "int4"):
            raise ValueError(
                f"exchange.compression={self.compression} goes from node to node, exchange.route "
                f"is flat; use route=auto or compression=fp16"
            )
        averages = (self.pieces, self.most_pieces, self.outer_lr, self.outer_momentum) != (
            1,
            0,
            1.0,
            0.0,
        )
        if self.kind != "averaging" and averages:
            raise ValueError(
                f"exchange.pieces, most_pieces, outer_lr and outer_momentum belong to "
                f"kind=averaging, exchange.kind is {self.kind}; leave them out"
            )
        return self


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: float = Field(default=0.1, gt=0)
    """Learning rate at its peak."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD: momentum. AdamW: beta1."""
    nesterov: bool = True
    """SGD: look ahead. A late gradient is far more stable with it than without."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """Decay of matrices and filters; biases and norms have none."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Learning rate over the run, after the warm-up."""
    warmup_windows: int = Field(default=0, ge=0)
    """Windows over which the learning rate rises linearly from 0."""
    step_at: tuple[float, ...] = (0.5, 0.75)
    """step: where the rate falls, as shares of the run."""
    step_factor: float = Field(default=0.1, gt=0, le=1)
    """step: what it is multiplied by there."""


class TrainConfig(Section):
    batch_size: int = Field(default=32, ge=1)
    """Images per rank per backward pass."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run, windows. Either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run, passes over the training images."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 runs the backbone and the logits' products under autocast; fp64 is for exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the card of the local rank where there is one."""
    threads: Annotated[int, PerHost()] = Field(default=0, ge=0)
    """CPU threads of a rank; 0 divides the machine's cores among its ranks."""
    evaluate_every: int = Field(default=0, ge=0)
    """Windows between evaluations; 0 evaluates at the end only."""
    evaluate_images: int = Field(default=0, ge=0)
    """Images of each validation set used before the end; 0 uses all. The end always uses all."""
    untimed_windows: int = Field(default=10, ge=0)
    """First windows left out of throughput and times (caches, allocators and pools warm up)."""
    log_every: int = Field(default=10, ge=1)
    """Windows between two lines in the metrics."""
    checkpoint_every: int = Field(default=0, ge=0)
    """Windows between checkpoints; 0 writes none but the last."""
    save: bool = False
    """Write the drained model into the run's folder at the end."""
    resume: Annotated[str | None, PerHost()] = None
    """Checkpoint folder to go on from, made with any number of ranks. With other ranks, batch size
    or K the order of images goes on where it was; `steps` count windows, `epochs` images."""
    peak_seconds: float = Field(default=0.3, ge=0)
    """Seconds of plain matrix products on all ranks before the training, which the FLOP/s of the
    training are compared with; 0 does none."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"give either train.steps or train.epochs, found steps={self.steps} and "
                f"epochs={self.epochs}; remove one or set it to null"
            )
        return self


class StalenessConfig(Section):
    sample_every: int = Field(default=50, ge=0)
    """Windows between two comparisons of the late gradient with the fresh one; 0 makes none."""
    curvature_at_start: bool = False
    """Estimate the largest curvature before training: of little worth, it falls fast at first."""
    curvature_after_warmup: bool = True
    """Once, where nodes exchange late: when lr is at its peak and the first late window comes."""
    curvature_every: int = Field(default=0, ge=0)
    """Windows between two such estimates; 0 makes none."""
    curvature_products: int = Field(default=16, ge=1)
    """Hessian-vector products of an estimate; each costs as much as two micro-batches."""


class TrackingConfig(Section):
    experiment: str = "harness"
    """MLflow experiment."""
    uri: Annotated[str | None, PerHost()] = None
    """MLflow store; none: MLFLOW_TRACKING_URI, else the SQLite file mlflow.db here."""
    enabled: bool = True
    """Off: metrics go to the run's folder only."""
    study: str | None = None
    """Tag that joins the runs compared with each other."""
    system_metrics_seconds: float = Field(default=10.0, ge=0)
    """Seconds between two samples of each node's system metrics; 0 takes none."""
    folder: Annotated[str, PerHost()] = "runs"
    """Where each run gets a folder: config, metrics, summary, checkpoints."""


class TraceConfig(Section):
    windows: int = Field(default=0, ge=0)
    """Windows that torch's profiler traces, left out of all times; 0 traces none."""
    first_window: int = Field(default=20, ge=0)
    """The first traced one, counted from the run's first."""
    ranks: tuple[int, ...] = ()
    """The ranks that are traced; empty: all. Each takes some MB of memory, on every rank."""
    horovod_timeline: bool = False
    """Record what Horovod's first rank does in these windows. Horovod's writer takes a core of that
    rank from the run's start to its end: compare no times of such a run."""

    @model_validator(mode="after")
    def _timeline_has_windows(self) -> "TraceConfig":
        if self.horovod_timeline and not self.windows:
            raise ValueError(
                "trace.horovod_timeline=true records the traced windows, trace.windows is 0; "
                "set trace.windows"
            )
        return self


class DoctorConfig(Section):
    before_training: bool = True
    """Compare versions, host names, memory and disk of all hosts first; a fault ends the run."""


class Config(Section):
    """One run, whole."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$")
    """Variant: names the run and its folder."""
    seed: int = Field(default=0, ge=0)
    """Seed of the weights, the order of images and the augmentation."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig
    staleness: StalenessConfig = StalenessConfig()
    tracking: TrackingConfig = TrackingConfig()
    doctor: DoctorConfig = DoctorConfig()
    trace: TraceConfig = TraceConfig()

    @model_validator(mode="after")
    def _ddp_is_data_parallel(self) -> "Config":
        kind, passes = self.exchange.kind, self.exchange.backward_passes_per_step
        if not kind.startswith("ddp_"):
            return self
        plain = (self.exchange.delay, self.exchange.compression, self.classifier.layout)
        if plain != (0, "none", "replicated") or (kind == "ddp_powersgd" and passes > 1):
            raise ValueError(
                f"exchange.kind={kind} is torch's own: it needs delay=0, compression=none, "
                f"classifier.layout=replicated, and powersgd backward_passes_per_step=1"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_whole(self) -> "Config":
        if self.classifier.layout == "world" and self.exchange.kind in ("averaging", "isolated"):
            raise ValueError(
                f"exchange.kind={self.exchange.kind} lets nodes step alone, classifier.layout is "
                f"world, where a node has not all classes; use layout=node or kind=delayed"
            )
        return self

    def flattened(self) -> dict[str, Any]:
        """All values by dotted key."""
        return dict(_leaves(self.model_dump(mode="json")))

    def alike(self) -> dict[str, Any]:
        """What must be the same on all ranks of a run, by dotted key."""
        own = set(_per_host(Config))
        return {key: value for key, value in self.flattened().items() if key not in own}

    def to_yaml(self) -> str:
        """The resolved config as a file that `load` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Config of the YAML at `path` with dotted `key=value` overrides.

    A key `base` in the file names a file, relative to it, whose values it starts from.

    Raises UserError for a missing or malformed file, an unknown key or a wrong value.
    """
    values = _read(Path(path), ())
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise UserError(f"override {override!r} is not key=value; write e.g. train.steps=100")
    try:
        merged = OmegaConf.merge(values, OmegaConf.from_dotlist(list(overrides)))
        plain = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {_one_line(error)}; correct the overrides") from error
    return _validated(path, plain)


def load_resolved(path: Path) -> Config:
    """Config of a file that `to_yaml` wrote, ten times as fast as `load`: a study has many.

    Raises UserError for one of another version, in which a key or a value is unknown here.
    """
    text = path.read_text(encoding="utf-8")
    return _validated(path, yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _validated(path: str | Path, values: Any) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def _read(path: Path, seen: tuple[Path, ...]) -> Any:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path} is its own base; remove the key base there")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the experiment {path}: {_one_line(error)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not keys and values; see base.yaml")
    base = values.pop("base", None)
    own = OmegaConf.create(values)
    if base is None:
        return own
    return OmegaConf.merge(_read(path.parent / str(base), (*seen, path)), own)


def _explain(error: ValidationError) -> str:
    found = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key.lower(), known_keys(), n=1, cutoff=0.0)
            found.append(f"unknown key {key}; the nearest known key is {close[0]}")
        elif problem["type"] == "value_error":
            found.append(str(problem["ctx"]["error"]))
        elif problem["type"] == "missing":
            found.append(f"{key} is missing; give it in the file or as {key}=value")
        else:
            found.append(f"{key}={problem['input']!r} does not fit: {problem['msg']}")
    return " | ".join(found)


def known_keys() -> list[str]:
    """Every dotted key of a config, and its sections."""
    return list(_fields(Config))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def _per_host(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if any(isinstance(mark, PerHost) for mark in field.metadata):
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _per_host(field.annotation, f"{prefix}{name}.")


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
