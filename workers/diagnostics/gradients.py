"""∇L_t(θ*) of each task at a merged model θ*. Needs torch, not Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from taumerge.errors import JobFailed
from taumerge.schemas import Split
from workers.search.model import explained

if TYPE_CHECKING:
    from workers.evaluation.evaluator import Evaluator

NAMED = 10
"""Tensors that a message names at most."""


class Gradients:
    """The gradients of the tasks, one after another, and their sum.

    Args:
        evaluator: its model stands at θ*.
        tensors: names of the tensors in which gradients are taken. Those that no gradient moves, as the running
            means of a batch normalisation, count as constants.

    Raises:
        JobFailed: ``no_gradients``: all of them are such.
    """

    def __init__(self, evaluator: Evaluator, tensors: Sequence[str]) -> None:
        self._evaluator = evaluator
        named = [evaluator.parameters[name] for name in tensors]
        self._parameters = [one.requires_grad_() for one in named if isinstance(one, nn.Parameter)]
        if not self._parameters:
            raise JobFailed(
                "no_gradients",
                f"the models differ from the base in {', '.join(tensors[:NAMED])} only, which no gradient moves; leave "
                "out evaluation",
            )
        self._total = self._zeros()

    def add(self, task: str, split: Split) -> float:
        """‖∇L_t‖₂², where L_t is the mean loss over all of the task's data in ``split``.

        Raises:
            JobFailed: ``no_gradients``, or ``nonfinite`` when the loss of some batch is not finite.
        """
        gradient, terms = self._zeros(), 0
        with explained(f"differentiating the loss of task {task!r}"):
            for loss, count in self._evaluator.losses(task, split):
                # The sum over the batch, so that batches of different sizes add up to the mean over all of them.
                parts = torch.autograd.grad(loss * count, self._parameters, allow_unused=True)
                for sum_, part in zip(gradient, parts, strict=True):
                    if part is not None:
                        sum_.add_(part)
                terms += count
        for total, sum_ in zip(self._total, gradient, strict=True):
            total.add_(sum_.div_(terms))
        square = _square(gradient)
        if not square < float("inf"):
            raise JobFailed(
                "nonfinite",
                f"the gradient of task {task} at the merged model has NaN or inf elements; the models may be too far "
                "from the base: leave out evaluation, or give these models less weight",
            )
        return square

    def total_square(self) -> float:
        """‖Σ_t ∇L_t‖₂² of the tasks so far."""
        return _square(self._total)

    def _zeros(self) -> list[Tensor]:
        return [torch.zeros_like(parameter, dtype=torch.float32) for parameter in self._parameters]


def _square(tensors: Sequence[Tensor]) -> float:
    return sum(float(torch.linalg.vector_norm(one, dtype=torch.float64)) ** 2 for one in tensors)
