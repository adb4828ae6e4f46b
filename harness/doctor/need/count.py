"""Adds up what the most loaded rank of a run takes."""

from harness.config import Config
from harness.doctor.need.at_mean import (
    estimate_bytes,
    evaluation_bytes,
    makes_estimates,
    own_on_host,
)
from harness.doctor.need.checkpoint import checkpoint_bytes, copies_bytes, saving_bytes
from harness.doctor.need.exchange import ExchangeMemory
from harness.doctor.need.exponentials import Exponentials
from harness.doctor.need.micro_batch import training_bytes
from harness.doctor.need.record import Need
from harness.doctor.need.sizes import Sizes


def need_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> Need:
    """What the most loaded rank needs on M `nodes` of G ranks.

    Raises UserError if the backbone cannot be trained with `train.batch_size` images.
    """
    sizes = Sizes(config, nodes, ranks_per_node, cards)
    estimates = makes_estimates(sizes)
    saves = config.train.saves
    return Need(
        model=sizes.model,
        exchange=ExchangeMemory(sizes).resting,
        training=training_bytes(sizes),
        evaluation=evaluation_bytes(sizes),
        estimate=estimate_bytes(sizes) if estimates else 0,
        evaluation_on_host=own_on_host(sizes),
        estimate_on_host=own_on_host(sizes) + sizes.parameters if estimates else 0,
        copies=copies_bytes(sizes) if saves else 0,
        saving=saving_bytes(sizes) if saves else 0,
        pinned=ExchangeMemory(sizes).pinned,
        images=sizes.images,
        read_ahead=sizes.images * config.data.prefetch,
        checkpoint=checkpoint_bytes(sizes),
    )


def products_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> float:
    """The classifier's matrix products per micro-batch, averaged over a window: three, or four if
    exponentials are computed twice."""
    return Exponentials(Sizes(config, nodes, ranks_per_node, cards)).products


def exponentials_of(config: Config, nodes: int, ranks_per_node: int, cards: bool = False) -> str:
    """A sentence on where the classifier's exponentials wait for its second pass."""
    return Exponentials(Sizes(config, nodes, ranks_per_node, cards)).sentence
