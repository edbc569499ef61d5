"""Images that tests of several levels read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import settings

settings.register_profile("thorough", max_examples=12_000)

CLASSES = ("dark", "grey_shade", "light")


@pytest.fixture(scope="session")
def shades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: three classes of 20 noisy images of different brightness."""
    directory = tmp_path_factory.mktemp("shades")
    random = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (directory / name).mkdir()
        for index in range(20):
            pixels = np.clip(random.normal(40 + 80 * label, 20, (40, 48, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(directory / name / f"{index:02d}.png")
    return directory
