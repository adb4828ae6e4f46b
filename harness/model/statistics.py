"""Softmax statistics over all slices, from those that each rank has of its own.

a = max over slices of the row's max; S = sum over slices of sum exp(z - a); t = the target's logit,
on exactly one slice; loss = a + log S - t.

The loss is correct for any a. So a slice whose largest logit belongs to a class below the target
reports the next larger number as its max: then t >= a means that no lower class ties with the
target, however the classes are sliced, without a further collective.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.measure.traffic import gathers_statistics
from harness.parallel.group import Group


@dataclass(frozen=True)
class Statistics:
    """Softmax statistics of n images over all slices."""

    max: Tensor
    """a."""
    sum: Tensor
    """S."""
    losses: Tensor
    hits: Tensor
    """Whether the target has the largest logit, the lowest class winning ties. False if the image's
    loss is not finite."""

    def shares(self, shift_n: Tensor) -> Tensor:
        """The factors that turn exp(z - shift) into the softmax. Exact for logits of any size,
        unlike a + log S, where a large a leaves no digits for log S."""
        return (shift_n - self.max).exp() / self.sum


def over_slices(
    max_n: Tensor, sum_n: Tensor, target_n: Tensor, group: Group, pull_n: Tensor | None = None
) -> Statistics:
    """Combines each slice's statistics, given by `raised`. Collective over the slice group.

    `pull_n` is what the loss subtracts from a + log S, if that is not t.
    """
    added = [target_n] if pull_n is None else [target_n, pull_n]
    if group.size > 1:
        meet = _gathered if gathers_statistics(group.size) else _added_up
        max_n, sum_n, *added = meet(max_n, sum_n, added, group)
    target_n = added[0]
    losses_n = loss(max_n, sum_n, added[-1])
    hits_n = (target_n >= max_n) & losses_n.isfinite()
    return Statistics(max_n, sum_n, losses_n, hits_n)


def raised(
    max_n: Tensor, best_n: Tensor, sum_n: Tensor, targets_n: Tensor
) -> tuple[Tensor, Tensor]:
    """A slice's largest logits, raised to the next larger number if a class below the target has
    it, and its sums of exp(z - that). `best_n` and `targets_n` count from the slice's first
    class."""
    above_n = torch.nextafter(max_n, torch.full_like(max_n, torch.inf))
    raised_n = above_n.where(best_n < targets_n, max_n)
    return raised_n, sum_n * (max_n - raised_n).exp()


def loss(max_n: Tensor, sum_n: Tensor, target_n: Tensor) -> Tensor:
    return (max_n - target_n) + sum_n.log()


def combined(max_gn: Tensor, sum_gn: Tensor, *added_gn: Tensor) -> tuple[Tensor, ...]:
    """a, S and the sums of the added rows (t first) of n images, from those of g slices."""
    max_n = max_gn.max(dim=0).values
    sum_n = (sum_gn * (max_gn - max_n).exp()).sum(dim=0)
    return max_n, sum_n, *(each_gn.sum(dim=0) for each_gn in added_gn)


def _gathered(
    max_n: Tensor, sum_n: Tensor, added: list[Tensor], group: Group
) -> tuple[Tensor, ...]:
    """Combines in one collective: each rank sends its numbers to every other."""
    own = torch.stack((max_n, sum_n, *added))
    return combined(*group.all_gather(own[None]).unbind(1))


def _added_up(
    max_n: Tensor, sum_n: Tensor, added: list[Tensor], group: Group
) -> tuple[Tensor, ...]:
    """Combines in two collectives: each rank sends twice its numbers, however many ranks there
    are."""
    over_all_n = group.maximum(max_n.clone())
    own = torch.stack((sum_n * (max_n - over_all_n).exp(), *added))
    return over_all_n, *group.launch_sum(own).wait()
