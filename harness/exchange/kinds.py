"""The kinds of exchange, and the traits of each that other modules ask for.

To add an exchange:

1. write its class in a file of this folder, by the protocol `Exchange` in exchange.py;
2. add its name to `KindName` and its traits to `KINDS` below, in the same place;
3. add a function to `MAKERS` in exchange.py that builds it;
4. add a case to tests/laws/cases.py, and the sequential program that it must equal to
   tests/laws/oracles.py, if none of those there fits.

A kind that adds a member to `Crosses` or `Path` needs its formulas too: bytes in `traffic.formula`,
memory in `need`, seconds in the planner's `Transfers`; and its largest stable rate in `stability`.

No other module compares the name of a kind: the schedule of windows, the formulas of bytes and
memory, the planner and the reports all read the traits. tests/exchange/test_kinds.py sees to that,
builds every kind of `KINDS` on real ranks, and holds each trait against what happens there.

This module imports nothing of the harness, because the config validates its settings by these
traits. That is why a kind is made in exchange.py and not here.
"""

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Literal

KindName = Literal[
    "synchronous",
    "delayed",
    "averaging",
    "slowmo",
    "isolated",
    "ddp",
    "ddp_powersgd",
    "ddp_post_local_sgd",
]


class Crosses(Enum):
    """What a rank sends to the other nodes in a window."""

    NOTHING = auto()
    GRADIENTS = auto()
    FACTORS = auto()
    """Matrices of low rank whose products approximate the gradients."""
    MOVEMENTS = auto()
    """The movement of the parameters since they were last sent."""
    VALUES = auto()
    """The parameters themselves."""


class Path(Enum):
    """Where gradients are averaged, and which rank steps which parameters."""

    BUCKETS = auto()
    """In buckets beside the backward pass, by either route; every rank steps all parameters."""
    OWNERS = auto()
    """After the backward pass: each rank of a node averages and steps the chunk that it owns, and
    sends the new values to the node's other ranks."""
    DDP = auto()
    """In the backward pass of torch's DistributedDataParallel; every rank steps all parameters."""


@dataclass(frozen=True)
class Traits:
    """What holds for every exchange of one kind, whatever its settings are."""

    path: Path
    crosses: Crosses
    late: bool = False
    """`exchange.delay` may be above 0: what a window sends is used in a later one, and is under way
    when the window ends."""
    lands_first: bool = False
    """A late exchange waits for the result that is due before it launches the next one."""
    local_steps: bool = False
    """Nodes step after every micro-batch with their own gradients, so their parameters differ."""
    error_feedback: bool = False
    """What a lossy message leaves out of a gradient is added to the next message."""
    in_pieces: bool = False
    """Takes `exchange.pieces` and the outer optimizer's settings."""
    outer_nesterov: bool = True
    """The outer optimizer's momentum is Nesterov's; else it is that of a heavy ball."""
    drawn_rows: bool = False
    """`exchange.slice_rows` may be drawn."""
    copies: int = 0
    """Tensors of the size of what a rank exchanges that are always kept, wires and the outer
    optimizer's state left out."""
    copies_of_window: int = 0
    """The same for each window that may be under way, of which there are `exchange.delay` + 1."""
    channels_last: bool = True
    """Filters may lie with their channels last, which makes convolutions faster. PowerSGD takes
    a gradient for a matrix of one row a filter, whose elements must lie together."""
    compressions: tuple[str, ...] = ("none", "fp16", "int8", "int4", "sign")
    """What `exchange.compression` may be."""
    baseline: bool = False
    """With a replicated classifier it is the usual baseline of a study."""
    on_ladder: bool = False
    """It is a rung between data parallelism and the method, where each rung adds one lever."""
    planned: bool = False
    """The planner proposes it. Planned kinds are listed in the order of the harm that they may do
    to accuracy, the least first."""

    @property
    def is_torchs(self) -> bool:
        """Everything happens in torch's DistributedDataParallel."""
        return self.path is Path.DDP

    @property
    def waits_in_backward(self) -> bool:
        """Ranks wait for each other inside the backward pass, where no clock can see it."""
        return self.path is Path.DDP

    @property
    def has_routes(self) -> bool:
        """`exchange.route` chooses between a flat ring and the way through the nodes."""
        return self.path is Path.BUCKETS

    @property
    def steps_chunks(self) -> bool:
        """Each rank steps its own chunk of what its node shares."""
        return self.path is Path.OWNERS

    @property
    def meets(self) -> bool:
        """Nodes send each other something in every window."""
        return self.crosses is not Crosses.NOTHING


AVERAGING = Traits(
    Path.OWNERS,
    Crosses.MOVEMENTS,
    late=True,
    # So that what lands is compared with this window's movement; see `Averaging._window_ended`.
    lands_first=True,
    local_steps=True,
    in_pieces=True,
    drawn_rows=True,
    copies=2,  # the values up to which it has sent, and the movement since
    on_ladder=True,
    planned=True,
)

KINDS: dict[KindName, Traits] = {
    "synchronous": Traits(
        Path.BUCKETS,
        Crosses.GRADIENTS,
        error_feedback=True,
        baseline=True,
        on_ladder=True,
        planned=True,
    ),
    "delayed": Traits(
        Path.OWNERS,
        Crosses.GRADIENTS,
        late=True,
        error_feedback=True,
        copies_of_window=1,
        planned=True,
    ),
    "averaging": AVERAGING,
    # Only its outer optimizer is another, and neither the ladder nor the planner has it.
    "slowmo": replace(
        AVERAGING, outer_nesterov=False, drawn_rows=False, on_ladder=False, planned=False
    ),
    "isolated": Traits(Path.OWNERS, Crosses.NOTHING, local_steps=True),
    "ddp": Traits(
        Path.DDP,
        Crosses.GRADIENTS,
        copies=1,  # the buckets of torch's reducer
        compressions=("none", "fp16"),
    ),
    "ddp_powersgd": Traits(
        Path.DDP,
        Crosses.FACTORS,
        error_feedback=True,
        copies=2,  # the reducer's buckets, and what the factors leave out
        channels_last=False,
        compressions=("none",),
    ),
    "ddp_post_local_sgd": Traits(
        Path.DDP, Crosses.VALUES, local_steps=True, copies=1, compressions=("none",)
    ),
}
CHOSEN = ("kind", "backward_passes_per_step", "delay", "compression", "pieces")
"""The settings that `exchange.kind=auto` chooses; a resumed run keeps them."""
PLANNED: tuple[KindName, ...] = tuple(name for name, traits in KINDS.items() if traits.planned)
