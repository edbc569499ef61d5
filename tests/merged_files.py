"""A checkpoint merged to disk, and the same put into an evaluator's model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.evaluation import Evaluator


def write_merged(base: Path, directory: Path, scaling: float) -> Path:
    """Write ``base`` with its float tensors moved at random, ``scaling`` times as far as they spread; returns it."""
    shutil.copytree(base, directory)
    (file,) = directory.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    generator = torch.Generator().manual_seed(1)

    def moved(tensor: Tensor) -> Tensor:
        spread = tensor.float().std() if tensor.numel() > 1 else torch.tensor(0.1)
        return (tensor.float() + scaling * spread * torch.randn(tensor.shape, generator=generator)).to(
            tensor.dtype
        )

    tensors = {
        name: moved(tensor) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata)
    return directory


def put(evaluator: Evaluator, directory: Path) -> None:
    """Write the tensors of a checkpoint into the evaluator's model."""
    (file,) = directory.glob("*.safetensors")
    stored = load_file(file)
    assert evaluator.parameters.keys() == {
        name for name, tensor in stored.items() if tensor.is_floating_point()
    }
    for name, tensor in evaluator.parameters.items():
        tensor.copy_(stored[name])
