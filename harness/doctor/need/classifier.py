"""Scratch memory of the classifier's two passes over tiles of classes, and of an evaluation."""

from dataclasses import dataclass

from harness.doctor.need.sizes import Sizes
from harness.measure.traffic import gathers_statistics
from harness.model.best import STRIP
from harness.model.kept import LogitShape, place
from harness.model.sliced_classifier import tile_classes

NUMBER_BYTES = 8
"""Size of a whole number, as keys and rows of sampled classes are."""
PREDICTED = 5
"""Classes per image that an evaluation keeps."""


@dataclass(frozen=True)
class ClassifierScratch:
    """The classifier on `images` of a slice group, with products of `product_bytes` per element."""

    sizes: Sizes
    images: int
    product_bytes: int

    @property
    def half(self) -> bool:
        return self.product_bytes < self.sizes.element_bytes

    def place(self, adds: bool) -> str:
        """Where exponentials wait for the second pass: `gradient`, `scratch` or `again`."""
        sizes = self.sizes
        return place(
            LogitShape(self.images, sizes.features, self.classes),
            self.product_bytes,
            sizes.element_bytes,
            adds or sizes.sampled,
            sizes.cards,
        )

    @property
    def classes(self) -> int:
        """R, the classes that take part."""
        return self.sizes.taking_part(self.images)

    @property
    def tile(self) -> int:
        """Most classes in a tile."""
        sizes = self.sizes
        return tile_classes(
            self.images, sizes.features, sizes.element_bytes, self.product_bytes, sizes.cards
        )

    def training(self, adds: bool) -> int:
        """Bytes of both passes: a tile, the slopes of the features, exponentials that wait in a
        tensor of their own, and the gradient that torch's DDP takes.

        `adds`: the micro-batch adds to gradients that others left.
        """
        sizes, features_bytes = self.sizes, self.sizes.features * self.sizes.element_bytes
        given = sizes.classes * features_bytes if sizes.config.exchange.is_torchs else 0
        in_scratch = self.place(adds) == "scratch"
        kept = self.images * self.classes * self.product_bytes if in_scratch else 0
        passes = min(self.tile, self.classes) * self._per_class(adds) + given + kept
        return max(passes, self._drawing) + 4 * self.images * features_bytes

    @property
    def _rounded(self) -> int:
        """Bytes of an operand's element in half precision; a processor's products take it in
        float32, beside it."""
        return self.product_bytes + (0 if self.sizes.cards else self.sizes.element_bytes)

    @property
    def _drawing(self) -> int:
        """Bytes of a draw: three numbers a class while keys are made, or a key and the drawn rows
        and their keys, in order and not."""
        keys = NUMBER_BYTES * self.sizes.classes
        return self.sizes.sampled * max(3 * keys, keys + 4 * NUMBER_BYTES * self.classes)

    def _per_class(self, adds: bool) -> int:
        """Bytes per class of a tile: the saved gradient row, and the larger of the two passes."""
        s, features, images = self.sizes.element_bytes, self.sizes.features, self.images
        product, half, waits = self.product_bytes, self.half, self.place(adds)
        margin = self.sizes.config.classifier.margin != "none"
        again = images * product * (waits == "again")
        room = images * product * (waits == "gradient")
        if self.sizes.cards and s == 4:
            logits = images * s + features * product * (half or margin) + again
            slopes = features * s * (margin or adds)
        else:
            logits = images * s + half * (images + features) * self._rounded
            slopes = half * images * s + features * s * (adds + margin)
        if self.sizes.sampled:  # copies of the rows that take part, and of their gradients
            logits += features * s
            slopes += features * s * (1 + margin)
        return room + max(logits, slopes + (logits if again else 0))

    @property
    def statistics(self) -> int:
        """Bytes of the softmax statistics per image, of this rank and of those gathered."""
        owners = self.sizes.owners
        gathered = owners if gathers_statistics(owners) else 1
        numbers = 3 + (self.sizes.config.classifier.label_smoothing > 0)
        return numbers * self.images * self.sizes.element_bytes * (1 + gathered)

    @property
    def evaluation(self) -> int:
        """Bytes of an evaluation's predictions: logits of a tile, the weight as products take it,
        the features, the best classes three times: of a tile, of all tiles, of all slices, and
        where in a tile they are looked for, twice."""
        s, width, images = self.sizes.element_bytes, self.sizes.features, self.images
        of_tile = min(self.tile, self.sizes.classes) * (
            images * s + width * self._rounded * self.half
        )
        found = 3 * (2 * PREDICTED + 3) + 2 * PREDICTED * STRIP
        return of_tile + found * images * NUMBER_BYTES + 3 * images * width * s
