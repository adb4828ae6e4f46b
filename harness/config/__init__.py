"""Every setting of a run: a YAML file and key=value overrides become frozen, validated models."""

from harness.config.config import Config
from harness.config.load import (
    Loaded,
    load,
    load_resolved,
    load_with_notes,
    study_name,
    tracking_in,
)
from harness.config.section import Section
from harness.config.sections.data import DataConfig
from harness.config.sections.doctor import DoctorConfig
from harness.config.sections.exchange import AUTO, BUCKET_MB, TORCHS_BUCKET_MB, ExchangeConfig
from harness.config.sections.model import BackboneConfig, ClassifierConfig
from harness.config.sections.optimizer import OptimizerConfig
from harness.config.sections.staleness import StalenessConfig
from harness.config.sections.trace import TraceConfig
from harness.config.sections.tracking import TrackingConfig
from harness.config.sections.train import TrainConfig

__all__ = [
    "AUTO",
    "BUCKET_MB",
    "TORCHS_BUCKET_MB",
    "BackboneConfig",
    "ClassifierConfig",
    "Config",
    "DataConfig",
    "DoctorConfig",
    "ExchangeConfig",
    "Loaded",
    "OptimizerConfig",
    "Section",
    "StalenessConfig",
    "TraceConfig",
    "TrackingConfig",
    "TrainConfig",
    "load",
    "load_resolved",
    "load_with_notes",
    "study_name",
    "tracking_in",
]
