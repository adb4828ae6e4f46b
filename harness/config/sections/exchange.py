"""Section `exchange`: how nodes agree on the parameters, and what crosses between them."""

from typing import Literal

from pydantic import Field, model_validator

from harness.config.section import Section
from harness.config.sections.values import MAX_COUNT
from harness.errors import UserError
from harness.exchange.kinds import KINDS, PLANNED, KindName, Traits

AUTO: Literal["auto"] = "auto"
CHOOSABLE = Literal["synchronous", "delayed", "averaging"]
"""Kinds that `auto` may become: those that the planner proposes."""
BUCKET_MB, TORCHS_BUCKET_MB = 4.0, 25.0
"""Default size of a bucket of gradients, MB: ours, and that of DistributedDataParallel."""


class ExchangeConfig(Section):
    kind: Literal[KindName, "auto"] = "synchronous"
    """How nodes agree. auto: one of `kinds`, chosen by times measured before training, with K,
    delay and compression up to those given here. isolated: only for evaluations, which gives the
    highest possible speed. slowmo: averaging whose outer optimizer has slow momentum, a heavy
    ball's, not Nesterov's. ddp, ddp_...: torch's own DistributedDataParallel, plain (with
    compression=fp16: with its hook for that), with its PowerSGD hook, or with its post-local
    SGD."""
    kinds: tuple[CHOOSABLE, ...] = ("synchronous", "delayed", "averaging")
    """auto: the kinds that it may become."""
    backward_passes_per_step: int = Field(default=1, ge=1, le=10**6)
    """K: micro-batches in a window, which is what one exchange covers."""
    delay: int = Field(default=0, ge=0, le=1000)
    """Windows until the result of an exchange is used; 0 waits for it at once."""
    carrier: Literal["horovod", "torch"] = "horovod"
    """What carries late results between nodes. horovod: its ranks agree in the background on what
    to send, which takes several trips over the link. torch: a process group of torch.distributed,
    which sends at once. A result that is waited for (delay=0) goes through torch.distributed."""
    synchronous_windows: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Number of first windows that wait for their exchange at once, whatever `delay` is."""
    route: Literal["auto", "flat", "hierarchical"] = "auto"
    """synchronous: how buckets of gradients are averaged during the backward pass. flat: over all
    ranks at once. hierarchical: reduced in the node, averaged between nodes by the ranks that hold
    the same share, and gathered in the node. auto: the faster of both, measured before training."""
    bucket_mb: float | None = Field(default=None, gt=0, le=10**6)
    """synchronous, ddp, ddp_...: size of a bucket of gradients, MB. null: 4, and for ddp and
    ddp_... torch's default of 25."""
    compression: Literal["none", "fp16", "int8", "int4", "sign"] = "none"
    """Encoding of what crosses between nodes; rounding errors are sent with the next window.
    fp16, int8, int4: 1,024 values share a scale; int8 rounds to -127..127 times the scale, int4 to
    -7..7 times, sign to its sign. Sums have the precision of the parameters at any node count."""
    powersgd_rank: int = Field(default=4, ge=1, le=10**6)
    """ddp_powersgd: rank of the matrices that approximate a gradient."""
    pieces: int = Field(default=1, ge=1, le=10_000)
    """averaging, slowmo: number of pieces of the parameters; each window sends one, in turn."""
    slice_pieces: int | None = Field(default=None, ge=1, le=10_000)
    """averaging, slowmo: number of pieces of the slices of layout=node, if they are to have a pace
    of their own: `pieces` are then those of the rest. null: `pieces` cuts both alike."""
    slice_rows: Literal["all", "drawn"] = "all"
    """averaging with classifier.sampling: rows of the slices of layout=node that cross. drawn: in
    each window those that were drawn for its micro-batches; a row that moved only because an image
    has its class waits until it is drawn. all: all rows, in pieces."""
    max_pieces: int = Field(default=0, ge=0, le=10_000)
    """averaging, slowmo: chooses `pieces`, up to this number, by times measured before training; 0:
    as given."""
    outer_lr: float = Field(default=1.0, gt=0, le=10**6)
    """averaging, slowmo: factor on the mean movement of the nodes (DiLoCo: 0.7)."""
    outer_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum on the mean movement of the nodes. averaging: Nesterov's (DiLoCo: 0.9). slowmo: a
    heavy ball's."""

    @property
    def traits(self) -> Traits:
        """What holds for every exchange of this kind; for `auto`, before it is chosen, what holds
        for a late one, which fits every layout."""
        return KINDS["delayed" if self.kind == AUTO else self.kind]

    @property
    def chosen_kind(self) -> KindName:
        """The kind. Raises UserError for `auto`, which nothing is known of before a run."""
        if self.kind == AUTO:
            raise UserError(
                "exchange.kind=auto is chosen by times that are measured when a run begins; name a "
                "kind here"
            )
        return self.kind

    @property
    def by_horovod(self) -> bool:
        """Whether Horovod carries what crosses between nodes."""
        return self.delay > 0 and self.carrier == "horovod"

    @property
    def carried_by(self) -> str:
        """The library that carries what crosses between nodes: `carrier` is for late results."""
        return "horovod" if self.by_horovod else "torch"

    @property
    def is_torchs(self) -> bool:
        """Whether the whole exchange happens in torch's DistributedDataParallel."""
        return self.traits.is_torchs

    @property
    def slice_pace(self) -> int | None:
        """Number of pieces of the slices if it is not that of the rest, so that they are sent in
        messages of their own; None if one message has a piece of both."""
        return None if self.slice_pieces == self.pieces else self.slice_pieces

    @property
    def slices_apart(self) -> bool:
        """Whether slices are sent in messages of their own."""
        return self.slice_pace is not None or self.slice_rows == "drawn"

    @property
    def can_draw_rows(self) -> bool:
        """Whether these settings of the exchange allow `slice_rows=drawn`."""
        alike = (self.slice_pieces, self.has_outer, self.max_pieces) == (None, False, 0)
        return self.traits.drawn_rows and alike

    @property
    def has_outer(self) -> bool:
        """Whether an outer optimizer changes the mean movement of the nodes before it is used."""
        return (self.outer_lr, self.outer_momentum) != (1.0, 0.0)

    @property
    def bucket_bytes(self) -> float:
        """Size of a bucket of gradients."""
        return 1e6 * (self.bucket_mb or (TORCHS_BUCKET_MB if self.is_torchs else BUCKET_MB))

    @model_validator(mode="after")
    def _kinds_belong_to_auto(self) -> "ExchangeConfig":
        if self.kind == AUTO and not self.kinds:
            raise ValueError(
                "exchange.kind=auto chooses among exchange.kinds, found none; name some"
            )
        if self.kind != AUTO and self.kinds != PLANNED:
            raise ValueError(
                f"exchange.kinds belongs to kind=auto, exchange.kind is {self.kind}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _delay_fits_kind(self) -> "ExchangeConfig":
        traits = self.traits
        # Config has one message for everything that torch's own kinds cannot do.
        if self.delay and traits.meets and not (traits.late or traits.is_torchs):
            raise ValueError(
                f"exchange.kind={self.kind} uses its result at once, exchange.delay is "
                f"{self.delay}; set delay=0 or kind=delayed"
            )
        return self

    @model_validator(mode="after")
    def _route_fits_kind(self) -> "ExchangeConfig":
        if self.route == "flat" and not self.traits.has_routes:
            raise ValueError(
                f"exchange.route=flat belongs to kind=synchronous, exchange.kind is {self.kind}; "
                f"use route=auto"
            )
        return self

    @model_validator(mode="after")
    def _pieces_fit_kind(self) -> "ExchangeConfig":
        cut = (self.pieces, self.slice_pieces, self.max_pieces) != (1, None, 0)
        averages = cut or self.has_outer
        if averages and not self.traits.in_pieces:
            own = " or ".join(name for name, each in KINDS.items() if each.in_pieces)
            raise ValueError(
                f"exchange.pieces, slice_pieces, max_pieces, outer_lr and outer_momentum belong to "
                f"kind={own}, exchange.kind is {self.kind}; leave them out"
            )
        return self
