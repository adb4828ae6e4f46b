"""Sections `backbone` and `classifier`: the two parts of the model."""

from typing import Literal

from pydantic import Field

from harness.config.section import Section, Text


class BackboneConfig(Section):
    name: Text = "small_cnn"
    """`small_cnn`, or the name of any torchvision classification model."""
    feature_dim: int = Field(default=256, ge=0, le=10**6)
    """Features per image after a linear embedding; 0 keeps the backbone's own features."""
    norm: Literal["batch", "group", "none"] = "batch"
    """small_cnn: normalisation after a convolution. Each rank has its own batch statistics."""


class ClassifierConfig(Section):
    layout: Literal["replicated", "node", "world"] = "replicated"
    """Placement of the classes: replicated on every rank, or sliced over a node or all ranks."""
    margin: Literal["none", "cosface", "arcface", "combined"] = "none"
    """none: plain logits with a bias. Others: scaled cosines with a margin on the target class."""
    margin_scale: float = Field(default=32.0, gt=0, le=10**6)
    """Factor on the cosines."""
    margin_size: float = Field(default=0.3, ge=0, le=10)
    """cosface: subtracted from the target's cosine. arcface: added to its angle, radians."""
    margin_m1: float = Field(default=1.0, gt=0, le=10)
    """combined: m1 in cos(m1 t + m2) - m3, where t is the target's angle."""
    margin_m2: float = Field(default=0.3, ge=0, lt=3.14)
    """combined: m2, radians."""
    margin_m3: float = Field(default=0.2, ge=0, le=10)
    """combined: m3."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each training label that is spread evenly over all classes that take part."""
    margin_slope: Literal["exact", "straight_through"] = "exact"
    """straight_through: the gradient omits the derivative of the margin, as some libraries do."""
    sampling: float = Field(default=1.0, gt=0, le=1)
    """Share of the classes of each slice that take part in a micro-batch: those of its images, and
    others drawn at random (Partial FC). The rest have no gradient, momentum or weight decay in that
    step. 1: all classes. Evaluations use all classes, always."""
