"""Accuracy of a tower, and how it compares with that of the fine-tuned models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from examples.digits.data import Split, Task
from examples.digits.model import heads, logits


@torch.inference_mode()
def accuracy(tower: nn.Module, head: torch.Tensor, split: Split) -> float:
    """Top-1 accuracy in [0, 1]."""
    tower.eval()
    batches = zip(torch.split(split.images, 512), torch.split(split.labels, 512), strict=True)
    correct = [logits(tower, head, images).argmax(-1) == labels for images, labels in batches]
    return torch.cat(correct).float().mean().item()


def evaluate(
    tower: nn.Module, tasks: Mapping[str, Task], split: Literal["validation", "test"]
) -> dict[str, float]:
    """Accuracy of each task in [0, 1]."""
    frozen = heads()
    return {name: accuracy(tower, frozen[name], getattr(task, split)) for name, task in tasks.items()}


def average(accuracies: Mapping[str, float]) -> float:
    """Mean accuracy over the tasks."""
    return sum(accuracies.values()) / len(accuracies)


def normalised(accuracies: Mapping[str, float], individual: Mapping[str, float]) -> float:
    """Mean over tasks of the accuracy, relative to that of the model fine-tuned on the task (same split)."""
    return average({name: value / individual[name] for name, value in accuracies.items()})
