"""A world of one rank, which needs neither Horovod nor torch.distributed to be started."""

import torch

from harness.measure.clock import clock_for
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.parallel.group import Group, Meters
from harness.parallel.world import World

CPU = torch.device("cpu")


def meters() -> Meters:
    return Meters(clock_for(CPU), Traffic())


def group_of_one(counted: Meters | None = None) -> Group:
    return Group((0,), 0, 1, None, counted or meters(), Phase.SLICE_WAIT)


def world_of_one(counted: Meters | None = None) -> World:
    """Serves every layout: they are one and the same on a single rank."""
    counted = counted or meters()
    return World.alone(CPU, counted, group_of_one(counted))
