"""The sizes of a run's model and its distribution over ranks, computed in one place.

Letters as in the formulas: M nodes of G ranks; P elements that a node's ranks share; C classes with
D features each, of which a rank's slice has K, and R of these take part in a micro-batch.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch

from harness.config import BackboneConfig, Config
from harness.data.open import channels_of
from harness.model.backbone import Backbone, make_backbone
from harness.model.sampling import taking_part
from harness.parallel.slices import Slice, slice_of
from harness.parallel.topology import Layout, Topology

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""dtypes of the parameters by precision; bf16 only changes autocast."""


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What forward passes run in, with the precision that the config names."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Anatomy:
    """The sizes of one run's model."""

    layout: Layout
    nodes: int
    ranks_per_node: int
    backbone: tuple[torch.Size, ...]
    """Shapes of the backbone's parameters that are trained, in the network's order."""
    features: int
    """D, the number of features of an image."""
    channels: int
    """Channels of an image."""
    classes: int
    """C, the number of classes on all slices."""
    has_bias: bool
    """Each class has a bias in addition to its row of the weight."""
    dtype: torch.dtype
    """dtype of the parameters, their gradients and the optimizer's state."""
    sampling: float = 1.0
    """Share of the classes of a slice that take part in a micro-batch."""
    frozen: int = 0
    """Parameters of the backbone that every rank holds and none trains."""

    @property
    def topology(self) -> Topology:
        """The topology as seen from rank 0."""
        return Topology(0, self.nodes, self.ranks_per_node)

    @property
    def element_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def is_replicated(self) -> bool:
        """True if every rank has all classes, which it then shares as it shares the backbone."""
        return self.layout == "replicated"

    @property
    def owners(self) -> int:
        """Number of ranks that together own every class once: the size of a slice group."""
        return len(self.topology.slice_group(self.layout))

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The classes of each rank of a slice group."""
        return tuple(slice_of(self.classes, self.owners, n) for n in range(self.owners))

    @property
    def largest_slice(self) -> int:
        """K of the rank that owns the most classes."""
        return max(own.size for own in self.slices)

    def taking_part(self, positives: int) -> int:
        """R of the largest slice, if so many images have classes of it, each another one."""
        return taking_part(self.sampling, self.largest_slice, positives)

    @property
    def per_class(self) -> int:
        """Parameters per class."""
        return self.features + self.has_bias

    @cached_property
    def backbone_elements(self) -> int:
        return sum(shape.numel() for shape in self.backbone)

    @property
    def classifier_elements(self) -> int:
        """Parameters of the classifier on all slices."""
        return self.classes * self.per_class

    def classifier(self, classes: int) -> tuple[torch.Size, ...]:
        """Shapes of the parameters of a classifier with `classes` classes."""
        weight = torch.Size([classes, self.features])
        return (weight, torch.Size([classes])) if self.has_bias else (weight,)

    @cached_property
    def shared(self) -> tuple[torch.Size, ...]:
        """Shapes of what every rank of a node holds, in the network's order."""
        own = self.classifier(self.classes) if self.is_replicated else ()
        return self.backbone + own

    @property
    def shared_elements(self) -> int:
        """P, the parameters that a node's ranks share."""
        return self.backbone_elements + self.is_replicated * self.classifier_elements

    @property
    def sliced_elements(self) -> int:
        """Parameters of the largest slice; 0 if the classes are replicated."""
        return 0 if self.is_replicated else self.largest_slice * self.per_class

    @property
    def replicated_slices(self) -> tuple[Slice, ...]:
        """The slice of each rank of a node, if the other nodes own the same slices; otherwise
        empty."""
        return self.slices if self.layout == "node" else ()

    @classmethod
    def of(cls, config: Config, topology: Topology, sketch: "Sketch") -> "Anatomy":
        """The sizes of a run on this topology with this backbone."""
        return cls(
            layout=config.classifier.layout,
            nodes=topology.nodes,
            ranks_per_node=topology.ranks_per_node,
            backbone=sketch.shapes,
            features=sketch.features,
            channels=sketch.channels,
            classes=config.data.num_classes,
            has_bias=config.classifier.margin == "none",
            dtype=DTYPES[config.train.precision],
            sampling=config.classifier.sampling,
            frozen=sketch.frozen,
        )


@dataclass(frozen=True)
class Sketch:
    """The properties of a backbone that sizes depend on."""

    shapes: tuple[torch.Size, ...]
    """Shapes of its parameters that are trained."""
    features: int
    channels: int
    """Channels of the images that it takes."""
    frozen: int
    """Parameters that are not trained."""

    @classmethod
    def of(cls, backbone: Backbone, channels: int) -> "Sketch":
        shapes = tuple(parameter.shape for parameter in backbone.trained)
        frozen = sum(each.numel() for each in backbone.parameters() if not each.requires_grad)
        return cls(shapes, backbone.features, channels, frozen)


def anatomy_of(config: Config, nodes: int, ranks_per_node: int) -> Anatomy:
    """The sizes of a run on M `nodes` of G ranks that has not started.

    Raises UserError for a backbone that cannot take the images.
    """
    sketch = _sketch(config.backbone, channels_of(config.data), config.data.image_size)
    return Anatomy.of(config, Topology(0, nodes, ranks_per_node), sketch)


@cache
def _sketch(config: BackboneConfig, channels: int, size: int) -> Sketch:
    return Sketch.of(make_backbone(config, channels, size, seed=0), channels)
