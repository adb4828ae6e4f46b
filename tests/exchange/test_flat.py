"""Parameters and gradients are views of one tensor each, in an order that separates decay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from harness.exchange.flat import BLOCK, Flat, in_blocks

SHAPES = st.lists(
    st.lists(st.integers(1, 4), min_size=0, max_size=4).map(tuple), min_size=1, max_size=6
)


def parameters(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@given(SHAPES, st.integers(1, 5))
def test_values_are_kept_and_every_parameter_has_its_own_place(
    shapes: list[tuple[int, ...]], chunks: int
) -> None:
    made = parameters(shapes)
    before = [parameter.detach().clone() for parameter in made]
    flat = Flat(made, chunks, made[0])
    assert all(torch.equal(p, old) for p, old in zip(made, before, strict=True))
    assert flat.elements == sum(parameter.numel() for parameter in made)
    assert len(flat.values) == len(flat.grads)
    assert len(flat.values) % chunks == 0
    assert 0 <= len(flat.values) - flat.elements < chunks
    assert {id(parameter) for parameter, _, _ in flat.spans} == {id(p) for p in made}
    places = [place for _, start, stop in flat.spans for place in range(start, stop)]
    assert places == list(range(flat.elements))


@given(SHAPES, st.integers(1, 5))
def test_values_and_gradients_are_views(shapes: list[tuple[int, ...]], chunks: int) -> None:
    made = parameters(shapes)
    flat = Flat(made, chunks, made[0])
    flat.values.copy_(torch.arange(len(flat.values)))
    flat.grads.copy_(-torch.arange(len(flat.grads)))
    for parameter, start, stop in flat.spans:
        expected = torch.arange(start, stop, dtype=torch.float32)
        assert torch.equal(parameter.detach().flatten().sort().values, expected)
        assert torch.equal(-parameter.grad, parameter.detach())
    made[0].data.zero_()
    made[0].grad.fill_(7)
    start, stop = next((a, b) for p, a, b in flat.spans if p is made[0])
    assert not flat.values[start:stop].any()
    assert (flat.grads[start:stop] == 7).all()


@given(SHAPES)
def test_what_decays_stands_first(shapes: list[tuple[int, ...]]) -> None:
    made = parameters(shapes)
    flat = Flat(made, 1, made[0])
    matrices = [parameter for parameter in reversed(made) if parameter.dim() >= 2]
    vectors = [parameter for parameter in reversed(made) if parameter.dim() < 2]
    assert [p.numel() for p, _, _ in flat.spans] == [p.numel() for p in matrices + vectors]
    assert [view.numel() for view in flat.decayed] == [sum(p.numel() for p in matrices)][
        : len(matrices)
    ]
    assert [view.numel() for view in flat.undecayed] == [sum(p.numel() for p in vectors)][
        : len(vectors)
    ]
    for view in (*flat.decayed, *flat.undecayed):
        view.data.fill_(3)
        view.grad.fill_(5)
    assert (flat.values[: flat.elements] == 3).all()
    assert (flat.grads[: flat.elements] == 5).all()


def test_the_backward_pass_writes_into_the_flat_gradient_and_adds_up() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 4)).double()
    twin = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 36, 4)).double()
    twin.load_state_dict(network.state_dict())
    flat = Flat(list(network.parameters()), 4, network[0].weight)
    pointers = [parameter.grad.data_ptr() for parameter in network.parameters()]
    for seed in (0, 1):
        images = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(seed)).double()
        network(images).square().sum().backward()
        twin(images).square().sum().backward()
    assert [parameter.grad.data_ptr() for parameter in network.parameters()] == pointers
    for parameter, expected in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert flat.grads[: flat.elements].any()
    assert not flat.grads[flat.elements :].any()


def test_filters_lie_channels_last() -> None:
    convolution = nn.Conv2d(3, 5, 3, bias=False)
    expected = convolution.weight.detach().clone()
    flat = Flat([convolution.weight], 1, convolution.weight)
    assert torch.equal(convolution.weight, expected)
    assert torch.equal(flat.values, expected.permute(0, 2, 3, 1).flatten())
    for tensor in (convolution.weight, convolution.weight.grad):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_padding_stays_zero(momentum: float) -> None:
    weight, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    flat = Flat([weight, bias], 5, weight)
    optimizer = torch.optim.SGD([*flat.decayed, *flat.undecayed], lr=0.1, momentum=momentum)
    for _ in range(3):
        (weight @ bias).square().sum().backward()
        optimizer.step()
    assert len(flat.values) == 15
    assert not flat.values[12:].any()
    assert not flat.grads[12:].any()
    assert not torch.equal(flat.values[:12], torch.ones(12))


def test_a_step_on_the_flat_tensors_is_a_step_on_the_parameters() -> None:
    made, twins = parameters([(3, 2), (2,), (4, 1, 2, 2)]), parameters([(3, 2), (2,), (4, 1, 2, 2)])
    flat = Flat(made, 4, made[0])
    groups = [{"params": flat.decayed, "weight_decay": 0.1}, {"params": flat.undecayed}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
    decayed = [p for p in twins if p.dim() >= 2]
    expected = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": [twins[1]]}], lr=0.1, weight_decay=0.0
    )
    for _ in range(3):
        for parameter, twin in zip(made, twins, strict=True):
            parameter.grad.copy_(parameter.detach().sin())
            twin.grad = twin.detach().sin()
        optimizer.step()
        expected.step()
    for parameter, twin in zip(made, twins, strict=True):
        torch.testing.assert_close(parameter, twin)


def test_nothing_is_a_flat_too() -> None:
    flat = Flat([], 3, torch.zeros(1, dtype=torch.float64))
    assert (flat.elements, len(flat.values), flat.values.dtype) == (0, 0, torch.float64)


class OnCard(torch.Tensor):
    """Says that it is on a card."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = torch.device("cuda")


def test_blocks_fit_a_processors_cache_and_keep_a_card_busy() -> None:
    own = torch.arange(2 * BLOCK["cpu"] + 3)
    assert [len(a) for a, _ in in_blocks(own, own)] == [BLOCK["cpu"], BLOCK["cpu"], 3]
    assert torch.equal(torch.cat([b for _, b in in_blocks(own, own)]), own)
    ((a, b),) = in_blocks(own, own.as_subclass(OnCard))
    assert len(a) == len(b) == len(own)
