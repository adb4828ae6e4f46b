"""Each bucket goes out once a window, as soon as its last gradient has come, in one order."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.exchange.buckets import Buckets
from harness.exchange.flat import Flat

WIDTH = 4
LAYERS = 5
LAYER_BYTES = WIDTH * WIDTH * 4


class Recorder:
    """Stands for the collective: notes what went out, when, and with what in it."""

    def __init__(self) -> None:
        self.launched: list[tuple[int, int]] = []
        """Where in the flat gradient each piece starts, and its length."""
        self.contents: list[Tensor] = []
        self.waited: list[int] = []

    def __call__(self, piece: Tensor) -> Callable[[], "Recorder.Launched"]:
        return lambda: self.launch(piece)

    def launch(self, piece: Tensor) -> "Recorder.Launched":
        self.launched.append((piece.storage_offset(), len(piece)))
        self.contents.append(piece.clone())
        return self.Launched(self, len(self.launched) - 1)

    class Launched:
        def __init__(self, recorder: "Recorder", number: int) -> None:
            self._recorder = recorder
            self._number = number

        def wait(self) -> None:
            self._recorder.waited.append(self._number)


class Chain(nn.Module):
    """Linear layers in a row; `skipped` ones take no part and get no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))

    def forward(self, x: Tensor, skipped: tuple[int, ...] = ()) -> Tensor:
        for number, layer in enumerate(self.layers):
            if number not in skipped:
                x = layer(x)
        return x


def parts(passes: int, layers_per_bucket: float) -> tuple[Chain, Flat, Recorder, Buckets]:
    network, recorder = Chain(), Recorder()
    flat = Flat(list(network.parameters()), 7, network.layers[0].weight)
    buckets = Buckets(flat, layers_per_bucket * LAYER_BYTES, passes, recorder)
    return network, flat, recorder, buckets


def backward(network: Chain, skipped: tuple[int, ...] = ()) -> None:
    network(torch.ones(2, WIDTH), skipped).sum().backward()


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("layers_per_bucket", [0.5, 1, 2, 100])
def test_each_goes_out_once_a_window_whole_in_the_same_order(
    passes: int, layers_per_bucket: float
) -> None:
    network, flat, recorder, buckets = parts(passes, layers_per_bucket)
    orders = []
    for _ in range(3):
        flat.grads.zero_()
        for _ in range(passes):
            assert not recorder.launched, "went out before its last gradient had come"
            backward(network)
        assert recorder.launched, "all of them waited for the end of the window"
        before_the_end = len(recorder.launched)
        buckets.finish()
        assert len(recorder.launched) == before_the_end
        assert sorted(recorder.waited) == list(range(before_the_end))
        orders.append(list(recorder.launched))
        for (start, length), content in zip(recorder.launched, recorder.contents, strict=True):
            assert torch.equal(content, flat.grads[start : start + length])
        recorder.launched.clear()
        recorder.contents.clear()
        recorder.waited.clear()
    assert orders[0] == orders[1] == orders[2]
    pieces = sorted(orders[0])
    covered = [place for start, length in pieces for place in range(start, start + length)]
    assert covered == list(range(flat.elements)), "the padding is not sent, the rest once"
    assert len(pieces) == {0.5: 5, 1: 5, 2: 3, 100: 1}[layers_per_bucket]


def test_the_last_layers_go_out_while_the_first_are_still_to_come() -> None:
    network, _, recorder, buckets = parts(1, 1)
    sent_by_then: list[int] = []
    network.layers[0].weight.register_hook(lambda _: sent_by_then.append(len(recorder.launched)))
    backward(network)
    buckets.finish()
    starts = [start for start, _ in recorder.launched]
    assert starts == sorted(starts)
    assert sent_by_then[0] >= LAYERS - 2


def test_biases_of_the_first_layers_hold_up_no_bucket_but_the_last() -> None:
    layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    flat, recorder = Flat(list(layers.parameters()), 1, layers[0].weight), Recorder()
    buckets = Buckets(flat, LAYER_BYTES, 1, recorder)
    sent_by_then: list[int] = []
    layers[0].bias.register_hook(lambda _: sent_by_then.append(len(recorder.launched)))
    layers(torch.ones(2, WIDTH)).sum().backward()
    buckets.finish()
    assert sent_by_then[0] >= LAYERS - 2
    assert len(recorder.launched) == LAYERS + 2  # five vectors take a bucket and a bit


def test_parameters_without_a_gradient_still_go_out_with_the_window() -> None:
    network, flat, recorder, buckets = parts(2, 1)
    for window in range(2):
        recorder.launched.clear()
        flat.grads.zero_()
        for _ in range(2):
            backward(network, skipped=(1, 3))
        assert len(recorder.launched) == 1, "those behind one that does not come wait for the end"
        buckets.finish()
        pieces = sorted(recorder.launched)
        covered = [place for start, length in pieces for place in range(start, start + length)]
        assert covered == list(range(flat.elements)), f"window {window}"
        assert pieces == recorder.launched, "in another order than other ranks may have them"


def test_a_parameter_used_in_one_pass_only_does_not_upset_the_next_window() -> None:
    """Its count must start again; otherwise its bucket would go out half-filled there."""
    network, flat, recorder, buckets = parts(2, 1)
    backward(network, skipped=(2,))
    backward(network)
    buckets.finish()
    recorder.launched.clear()
    flat.grads.zero_()
    backward(network)
    assert recorder.launched == []
    backward(network)
    assert len(recorder.launched) == LAYERS
    buckets.finish()


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (2, 4, 0, 3, 1), (4, 3, 2, 1, 0)])
@pytest.mark.parametrize("passes", [1, 2])
def test_they_go_out_in_one_order_whatever_order_gradients_come_in(
    order: tuple[int, ...], passes: int
) -> None:
    """A layer that is ready early waits for those before it in the flat gradient, and no longer."""
    network, flat, recorder, buckets = parts(passes, 1)
    come: list[int] = []
    out_by_then: list[int] = []

    def note(number: int) -> None:
        come.append(number)
        out_by_then.append(len(recorder.launched))

    for number, layer in enumerate(network.layers):
        layer.weight.register_post_accumulate_grad_hook(lambda _, number=number: note(number))
    for _ in range(passes):
        x = torch.ones(2, WIDTH)
        # What is computed last has its gradient first.
        for number in reversed(order):
            x = network.layers[number](x)
        x.sum().backward()
    assert come == list(order) * passes
    starts = [start for start, _ in recorder.launched]
    assert len(starts) == LAYERS
    assert starts == sorted(starts)
    # The last layer stands first.
    there = [{LAYERS - 1 - layer for layer in order[: k + 1]} for k in range(LAYERS)]
    whole = [max(n for n in range(LAYERS + 1) if set(range(n)) <= have) for have in there]
    assert out_by_then == [0] * LAYERS * (passes - 1) + whole
    buckets.finish()
    assert sorted(recorder.waited) == list(range(LAYERS))
    for (start, length), content in zip(recorder.launched, recorder.contents, strict=True):
        assert torch.equal(content, flat.grads[start : start + length])
