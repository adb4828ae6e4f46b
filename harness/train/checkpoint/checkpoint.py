"""Saves and loads a model with everything that its training needs to continue."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from harness.errors import UserError, one_line
from harness.exchange.carried import Strip
from harness.exchange.flat import Flat
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import World
from harness.train.checkpoint.files import BACKBONE, Rows, Whole, slice_file
from harness.train.checkpoint.meta import Meta
from harness.train.checkpoint.places import Places
from harness.train.checkpoint.states import (
    copy,
    fill,
    gathered,
    of_module,
    on_host,
    optimizer_strips,
)
from harness.train.checkpoint.writing import reason
from harness.train.optimizer import Optimizer

EXCHANGE = "exchange."
"""Prefix of the states of an exchange; a run with another exchange ignores them."""


class Checkpoint:
    """Saves and loads a drained model, its optimizer's state and the state of its exchange.

    In each folder one rank writes each slice that ranks there own, as
    `classifier-<start>-<stop>.safetensors`, so any other slicing can read the rows that it needs;
    states are stored beside their parameters. All nodes must hold equal values and states by then:
    see `Exchange.agree_on`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: SlicedClassifier,
        flats: tuple[Flat, Flat],
        optimizer: Optimizer,
        world: World,
    ) -> None:
        self._backbone = backbone
        self._classifier = classifier
        self._flats = flats
        self._optimizer = optimizer
        self._world = world

    def copies(self, places: Places, carried: Sequence[Strip] = ()) -> dict[str, dict[str, Tensor]]:
        """Copies of all that this rank writes, by file and name, which training does not change.
        Collective over the world."""
        modules = self._written_here(places)
        found = {name: _values(module) for name, module in modules.items()}
        strips = [*optimizer_strips(self._optimizer, self._flats), *carried]
        nodes = places.leading_nodes(self._world.topology)
        for state in gathered(strips, self._flats, self._world, nodes):
            for name, module in modules.items():
                found[name] |= of_module(module, state)
        return found

    def _written_here(self, places: Places) -> dict[str, nn.Module]:
        """What this rank writes, by the name of the file."""
        rank, owners = self._world.topology.rank, self._world.slices.size
        found: dict[str, nn.Module] = {}
        if places.leads(rank):
            found[BACKBONE] = self._backbone
        if places.writes_slice(rank, owners):
            found[slice_file(self._classifier.owned)] = self._classifier
        return found

    def load(self, folder: Path, meta: Meta) -> None:
        """Reads this rank's part. Raises UserError if a file is bad or does not fit."""
        with _fitting(folder):
            stored = self._stored(folder, meta)
            for name, target, found in stored.values():
                copy(found, target, name)
            self._make_states()
            strips = optimizer_strips(self._optimizer, self._flats)
            for strip in strips:
                fill(strip, stored.needed)
            known = product(stored.parameters, {strip.key for strip in strips})
            if left := [name for name in stored.others(known) if not name.startswith(EXCHANGE)]:
                raise ValueError(f"it also contains {min(left)}")

    def load_carried(self, folder: Path, meta: Meta, carried: Sequence[Strip]) -> list[str]:
        """Fills the state of an exchange with what the checkpoint has of it; returns the names that
        it has no use for. Raises UserError if a file is bad or does not fit."""
        with _fitting(folder):
            stored = self._stored(folder, meta)
            for strip in carried:
                fill(strip, stored.known)
            filled = [strip for strip in carried if strip.start < strip.stop]
            others = stored.others(
                (parameter, strip.key) for strip in filled for parameter, *_ in strip.flat.spans
            )
        left = [name.split(".")[:2] for name in others if name.startswith(EXCHANGE)]
        return sorted({".".join(parts) for parts in left})

    def _stored(self, folder: Path, meta: Meta) -> "_Stored":
        rows = Rows(folder, meta.names_in(folder), self._classifier.owned)
        files = (Whole(folder / BACKBONE), self._backbone), (rows, self._classifier)
        return _Stored(files)

    def _make_states(self) -> None:
        """Makes the optimizer create its state, by a step with lr 0 and zero gradients."""
        if self._optimizer.state:
            return
        rates = [group["lr"] for group in self._optimizer.param_groups]
        for flat in self._flats:
            flat.grads.zero_()
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0
        self._optimizer.step()
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class _Stored:
    """The files of a checkpoint and the parameters that each of them holds."""

    def __init__(self, files: Sequence[tuple[Whole | Rows, nn.Module]]) -> None:
        self._files = files
        self._place = {
            parameter: (file, name)
            for file, module in files
            for name, parameter in module.named_parameters()
        }

    def values(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each parameter and buffer: its name, the tensor, and its stored value."""
        for file, module in self._files:
            for name, target in (*module.named_buffers(), *module.named_parameters()):
                yield name, target, file.read(name)

    def needed(self, parameter: nn.Parameter, key: str) -> Tensor:
        """The stored state of a parameter. Raises SafetensorError if there is none."""
        file, name = self._place[parameter]
        return file.read(f"{key}.{name}")

    def known(self, parameter: nn.Parameter, key: str) -> Tensor | None:
        """The stored state of a parameter; None if there is none."""
        file, name = self._place[parameter]
        return self.needed(parameter, key) if f"{key}.{name}" in file.names else None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self._place)

    def others(self, states: Iterable[tuple[nn.Parameter, str]]) -> list[str]:
        """Names of stored tensors that are neither values nor these states of parameters."""
        known = {
            file: {name for name, _ in (*module.named_buffers(), *module.named_parameters())}
            for file, module in self._files
        }
        for parameter, key in states:
            file, name = self._place[parameter]
            known[file].add(f"{key}.{name}")
        return [name for file, names in known.items() for name in file.names - names]


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Reports in one line whatever is wrong with files that others may have made or damaged."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the checkpoint {folder} cannot be read ({reason(error)}); fix that, or resume from "
            f"another window"
        ) from error
    except (
        SafetensorError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        TypeError,
        ValueError,
        MemoryError,
    ) as error:
        raise UserError(
            f"the checkpoint {folder} does not fit this model ({one_line(error, 160)}); resume "
            f"with the config that it was written with, or from another window"
        ) from error


def _values(module: nn.Module) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers."""
    values = (*module.named_parameters(), *module.named_buffers())
    return {name: on_host(value.detach()) for name, value in values}
