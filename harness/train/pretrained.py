"""Weights that a backbone begins with: read from a file, fitted by name, and what did not fit."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from harness.config import BackboneConfig, Config
from harness.data.images import Dataset
from harness.errors import UserError
from harness.model.backbone import Backbone, head_of, make_backbone
from harness.parallel.ranks import Ranks
from harness.train.checkpoint.meta import resumed_meta
from harness.train.weights_file import file_of, read_weights

SHOWN = 4
"""Most names of a kind that a line lists."""
HALVED = ("googlenet", "inception_v3")
"""Networks whose weights at torchvision were trained on images of mean and deviation 0.5."""
BODY, COUNTER = "body.", "num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """What became of the tensors of a file; names are the backbone's, or else the file's."""

    weights: str
    """The setting."""
    parameters: tuple[str, ...] = ()
    """Parameters of the backbone that the file gave."""
    statistics: int = 0
    """Batch statistics that it gave."""
    head: tuple[str, ...] = ()
    """Left out, because they score the classes of another task."""
    misfits: tuple[str, ...] = ()
    """The names and the reasons."""
    anew: tuple[str, ...] = ()
    """Parameters of the backbone that are not in the file."""
    unused: tuple[str, ...] = ()
    """Tensors of the file that the backbone has no use for."""
    frozen_anew: tuple[str, ...] = field(default=(), repr=False)
    """What of a frozen body the file did not give."""
    is_torchvisions: bool = field(default=False, repr=False)
    """Whether the file has the names of torchvision's networks, not those of our backbones."""

    @property
    def is_odd(self) -> bool:
        """Whether something is other than the usual: all of the body given, the head left out."""
        return bool(self.misfits or self.unused or any(name.startswith(BODY) for name in self.anew))

    @property
    def line(self) -> str:
        """One line for the user."""
        parts = [f"backbone.weights={self.weights} gives {len(self.parameters)} parameters"]
        parts[0] += f" and {self.statistics} batch statistics"
        for said, names in (
            ("the head is left out", self.head),
            ("does not fit", self.misfits),
            ("begins anew", self.anew),
            ("has no place", self.unused),
        ):
            if names:
                parts.append(f"{said}: {_listed(names)}")
        return "; ".join(parts)


def load_weights(backbone: Backbone, config: BackboneConfig) -> Fit:
    """Copies into the backbone what the file of `backbone.weights` has for it.

    Raises UserError if the file cannot be read, if nothing of it fits, if values are not finite, or
    if parts of a frozen body would stay as they were drawn.
    """
    assert config.weights is not None
    fit = fitted(backbone, config, read_weights(Path(config.weights)))
    if not fit.parameters:
        raise UserError(
            f"backbone.weights={config.weights} gives nothing to backbone.name={config.name}: "
            f"{_reason(fit)}; use the name of the network that the file is of"
        )
    if fit.frozen_anew:
        raise UserError(
            f"backbone.frozen=body would leave {_listed(fit.frozen_anew)} as drawn at random, "
            f"because backbone.weights={config.weights} does not give it; set frozen=none, or "
            f"use a file that fits"
        )
    return fit


@torch.no_grad()
def fitted(backbone: Backbone, config: BackboneConfig, given: Mapping[str, Tensor]) -> Fit:
    """Copies what fits by name, shape and kind of number. Raises UserError for what is not
    finite."""
    own, left = _by_own_names(given, head_of(config.name))
    target = backbone.state_dict()
    parameters = {name for name, _ in backbone.named_parameters()}
    taken, misfits = [], []
    for name in (name for name in target if name in own):
        found, there = own.pop(name), target[name]
        if found.is_floating_point() != there.is_floating_point() or found.shape != there.shape:
            misfits.append(f"{name} is {_kind(found)} there, {_kind(there)} here")
            continue
        if not found.isfinite().all():
            raise UserError(
                f"backbone.weights={config.weights} has values of {name} that are not finite; use "
                f"another file"
            )
        there.copy_(found)
        taken.append(name)
    missing = [name for name in target if name not in taken and COUNTER not in name]
    unfit = {line.split()[0] for line in misfits}
    return Fit(
        weights=config.weights or "",
        parameters=tuple(name for name in taken if name in parameters),
        statistics=sum(name not in parameters and COUNTER not in name for name in taken),
        head=tuple(left),
        misfits=tuple(misfits),
        anew=tuple(name for name in missing if name in parameters and name not in unfit),
        unused=tuple(own),
        frozen_anew=tuple(n for n in missing if backbone.frozen and n.startswith(BODY)),
        is_torchvisions=not _is_ours(given),
    )


def _by_own_names(given: Mapping[str, Tensor], head: str) -> tuple[dict[str, Tensor], list[str]]:
    """A file's tensors by the backbone's names, and the names of its head."""
    if all(name.startswith("module.") for name in given):  # saved out of DistributedDataParallel
        given = {name.removeprefix("module."): each for name, each in given.items()}
    ours = _is_ours(given)
    scoring = "classifier." if ours else f"{head}."
    left = [name for name in given if name.startswith(scoring)] if ours or head else []
    before = "" if ours else BODY
    return {before + name: each for name, each in given.items() if name not in left}, left


def _is_ours(given: Iterable[str]) -> bool:
    return any(name.removeprefix("module.").startswith(BODY) for name in given)


def _kind(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f"{str(tensor.dtype).removeprefix('torch.')} "
    return f"{kind}{tuple(tensor.shape)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _reason(fit: Fit) -> str:
    if fit.misfits:
        return fit.misfits[0]
    if fit.unused:
        return f"no name is known, the first is {fit.unused[0].removeprefix(BODY)}"
    return "it has a head only" if fit.head else "it has no tensors"


@dataclass(frozen=True)
class Begun:
    """What a backbone began with, at this run's start or that of the run which it resumes."""

    parameters: tuple[str, ...] = ()
    """Names of the parameters that `backbone.weights` gave."""
    fit: Fit | None = None
    """What was read by this run; None if it read nothing."""

    def at_another_rate(self, backbone: Backbone, config: BackboneConfig) -> list[nn.Parameter]:
        """The trained parameters that have `backbone.lr_factor`; none if that is 1."""
        names = set(self.parameters if config.lr_factor != 1 else ())
        named = backbone.named_parameters()
        return [each for name, each in named if name in names and each.requires_grad]


def begin(backbone: Backbone, config: Config) -> Begun:
    """Loads the weights that the config names, if it does not resume a checkpoint, which has all
    values. Raises UserError, as `load_weights` does, and for images of other levels than the
    weights were trained on."""
    meta = resumed_meta(config)
    if meta is None:
        fit = _load_for(config, backbone)
        return Begun(fit.parameters, fit)
    if not meta.pretrained:
        raise UserError(
            f"train.resume={config.train.resume} goes on with its own values, which did not begin "
            f"with backbone.weights; leave backbone.weights or train.resume out"
        )
    return Begun(meta.pretrained)


def _load_for(config: Config, backbone: Backbone) -> Fit:
    fit = load_weights(backbone, config.backbone)
    name, recipe = config.backbone.name, config.data.recipe
    if fit.is_torchvisions and name in HALVED and recipe == "imagenet":
        raise UserError(
            f"backbone.weights={config.backbone.weights} is a file of torchvision's {name}, whose "
            f"weights were trained on images of mean and deviation 0.5, and data.recipe={recipe} "
            f"gives them ImageNet's; use data.recipe=own, weights of a run of ours, or another "
            f"backbone"
        )
    return fit


def check_weights(config: Config, dataset: Dataset) -> None:
    """Raises UserError, without communicating, if `begin` would."""
    if config.backbone.weights is not None:
        size = dataset.channels, dataset.image_size
        _load_for(config, make_backbone(config.backbone, *size, config.seed))


def agree_on_weights(config: Config, ranks: Ranks) -> None:
    """Raises UserError, on the first rank, if hosts have different weights, or some have none.
    Collective over the world."""
    own = ""
    with ranks.together():
        if config.backbone.weights is not None:
            own = _digest(Path(config.backbone.weights))
    digests = ranks.gather_objects(own, "weights")
    odd = next((rank for rank, each in enumerate(digests) if each != digests[0]), None)
    with ranks.together():
        if odd is not None and ranks.is_first:
            raise UserError(
                f"backbone.weights={config.backbone.weights} has other content for rank {odd} than "
                f"for rank 0; give all hosts the same file"
            )


def _digest(weights: Path) -> str:
    try:
        with file_of(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"backbone.weights={weights} cannot be read ({error.strerror}); correct the path"
        ) from error
