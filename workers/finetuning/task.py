"""What the training loop drives: a model, its data, its loss and its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from taumerge.schemas import FinetuneRequest
from workers.hardware import Hardware

Batch = Any
"""One forward pass of a task; only the task looks inside."""


class TrainingTask(Protocol):
    """A model and the data to train it on. The loop owns optimizer, schedule, precision and checkpoints."""

    model: nn.Module
    """On the device of the hardware, in float32 where it is trained. Parameters with ``requires_grad`` are trained."""
    unit: str
    """What ``count`` counts, for the throughput: ``images`` or ``tokens``."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training split."""
        ...

    def train_batches(self, epoch: int, first: int, rank: int, world: int) -> Iterable[Sequence[Batch]]:
        """The steps of ``epoch`` from its step ``first`` on, each as its batches: several accumulate gradients.

        Deterministic in (seed, epoch), whatever ``first`` is and whatever was drawn before. Of each step's examples
        this worker gets the share ``rank`` of ``world``.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the terms of ``batch``: a scalar, differentiable.

        ``model`` is ``self.model``, perhaps wrapped for several workers, under autocast and in training mode. The
        task moves the batch to the device.
        """
        ...

    def count(self, batch: Batch) -> int:
        """Terms that the mean of ``loss`` goes over: images, or tokens that carry loss. Weighs batches of a step."""
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation split, ``accuracy`` in [0, 1] among them; in evaluation mode, without gradients."""
        ...

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """Write weights, configuration and tokenizer or preprocessor into the existing ``directory``.

        Args:
            weights: the state dict of ``model``, whole and on the CPU.
        """
        ...

    def record(self) -> dict[str, Any]:
        """What the task adds to ``training.json``: ``base``, ``dataset``, ``split_seed``, sizes of the splits,
        ``method``, what was skipped or truncated, …
        """
        ...


def build_task(request: FinetuneRequest, hardware: Hardware) -> TrainingTask:
    """The task that ``request`` asks for, with its data read and its model loaded.

    Raises:
        InvalidRequest: located in the request; whatever can be found before the first step.
    """
    if request.task.kind == "clip":
        from workers.finetuning.clip import build_clip_task

        return build_clip_task(request, hardware)
    from workers.finetuning.language import build_language_task

    return build_language_task(request, hardware)
