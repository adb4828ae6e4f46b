"""Sections `backbone` and `classifier`: the two parts of the model."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.section import PathText, Section, Text
from harness.config.sections.values import PerHost


class BackboneConfig(Section):
    name: Text = "small_cnn"
    """`small_cnn`, or the name of any torchvision classification model."""
    feature_dim: int = Field(default=256, ge=0, le=10**6)
    """Features per image after a linear embedding; 0 keeps the backbone's own features."""
    norm: Literal["batch", "group", "none"] = "batch"
    """small_cnn: normalisation after a convolution. Each rank has its own batch statistics."""
    weights: Annotated[PathText | None, PerHost()] = None
    """Weights to begin with: a state dict of torchvision's as .pth or .safetensors, a checkpoint or
    a run of ours, or what `harness checkpoint export` wrote. The head is left out."""
    lr_factor: float = Field(default=1.0, gt=0, le=10**6)
    """Factor on the learning rate of the parameters that `weights` gave."""
    frozen: Literal["none", "body"] = "none"
    """body: the network of `weights` stays as it is, batch statistics included, and only the
    embedding and the classifier are trained."""

    @model_validator(mode="after")
    def _belongs_to_weights(self) -> "BackboneConfig":
        for key, usual in (("lr_factor", 1.0), ("frozen", "none")):
            if getattr(self, key) != usual and self.weights is None:
                raise ValueError(
                    f"backbone.{key}={getattr(self, key)} is for a network with weights; set "
                    f"backbone.weights to their file, or leave {key} out"
                )
        return self


class ClassifierConfig(Section):
    layout: Literal["replicated", "node", "world"] = "replicated"
    """Placement of the classes: replicated on every rank, or sliced over a node or all ranks."""
    margin: Literal["none", "cosface", "arcface", "combined"] = "none"
    """none: plain logits with a bias. Others: scaled cosines with a margin on the target class."""
    margin_scale: float = Field(default=32.0, gt=0, le=10**6)
    """Factor on the cosines."""
    margin_size: float = Field(default=0.3, ge=0, le=10)
    """cosface: subtracted from the target's cosine. arcface: added to its angle, radians, below
    pi."""
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

    @model_validator(mode="after")
    def _hinders_the_target(self) -> "ClassifierConfig":
        if self.margin == "arcface" and self.margin_size >= math.pi:
            raise ValueError(
                f"classifier.margin_size={self.margin_size:g} is an angle with margin=arcface, and "
                f"from pi on it raises the target's logit; give less than 3.14 radians, or use "
                f"margin=cosface"
            )
        return self
