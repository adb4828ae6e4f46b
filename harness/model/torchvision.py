"""torchvision, imported so that it also works with a torch without CUDA.

Import it from here: `from harness.model.torchvision import torchvision`. The registry's torchvision
is compiled against CUDA. With a CPU-only torch its operators cannot be loaded, and importing it
fails where it registers a shape rule for an operator that nobody has declared. Declaring the two
schemas first is enough: models, transforms and datasets are plain Python. Its JPEG reader stays
unavailable; Pillow reads images.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def load_compiled_operators() -> bool:
    """Load torchvision's compiled operators as its own import would; False if that fails."""
    package = find_spec("torchvision")
    folders = (package.submodule_search_locations if package else None) or []
    for library in (file for folder in folders for file in Path(folder).glob("_C*.so")):
        try:
            torch.ops.load_library(library)
        except OSError:  # compiled against a CUDA runtime that this torch lacks
            return False
        return True
    return False


def declare_missing_operators() -> torch.library.Library | None:
    """Declare what importing torchvision needs; the declaration lives as long as the result."""
    if load_compiled_operators():
        return None
    declared = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        declared.define(schema)
    return declared


# The one name bound at import time: dropping it would withdraw the declaration.
_declared = declare_missing_operators()

import torchvision  # noqa: E402

__all__ = ["torchvision"]
