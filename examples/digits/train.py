"""Training the tower: one loop for the base and for the fine-tuned models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from examples.digits.data import SPLIT_SEED, Task
from examples.digits.evaluation import accuracy
from examples.digits.model import heads, logits


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast: linear warm-up to the peak, then cosine to zero (METHODS' protocol)."""

    steps: int
    learning_rate: float
    """Peak learning rate η."""
    warmup_steps: int = 50
    batch_size: int = 64
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """η^(k) of step k = 0 … steps − 1. The sum over all steps is η·(steps/2 + 1)."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def train(
    tower: nn.Module,
    tasks: Sequence[Task],
    schedule: Schedule,
    on_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train ``tower`` in place on the tasks in turn, a batch each, with frozen heads.

    Returns the training record. An epoch is one pass over the first task's training split.
    """
    frozen = heads()
    generator = torch.Generator().manual_seed(schedule.seed)
    orders = [_shuffled_forever(len(task.train), schedule.batch_size, generator) for task in tasks]
    optimizer = torch.optim.AdamW(tower.parameters(), weight_decay=schedule.weight_decay)
    steps_per_epoch = len(tasks) * math.ceil(len(tasks[0].train) / schedule.batch_size)
    lr_sum = 0.0
    validation_accuracy = []

    for step in range(schedule.steps):
        task, order = tasks[step % len(tasks)], orders[step % len(tasks)]
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        batch = next(order)
        tower.train()
        loss = F.cross_entropy(
            logits(tower, frozen[task.name], task.train.images[batch]), task.train.labels[batch]
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(tower.parameters(), schedule.max_grad_norm)
        optimizer.step()
        lr_sum += optimizer.param_groups[0]["lr"]
        if (step + 1) % steps_per_epoch == 0 or step + 1 == schedule.steps:
            scores = [accuracy(tower, frozen[task.name], task.validation) for task in tasks]
            validation_accuracy.append(sum(scores) / len(scores))
        on_step()

    return {
        "dataset": "+".join(task.name for task in tasks),
        "split_seed": SPLIT_SEED,
        "steps": schedule.steps,
        "batch_size": schedule.batch_size,
        "learning_rate": schedule.learning_rate,
        "schedule": "warmup_cosine",
        "warmup_steps": schedule.warmup_steps,
        "lr_sum": lr_sum,
        "optimizer": "adamw",
        "weight_decay": schedule.weight_decay,
        "max_grad_norm": schedule.max_grad_norm,
        "precision": "float32",
        "method": "full",
        "validation_accuracy": validation_accuracy,
        "seed": schedule.seed,
        "versions": {name: version(name) for name in ("torch", "open_clip_torch")},
        "device": "cpu",
    }


def _shuffled_forever(count: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Batches of indices: every epoch a new order, its last batch smaller."""
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), batch_size)
