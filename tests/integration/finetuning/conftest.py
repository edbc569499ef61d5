"""A CLIP model small enough to train in seconds. (Whole trainings are no unit tests: their libraries take a while.)"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clip_files import write_tiny_clip

from taumerge.schemas import FinetuneRequest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of its own, so that no head of an earlier test is found."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory in open_clip's layout, with random weights."""
    return write_tiny_clip(tmp_path_factory.mktemp("base") / "tiny")


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
