"""A CLIP model small enough to train in seconds. (Whole trainings are no unit tests: their libraries take a while.)"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from taumerge.schemas import FinetuneRequest

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own, so that no head of an earlier test is found."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory in open_clip's layout, with random weights."""
    directory = tmp_path_factory.mktemp("base") / "tiny"
    directory.mkdir()
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    save_file(model.state_dict(), directory / "open_clip_model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def request_for(tiny_clip: Path, shades: Path, tmp_path: Path) -> Callable[..., FinetuneRequest]:
    """Makes a request to fine-tune the small model on the shades; ``train`` fields by name."""

    def make(**train: Any) -> FinetuneRequest:
        spec = {
            "steps": 12,
            "learning_rate": 1e-3,
            "batch_size": 9,
            "warmup_steps": 4,
            "checkpoint_every": 5,
        }
        return FinetuneRequest.model_validate(
            {
                "base": str(tiny_clip),
                "task": {"kind": "clip", "dataset": {"uri": str(shades), "format": "image_folder"}},
                "train": spec | train,
                "output": str(tmp_path / "out"),
            }
        )

    return make
