"""Chooses how nodes agree from times measured in this run, within what the user allows."""

import sys
from typing import Any

from harness.config import AUTO, Config
from harness.data.images import Dataset
from harness.exchange.kinds import CHOSEN, KINDS, PLANNED
from harness.exchange.pace import Choice, Pace, allowed, widest_first
from harness.exchange.preference import preferred
from harness.parallel.world import World
from harness.train.checkpoint.meta import resumed_meta
from harness.train.choose_pieces import TIMED_WINDOWS, WARM_WINDOWS, timed_transfer
from harness.train.trial import Trial, slowest


def choose_kind(config: Config, dataset: Dataset, world: World) -> Config:
    """The config with its exchange chosen, if `exchange.kind` is auto.

    A resumed run keeps the earlier choice. All ranks decide from the same numbers. Collective over
    the world.
    """
    if config.exchange.kind != AUTO:
        return config
    if kept := _kept(config):
        return config.exchanging(**kept)
    pace = measured(config, dataset, world)
    exchange = config.exchange
    whole = config.classifier.layout != "world"
    choice = preferred(
        allowed(
            [kind for kind in exchange.kinds if whole or not KINDS[kind].local_steps],
            exchange.backward_passes_per_step,
            exchange.delay,
            exchange.compression,
            pace,
        ),
        pace.rate,
    )
    if world.is_first:
        print(reason(choice, pace), file=sys.stderr, flush=True)
    return config.exchanging(**settings(choice))


def settings(choice: Choice) -> dict[str, Any]:
    """The settings of the exchange that a choice makes."""
    chosen = choice.kind, choice.passes, choice.delay, choice.compression, choice.pieces
    return dict(zip(CHOSEN, chosen, strict=True)) | {"kinds": PLANNED}


def reason(choice: Choice, pace: Pace) -> str:
    """One line: the choice, and the times that it follows from."""
    sent = ", ".join(f"{wire} {ms:.0f}" for wire, ms in pace.transfer_ms.items())
    return (
        f"exchange.kind=auto takes {choice.text}: a micro-batch takes {pace.compute_ms:.0f} ms, "
        f"{pace.waiting_ms:.0f} ms if nodes wait; sending takes ms: {sent}; expected window "
        f"{pace.window_ms(choice):.0f} ms"
    )


def measured(config: Config, dataset: Dataset, world: World) -> Pace:
    """Times a few windows in which nodes are apart, a few in which they wait, and transfers.

    Collective over the world.
    """
    wires = widest_first(config.exchange.compression)
    apart = Trial(config.with_nodes_apart(passes=1), dataset, world)
    apart.window_ms(WARM_WINDOWS)
    compute = apart.window_ms(TIMED_WINDOWS)
    exchanges = [config.exchange.model_copy(update={"compression": wire}) for wire in wires]
    sent = [timed_transfer(each, apart, world) for each in exchanges]
    on_time = []
    if config.exchange.by_horovod:  # what waits goes through torch.distributed
        direct = [each.model_copy(update={"delay": 0}) for each in exchanges]
        on_time = [timed_transfer(each, apart, world).ms for each in direct]
    apart.close()
    plain = config.exchanging(
        kind="synchronous", backward_passes_per_step=1, delay=0, compression="none"
    )
    waiting = Trial(plain, dataset, world)
    waiting.window_ms(WARM_WINDOWS)
    waited = waiting.window_ms(TIMED_WINDOWS)
    waiting.close()
    compute, waited = slowest([compute, waited], world)
    late, encode, direct_ms = (
        dict(zip(wires, slowest(times, world), strict=True)) if times else {}
        for times in ([each.ms for each in sent], [each.encode_ms for each in sent], on_time)
    )
    return Pace(compute, late, waited, direct_ms, encode)


def _kept(config: Config) -> dict[str, Any]:
    """The choice of the run that wrote the checkpoint; {} if it made none."""
    meta = resumed_meta(config)
    values = meta.origin.config if meta and meta.origin else {}
    found = {key: values.get(f"exchange.{key}") for key in CHOSEN}
    return found | {"kinds": PLANNED} if found["kind"] in config.exchange.kinds else {}
