"""Puts a model together from a checkpoint, for one process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.checkpoint.export import state_dict
from harness.checkpoint.shelf import shelf
from harness.checkpoint.verify import whole
from harness.config import Config
from harness.data.levels import Levels
from harness.errors import UserError, one_line
from harness.measure.clock import clock_for
from harness.measure.phase import Phase
from harness.measure.traffic import Traffic
from harness.model.anatomy import autocast
from harness.model.backbone import make_backbone
from harness.model.network import Network
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.group import Group, Meters
from harness.parallel.world import World
from harness.train.checkpoint.manifest import BadCheckpoint
from harness.train.checkpoint.meta import Meta, described

BATCH = 64
"""Images at once."""
CLASSIFIER, DATA = "classifier.", "data."


@dataclass(frozen=True)
class Trained:
    """A model with what it must be given."""

    checkpoint: Path
    config: Config
    """The run's, with the changes of the command line."""
    network: Network
    world: World
    """Of this process alone."""
    channels: int
    levels: Levels
    class_names: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.network.classifier.weight.dtype

    def autocast(self) -> torch.autocast:
        """What the run's own evaluations ran in."""
        return autocast(self.config.train.precision, self.world.device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Normalised features [B, D], float32 in host memory, of uint8 images [B, 3 or channels,
        height, width]."""
        found = self.network.backbone(self.given(images)).float()
        return torch.nn.functional.normalize(found).cpu()

    def given(self, images: Tensor) -> Tensor:
        """The same images as the network takes them."""
        return self.levels.of_bytes(self._channels_of(images).to(self.world.device)).to(self.dtype)

    def _channels_of(self, images: Tensor) -> Tensor:
        """Pictures have three channels; a model of grey images takes their brightness."""
        if self.channels == images.shape[1]:
            return images
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        return (images * weights).sum(1, keepdim=True).round().to(torch.uint8)


def load_trained(folder: Path, changes: Sequence[str]) -> Trained:
    """The model of a checkpoint, or of the newest in a folder.

    Raises UserError if the checkpoint is bad, or if a change fits none of the data's settings, or
    not the model.
    """
    checkpoint, *_ = shelf(folder)
    try:
        whole(checkpoint)
        meta = described(checkpoint)
        origin, tensors = meta.known_origin, state_dict(checkpoint, meta)
        names = tuple(meta.class_names(checkpoint))
    except BadCheckpoint as error:
        raise UserError(f"{checkpoint} cannot be evaluated: {error}; give another one") from error
    config = _config(meta, changes, checkpoint)
    device = torch.device("cpu")
    if config.train.device != "cpu" and torch.cuda.is_available():
        device = torch.device("cuda")
    meters = Meters(clock_for(device), Traffic())
    alone = Group((0,), 0, 1, None, meters, Phase.SLICE_WAIT)
    network = _network(config, meta, tensors, alone, checkpoint).to(device).eval()
    levels = Levels(origin.mean, origin.deviation)
    world = World.alone(device, meters, alone)
    return Trained(checkpoint, config, network, world, origin.channels, levels, names)


def _config(meta: Meta, changes: Sequence[str], checkpoint: Path) -> Config:
    values = dict(meta.known_origin.config)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in values or not key.startswith(DATA):
            raise UserError(
                f"{change} is none of the settings data.KEY=VALUE of the run; see harness "
                f"evaluate --help"
            )
        values[key] = value
    config = Config.from_flattened(values, f"the config in {checkpoint}")
    # Images of a class that the model lacks would have no target's logit: a wrong loss, unseen.
    if config.data.num_classes != meta.num_classes:
        raise UserError(
            f"data.num_classes={config.data.num_classes} does not fit {checkpoint}, whose "
            f"classifier has {meta.num_classes} classes; leave it out"
        )
    # Its values come from the checkpoint, wherever they began.
    backbone = {"weights": None, "frozen": "none", "lr_factor": 1.0}
    return config.model_copy(update={"backbone": config.backbone.model_copy(update=backbone)})


def _network(
    config: Config, meta: Meta, tensors: dict[str, Tensor], alone: Group, checkpoint: Path
) -> Network:
    size = config.data.image_size
    backbone = make_backbone(config.backbone, meta.known_origin.channels, size, config.seed)
    classifier = SlicedClassifier(
        backbone.features, meta.num_classes, config.classifier, alone, config.seed
    )
    of_classifier = {
        name.removeprefix(CLASSIFIER): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(CLASSIFIER)
    }
    dtype = of_classifier["weight"].dtype
    network = Network(backbone.to(dtype), classifier.to(dtype))
    try:
        backbone.load_state_dict(tensors)
        classifier.load_state_dict(of_classifier)
    except RuntimeError as error:
        raise UserError(
            f"{checkpoint} does not fit the model that it names ({one_line(error, 160)}); was it "
            f"written by another version of this harness?"
        ) from error
    return network
