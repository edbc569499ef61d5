"""Gradients for as long as losses are asked for: at other times parameters are written to in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def gradients(parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``parameters`` ask for gradients, all but running averages and the like."""
    trained = [tensor for tensor in parameters.values() if isinstance(tensor, nn.Parameter)]
    for tensor in trained:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in trained:
            tensor.requires_grad_(False)
