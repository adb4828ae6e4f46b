"""Section `doctor`: the examination before a training."""

from harness.config.section import Section


class DoctorConfig(Section):
    before_training: bool = True
    """Compare versions, host names, memory and disk of all hosts first; a fault ends the run."""
