"""Assembles what a run trains: backbone, classifier, and their parameters in flat tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.config import Config
from harness.data.images import Dataset
from harness.exchange.exchange import steps_alone, steps_own_gradients
from harness.exchange.flat import Flat, RankParameters
from harness.measure.summary import Trained
from harness.measure.traffic import Bytes
from harness.model.anatomy import Anatomy, Sketch
from harness.model.backbone import Backbone, check_size, make_backbone
from harness.model.flops import micro_batch_flops
from harness.model.network import Network
from harness.model.sampling import taking_part
from harness.model.sliced_classifier import SlicedClassifier
from harness.parallel.world import World
from harness.train.ledger import expected_bytes
from harness.train.pretrained import Begun, begin


@dataclass(frozen=True)
class Assembly:
    """One rank's model, on its device."""

    config: Config
    world: World
    data: Dataset
    anatomy: Anatomy
    backbone: Backbone
    classifier: SlicedClassifier
    shared: Flat
    """Parameters that all ranks of a node hold."""
    sliced: Flat
    """Parameters that only this rank of the node owns."""
    begun: Begun
    """What the backbone began with."""

    @property
    def flats(self) -> tuple[Flat, Flat]:
        return self.shared, self.sliced

    @property
    def of_rank(self) -> RankParameters:
        return RankParameters(*self.flats, self.config.classifier.layout)

    @property
    def network(self) -> Network:
        """Backbone and classifier as one module."""
        return Network(self.backbone, self.classifier)

    @property
    def numbers(self) -> list[Tensor]:
        """All tensors that training changes: the parameters and the batch statistics."""
        return [self.shared.values, self.sliced.values, *self.backbone.statistics]

    @property
    def drawn(self) -> Callable[[], Tensor] | None:
        """Returns the rows of this rank's slice whose gradients may not be zero in a step; None if
        these are not only the rows that its own micro-batches drew, as where they draw none."""
        sampling, layout = self.config.classifier.sampling, self.config.classifier.layout
        own = sampling < 1 and steps_own_gradients(self.config.exchange, layout)
        return self.classifier.drawn_rows if own else None

    @property
    def parameters_of_class(self) -> int:
        return self.anatomy.per_class

    def trained(self) -> Trained:
        """The part of the run's summary that describes the trained model."""
        return Trained(
            parameters_backbone=sum(each.numel() for each in self.backbone.parameters()),
            parameters_classifier=self.data.num_classes * self.parameters_of_class,
            expected=self.expected_bytes(),
            validation_images={name: len(each) for name, each in self.data.validation.items()},
            exponentials=", later ".join(self.classifier.places),
        )

    def flop_per_window(self) -> float:
        """Floating-point operations of this rank in a window, by formula."""
        batch = self.config.train.batch_size
        flops = micro_batch_flops(
            self.backbone,
            self.data.channels,
            self.data.image_size,
            images=batch,
            gathered=batch * self.anatomy.owners,
            # Of a micro-batch's positives each rank of the slice group has its share.
            classes=taking_part(
                self.config.classifier.sampling, len(self.classifier.weight), positives=batch
            ),
        )
        return flops.total * self.config.exchange.backward_passes_per_step

    def expected_bytes(self) -> Bytes:
        """Bytes that a window sends, by formula."""
        return expected_bytes(self.config, self.anatomy)


def assemble(config: Config, data: Dataset, world: World) -> Assembly:
    """Builds the model with weights that depend only on the config's seed.

    Raises UserError for a backbone that cannot take the images. Collective over the world.
    """
    backbone = make_backbone(config.backbone, data.channels, data.image_size, config.seed)
    if data.validation_size not in (None, data.image_size):
        check_size(backbone, config.backbone, data.channels, data.validation_size)
    begun = Begun()
    if config.backbone.weights is not None:
        with world.together():
            begun = begin(backbone, config)
    anatomy = Anatomy.of(config, world.topology, Sketch.of(backbone, data.channels))
    classifier = SlicedClassifier(
        backbone.features, data.num_classes, config.classifier, world.slices, config.seed
    )
    backbone = backbone.to(device=world.device, dtype=anatomy.dtype)
    classifier = classifier.to(device=world.device, dtype=anatomy.dtype)
    like = next(backbone.parameters())
    loaded = begun.at_another_rate(backbone, config.backbone)
    shared, sliced = backbone.trained, list(classifier.parameters())
    by_row = sliced if config.classifier.sampling < 1 else []
    if anatomy.is_replicated:
        shared, sliced = shared + sliced, []
    owner = world.node.index if steps_alone(config.exchange) else None
    last = config.exchange.traits.channels_last
    if backbone.frozen and last:  # the filters of a flat lie so already
        backbone.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flats = (
        Flat(shared, world.node.size, like, owner, last, by_row=by_row, loaded=loaded),
        Flat(sliced, 1, like, by_row=by_row),
    )
    # Different kinds of processors draw random numbers that differ in their last bits, so the first
    # rank's values are sent to all.
    world.everyone.broadcast(flats[0].values)
    world.replicas.broadcast(flats[1].values)
    return Assembly(config, world, data, anatomy, backbone, classifier, *flats, begun)
