"""Checkpoints for tests: small ones by hand, and random ones of every awkward shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPES: dict[str, tuple[int, ...]] = {
    "logit_scale": (),
    "one": (1,),
    "nothing": (0,),
    "nothing_either": (3, 0, 2),
    "bias": (7,),
    "proj": (33, 5),
    "embedding": (257, 129),
    "block_and_a_bit": (65536 + 3,),
    "conv": (11, 3, 7, 5),
}
"""Scalars, empty tensors, odd lengths, and more than a block of a sum."""


def save(
    directory: Path,
    tensors: Mapping[str, Tensor],
    *,
    metadata: dict[str, str] | None = None,
    training: Mapping[str, Any] | None = None,
) -> str:
    """Write ``model.safetensors`` and perhaps ``training.json``; returns the path as text."""
    directory.mkdir(parents=True)
    save_file(dict(tensors), directory / "model.safetensors", metadata)
    if training is not None:
        (directory / "training.json").write_text(json.dumps(training))
    return str(directory)


def random_checkpoints(
    directory: Path,
    models: int,
    dtypes: Sequence[torch.dtype],
    *,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    seed: int = 0,
) -> tuple[str, list[str]]:
    """Write a base and ``models`` models of it, the element types taken in turn; returns their paths.

    The last model of three or more is the base itself: a zero task vector. Two tensors are not floats.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    wide = {name: randn(shape, 0.5) for name, shape in shapes.items()}
    types = {name: dtypes[index % len(dtypes)] for index, name in enumerate(shapes)}
    others = {"position_ids": torch.arange(9), "mask": torch.tensor([[True, False], [False, True]])}
    base = save(directory / "base", {name: wide[name].to(types[name]) for name in shapes} | others)
    uris = []
    for index in range(models):
        scale = 0.0 if index == models - 1 and models > 2 else 0.005 * (index + 1)
        tuned = {name: (wide[name] + randn(shape, scale)).to(types[name]) for name, shape in shapes.items()}
        record = {"steps": 100 * index + 50, "lr_sum": 0.1 / (index + 1)}
        uris.append(save(directory / f"ft-{index}", tuned | others, training=record))
    return base, uris
