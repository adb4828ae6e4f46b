"""How well a score tells pairs of one class from pairs of two: accuracy in folds, TAR at FAR.

Both kinds weigh the same in an accuracy, however many pairs of each there are: it is the mean of
the shares of each kind that are on the right side of a threshold.
"""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

FOLDS = 10
RATES = (1e-3, 1e-4)
"""False accept rates at which the true accept rate is told."""


@dataclass(frozen=True)
class Verification:
    """What pairs say of a model."""

    same: int
    """Pairs of one class."""
    different: int
    accuracy: float
    """Mean over ten folds, each at the threshold that is best on the other nine."""
    deviation: float
    """Standard deviation over the folds."""
    accept_rates: dict[float, float | None]
    """By the share of different pairs that may be accepted: the share of same pairs that then are.
    None: there are too few different pairs to tell."""


def verified(scores: Tensor, same: Tensor) -> Verification:
    """Of pairs with these scores [pairs], of which `same` [pairs] are of one class."""
    genuine, impostor = scores[same], scores[~same]
    accuracies = [_accuracy(genuine, impostor, fold) for fold in range(FOLDS)]
    return Verification(
        same=len(genuine),
        different=len(impostor),
        accuracy=fmean(accuracies),
        deviation=stdev(accuracies),
        accept_rates={rate: accepted(genuine, impostor, rate) for rate in RATES},
    )


def _accuracy(genuine: Tensor, impostor: Tensor, fold: int) -> float:
    """Accuracy on a tenth of the pairs of each kind, in their order, at the threshold of the rest.

    The usual lists alternate folds of as many pairs of either kind, so that these are their folds.
    """
    inside = [_fold(len(each)) == fold for each in (genuine, impostor)]
    threshold = best_threshold(genuine[~inside[0]], impostor[~inside[1]])
    own = genuine[inside[0]] >= threshold, impostor[inside[1]] < threshold
    return fmean(float(right.double().mean()) for right in own)


def _fold(count: int) -> Tensor:
    return torch.arange(count) * FOLDS // max(1, count)


def best_threshold(genuine: Tensor, impostor: Tensor) -> float:
    """The threshold with the best accuracy: a score from it on means the same. It lies half-way
    between two scores; of several equally good ones it is the middle one."""
    scores = torch.cat((genuine, impostor)).double()
    order = scores.argsort()
    is_genuine = (torch.arange(len(scores)) < len(genuine))[order]
    ordered = scores[order]
    # Below place n lie n scores: right are the impostors among them and the others not below. A
    # pair weighs as many as there are of the other kind: whole numbers, so that ties are exact.
    gains = torch.where(is_genuine, -len(impostor), len(genuine)).cumsum(0)
    below = torch.cat((torch.zeros(1, dtype=torch.int64), gains))
    ends = torch.cat((torch.tensor([True]), ordered[1:] > ordered[:-1], torch.tensor([True])))
    places = (below == below[ends].max()).logical_and(ends).nonzero().flatten()
    place = int(places[len(places) // 2])
    if place == 0:
        return float(ordered[0]) - 1
    if place == len(ordered):
        return float(ordered[-1]) + 1
    return float(ordered[place - 1] + ordered[place]) / 2


def accepted(genuine: Tensor, impostor: Tensor, rate: float) -> float | None:
    """The share of genuine pairs above the score that at most a share of `rate` of the impostors
    exceed; None if there are fewer impostors than 1 / rate."""
    allowed = math.floor(len(impostor) * rate + 1e-9)
    if allowed < 1:
        return None
    threshold = impostor.sort(descending=True).values[allowed]
    return float((genuine > threshold).double().mean())
