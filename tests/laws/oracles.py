"""Plain sequential programs that the exchanges must equal: one process, a dense classifier."""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.config import Config
from harness.model.backbone import make_backbone
from harness.model.sliced_classifier import initial_weight
from harness.train.optimizer import lr_at
from tests.laws.task import CLASSES, FEATURES, SIZE, WINDOWS, world_batches


class Dense(nn.Module):
    """Backbone and all classes in one place, with the weights that every layout starts from."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.backbone = make_backbone(config.backbone, 1, SIZE, config.seed)
        self.weight = nn.Parameter(initial_weight(config.seed, 0, CLASSES, FEATURES))
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.smoothing = config.classifier.label_smoothing
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional.linear(self.backbone(images), self.weight, self.bias)
        return functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    def sgd(self, config: Config) -> torch.optim.SGD:
        decayed = [p for p in self.parameters() if p.dim() >= 2]
        undecayed = [p for p in self.parameters() if p.dim() < 2]
        decay = config.optimizer.weight_decay
        groups = [{"params": decayed, "weight_decay": decay}, {"params": undecayed}]
        momentum, nesterov = config.optimizer.momentum, config.optimizer.nesterov
        return torch.optim.SGD(
            groups, lr=1.0, momentum=momentum, nesterov=nesterov and momentum > 0
        )


@dataclass(frozen=True)
class Trained:
    model: Dense
    losses: list[float]
    """Mean loss of each window's images."""


def gradients(
    model: Dense, batch: tuple[Tensor, Tensor], share: float
) -> tuple[list[Tensor], float]:
    loss = model(*batch)
    found = torch.autograd.grad(loss, list(model.parameters()))
    return [gradient * share for gradient in found], float(loss.detach())


def joined(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def step(model: Dense, optimizer: torch.optim.SGD, grads: list[Tensor], lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    for parameter, gradient in zip(model.parameters(), grads, strict=True):
        parameter.grad = gradient
    optimizer.step()


def late_gradients(config: Config, ranks: int) -> Trained:
    """One process with the whole batch; a queue of `delay` gradients. delay 0 is plain SGD."""
    model = Dense(config)
    optimizer, queue, losses = model.sgd(config), deque[list[Tensor]](), []
    passes = config.exchange.backward_passes_per_step
    for window in range(WINDOWS):
        found = [
            gradients(model, joined(world_batches(ranks, window * passes + k)), 1 / passes)
            for k in range(passes)
        ]
        queue.append([sum(parts) for parts in zip(*(grads for grads, _ in found), strict=True)])
        losses.append(sum(loss for _, loss in found) / passes)
        lr = lr_at(config.optimizer, window, WINDOWS)
        waits = window < config.exchange.synchronous_windows
        if len(queue) > (0 if waits else config.exchange.delay):
            step(model, optimizer, queue.popleft(), lr)
    while queue:
        step(model, optimizer, queue.popleft(), lr)
    return Trained(model, losses)


def local_steps(config: Config, nodes: int, ranks_per_node: int) -> Trained:
    """One model a node. Once a window each sends what it moved since it last did, and `delay`
    windows later adds what all sent on the mean (as the outer optimizer has it) less its own."""
    models = [Dense(config) for _ in range(nodes)]
    optimizers = [model.sgd(config) for model in models]
    queue, losses = deque[tuple[int, list[list[Tensor]]]](), []
    exchange = config.exchange
    passes, beta = exchange.backward_passes_per_step, exchange.outer_momentum
    velocity = [torch.zeros_like(p) for p in models[0].parameters()]

    def values() -> list[list[Tensor]]:
        return [[p.detach().clone() for p in model.parameters()] for model in models]

    def land(sent: list[list[Tensor]]) -> None:
        for number, parts in enumerate(zip(*sent, strict=True)):
            mean = sum(parts) / nodes
            velocity[number] = beta * velocity[number] + mean
            direction = velocity[number]
            if exchange.kind != "slowmo":
                direction = mean + beta * direction
            step_made = exchange.outer_lr * direction
            for own, model, before in zip(parts, models, sent_up_to, strict=True):
                list(model.parameters())[number].data += step_made - own
                before[number] += step_made - own

    sent_up_to = values()
    for window in range(WINDOWS):
        lr, window_losses = lr_at(config.optimizer, window, WINDOWS), []
        for k in range(passes):
            batches = world_batches(nodes * ranks_per_node, window * passes + k)
            for node, model in enumerate(models):
                own = joined(batches[node * ranks_per_node : (node + 1) * ranks_per_node])
                grads, loss = gradients(model, own, 1.0)
                step(model, optimizers[node], grads, lr)
                window_losses.append(loss)
        losses.append(sum(window_losses) / len(window_losses))
        if not exchange.traits.meets:
            continue
        delay = 0 if window < exchange.synchronous_windows else exchange.delay
        while queue and queue[0][0] <= window - max(1, delay):
            land(queue.popleft()[1])
        now = values()
        queue.append((window, differences(now, sent_up_to)))
        sent_up_to[:] = now
        if delay == 0:
            land(queue.popleft()[1])
    while queue:
        land(queue.popleft()[1])
    for number, parts in enumerate(zip(*values(), strict=True)):
        list(models[0].parameters())[number].data = sum(parts) / nodes
    return Trained(models[0], losses)


def differences(values: list[list[Tensor]], others: list[list[Tensor]]) -> list[list[Tensor]]:
    return [
        [value - other for value, other in zip(own, before, strict=True)]
        for own, before in zip(values, others, strict=True)
    ]
