"""Where the classifier's exponentials wait for its second pass, and what that costs."""

from dataclasses import dataclass

from harness.doctor.need.classifier import ClassifierScratch
from harness.doctor.need.sizes import Sizes
from harness.model.flops import PRODUCTS


@dataclass(frozen=True)
class Exponentials:
    """The exponentials of the micro-batches of one window."""

    sizes: Sizes

    @property
    def _places(self) -> list[str]:
        """The place for each micro-batch."""
        sizes = self.sizes
        scratch = ClassifierScratch(sizes, sizes.gathered_images, sizes.product_bytes)
        later = sizes.config.exchange.backward_passes_per_step - 1
        return [scratch.place(adds=False)] + later * [scratch.place(sizes.adds_gradients)]

    @property
    def products(self) -> float:
        """Matrix products per micro-batch, averaged over the window."""
        return PRODUCTS + self._places.count("again") / len(self._places)

    @property
    def sentence(self) -> str:
        places, images = self._places, self.sizes.gathered_images
        wait = {
            "gradient": "wait in the gradient's own rows",
            "scratch": "wait in a tensor of their own",
            "again": "are computed twice, a fourth product beside three",
        }
        classes = self.sizes.taking_part(images)
        found = f"exponentials of {images:,} images x {classes:,} classes {wait[places[0]]}"
        if places[-1] == places[0]:
            return found
        return f"{found}; in later micro-batches of a window they {wait[places[-1]]}"
