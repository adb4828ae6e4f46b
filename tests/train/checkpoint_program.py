"""Started by horovodrun: goes on from a checkpoint, saves another; says what each rank held."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from harness.config import Config, load
from harness.data.open import open_dataset
from harness.exchange.flat import Flat
from harness.measure.clock import clock_for
from harness.measure.traffic import Traffic
from harness.parallel.group import Meters
from harness.parallel.ranks import launched_topology
from harness.parallel.world import World, open_world
from harness.train.optimizer import Optimizer
from harness.train.step import Step, make_step
from harness.train.training import Training
from tests.alone import world_of_one
from tests.journals import Losses


class Journal(Losses):
    """Keeps warnings too."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[tuple[str, str]] = []

    def warn(self, name: str, line: str) -> None:
        self.warnings.append((name, line))


def made(config: Config, world: World) -> Step:
    return make_step(config, open_dataset(config.data), world)


def held(step: Step, world: World | None = None) -> dict[str, Tensor]:
    """All a rank holds by name: values, statistics, and the optimizer's state of each parameter.

    The state is read where it lies: on each rank of its own chunk. Collective over the node.
    """
    world = world or world_of_one()
    model = step.model
    names = {p: f"backbone.{name}" for name, p in model.backbone.named_parameters()}
    names |= {p: f"classifier.{name}" for name, p in model.classifier.named_parameters()}
    found = {f"backbone.{name}": buffer for name, buffer in model.backbone.named_buffers()}
    for flat in model.flats:
        for parameter, start, stop in flat.spans:
            found[names[parameter]] = parameter
            for key, state in states(step.optimizer, flat, world).items():
                own = state if state.dim() == 0 else laid_out(state[start:stop], parameter)
                found[f"{names[parameter]} {key}"] = own
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def laid_out(piece: Tensor, parameter: Tensor) -> Tensor:
    """In the order of its parameter, whose memory may lie channels last."""
    if parameter.dim() < 4:
        return piece.view(parameter.shape)
    filters, channels, height, width = parameter.shape
    return piece.view(filters, height, width, channels).movedim(3, 1)


def states(optimizer: Optimizer, flat: Flat, world: World) -> dict[str, Tensor]:
    views = sorted((view for view in flat.stepped if view.numel()), key=Tensor.storage_offset)
    found = {}
    for key, first in optimizer.state[views[0]].items():
        of_each = [optimizer.state[view][key].flatten() for view in views]
        if first.dim() == 0:
            found[key] = first
            continue
        own = torch.cat([*of_each, first.new_zeros(flat.owned.size)])[: flat.owned.size]
        found[key] = own if flat.owned.size == len(flat.values) else world.node.all_gather(own)
    return found


def main(experiment: str, resume: str, folder: Path) -> None:
    """Loads what one process saved, writes it down; trains, saves, and writes that down."""
    device, topology = torch.device("cpu"), launched_topology()
    meters = Meters(clock_for(device), Traffic())
    config = load(experiment, [f"train.resume={resume}", "classifier.layout=node"])
    with open_world(topology, "node", device, meters) as world:
        step = made(config, world)
        torch.save(held(step, world), folder / f"loaded-{topology.rank}.pt")
        Training(step, folder).run(Losses())
        torch.save(held(step, world), folder / f"trained-{topology.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
