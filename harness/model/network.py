"""The network that a rank trains: backbone and classifier as one module."""

from torch import Tensor, nn

from harness.model.backbone import Backbone
from harness.model.sliced_classifier import Scores, SlicedClassifier


class Network(nn.Module):
    """Images [B, channels, height, width] and labels [B] -> scores. Collective over the slice
    group."""

    def __init__(self, backbone: Backbone, classifier: SlicedClassifier) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor, labels: Tensor) -> Scores:
        scores: Scores = self.classifier(self.backbone(images), labels)
        return scores
