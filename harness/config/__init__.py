"""Every knob of a run: a YAML file and key=value overrides become frozen, validated models."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import yaml
from pydantic import AfterValidator, Field, model_validator

from harness.config.layers import COMMAND_LINE, escaped, filled, giving_way, merged, parse_override
from harness.config.mistakes import validated
from harness.config.section import Label, PathText, Section, Text, kind_at
from harness.config.yaml_files import Given, Plain, is_null, read_yaml
from harness.errors import UserError
from harness.exchange.kinds import KINDS, KindName, Traits
from harness.paths import expanded, expanded_uri

ALTERNATIVES = (("train", "steps", "epochs"), ("exchange", "pieces", "most_pieces"))
"""A section and two of its keys: one that is given above another's file replaces the other."""
DATE = re.compile(r"\d{4}-\d\d?-\d\d?")
"""How a text begins that other readers of YAML take for a date, and write in another way."""
MOST = 10**12
"""Of windows and images: thirty years of windows of a millisecond."""
BUCKET_MB, TORCHS_BUCKET_MB = 4.0, 25.0
"""Of gradients that are averaged as one: ours, and DistributedDataParallel's default."""
MOST_SEED = 2**63 - 1
"""What tables and generators keep in 64 bits."""

Address = Annotated[Text, Field(max_length=4096), AfterValidator(expanded_uri)]
"""Of a store; of an SQLite file a leading ~ is expanded as in a path."""
Share = Annotated[float, Field(ge=0, le=1)]
Rank = Annotated[int, Field(ge=0, le=10**6)]


@dataclass(frozen=True)
class PerHost:
    """Marks a key whose value may be another on every host; all others must be alike."""


ODD_LINE_ENDS = frozenset("\x85\u2028\u2029")
"""YAML folds lines there; PyYAML writes them as they are, unless all but ASCII is escaped."""


class DataConfig(Section):
    dataset: Literal["glyphs", "image_folder", "fashion_mnist", "synthetic"] = "glyphs"
    """What is learned: printed characters, an ImageFolder tree, Fashion-MNIST files, or noise."""
    root: Annotated[PathText | None, PerHost()] = None
    """Folder of `image_folder` (holds train/ and val/) or of the `fashion_mnist` idx files."""
    num_classes: int = Field(default=1000, ge=2, le=10**9)
    """Classes. Glyphs: the first so many characters in GB2312 order, up to 20,902."""
    image_size: int = Field(default=32, ge=8, le=16_384)
    """Height and width of an image, pixels."""
    augment: float = Field(default=1.0, ge=0, le=100)
    """Strength of the training augmentation: 0 none, 1 as designed, above 1 harder."""
    train_fonts: Annotated[tuple[PathText, ...], PerHost()] = ()
    """Glyphs: further font files, or folders of them, to train on."""
    validation_fonts: Annotated[tuple[PathText, ...], PerHost()] = ()
    """Glyphs: further font files, or folders of them, added to the unseen designs."""
    cache: Annotated[PathText, PerHost()] = ".cache/data"
    """Folder of the prepared images, and of the record which image files are readable."""
    verify: Literal["headers", "full", "none"] = "headers"
    """image_folder: how image files are looked at before the training. headers: opened, and read to
    their end where it is not in its place; those of val/ are decoded. full: all are decoded."""
    synthetic_images: int = Field(default=65536, ge=1, le=10**9)
    """Synthetic: images in an epoch."""
    prefetch: int = Field(default=2, ge=0, le=1000)
    """Micro-batches read ahead by a thread where images go to a GPU; 0 reads in the step."""


class BackboneConfig(Section):
    name: Text = "small_cnn"
    """`small_cnn`, or any torchvision classification model by its name."""
    feature_dim: int = Field(default=256, ge=0, le=10**6)
    """Features per image after a linear embedding; 0 keeps the backbone's own."""
    norm: Literal["batch", "group", "none"] = "batch"
    """small_cnn: what follows a convolution. Batch statistics are each rank's own."""


class ClassifierConfig(Section):
    layout: Literal["replicated", "node", "world"] = "replicated"
    """Where the classes live: on every rank, sliced over a node, or sliced over all ranks."""
    margin: Literal["none", "cosface", "arcface", "combined"] = "none"
    """Plain logits with a bias, or scaled cosines with a margin on the target's."""
    margin_scale: float = Field(default=32.0, gt=0, le=10**6)
    """Factor on the cosines."""
    margin_size: float = Field(default=0.3, ge=0, le=10)
    """cosface: subtracted from the target's cosine. arcface: added to its angle, radians."""
    margin_m1: float = Field(default=1.0, gt=0, le=10)
    """combined: m1 in cos(m1 t + m2) - m3 of the target's angle t."""
    margin_m2: float = Field(default=0.3, ge=0, lt=3.14)
    """combined: m2, radians."""
    margin_m3: float = Field(default=0.2, ge=0, le=10)
    """combined: m3."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of a training's labels, the share that is spread over all classes alike."""
    margin_slope: Literal["exact", "straight_through"] = "exact"
    """straight_through: the gradient leaves the margin's own slope out, as some libraries do."""


class ExchangeConfig(Section):
    kind: KindName = "synchronous"
    """How nodes come to agree. isolated: they do not, but for evaluations: the ceiling of speed.
    slowmo: averaging, but the outer optimizer has slow momentum, a heavy ball's, not Nesterov's.
    ddp, ddp_...: torch's own DistributedDataParallel, plain (with compression=fp16 through its hook
    for that), with its PowerSGD hook, or its post-local SGD."""
    backward_passes_per_step: int = Field(default=1, ge=1, le=10**6)
    """K: micro-batches in a window, which is what one exchange carries."""
    delay: int = Field(default=0, ge=0, le=1000)
    """Windows until an exchange's result is used. 0 waits for it at once."""
    synchronous_windows: int = Field(default=0, ge=0, le=MOST)
    """The first so many windows wait at once, whatever `delay` says."""
    route: Literal["auto", "flat", "hierarchical"] = "auto"
    """synchronous: how buckets of gradients are averaged beside the backward pass. flat: over all
    ranks at once. hierarchical: added up in the node, averaged over nodes by the ranks that hold
    the same share, and spread in the node. auto: the faster of both, measured at the start."""
    bucket_mb: float | None = Field(default=None, gt=0, le=10**6)
    """synchronous, ddp, ddp_...: gradients that are averaged as one, MB. none: 4, and torch's own
    default of 25 for torch's own."""
    compression: Literal["none", "fp16", "int8", "int4", "sign"] = "none"
    """What crosses between nodes. What a narrower type cannot hold is sent with the next window.
    fp16, int8, int4: 1,024 values share a scale; int8 rounds to -127..127 times it, int4 to -7..7,
    sign to its own sign. Sums are made in the parameters' precision, at any number of nodes."""
    matrix_rank: int = Field(default=4, ge=1, le=10**6)
    """ddp_powersgd: rank of the matrices that stand for a gradient."""
    pieces: int = Field(default=1, ge=1, le=10_000)
    """averaging, slowmo: every window sends one of so many pieces of the parameters, in turn."""
    most_pieces: int = Field(default=0, ge=0, le=10_000)
    """averaging, slowmo: picks `pieces`, at most so many, from times measured at the start; 0: as
    given."""
    outer_lr: float = Field(default=1.0, gt=0, le=10**6)
    """averaging, slowmo: factor on the nodes' mean movement (DiLoCo's outer optimizer: 0.7)."""
    outer_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum on the nodes' mean movement. averaging: Nesterov's (DiLoCo: 0.9). slowmo: a heavy
    ball's."""

    @property
    def traits(self) -> Traits:
        """What holds for every exchange of this kind."""
        return KINDS[self.kind]

    @property
    def is_torchs(self) -> bool:
        """Everything happens in torch's DistributedDataParallel."""
        return self.traits.is_torchs

    @property
    def has_outer(self) -> bool:
        """An outer optimizer changes the nodes' mean movement before it is applied."""
        return (self.outer_lr, self.outer_momentum) != (1.0, 0.0)

    @property
    def bucket_bytes(self) -> float:
        """Of gradients that are averaged as one."""
        return 1e6 * (self.bucket_mb or (TORCHS_BUCKET_MB if self.is_torchs else BUCKET_MB))

    @model_validator(mode="after")
    def _delay_fits_kind(self) -> "ExchangeConfig":
        traits = self.traits
        # Torch's own kinds have one message for all that they cannot do.
        if self.delay and traits.meets and not (traits.late or traits.is_torchs):
            raise ValueError(
                f"exchange.kind={self.kind} uses its result at once, exchange.delay is "
                f"{self.delay}; set delay=0 or kind=delayed"
            )
        if self.route == "flat" and not traits.has_routes:
            raise ValueError(
                f"exchange.route=flat belongs to kind=synchronous, exchange.kind is {self.kind}; "
                f"use route=auto"
            )
        averages = (self.pieces, self.most_pieces) != (1, 0) or self.has_outer
        if averages and not traits.in_pieces:
            own = " or ".join(name for name, each in KINDS.items() if each.in_pieces)
            raise ValueError(
                f"exchange.pieces, most_pieces, outer_lr and outer_momentum belong to "
                f"kind={own}, exchange.kind is {self.kind}; leave them out"
            )
        return self


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    """Update rule."""
    lr: float = Field(default=0.1, gt=0, le=10**6)
    """Learning rate at its peak."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """SGD: momentum. AdamW: beta1."""
    nesterov: bool = True
    """SGD: look ahead. A late gradient is far more stable with it than without."""
    weight_decay: float = Field(default=5e-4, ge=0, le=10**6)
    """Decay of matrices and filters; biases and norms have none."""
    schedule: Literal["constant", "step", "cosine"] = "cosine"
    """Learning rate over the run, after the warm-up."""
    warmup_windows: int = Field(default=0, ge=0, le=MOST)
    """Windows over which the learning rate rises linearly from 0."""
    step_at: tuple[Share, ...] = (0.5, 0.75)
    """step: where the rate falls, as shares of the run."""
    step_factor: float = Field(default=0.1, gt=0, le=1)
    """step: what it is multiplied by there."""


class TrainConfig(Section):
    batch_size: int = Field(default=32, ge=1, le=10**9)
    """Images per rank per backward pass."""
    steps: int | None = Field(default=None, ge=1, le=MOST)
    """Length of the run, windows. Either this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0, le=10**6)
    """Length of the run, passes over the training images."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """bf16 runs the backbone and the logits' products under autocast; fp64 is for exactness."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the card of the local rank where there is one."""
    threads: Annotated[int, PerHost()] = Field(default=0, ge=0, le=1024)
    """CPU threads of a rank; 0 divides the machine's cores among its ranks."""
    evaluate_every: int = Field(default=0, ge=0, le=MOST)
    """Windows between evaluations; 0 evaluates at the end only."""
    evaluate_images: int = Field(default=0, ge=0, le=MOST)
    """Images of each validation set used before the end; 0 uses all. The end always uses all."""
    untimed_windows: int = Field(default=10, ge=0, le=MOST)
    """First windows left out of throughput and times (caches, allocators and pools warm up)."""
    log_every: int = Field(default=10, ge=1, le=MOST)
    """Windows between two lines in the metrics."""
    on_nonfinite: Literal["stop"] = "stop"
    """What becomes of a run whose loss, gradient norm or parameters are not finite in a window.
    stop: it ends as failed, on all ranks, and the last good checkpoint is kept."""
    checkpoint_every: int = Field(default=0, ge=0, le=MOST)
    """Windows between checkpoints; 0 writes none, but with `save` the last."""
    save: bool = False
    """Write the drained model into the run's folder at the end."""
    resume: Annotated[PathText | None, PerHost()] = None
    """Checkpoint folder to go on from, made with any number of ranks. With other ranks, batch size
    or K the order of images goes on where it was; `steps` count windows, `epochs` images."""
    peak_seconds: float = Field(default=0.3, ge=0, le=3600)
    """Seconds of plain matrix products on all ranks before the training, which the FLOP/s of the
    training are compared with; 0 does none."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainConfig":
        if (self.steps is None) == (self.epochs is None):
            both = f"steps={self.steps} and epochs={self.epochs}; remove one or set it to null"
            found = "neither" if self.steps is None else both
            raise ValueError(f"give either train.steps or train.epochs, found {found}")
        return self


class StalenessConfig(Section):
    sample_every: int = Field(default=50, ge=0, le=MOST)
    """Windows between two comparisons of the late gradient with the fresh one; 0 makes none."""
    curvature_at_start: bool = False
    """Estimate the largest curvature before training: of little worth, it falls fast at first."""
    curvature_after_warmup: bool = True
    """Once, where nodes exchange late: when lr is at its peak and the first late window comes."""
    curvature_every: int = Field(default=0, ge=0, le=MOST)
    """Windows between two such estimates; 0 makes none."""
    curvature_products: int = Field(default=16, ge=1, le=10**6)
    """Hessian-vector products of an estimate; each costs as much as two micro-batches."""


class TrackingConfig(Section):
    experiment: Label = "harness"
    """MLflow experiment."""
    uri: Annotated[Address | None, PerHost()] = None
    """MLflow store; none: MLFLOW_TRACKING_URI, else the SQLite file mlflow.db here."""
    enabled: bool = True
    """Off: metrics go to the run's folder only."""
    study: Label | None = None
    """Tag that joins the runs compared with each other."""
    system_metrics_seconds: float = Field(default=10.0, ge=0, le=10**6)
    """Seconds between two samples of each node's system metrics; 0 takes none."""
    folder: Annotated[PathText, PerHost()] = "runs"
    """Where each run gets a folder: config, metrics, summary, checkpoints."""


class TraceConfig(Section):
    windows: int = Field(default=0, ge=0, le=10**6)
    """Windows that torch's profiler traces, left out of all times; 0 traces none."""
    first_window: int = Field(default=20, ge=0, le=MOST)
    """The first traced one, counted from the run's first."""
    ranks: tuple[Rank, ...] = ()
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

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)
    """Variant: names the run and its folder."""
    seed: int = Field(default=0, ge=0, le=MOST_SEED)
    """Seed of the weights, the order of images and the augmentation."""
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = Field(default_factory=dict, validate_default=True)
    staleness: StalenessConfig = StalenessConfig()
    tracking: TrackingConfig = TrackingConfig()
    doctor: DoctorConfig = DoctorConfig()
    trace: TraceConfig = TraceConfig()

    @model_validator(mode="after")
    def _ddp_is_data_parallel(self) -> "Config":
        own, layout = self.exchange, self.classifier.layout
        if not own.is_torchs:
            return self
        plain = (own.delay, own.route, layout) == (0, "auto", "replicated")
        wires = own.traits.compressions
        rare = own.backward_passes_per_step > 1 and not own.traits.local_steps
        if not plain or own.compression not in wires or rare:
            raise ValueError(
                f"exchange.kind={own.kind} is torch's own: it needs delay=0, route=auto, "
                f"classifier.layout=replicated, compression={' or '.join(wires)}, and "
                f"backward_passes_per_step=1 unless it is ddp_post_local_sgd"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_whole(self) -> "Config":
        if self.classifier.layout == "world" and self.exchange.traits.local_steps:
            raise ValueError(
                f"exchange.kind={self.exchange.kind} lets nodes step alone, classifier.layout is "
                f"world, where a node has not all classes; use layout=node or kind=delayed"
            )
        return self

    def exchanging(self, **changes: Any) -> "Config":
        """With other settings of the exchange, taken as they are given."""
        return self.model_copy(update={"exchange": self.exchange.model_copy(update=changes)})

    def with_nodes_apart(self, layout: str | None = None, passes: int | None = None) -> "Config":
        """The same run, except that its nodes never exchange anything: what it computes, alone.

        `layout` and `passes`, micro-batches in a window, are the run's own if they are None.
        """
        exchange = {"kind": "isolated", "route": "auto", "compression": "none", "delay": 0}
        exchange |= {"pieces": 1, "most_pieces": 0, "outer_lr": 1.0, "outer_momentum": 0.0}
        exchange["backward_passes_per_step"] = passes or self.exchange.backward_passes_per_step
        classifier = {"layout": layout or self.classifier.layout}
        apart = self.exchanging(**exchange)
        return apart.model_copy(
            update={"classifier": self.classifier.model_copy(update=classifier)}
        )

    def flattened(self) -> dict[str, Any]:
        """All values by dotted key."""
        return dict(_leaves(self.model_dump(mode="json")))

    @classmethod
    def from_flattened(cls, values: Mapping[str, Any], source: str) -> "Config":
        """The config of such values, or of their texts. Raises UserError; `source` names them."""
        whole = Given()
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            inner = whole.get(section) if section else whole
            if inner is None:
                inner = Given()
                whole.put(section, inner, source)
            if isinstance(value, str) and get_origin(kind_at(cls, key)) is tuple:
                value = _items(value, f"{source}: {key}")
            inner.put(name, value, source)
        return validated(cls, whole, source)

    def alike(self) -> dict[str, Any]:
        """What must be the same on all ranks of a run, by dotted key."""
        own = set(_per_host(Config))
        return {key: value for key, value in self.flattened().items() if key not in own}

    def to_yaml(self) -> str:
        """The resolved config as a file that `load` reads back."""
        values = _escaped(self.model_dump(mode="json"))
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if not ODD_LINE_ENDS.isdisjoint(text):
            text = yaml.safe_dump(values, sort_keys=False)
        return text


@dataclass(frozen=True)
class Loaded:
    """A config, and what a user may not expect of it."""

    config: Config
    notes: tuple[str, ...]
    """Which override replaced which other key of the file, and which text is no date, a line
    each."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Config of the YAML at `path` with dotted `key=value` overrides.

    A key `base` in the file names a file, relative to it, whose values it starts from.

    Raises UserError for a missing or malformed file, an unknown key or a wrong value.
    """
    return load_with_notes(path, overrides).config


def load_with_notes(path: str | Path, overrides: Sequence[str] = ()) -> Loaded:
    """The same, with the notes."""
    given, typed = _read(Path(path), ()), Given()
    for override in overrides:
        typed = merged(typed, parse_override(override, Config))
    given, replaced = giving_way(given, typed, ALTERNATIVES)
    whole = filled(merged(given, typed))
    config = validated(Config, whole, str(path))
    return Loaded(config, (*replaced, *_dates(whole)))


def load_resolved(path: Path) -> Config:
    """Config of a file that `to_yaml` wrote.

    Raises UserError for one of another version, in which a key or a value is unknown here.
    """
    return validated(Config, filled(read_yaml(path, "config")), str(path))


def _read(path: Path, seen: tuple[Path, ...]) -> Given:
    given = read_yaml(path, "experiment")
    base, place = given.pop("base", None), given.places.get("base")
    if base is None or is_null(base):
        return given
    if not isinstance(base, str):
        raise UserError(f"{place}: base names one file; give its path")
    here = path.resolve()
    if here in seen:
        raise UserError(f"{path} is its own base; remove the key base there")
    try:
        below = path.parent / expanded(base)
    except ValueError as error:
        raise UserError(f"{place}: base={base} does not fit: {error}") from error
    lower, _ = giving_way(_read(below, (*seen, here)), given, ALTERNATIVES)
    return merged(lower, given)


def study_name(text: str) -> str:
    """What `tracking.study` takes. Raises UserError for anything else."""
    given = Given()
    given.put("study", text, "--study")
    return str(validated(TrackingConfig, given, "--study").study)


def tracking_in(uri: str | None, experiment: str | None = None) -> TrackingConfig:
    """Where records are kept, by what the command line gives. Raises UserError."""
    given = {"uri": uri} | ({"experiment": experiment} if experiment else {})
    return validated(TrackingConfig, given, "command line")


def _per_host(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if any(isinstance(mark, PerHost) for mark in field.metadata):
            yield prefix + name
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _per_host(field.annotation, f"{prefix}{name}.")


def _dates(given: Given, prefix: str = "") -> Iterator[str]:
    for key, value in given.items():
        if isinstance(value, Given):
            yield from _dates(value, f"{prefix}{key}.")
        elif isinstance(value, Plain) and DATE.match(value) and given.places[key] != COMMAND_LINE:
            yield f"{prefix}{key}={value} is taken as a text, not as a date ({given.places[key]})"


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _items(text: str, place: str) -> Any:
    """Of a list as Python writes it, which is how MLflow keeps one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{place}={text[:60]} does not fit: give a list") from error


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_escaped(each) for each in value]
    return escaped(value) if isinstance(value, str) else value
