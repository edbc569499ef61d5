"""Gradients of losses whose gradients are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

from taumerge.errors import JobFailed
from taumerge.schemas import Split
from workers.diagnostics.gradients import Gradients


class Points:
    """L_t(θ) = mean over the points x of task t of ½‖w − x‖² + 3b, in batches of two; ``frozen`` has no effect.

    ``statistics`` is a buffer, as the running mean of a batch normalisation.
    """

    def __init__(self, points: Mapping[str, Tensor]) -> None:
        self.parameters = {
            "w": nn.Parameter(torch.tensor([1.0, 2.0]), requires_grad=False),
            "b": nn.Parameter(torch.tensor(0.5), requires_grad=False),
            "frozen": nn.Parameter(torch.ones(3), requires_grad=False),
            "statistics": torch.ones(2),
        }
        self._points = points

    def evaluate(self, task: str, split: Split) -> float:
        raise NotImplementedError

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        assert split == "validation"
        for batch in self._points[task].split(2):
            distances = (self.parameters["w"] - batch).square().sum(1) / 2
            yield distances.mean() + 3 * self.parameters["b"], len(batch)


def test_batches_of_different_sizes_give_the_gradient_over_all_data() -> None:
    points = {"a": torch.tensor([[0.0, 0.0], [2.0, 1.0], [7.0, 5.0]]), "b": torch.tensor([[1.0, -4.0]])}
    gradients = Gradients(Points(points), ["w", "b", "frozen"])
    # ∇L = (w − mean of the points, 3): (−2, 0, 3) and (0, 6, 3)
    assert gradients.add("a", "validation") == pytest.approx(13.0)
    assert gradients.add("b", "validation") == pytest.approx(45.0)
    assert gradients.total_square() == pytest.approx(4.0 + 36.0 + 36.0)


def test_gradients_are_taken_in_the_named_tensors_only() -> None:
    gradients = Gradients(Points({"a": torch.tensor([[0.0, 0.0]])}), ["b"])
    assert gradients.add("a", "validation") == pytest.approx(9.0)


def test_buffers_are_constants() -> None:
    points = Points({"a": torch.tensor([[0.0, 0.0]])})
    assert Gradients(points, ["b", "statistics"]).add("a", "validation") == pytest.approx(9.0)
    assert not points.parameters["statistics"].requires_grad
    with pytest.raises(JobFailed, match="statistics") as caught:
        Gradients(points, ["statistics"])
    assert caught.value.code == "no_gradients"


def test_a_loss_that_is_not_finite_is_named() -> None:
    gradients = Gradients(Points({"birds": torch.tensor([[torch.inf, 0.0]])}), ["w"])
    with pytest.raises(JobFailed, match="birds") as caught:
        gradients.add("birds", "validation")
    assert caught.value.code == "nonfinite"
