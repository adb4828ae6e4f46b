"""Steps beside training are taken one after the other, in the order in which they are given."""

import threading

import pytest
import torch

from harness.parallel.line import Line
from tests import streams

CPU = torch.device("cpu")


def line(host_blocks: bool = False) -> Line:
    return Line("tested", CPU, host_blocks)


@pytest.mark.parametrize("host_blocks", [False, True])
def test_steps_keep_their_order_whatever_they_wait_for(host_blocks: bool) -> None:
    own, may_begin, taken = line(host_blocks), threading.Event(), list[int]()

    def step(number: int) -> int:
        if number == 0:
            assert may_begin.wait(10)
        taken.append(number)
        return number

    running = [own.run(lambda number=number: step(number)) for number in range(20)]
    assert taken == [], "a step was taken before the one that waits"
    may_begin.set()
    assert [each.result() for each in reversed(running)] == list(reversed(range(20)))
    assert taken == list(range(20))
    own.close()


def test_whoever_gives_a_step_does_not_wait_for_it() -> None:
    own, given = line(), threading.Event()
    running = own.run(lambda: (given.wait(10), threading.current_thread()))
    given.set()
    in_time, thread = running.result()
    assert in_time
    assert thread is not threading.current_thread()
    own.close()


def test_an_error_of_a_step_is_raised_where_its_result_is_asked_for() -> None:
    own = line()

    def fails() -> None:
        raise RuntimeError("of the second step")

    first, second, third = own.run(lambda: 1), own.run(fails), own.run(lambda: 3)
    assert first.result() == 1
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the second step"):
            second.result()
    assert third.result() == 3
    own.close()


def test_two_lines_do_not_wait_for_each_other() -> None:
    one, other, met = line(), line(), threading.Barrier(2)
    running = [each.run(lambda: met.wait(10)) for each in (one, other)]
    assert sorted(each.result() for each in running) == [0, 1]
    one.close()
    other.close()


def test_a_closed_line_takes_no_step_that_had_not_begun() -> None:
    own, begun, may_end, taken = line(), threading.Event(), threading.Event(), list[int]()

    def long() -> None:
        begun.set()
        assert may_end.wait(10)

    under_way = own.run(long)
    own.run(lambda: taken.append(1))
    assert begun.wait(10)
    own.close()
    may_end.set()
    under_way.result()
    with pytest.raises(RuntimeError):
        own.run(lambda: taken.append(2))
    assert taken == []


def test_a_line_of_a_thread_opens_no_other_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread begins on card 0, which is another rank's."""
    cards, second = streams.stand_in(monkeypatch), torch.device("cuda", 1)
    cards.select(1)
    own = Line("tested", second, host_blocks=True)
    given_on = own.run(lambda: cards.current_stream()).result()
    assert given_on.device == second
    assert given_on is not cards.current_stream()
    assert cards.opened == {1}
    own.close()
