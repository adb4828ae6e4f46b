"""Accuracy and loss on validation sets: images spread over ranks, logits over slices."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from harness.data.images import Dataset
from harness.data.loader import evaluation_batches
from harness.measure.phase import Phase
from harness.model.backbone import Backbone
from harness.model.network import Network
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import World

Batch = tuple[Tensor, Tensor, Tensor]
"""Images [B, channels, height, width], labels [B], valid [B]; padding is not valid."""
MET_AT_ONCE = 4
"""Batches whose features the slice group gathers in one collective, to wait less on a slow link."""

NONFINITE = "nonfinite_images"


@torch.no_grad()
def evaluate(
    backbone: nn.Module, classifier: SlicedClassifier, batches: Iterable[Batch], world: World
) -> dict[str, float]:
    """`top1`, `top5` and `loss` over the valid images of all ranks.

    An image with a logit that is not finite counts as a miss for every class; if there are any,
    `nonfinite_images` is their number and the loss is not finite either. Every rank must bring the
    same number of batches, of equal size except the last. A batch of the training's size takes no
    more memory than a micro-batch of all classes does. Collective over the world.
    """
    backbone.eval()
    sums = torch.zeros(5, dtype=torch.float64, device=world.device)
    seen = ((backbone(images), labels, valid) for images, labels, valid in batches)
    while few := list(islice(seen, MET_AT_ONCE)):
        features, labels, valid = (torch.cat(parts) for parts in zip(*few, strict=True))
        # Without a group to wait for, no phase of the clock begins: the launcher would take a long
        # evaluation for a rank that does not move.
        world.meters.pulse.show(Phase.OTHER)
        classes, losses = classifier.predict(features, labels)
        hits = (classes == labels[:, None]) & valid[:, None]
        sums += torch.stack(
            (
                hits[:, 0].sum(),
                hits.sum(),
                losses.double().where(valid, 0.0).sum(),
                valid.sum(),
                ((classes[:, 0] < 0) & valid).sum(),
            )
        )
    backbone.train()
    rows = world.launch_gather(sums.cpu(), "evaluation").wait()
    top1, top5, loss, images_seen, nonfinite = rows.sum(0)
    found = {
        "top1": float(top1 / images_seen),
        "top5": float(top5 / images_seen),
        "loss": float(loss / images_seen),
    }
    return found | ({NONFINITE: float(nonfinite)} if nonfinite else {})


def evaluate_sets(
    network: Network,
    data: Dataset,
    world: World,
    dtype: torch.dtype,
    batch_size: int,
    limit: int,
    prefetch: int,
) -> dict[str, float]:
    """Metrics `val/<set>/...` of each set and `val/...` of the first; images are cast to `dtype`.

    `limit` is the number of images of each set; 0 takes all. Collective over the world.
    """
    metrics: dict[str, float] = {}
    topology = world.topology
    for number, (name, source) in enumerate(data.validation.items()):
        batches = evaluation_batches(
            source,
            rank=topology.rank,
            world_size=topology.world_size,
            batch_size=batch_size,
            device=world.device,
            limit=limit,
            prefetch=prefetch if data.decodes else 0,
            levels=data.levels,
        )
        cast = ((images.to(dtype), labels, valid) for images, labels, valid in batches)
        found = evaluate(network.backbone, network.classifier, cast, world)
        metrics |= {f"val/{name}/{key}": value for key, value in found.items()}
        if number == 0:
            metrics |= {f"val/{key}": value for key, value in found.items()}
    return metrics


def distance(squares: Tensor | None, world: World) -> dict[str, float]:
    """Distance of the nodes from their mean, as a share of its norm.

    `squares` is what `Exchange.at_mean` yields on each rank. Collective over the world.
    """
    if squares is None:
        return {}
    apart, mean = world.launch_gather(squares.cpu(), "distance").wait().sum(0)
    return {"exchange/distance": float((apart / mean).sqrt())}


def nonfinite_images(name: str, count: int, ended: int) -> str:
    """One line on the images of a validation set that have a logit that is not finite."""
    return (
        f"after {ended} windows {count} images of {name} have a logit that is not finite; they "
        f"count as misses, and the loss of {name} is not finite"
    )


@contextmanager
def averaged_statistics(backbone: Backbone, world: World) -> Iterator[None]:
    """Inside the block all ranks hold the mean of their batch-norm statistics; afterwards their own
    again, to the bit. Collective over the world."""
    own = [statistic.clone() for statistic in backbone.statistics]
    average_statistics(backbone, world)
    yield
    for buffer, before in zip(backbone.statistics, own, strict=True):
        buffer.copy_(before)


def average_statistics(backbone: Backbone, world: World) -> None:
    """Averages batch-norm statistics over ranks, in place. Collective over the world."""
    statistics = backbone.statistics
    if not statistics:
        return
    flat = torch.cat([buffer.flatten() for buffer in statistics])
    mean = world.average(flat)
    for buffer, values in zip(
        statistics, mean.split([buffer.numel() for buffer in statistics]), strict=True
    ):
        buffer.copy_(values.view_as(buffer))
