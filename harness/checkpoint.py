"""A model on disk, free of the number of ranks: the backbone whole, the classifier by classes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.errors import UserError
from harness.exchange.flat import Flat
from harness.measure.summary import Evaluation
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import World

META, BACKBONE = "checkpoint.json", "backbone.safetensors"


class Progress(BaseModel):
    """What a training has come to, in all the runs that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_seconds: float | None
    """None: not known, of a checkpoint that is older than this field."""
    evaluations: tuple[Evaluation, ...] = ()


STARTED = Progress(train_seconds=0.0)


class Meta(BaseModel):
    """What a checkpoint says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(ge=0)
    """Windows trained before it was written."""
    num_classes: int
    progress: Progress = Progress(train_seconds=None)


class Checkpoint:
    """Saves and loads a drained model with its optimizer's state.

    Every slice is written by one rank as `classifier-<start>-<stop>.safetensors`, so any other
    slicing reads the rows it needs. Momentum that differs between nodes (averaging) is node 0's.
    Not kept: gradients that a lossy wire has not sent yet, and the outer optimizer's velocity.
    """

    def __init__(
        self,
        backbone: nn.Module,
        classifier: SlicedClassifier,
        flats: tuple[Flat, Flat],
        optimizer: torch.optim.Optimizer,
        world: World,
    ) -> None:
        self._backbone = backbone
        self._classifier = classifier
        self._flats = flats
        self._optimizer = optimizer
        self._world = world

    def save(self, folder: Path, window: int, progress: Progress) -> None:
        """Writes beside, then renames `folder` into place. Collective over the world."""
        partial = folder.with_name(folder.name + ".partial")
        owned = self._classifier.owned
        states = [self._gathered_states(flat) for flat in self._flats]
        if self._world.is_first:
            _remove(partial)  # of a run that ended in the middle of it, maybe of other slices
            partial.mkdir(parents=True)
            classes = self._classifier.num_classes
            meta = Meta(window=window, num_classes=classes, progress=progress)
            # By json itself: a loss that is no number comes back as what it was.
            (partial / META).write_text(json.dumps(meta.model_dump()))
            tensors = self._tensors(self._backbone, states)
            save_file(tensors | _on_host(self._backbone_buffers()), partial / BACKBONE)
        self._everyone_is_here()
        if self._world.topology.rank == self._writer():
            name = f"classifier-{owned.start:09d}-{owned.stop:09d}.safetensors"
            save_file(self._tensors(self._classifier, states), partial / name)
        self._everyone_is_here()
        if self._world.is_first:
            _put(partial, folder)

    def load(self, folder: Path) -> Meta:
        """Reads this rank's part; where to go on from. Raises UserError for a bad folder."""
        meta = read_meta(folder, self._classifier.num_classes)
        try:
            found = load_file(folder / BACKBONE)
            self._backbone.load_state_dict(
                {name: found.pop(name) for name in self._backbone_buffers()}, strict=False
            )
            self._take(self._backbone, found.pop)
            if found:
                raise ValueError(f"it also holds {min(found)}")
            rows = _Rows(folder, self._classifier)
            self._take(self._classifier, rows.read)
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"the checkpoint {folder} does not fit this model ({reason}); "
                f"resume with the config it was made with"
            ) from error
        return meta

    def _writer(self) -> int:
        """The lowest rank that owns this slice."""
        topology = self._world.topology
        return self._world.slices.index % topology.world_size

    def _everyone_is_here(self) -> None:
        self._world.launch_gather(torch.zeros(1), "checkpoint").wait()

    def _backbone_buffers(self) -> dict[str, Tensor]:
        return dict(self._backbone.named_buffers())

    def _tensors(self, module: nn.Module, states: list["States"]) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in module.named_parameters():
            tensors[name] = parameter.detach()
            for key, state in self._states_of(parameter, states):
                tensors[f"optimizer.{key}.{name}"] = state
        return _on_host(tensors)

    def _take(self, module: nn.Module, read: Any) -> None:
        for name, parameter in module.named_parameters():
            with torch.no_grad():
                _fill(parameter, read(name), name)
        self._make_states()
        states = [self._own_states(flat) for flat in self._flats]
        for name, parameter in module.named_parameters():
            for key, state in self._states_of(parameter, states):
                _fill(state, read(f"optimizer.{key}.{name}"), f"optimizer.{key}.{name}")
        for flat, filled in zip(self._flats, states, strict=True):
            self._put_own(flat, filled)

    def _make_states(self) -> None:
        """Lets the optimizer make its state by a step of zero size on zero gradients."""
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

    def _states_of(
        self, parameter: nn.Parameter, states: list["States"]
    ) -> Iterator[tuple[str, Tensor]]:
        """Views of the optimizer's state that belong to one parameter, shaped like it."""
        for flat, found in zip(self._flats, states, strict=True):
            for spanned, start, stop in flat.spans:
                if spanned is parameter:
                    for key, state in found.items():
                        one = state.dim() == 0
                        yield key, state if one else flat.shaped(state[start:stop], parameter)

    def _gathered_states(self, flat: Flat) -> "States":
        """The optimizer's state of all chunks. Collective over the node where each rank has one."""
        states = self._own_states(flat)
        if flat.owned.size == len(flat.values):
            return states
        own = slice(flat.owned.start, flat.owned.stop)
        for state in states.values():
            if state.dim():
                self._world.node.launch_all_gather(state[own].clone(), state).wait()
        return states

    def _own_states(self, flat: Flat) -> "States":
        """The optimizer's state by key, flat: what this rank steps, zeros elsewhere."""
        states: States = {}
        for view in (flat.decayed, flat.undecayed):
            for key, state in sorted(self._optimizer.state.get(view, {}).items()):
                if state.shape == view.shape:
                    states.setdefault(key, torch.zeros_like(flat.values))
                    _place(states[key], flat, view).copy_(state)
                else:
                    states[key] = state
        return states

    def _put_own(self, flat: Flat, states: "States") -> None:
        for view in (flat.decayed, flat.undecayed):
            for key, state in self._optimizer.state.get(view, {}).items():
                whole = states[key]
                state.copy_(_place(whole, flat, view) if whole.dim() else whole)


States = dict[str, Tensor]
"""Of an optimizer, by key: a flat tensor like the values, or one number."""


def _place(whole: Tensor, flat: Flat, view: Tensor) -> Tensor:
    """Where a view of the flat values stands, in another flat tensor."""
    start = view.storage_offset() - flat.values.storage_offset()
    return whole[start : start + view.numel()]


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}


def _fill(target: Tensor, found: Tensor, name: str) -> None:
    # A plain copy would spread a single row over all.
    if found.shape != target.shape:
        raise ValueError(f"{name} is {tuple(found.shape)} there and {tuple(target.shape)} here")
    target.copy_(found)


def _put(new: Path, place: Path) -> None:
    """Renames into place; what stood there goes last, so that a whole one is there at any time."""
    old = place.with_name(place.name + ".old")
    _remove(old)
    if place.exists():
        place.replace(old)
    new.replace(place)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


class _Rows:
    """Reads the classes a slice owns from whatever files hold them."""

    def __init__(self, folder: Path, classifier: SlicedClassifier) -> None:
        self._owned = classifier.owned
        self._files = []
        for path in sorted(folder.glob("classifier-*.safetensors")):
            start, stop = (int(part) for part in path.stem.split("-")[1:])
            if start < self._owned.stop and stop > self._owned.start:
                self._files.append((path, start, stop))

    def read(self, name: str) -> Tensor:
        pieces = []
        for path, start, stop in self._files:
            with safe_open(path, framework="pt") as file:
                low, high = max(start, self._owned.start), min(stop, self._owned.stop)
                rows = file.get_slice(name)
                if not rows.get_shape():
                    return file.get_tensor(name)
                pieces.append(rows[low - start : high - start])
        return torch.cat(pieces)


def read_meta(folder: Path, num_classes: int) -> Meta:
    """What a checkpoint says of itself. Raises UserError where it is none, or another task's."""
    try:
        meta = Meta.model_validate_json((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"train.resume={folder} is no checkpoint (no readable {META}); "
            f"give a folder checkpoints/<window> of a run"
        ) from error
    if meta.num_classes != num_classes:
        raise UserError(
            f"train.resume={folder} has {meta.num_classes} classes, data.num_classes is "
            f"{num_classes}; set data.num_classes={meta.num_classes}"
        )
    return meta
