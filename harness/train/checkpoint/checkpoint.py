"""Saves and loads a model with everything that its training needs to continue."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from harness.errors import UserError, one_line
from harness.exchange.carried import Strip
from harness.exchange.flat import Flat
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import World
from harness.tracking.folders import META
from harness.train.checkpoint.files import Rows, Whole, put, remove, write_tensors, write_text
from harness.train.checkpoint.meta import Meta, read_meta
from harness.train.checkpoint.states import copy, fill, gathered, of_parameter, optimizer_strips
from harness.train.optimizer import Optimizer

BACKBONE = "backbone.safetensors"
EXCHANGE = "exchange."
"""Prefix of the states of an exchange; a run with another exchange ignores them."""


class Checkpoint:
    """Saves and loads a drained model, its optimizer's state and the state of its exchange.

    One rank writes each slice as `classifier-<start>-<stop>.safetensors`, so any other slicing can
    read the rows that it needs; states are stored beside their parameters. All nodes must hold
    equal values and states by then: see `Exchange.agree_on`.
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

    def save(self, folder: Path, meta: Meta, carried: Sequence[Strip] = ()) -> str:
        """Writes into a partial folder and renames it to `folder`. Collective over the world.

        Returns the reason, on all ranks, if it cannot be written, and then leaves nothing behind;
        "" if the checkpoint is complete and on the disk.
        """
        partial = folder.with_name(folder.name + ".partial")
        strips = [*optimizer_strips(self._optimizer, self._flats), *carried]
        states = gathered(strips, self._flats, self._world)

        def begin() -> None:
            if self._world.is_first:
                remove(partial)  # an interrupted run may have left one, perhaps with other slices
                partial.mkdir(parents=True)

        def write() -> None:
            if self._world.is_first:
                buffers = _on_host(dict(self._backbone.named_buffers()))
                write_tensors(partial / BACKBONE, self._tensors(self._backbone, states) | buffers)
            if self._world.topology.rank == self._writer():
                owned = self._classifier.owned
                name = f"classifier-{owned.start:09d}-{owned.stop:09d}.safetensors"
                write_tensors(partial / name, self._tensors(self._classifier, states))

        def end() -> None:
            if self._world.is_first:
                write_text(partial / META, meta.to_json())
                put(partial, folder)

        for step in (begin, write, end):
            if problem := self._problem(step):
                if self._world.is_first:
                    with suppress(OSError):  # if it cannot be removed, the next save reports it
                        remove(partial)
                return problem
        return ""

    def rewrite_meta(self, folder: Path, meta: Meta) -> str:
        """Rewrites the metadata of an existing checkpoint. The first rank writes, and returns the
        reason if it cannot; "" otherwise."""
        try:
            if self._world.is_first:
                write_text(folder / META, meta.to_json())
        except OSError as error:
            return _reason(error)
        return ""

    def load(self, folder: Path) -> Meta:
        """Reads this rank's part and returns the metadata. Raises UserError for a bad folder."""
        meta = read_meta(folder, self._classifier.num_classes)
        with _fitting(folder):
            stored = _Stored(folder, self._backbone, self._classifier)
            for name, target, found in stored.values():
                copy(found, target, name)
            self._make_states()
            strips = optimizer_strips(self._optimizer, self._flats)
            for strip in strips:
                fill(strip, stored.needed)
            known = {strip.key for strip in strips}
            if left := [name for name in stored.others(known) if not name.startswith(EXCHANGE)]:
                raise ValueError(f"it also contains {min(left)}")
        return meta

    def load_carried(self, folder: Path, carried: Sequence[Strip]) -> list[str]:
        """Fills the state of an exchange with what the checkpoint has of it; returns the names that
        it has no use for. Raises UserError for a bad folder."""
        with _fitting(folder):
            stored = _Stored(folder, self._backbone, self._classifier)
            for strip in carried:
                fill(strip, stored.known)
            others = stored.others({strip.key for strip in carried})
        left = [name.split(".")[:2] for name in others if name.startswith(EXCHANGE)]
        return sorted({".".join(parts) for parts in left})

    def _writer(self) -> int:
        """The lowest rank that owns this slice."""
        topology = self._world.topology
        return self._world.slices.index % topology.world_size

    def _problem(self, step: Callable[[], None]) -> str:
        """Runs `step`; the error of the first rank that could not write, "" if all could.

        It also makes ranks wait for each other's files. Collective over the world.
        """
        problem = ""
        try:
            step()
        except OSError as error:
            problem = _reason(error)
        found = self._world.gather_objects(problem, "checkpoint")
        return next((each for each in found if each), "")

    def _tensors(self, module: nn.Module, states: Sequence[Strip]) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in module.named_parameters():
            tensors[name] = parameter.detach()
            for key, state in of_parameter(parameter, states):
                tensors[f"{key}.{name}"] = state
        return _on_host(tensors)

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

    def __init__(self, folder: Path, backbone: nn.Module, classifier: SlicedClassifier) -> None:
        files = (
            (Whole(folder / BACKBONE), backbone),
            (Rows(folder, classifier.owned), classifier),
        )
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

    def others(self, keys: Iterable[str]) -> list[str]:
        """Names of stored tensors that are neither values nor states with one of these keys."""
        found: list[str] = []
        for file, module in self._files:
            values = {name for name, _ in (*module.named_buffers(), *module.named_parameters())}
            states = {f"{key}.{name}" for key in keys for name in values}
            found += file.names - values - states
        return found


@contextmanager
def _fitting(folder: Path) -> Iterator[None]:
    """Reports in one line whatever is wrong with files that others may have made or damaged."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the checkpoint {folder} cannot be read ({_reason(error)}); fix that, or resume from "
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
        reason = one_line(error, 160)
        raise UserError(
            f"the checkpoint {folder} does not fit this model ({reason}); resume with the config "
            f"that it was written with, or from another window if one of its files is damaged"
        ) from error


def _reason(error: OSError) -> str:
    return one_line(error, 200)


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
