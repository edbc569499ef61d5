"""Checkpoints whose merges take long enough to be hit in the middle: small, of many tensors and many output files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

MODELS = 4
TENSORS = 48
ELEMENTS = 24_000
METHODS: tuple[dict[str, Any], ...] = (
    {"name": "task_arithmetic"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.5},
    {"name": "median"},
    {"name": "cclip", "rho": 2.0, "iterations": 2},
)


def write_models(directory: Path) -> None:
    """A base and ``MODELS`` fine-tunes of it, with training records."""
    random = np.random.default_rng(0)
    base = {f"layer.{index:02d}.weight": _normal(random, 1.0) for index in range(TENSORS)}
    _write(directory / "base", base)
    for number in range(MODELS):
        model = directory / f"model-{number}"
        _write(model, {name: weights + _normal(random, 0.01) for name, weights in base.items()})
        (model / "training.json").write_text(json.dumps({"steps": 1000 * (number + 1)}))


def merge_body(models: Path, method: dict[str, Any], output: Path) -> dict[str, Any]:
    """A merge of them into one output file for every tensor or two."""
    return {
        "base": str(models / "base"),
        "models": [str(models / f"model-{number}") for number in range(MODELS)],
        "method": method,
        "scaling": 0.3,
        "output": str(output),
        "max_shard_size": f"{ELEMENTS * 4 + 1000}B",
    }


def _normal(random: np.random.Generator, deviation: float) -> np.ndarray:
    return (random.standard_normal(ELEMENTS) * deviation).astype(np.float32)


def _write(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors")
