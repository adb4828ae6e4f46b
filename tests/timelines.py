"""Timelines that a test moves by hand, so that a clock's answer is known exactly."""


class Ticks:
    """Each mark is one millisecond after the one before: a phase's time counts its pieces."""

    def __init__(self) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def passed(self, mark: object) -> bool:
        return True

    def milliseconds(self, start: object, stop: object) -> float:
        assert isinstance(start, int)
        assert isinstance(stop, int)
        return float(stop - start)


class ByHand(Ticks):
    """Stands still until `now` is set; work is done up to `done`, or all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: int | None = None

    def mark(self) -> int:
        return self.now

    def passed(self, mark: object) -> bool:
        assert isinstance(mark, int)
        return self.done is None or mark <= self.done
