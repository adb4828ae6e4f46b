"""Sizes of the model and of the part of it that the most loaded rank holds."""

from dataclasses import dataclass
from functools import cached_property

from harness.config import Config
from harness.doctor.activations import Activations, activations_of
from harness.exchange.exchange import steps_alone
from harness.model.anatomy import Anatomy, anatomy_of
from harness.model.sampling import rows_in_window
from harness.parallel.slices import padded


@dataclass(frozen=True)
class Sizes:
    """A run on M `nodes` of G ranks, and its sizes on the most loaded rank.

    s bytes per element (4; fp64: 8), P elements that a node's ranks share, S = K (D + 1) elements
    in a slice of K classes with D features and a bias. With layout=replicated S = 0, and the
    classes count in P.
    """

    config: Config
    nodes: int
    ranks_per_node: int
    cards: bool

    @cached_property
    def anatomy(self) -> Anatomy:
        return anatomy_of(self.config, self.nodes, self.ranks_per_node)

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def element_bytes(self) -> int:
        """s."""
        return self.anatomy.element_bytes

    @property
    def product_bytes(self) -> int:
        """Bytes per element in the classifier's matrix products."""
        return 2 if self.half else self.element_bytes

    @property
    def half(self) -> bool:
        """Whether the backbone and the logits run in half precision."""
        return self.config.train.precision == "bf16"

    @property
    def owners(self) -> int:
        """Ranks in a slice group."""
        return self.anatomy.owners

    @property
    def gathered_images(self) -> int:
        """Images of a micro-batch that all ranks of a slice group gather."""
        return self.owners * self.config.train.batch_size

    @cached_property
    def classes(self) -> int:
        """K of the largest slice."""
        return self.anatomy.largest_slice

    def taking_part(self, images: int) -> int:
        """R of the largest slice in a micro-batch of `images` gathered images, at the most."""
        return self.anatomy.taking_part(images)

    @property
    def drawn_rows(self) -> int:
        """Rows of the largest slice that are drawn in a window."""
        passes = self.config.exchange.backward_passes_per_step
        return rows_in_window(self.anatomy.sampling, self.classes, passes)

    @property
    def sampled(self) -> bool:
        """Whether classes are sampled."""
        return self.anatomy.sampling < 1

    @property
    def features(self) -> int:
        """D."""
        return self.anatomy.features

    @property
    def shared(self) -> int:
        """P."""
        return self.anatomy.shared_elements

    @property
    def sliced(self) -> int:
        """S."""
        return self.anatomy.sliced_elements

    @cached_property
    def chunk(self) -> int:
        """Elements of P that a rank steps."""
        if not steps_alone(self.config.exchange):
            return self.shared
        return padded(self.shared, self.ranks_per_node) // self.ranks_per_node

    @property
    def part(self) -> int:
        """Elements that a rank steps."""
        return self.chunk + self.sliced

    @property
    def optimizer_states(self) -> int:
        """Optimizer states per element."""
        optimizer = self.config.optimizer
        if optimizer.name == "adamw":
            return 2
        return 1 if optimizer.momentum else 0

    @property
    def parameters(self) -> int:
        """Bytes of all values that a rank trains or has of what it trains."""
        return (self.shared + self.sliced) * self.element_bytes

    @property
    def model(self) -> int:
        """Bytes of values, gradients and optimizer state; frozen parameters have values only."""
        states = self.optimizer_states * self.part + self.anatomy.frozen
        return 2 * self.parameters + states * self.element_bytes

    @property
    def images(self) -> int:
        """Bytes of a micro-batch's images."""
        return self._images(self.config.data.image_size)

    @property
    def validated(self) -> int:
        """Bytes of a batch of images in an evaluation."""
        return self._images(self.config.data.size_in_validation)

    def _images(self, size: int) -> int:
        return self.anatomy.channels * size**2 * self.config.train.batch_size * 4

    @property
    def adds_gradients(self) -> bool:
        """Whether some micro-batches add to gradients that others left."""
        exchange = self.config.exchange
        each = exchange.traits.local_steps or exchange.is_torchs
        return exchange.backward_passes_per_step > 1 and not each

    def activations(self, half: bool, size: int | None = None) -> Activations:
        """What the backbone keeps of its images, or of images of `size`.

        Raises UserError if it cannot train on them.
        """
        config = self.config
        return activations_of(
            config.backbone,
            self.anatomy.channels,
            size or config.data.image_size,
            min(2, config.train.batch_size),
            half,
        )

    @cached_property
    def backbone(self) -> Activations:
        """The same in the precision of the training."""
        return self.activations(self.half)
