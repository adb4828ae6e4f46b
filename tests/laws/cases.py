"""The cases that the laws are shown on."""

from dataclasses import dataclass, replace

from harness.config import Config
from tests.laws.task import WINDOWS, config


@dataclass(frozen=True)
class Case:
    layout: str
    kind: str
    passes: int
    delay: int
    route: str = "auto"
    changes: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        parts = [self.layout, self.kind, f"K{self.passes}", f"d{self.delay}", self.route]
        parts += [f"{key}={value}" for key, value in self.changes]
        return "-".join(parts)

    @property
    def near(self) -> bool:
        """Its sequential program leaves something out: it is near that, not equal."""
        changed = dict(self.changes)
        return "exchange__compression" in changed or changed.get("exchange__powersgd_rank") == 1

    @property
    def is_horovods(self) -> bool:
        """Horovod's own optimizer does the same."""
        changed = {key.partition("_")[0] for key, _ in self.changes}
        ours = "backbone" in changed or "classifier__sampling" in dict(self.changes)
        return (self.layout, self.kind) == ("replicated", "synchronous") and not ours

    def without_delay(self) -> "Case":
        return replace(self, delay=0)

    def config(self) -> Config:
        return config(
            self.layout, self.kind, self.passes, self.delay, self.route, **dict(self.changes)
        )


LAYOUTS = ("replicated", "node", "world")
PLAIN = (("optimizer__momentum", 0.0), ("optimizer__nesterov", False))

SYNCHRONOUS = [
    Case(layout, "synchronous", passes, 0, route)
    for layout in LAYOUTS
    for passes in (1, 4)
    for route in ("flat", "hierarchical")
]
DELAYED = [
    Case(layout, "delayed", passes, delay)
    for layout in LAYOUTS
    for passes, delay in ((1, 0), (1, 1), (2, 1), (1, 2))
]
AVERAGING = [
    Case(layout, "averaging", passes, delay)
    for layout in ("replicated", "node")
    for passes, delay in ((1, 0), (2, 0), (2, 1), (3, 2))
]
LATER_LATE = [
    Case("node", kind, 1, 1, changes=(("exchange__synchronous_windows", 2),))
    for kind in ("delayed", "averaging")
]
AVERAGING_IS_SYNCHRONOUS = [
    Case("node", kind, 1, 0, changes=PLAIN) for kind in ("averaging", "synchronous")
]
OUTER = [
    Case(
        "node",
        "averaging",
        2,
        delay,
        changes=(("exchange__outer_momentum", 0.9), ("exchange__outer_lr", 0.7)),
    )
    for delay in (0, 1)
]
SLOW_MOMENTUM = [
    Case(
        "node",
        "slowmo",
        2,
        delay,
        changes=(("exchange__outer_momentum", 0.6), ("exchange__outer_lr", 0.9)),
    )
    for delay in (0, 1)
]
TORCHS = [
    # Its averager counts from the first step: with K = 1 its windows are ours.
    Case("replicated", "ddp_post_local_sgd", 1, 0),
    Case("replicated", "ddp", 1, 0),
    Case("replicated", "ddp", 1, 0, changes=(("exchange__bucket_mb", 0.01),)),
    Case("replicated", "ddp", 1, 0, changes=(("exchange__compression", "fp16"),)),
    Case("replicated", "ddp_powersgd", 1, 0, changes=(("exchange__powersgd_rank", 1000),)),
    Case("replicated", "ddp_powersgd", 1, 0, changes=(("exchange__powersgd_rank", 1),)),
]
SMOOTHED = [
    Case(layout, kind, passes, delay, changes=(("classifier__label_smoothing", 0.2),))
    for layout, kind, passes, delay in (
        ("replicated", "synchronous", 1, 0),
        ("node", "averaging", 2, 1),
        ("world", "delayed", 1, 1),
    )
]
ALONE = [Case("node", "isolated", 2, 0)]


def sampled(share: float, *changes: tuple[str, object]) -> tuple[tuple[str, object], ...]:
    return (("classifier__sampling", share), *changes)


SAMPLED = [
    Case(layout, kind, passes, delay, route, sampled(share))
    for share, passes in ((0.4, 2), (0.7, 1))
    for layout, kind, delay, route in (
        ("replicated", "synchronous", 0, "flat"),
        ("node", "synchronous", 0, "hierarchical"),
        ("world", "synchronous", 0, "flat"),
        ("replicated", "delayed", 1, "auto"),
        ("node", "delayed", 2, "auto"),
        ("world", "delayed", 1, "auto"),
        ("replicated", "averaging", 1, "auto"),
        ("node", "averaging", 2, "auto"),
        ("node", "isolated", 0, "auto"),
    )
] + [
    Case("node", "slowmo", 2, 1, changes=sampled(0.4, ("exchange__outer_momentum", 0.6))),
    Case("node", "delayed", 2, 1, changes=sampled(0.4, ("exchange__synchronous_windows", 2))),
    Case("replicated", "ddp", 1, 0, changes=sampled(0.4)),
    Case("replicated", "ddp_post_local_sgd", 1, 0, changes=sampled(0.4)),
    Case("node", "averaging", 2, 1, changes=sampled(0.4, ("classifier__label_smoothing", 0.2))),
    Case("world", "synchronous", 1, 0, changes=sampled(0.4, ("classifier__label_smoothing", 0.2))),
    Case("node", "synchronous", 1, 0, changes=sampled(0.4, *PLAIN)),
]
"""Of 13 classes; slices have more positives than their share in some micro-batches."""
SAMPLED_LOSSY = [
    Case(layout, kind, 1, delay, changes=sampled(0.4, ("exchange__compression", wire)))
    for layout, kind, delay, wire in (
        ("node", "averaging", 1, "fp16"),
        ("node", "averaging", 2, "int8"),
        ("world", "delayed", 1, "int8"),
        ("world", "synchronous", 0, "int4"),
    )
]
IN_PIECES = [
    Case("node", "averaging", 1, 1, changes=(("exchange__pieces", 2),)),
    Case("replicated", "averaging", 2, 2, changes=(("exchange__pieces", 2),)),
]


def timed(windows: int) -> tuple[str, object]:
    """Counts so many windows, so that of so many pieces each is sent equally often."""
    return "train__untimed_windows", WINDOWS - windows


AT_ITS_PACE = [
    Case(
        "node",
        kind,
        passes,
        delay,
        changes=(("exchange__pieces", pieces), ("exchange__slice_pieces", of_slice), *changes),
    )
    for kind, passes, delay, pieces, of_slice, changes in (
        ("averaging", 2, 1, 1, 2, ()),
        ("averaging", 1, 3, 2, 1, ()),
        ("averaging", 1, 0, 2, 3, (timed(6),)),
        ("averaging", 1, 2, 1, 2, (("exchange__synchronous_windows", 2),)),
        ("averaging", 1, 1, 1, 3, (timed(3), ("classifier__sampling", 0.4))),
        ("slowmo", 1, 1, 1, 2, (("exchange__outer_momentum", 0.6),)),
        ("averaging", 1, 1, 1, 2, (("exchange__compression", "int8"),)),
    )
]
"""The backbone's chunk and the slice are cut differently."""
DRAWN = [
    Case(
        "node",
        "averaging",
        passes,
        delay,
        changes=sampled(share, ("exchange__slice_rows", "drawn"), *changes),
    )
    for share, passes, delay, changes in (
        (0.4, 1, 1, ()),
        (0.2, 2, 2, ()),
        (0.4, 1, 0, (("exchange__pieces", 2),)),
        (0.4, 2, 1, ()),  # all rows of one of the slices
        (0.4, 1, 1, (("exchange__compression", "int8"),)),
    )
]
"""Of the slices, only rows that were drawn are sent."""
LOSSY = [
    Case(layout, kind, passes, delay, changes=(("exchange__compression", compression),))
    for layout, kind, passes, delay, compression in (
        ("node", "delayed", 1, 1, "fp16"),
        ("node", "delayed", 1, 1, "int8"),
        ("world", "delayed", 1, 1, "int8"),
        ("node", "averaging", 2, 1, "fp16"),
        ("node", "averaging", 2, 1, "int8"),
        ("node", "averaging", 1, 2, "int4"),
        ("replicated", "averaging", 1, 0, "int4"),
    )
]
LATE_BY_TORCH = [
    Case(layout, kind, passes, delay, changes=(("exchange__carrier", "torch"), *changes))
    for layout, kind, passes, delay, changes in (
        ("node", "averaging", 2, 1, ()),
        ("node", "averaging", 1, 2, (("exchange__compression", "int8"),)),
        ("replicated", "delayed", 1, 2, ()),
        ("world", "delayed", 2, 1, (("exchange__compression", "int4"),)),
    )
]
"""Late results that torch.distributed carries."""
LOSSY_ON_TIME = [
    Case(layout, "synchronous", 1, 0, route, (("exchange__compression", compression),))
    for layout in LAYOUTS
    for route in ("flat", "hierarchical")
    for compression in ("fp16", "int8", "int4")
] + [Case("replicated", "synchronous", 2, 0, "hierarchical", (("exchange__compression", "fp16"),))]
IN_BUCKETS = [
    Case(layout, "synchronous", 2, 0, route, (("exchange__bucket_mb", 0.01),))
    for layout in LAYOUTS
    for route in ("flat", "hierarchical")
]
"""Several buckets, of sizes that a node's ranks cannot share evenly."""
FROZEN, SLOWER = (("backbone__frozen", "body"),), (("backbone__lr_factor", 0.3),)
PRETRAINED = [
    Case("replicated", "synchronous", 1, 0, "hierarchical", FROZEN),
    Case("node", "averaging", 2, 1, changes=FROZEN),
    Case("world", "delayed", 1, 1, changes=FROZEN),
    Case("replicated", "ddp", 1, 0, changes=FROZEN),
    Case("replicated", "ddp_post_local_sgd", 1, 0, changes=FROZEN),
    Case("replicated", "synchronous", 2, 0, "flat", SLOWER),
    Case("node", "delayed", 1, 1, changes=SLOWER),
    Case("node", "averaging", 2, 1, changes=SLOWER),
]
"""The body begins with a file's weights, but for its first filters where it is slower."""
EVERY_CASE = (
    SYNCHRONOUS
    + DELAYED
    + AVERAGING
    + LATER_LATE
    + AVERAGING_IS_SYNCHRONOUS
    + OUTER
    + SLOW_MOMENTUM
    + TORCHS
    + SMOOTHED
    + ALONE
    + SAMPLED
    + SAMPLED_LOSSY
    + IN_PIECES
    + AT_ITS_PACE
    + DRAWN
    + LOSSY
    + LATE_BY_TORCH
    + LOSSY_ON_TIME
    + IN_BUCKETS
    + PRETRAINED
)


def cases_for(ranks: int) -> list[Case]:
    """All of them on the full grid; on a row or a column of ranks those that differ there."""
    if ranks > 2:
        return EVERY_CASE
    return [case for case in SYNCHRONOUS if case.passes == 1] + [
        Case("node", "delayed", 2, 1),
        Case("node", "averaging", 2, 1),
    ]


WATCHED = [
    Case("node", "delayed", 2, 1),
    Case("node", "averaging", 2, 1),
    Case("node", "isolated", 2, 0),
    Case("replicated", "ddp_post_local_sgd", 1, 0),
    SAMPLED[4],
    SAMPLED[7],
    SAMPLED[8],
]
"""Trained once more, with evaluations in between."""
