"""Plain sequential programs that the exchanges must equal: one process, a dense classifier."""

from collections import deque
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from harness.config import Config
from harness.model.backbone import make_backbone
from harness.model.initial import initial_weight
from harness.parallel.slices import slice_of
from harness.train.optimizer import lr_at
from tests.drawn import drawn, key
from tests.laws.task import CLASSES, FEATURES, SIZE, WINDOWS, world_batches
from tests.laws.turns import Turn, turns_of


class Dense(nn.Module):
    """Backbone and all classes in one place, with the weights that every layout starts from."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = make_backbone(config.backbone, 1, SIZE, config.seed)
        given = load_file(config.backbone.weights) if config.backbone.weights else {}
        self.backbone.load_state_dict(self.backbone.state_dict() | given)
        self.loaded = {f"backbone.{name}" for name in given}
        self.weight = nn.Parameter(initial_weight(config.seed, 0, CLASSES, FEATURES))
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.smoothing = config.classifier.label_smoothing
        self.double()

    def forward(self, images: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
        """The loss among these classes, which are in order; None: among all."""
        weight, bias = self.weight, self.bias
        if classes is not None:
            weight, bias, labels = (
                weight[classes],
                bias[classes],
                torch.searchsorted(classes, labels),
            )
        logits = functional.linear(self.backbone(images), weight, bias)
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def sgd(self, config: Config) -> torch.optim.SGD:
        groups = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                decay = config.optimizer.weight_decay if parameter.dim() >= 2 else 0.0
                factor = config.backbone.lr_factor if name in self.loaded else 1.0
                group = {"params": [parameter], "weight_decay": decay, "factor": factor}
                groups.append(group)
        momentum, nesterov = config.optimizer.momentum, config.optimizer.nesterov
        return torch.optim.SGD(
            groups, lr=1.0, momentum=momentum, nesterov=nesterov and momentum > 0
        )


@dataclass(frozen=True)
class Trained:
    model: Dense
    losses: list[float]
    """Mean loss of each window's images."""


@dataclass(frozen=True)
class Found:
    """Of some images."""

    gradients: list[Tensor]
    loss: float
    classes: frozenset[int]
    """That took part."""

    @classmethod
    def mean(cls, parts: list["Found"]) -> "Found":
        """The classes are those of any part."""
        gradients = [
            sum(each) / len(parts) for each in zip(*(p.gradients for p in parts), strict=True)
        ]
        loss = sum(part.loss for part in parts) / len(parts)
        return cls(gradients, loss, frozenset().union(*(part.classes for part in parts)))


Ranks = list[tuple[Tensor, Tensor]]
"""The images and labels of each rank."""


def gradients(model: Dense, config: Config, ranks: Ranks, number: int, owners: int) -> Found:
    """Of the mean loss over the images of a micro-batch. `owners` ranks are a slice group, in which
    classes are sampled."""
    sampled = config.classifier.sampling < 1
    group = owners if sampled else len(ranks)
    parts = []
    for start in range(0, len(ranks), group):
        images, labels = joined(ranks[start : start + group])
        classes = taking_part(config, labels.tolist(), number, owners)
        loss = model(images, labels, torch.tensor(classes) if sampled else None)
        found = torch.autograd.grad(loss, model.trained)
        parts.append(Found(list(found), float(loss.detach()), frozenset(classes)))
    return Found.mean(parts)


def taking_part(config: Config, labels: list[int], number: int, owners: int) -> list[int]:
    """The classes of all slices that take part in a micro-batch, in order."""
    share = config.classifier.sampling
    if share == 1:
        return list(range(CLASSES))
    slices = [slice_of(CLASSES, owners, owner) for owner in range(owners)]
    return [each for own in slices for each in drawn(share, config.seed, number, own, labels)]


def owners_of(config: Config, nodes: int, ranks_per_node: int) -> int:
    """Ranks in a slice group."""
    sizes = {"replicated": 1, "node": ranks_per_node, "world": nodes * ranks_per_node}
    return sizes[config.classifier.layout]


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def step(model: Dense, optimizer: torch.optim.SGD, found: Found, lr: float) -> None:
    """Classes that took no part are as they were afterwards, their momentum too."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]
    for parameter, gradient in zip(model.trained, found.gradients, strict=True):
        parameter.grad = gradient
    before = {each: each.detach().clone() for each in (model.weight, model.bias)}
    momenta = {each: momentum_of(optimizer, each).clone() for each in before}
    optimizer.step()
    rest = [each for each in range(CLASSES) if each not in found.classes]
    for each in before:
        each.data[rest] = before[each][rest]
        momentum_of(optimizer, each)[rest] = momenta[each][rest]


def momentum_of(optimizer: torch.optim.SGD, parameter: nn.Parameter) -> Tensor:
    """Zeros if there is none, or none yet."""
    found = optimizer.state[parameter].get("momentum_buffer")
    return torch.zeros_like(parameter) if found is None else found


def late_gradients(config: Config, nodes: int, ranks_per_node: int) -> Trained:
    """One process with the whole batch; a queue of `delay` gradients. delay 0 is plain SGD."""
    model = Dense(config)
    optimizer, queue, losses = model.sgd(config), deque[Found](), []
    passes, owners = (
        config.exchange.backward_passes_per_step,
        owners_of(config, nodes, ranks_per_node),
    )
    for window in range(WINDOWS):
        numbers = range(window * passes, (window + 1) * passes)
        found = [
            gradients(model, config, world_batches(nodes * ranks_per_node, number), number, owners)
            for number in numbers
        ]
        queue.append(Found.mean(found))
        losses.append(queue[-1].loss)
        lr = lr_at(config.optimizer, window, WINDOWS)
        waits = window < config.exchange.synchronous_windows
        if len(queue) > (0 if waits else config.exchange.delay):
            step(model, optimizer, queue.popleft(), lr)
    while queue:
        step(model, optimizer, queue.popleft(), lr)
    return Trained(model, losses)


def local_steps(config: Config, nodes: int, ranks_per_node: int) -> Trained:
    """One model a node. Once a window each sends what it moved since it last did, of the elements
    whose turn it is, and `delay` windows later adds what all sent on the mean (as the outer
    optimizer has it) less its own."""
    models = [Dense(config) for _ in range(nodes)]
    optimizers = [model.sgd(config) for model in models]
    queue, losses = deque[tuple[int, list[list[Tensor]]]](), []
    exchange, turns = config.exchange, turns_of(config, models[0].trained, ranks_per_node)
    passes, beta = exchange.backward_passes_per_step, exchange.outer_momentum
    owners = owners_of(config, nodes, ranks_per_node)
    velocity = [torch.zeros_like(p) for p in models[0].trained]

    def crossing(number: int, window: int) -> Tensor:
        if exchange.slice_rows == "drawn" and number in (0, 1):  # weight and bias
            drawn = rows_drawn(config, window, owners)
            shape = (CLASSES, FEATURES) if number == 0 else (CLASSES,)
            return drawn.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        return in_turn(turns[number], window)

    def values() -> list[list[Tensor]]:
        return [[p.detach().clone() for p in model.trained] for model in models]

    def land(window: int, sent: list[list[Tensor]]) -> None:
        for number, parts in enumerate(zip(*sent, strict=True)):
            crossed, mean = crossing(number, window), sum(parts) / nodes
            velocity[number] = torch.where(
                crossed, beta * velocity[number] + mean, velocity[number]
            )
            direction = velocity[number]
            if exchange.kind != "slowmo":
                direction = mean + beta * direction
            step_made = exchange.outer_lr * direction * crossed
            for own, model, before in zip(parts, models, sent_up_to, strict=True):
                model.trained[number].data += step_made - own
                before[number] += step_made - own

    sent_up_to = values()
    for window in range(WINDOWS):
        lr, window_losses = lr_at(config.optimizer, window, WINDOWS), []
        for k in range(passes):
            batches = world_batches(nodes * ranks_per_node, window * passes + k)
            for node, model in enumerate(models):
                own = batches[node * ranks_per_node : (node + 1) * ranks_per_node]
                found = gradients(model, config, own, window * passes + k, owners)
                step(model, optimizers[node], found, lr)
                window_losses.append(found.loss)
        losses.append(sum(window_losses) / len(window_losses))
        if not exchange.traits.meets:
            continue
        delay = 0 if window < exchange.synchronous_windows else exchange.delay
        while queue and queue[0][0] <= window - max(1, delay):
            land(*queue.popleft())
        sent = differences(values(), sent_up_to)
        for parts, before in zip(sent, sent_up_to, strict=True):
            for number, part in enumerate(parts):
                part *= crossing(number, window)
                before[number] += part
        queue.append((window, sent))
        if delay == 0:
            land(*queue.popleft())
    while queue:
        land(*queue.popleft())
    for number, parts in enumerate(zip(*values(), strict=True)):
        models[0].trained[number].data = sum(parts) / nodes
    return Trained(models[0], losses)


def rows_drawn(config: Config, window: int, owners: int) -> Tensor:
    """Whether each class is sent in a window: those with the largest keys of each of its
    micro-batches, and then those with the largest keys of the last one, as many in every window."""
    share, passes = config.classifier.sampling, config.exchange.backward_passes_per_step
    numbers = range(window * passes, (window + 1) * passes)
    sent = torch.zeros(CLASSES, dtype=torch.bool)
    for owner in range(owners):
        own = slice_of(CLASSES, owners, owner)
        for number in numbers:
            sent[drawn(share, config.seed, number, own, [])] = True
        most = min(own.size, passes * len(drawn(share, config.seed, numbers[-1], own, [])))
        rest = [each for each in range(own.start, own.stop) if not sent[each]]
        rest.sort(key=lambda each: -key(config.seed, numbers[-1], each))
        missing = most - int(sent[own.start : own.stop].sum())
        sent[rest[:missing]] = True
    return sent


def in_turn(turn: Turn, window: int) -> Tensor:
    """Which elements are sent in a window."""
    pieces, number = turn
    return window % pieces == number


def differences(values: list[list[Tensor]], others: list[list[Tensor]]) -> list[list[Tensor]]:
    return [
        [value - other for value, other in zip(own, before, strict=True)]
        for own, before in zip(values, others, strict=True)
    ]
