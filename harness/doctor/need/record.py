"""The bytes that a rank takes, by what they are for."""

from harness.doctor.finding import Facts


class Need(Facts):
    """Bytes that a rank takes besides its libraries: always, and at the peak of each phase."""

    model: int
    """Values, gradients and optimizer state."""
    exchange: int
    """Buffers of the exchange between nodes."""
    training: int
    """Temporary memory of a micro-batch: activations, logits, gradients."""
    evaluation: int = 0
    """Temporary memory of an evaluation."""
    evaluation_on_host: int = 0
    """Part of `evaluation` that a run on GPUs keeps in host memory."""
    estimate: int = 0
    """Temporary memory of a curvature estimate; 0 if the run makes none."""
    estimate_on_host: int = 0
    """Part of `estimate` that a run on GPUs keeps in host memory."""
    copies: int = 0
    """Copies in host memory that a thread writes into a checkpoint while training goes on; 0 if the
    run writes none."""
    saving: int = 0
    """Host memory taken beside the copies while they are made."""
    pinned: int = 0
    """Host memory through which a run on GPUs sends late results."""
    images: int = 0
    """Images of a micro-batch."""
    read_ahead: int = 0
    """Images of the micro-batches that wait on a GPU."""
    checkpoint: int = 0
    """Size on disk of the model, the optimizer state and the state of the exchange, each once."""

    @property
    def certain(self) -> int:
        """Bytes taken whatever the images and the allocator are."""
        return self.model + self.exchange

    @property
    def moments(self) -> dict[str, int]:
        """Bytes that each phase takes beyond `certain` in a run without GPUs."""
        return {
            "training": self.training,
            "an evaluation": self.evaluation,
            "the curvature's estimate": self.estimate,
            "copying for a checkpoint": self.saving,
        }

    @property
    def total(self) -> int:
        """Peak if everything is in one memory, as in a run without GPUs."""
        return self.certain + self.copies + self.images + max(self.moments.values())

    @property
    def on_card(self) -> int:
        """Peak in the memory of a GPU."""
        evaluation = self.evaluation - self.evaluation_on_host
        peak = max(self.training, evaluation, self.estimate - self.estimate_on_host)
        return self.certain + self.images + self.read_ahead + peak

    @property
    def beside_card(self) -> "Need":
        """What a rank with a GPU takes in host memory."""
        return Need(
            model=0,
            exchange=self.pinned,
            training=0,
            evaluation=self.evaluation_on_host,
            estimate=self.estimate_on_host,
            copies=self.copies,
            saving=self.saving,
        )

    def where_it_trains(self, on_cards: bool) -> int:
        """Peak in GPU memory, or in host memory if there are no GPUs."""
        return self.on_card if on_cards else self.total
