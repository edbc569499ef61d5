"""Where evaluations compute, and small images to evaluate on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from workers.hardware import Hardware


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of their own, so that no head or data set of an earlier test is found; and nothing asks the Hub."""
    directory = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", directory)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(directory))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Several wait for one another at every operation, on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def cpu() -> Hardware:
    return Hardware(torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def tints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with a test part: three classes, 100 noisy images of each to train on and 30 to test on."""
    directory = tmp_path_factory.mktemp("tints")
    random = np.random.default_rng(0)
    for part, count in (("train", 100), ("test", 30)):
        for channel, name in enumerate(("blue", "green", "red")):
            (directory / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.normal(110, 40, (36, 40, 3))
                pixels[..., 2 - channel] += 60
                image = PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(directory / part / name / f"{index:03d}.png")
    return directory
