"""Journals that keep what tests look at."""

from harness.train.ledger import NullJournal


class Losses(NullJournal):
    """Keeps the training losses, by window."""

    def __init__(self) -> None:
        self.by_window: dict[int, float] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if "train/loss" in metrics:
            self.by_window[step] = metrics["train/loss"]
