"""A small CLIP image tower with a frozen zero-shot head for each task, and its checkpoint directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from examples.digits.data import CLASSES

LOGIT_SCALE = 20.0
TOWER = {
    "image_size": 32,
    "patch_size": 8,
    "width": 64,
    "layers": 3,
    "heads": 4,
    "mlp_ratio": 2.0,
    "output_dim": 32,
}
"""Arguments of the tower: 116,160 parameters."""


def new_tower(seed: int) -> nn.Module:
    """A tower with random weights."""
    torch.manual_seed(seed)
    return _build(TOWER)


def heads() -> dict[str, torch.Tensor]:
    """The frozen head of each task, [classes, output_dim].

    One random orthonormal direction for each class takes the place of CLIP's text embeddings.
    """
    directions = torch.empty(sum(CLASSES.values()), int(TOWER["output_dim"]))
    torch.nn.init.orthogonal_(directions, generator=torch.Generator().manual_seed(0))
    return dict(zip(CLASSES, torch.split(directions, list(CLASSES.values())), strict=True))


def logits(tower: nn.Module, head: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Cosine similarity of images [n, 3, 32, 32] and classes, times the logit scale: [n, classes]."""
    return LOGIT_SCALE * F.normalize(tower(images), dim=-1) @ head.T


def save(tower: nn.Module, directory: Path, training: dict[str, Any] | None = None) -> None:
    """Write ``model.safetensors``, ``config.json`` and, with a training record, ``training.json``."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tower.state_dict(), directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", {"architectures": ["VisionTransformer"], **TOWER})
    if training is not None:
        _write_json(directory / "training.json", training)


def load(directory: Path) -> nn.Module:
    """The tower that ``save`` or a merge wrote."""
    config = json.loads((directory / "config.json").read_text())
    tower = _build({key: config[key] for key in TOWER})
    tower.load_state_dict(load_file(directory / "model.safetensors"))
    return tower


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _build(arguments: dict[str, Any]) -> nn.Module:
    from open_clip.transformer import VisionTransformer  # here, because it takes ten seconds to import

    tower: nn.Module = VisionTransformer(**arguments)
    return tower
