"""The config of one run: all sections, the checks between them, and its forms as text."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any, get_origin

import yaml
from pydantic import Field, model_validator

from harness.config.former import present_key
from harness.config.layers import escaped
from harness.config.mistakes import validated
from harness.config.section import Section, kind_at
from harness.config.sections.data import DataConfig
from harness.config.sections.doctor import DoctorConfig
from harness.config.sections.exchange import AUTO, ExchangeConfig
from harness.config.sections.launch import LaunchConfig
from harness.config.sections.model import BackboneConfig, ClassifierConfig
from harness.config.sections.optimizer import OptimizerConfig
from harness.config.sections.staleness import StalenessConfig
from harness.config.sections.trace import TraceConfig
from harness.config.sections.tracking import TrackingConfig
from harness.config.sections.train import TrainConfig
from harness.config.sections.values import MAX_SEED, PerHost
from harness.config.yaml_files import Given
from harness.errors import UserError
from harness.exchange.kinds import KINDS, Crosses

ODD_LINE_ENDS = frozenset("\x85\u2028\u2029")
"""YAML folds lines at these; PyYAML writes them unescaped unless it escapes all but ASCII."""


class Config(Section):
    """All settings of one run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_.-]+$", max_length=128)
    """Name of the variant, of its runs and of their folders."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
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
    launch: LaunchConfig = LaunchConfig()
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
    def _steps_can_be_dropped(self) -> "Config":
        if self.train.on_nonfinite == "skip" and self.exchange.is_torchs:
            raise ValueError(
                f"train.on_nonfinite=skip drops what is not sent yet, and "
                f"exchange.kind={self.exchange.kind} sends it inside torch; use "
                f"train.on_nonfinite=stop or another kind"
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

    @model_validator(mode="after")
    def _ranks_share_something(self) -> "Config":
        if reason := self.why_nothing_is_shared():
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _auto_has_a_choice(self) -> "Config":
        own = self.exchange
        if own.kind != AUTO:
            return self
        if own.backward_passes_per_step > 1 and self.train.epochs is None:
            raise ValueError(
                f"exchange.kind=auto chooses K up to exchange.backward_passes_per_step="
                f"{own.backward_passes_per_step}, and train.steps counts windows of K "
                f"micro-batches; give train.epochs instead"
            )
        if self.classifier.layout == "world" and all(KINDS[k].local_steps for k in own.kinds):
            raise ValueError(
                f"exchange.kinds={','.join(own.kinds)} lets nodes step alone, classifier.layout is "
                f"world, where a node has not all classes; add another kind"
            )
        return self

    @model_validator(mode="after")
    def _slices_have_a_pace(self) -> "Config":
        own, layout = self.exchange, self.classifier.layout
        if own.slice_pieces is not None and layout != "node":
            raise ValueError(
                f"exchange.slice_pieces={own.slice_pieces} cuts the slices that cross between "
                f"nodes, classifier.layout is {layout}; use layout=node, or leave it out"
            )
        fits = own.can_draw_rows and layout == "node" and self.classifier.sampling < 1
        if own.slice_rows == "drawn" and not fits:
            raise ValueError(
                "exchange.slice_rows=drawn sends sampled rows: it needs kind=averaging, "
                "classifier.layout=node, classifier.sampling below 1, and neither slice_pieces nor "
                "max_pieces nor an outer optimizer; use slice_rows=all"
            )
        return self

    @model_validator(mode="after")
    def _classes_can_rest(self) -> "Config":
        if reason := self.why_no_class_rests():
            raise ValueError(reason)
        return self

    def why_nothing_is_shared(self) -> str:
        """Why ranks would share no parameter, as an error says it; "" if they share some."""
        own, layout = self.backbone, self.classifier.layout
        if own.frozen != "body" or own.feature_dim or layout == "replicated":
            return ""
        return (
            f"backbone.frozen=body with backbone.feature_dim=0 leaves only classes to train, and "
            f"classifier.layout={layout} slices them; set feature_dim, or use layout=replicated"
        )

    def why_no_class_rests(self) -> str:
        """Why classes cannot be sampled with this exchange, as an error says it; "" if they can."""
        own, share = self.exchange, self.classifier.sampling
        if share == 1 or self.classifier.layout == "world":
            return ""  # slices that nobody else holds do not cross
        found = f"classifier.sampling is {share:g}"
        if own.traits.crosses is Crosses.FACTORS:
            return (
                f"exchange.kind={own.kind} sends factors of a gradient, whose product is not "
                f"0 for classes that rest, {found}; use kind=ddp or sampling=1"
            )
        if own.traits.error_feedback and own.compression != "none":
            return (
                f"exchange.compression={own.compression} sends what it leaves out of a "
                f"gradient with a later one, when the class may rest, {found}; use "
                f"compression=none, kind=averaging or layout=world"
            )
        if own.compression == "sign":
            return (
                f"exchange.compression=sign has no sign for 0, so that classes that rest would "
                f"move, {found}; use compression=int4 or sampling=1"
            )
        return ""

    def exchanging(self, **changes: Any) -> "Config":
        """The config with other settings of the exchange, which are not checked."""
        return self.model_copy(update={"exchange": self.exchange.model_copy(update=changes)})

    def with_nodes_apart(self, layout: str | None = None, passes: int | None = None) -> "Config":
        """The same run with nodes that never exchange anything, so that only compute is left.

        `layout` and `passes` (micro-batches in a window): None keeps those of this run.
        """
        exchange = {"kind": "isolated", "route": "auto", "compression": "none", "delay": 0}
        exchange |= {"pieces": 1, "slice_pieces": None, "slice_rows": "all", "max_pieces": 0}
        exchange |= {"outer_lr": 1.0, "outer_momentum": 0.0}
        exchange["backward_passes_per_step"] = passes or self.exchange.backward_passes_per_step
        classifier = {"layout": layout or self.classifier.layout}
        apart = self.exchanging(**exchange)
        return apart.model_copy(
            update={"classifier": self.classifier.model_copy(update=classifier)}
        )

    def flattened(self) -> dict[str, Any]:
        """All values by their dotted keys."""
        return dict(_leaves(self.model_dump(mode="json")))

    @classmethod
    def from_flattened(cls, values: Mapping[str, Any], source: str) -> "Config":
        """The config of such values or of their texts, recorded in this version or an earlier one.

        Raises UserError, which names `source`.
        """
        whole = Given()
        for recorded, value in values.items():
            key = present_key(recorded)
            if key is None:
                continue
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
        """The values that must be equal on all ranks of a run, by their dotted keys."""
        own = set(_per_host(Config))
        return {key: value for key, value in self.flattened().items() if key not in own}

    def to_yaml(self) -> str:
        """The text of a file that `load` and `load_resolved` read back."""
        values = _escaped(self.model_dump(mode="json"))
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        if not ODD_LINE_ENDS.isdisjoint(text):
            text = yaml.safe_dump(values, sort_keys=False)
        return text


def _per_host(model: type[Section], prefix: str = "") -> Iterator[str]:
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


def _items(text: str, place: str) -> Any:
    """The items of a list in Python's notation, in which MLflow keeps it."""
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
