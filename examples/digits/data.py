"""Four tasks made of scikit-learn's handwritten digits: 1797 images of 8×8 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits

SPLIT_SEED = 0
TEST_FRACTION = VALIDATION_FRACTION = 0.2
CLASSES = {"digits": 10, "parity": 2, "rotation": 4, "mirrored": 2}
"""The tasks and their numbers of classes.

``digits``: which digit; ``parity``: even or odd; ``rotation``: by how many quarter turns;
``mirrored``: left and right exchanged or not.
"""


@dataclass(frozen=True)
class Split:
    """Labelled images: float32 [n, 3, 32, 32] in [-1, 1], and int64 [n]."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Task:
    """One classification task. Its splits are made of different handwritten digits."""

    name: str
    train: Split
    validation: Split
    test: Split


def split_indices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Indices of the images for training, validation and test: disjoint, and the same for every task.

    Otherwise the test digits of one task would have been trained on in another, and a merged model
    would have seen them.
    """
    count = len(load_digits().target)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, validation = int(count * TEST_FRACTION), int(count * VALIDATION_FRACTION)
    return order[test + validation :], order[test : test + validation], order[:test]


def load_tasks() -> dict[str, Task]:
    """Every task of ``CLASSES``, by name."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float() / 8 - 1
    labels = torch.from_numpy(digits.target).long()
    splits = [(pixels[index], labels[index]) for index in split_indices()]
    return {name: Task(name, *(_as_task(name, *split) for split in splits)) for name in CLASSES}


def _as_task(name: str, pixels: torch.Tensor, digit: torch.Tensor) -> Split:
    """Images [n, 8, 8] of digits [n] as examples of a task; some tasks show an image several times."""
    if name == "rotation":
        variants = [torch.rot90(pixels, turns, dims=(1, 2)) for turns in range(4)]
    elif name == "mirrored":
        variants = [pixels, pixels.flip(2)]
    else:
        return Split(_enlarged(pixels), digit % 2 if name == "parity" else digit)
    return Split(_enlarged(torch.cat(variants)), torch.arange(len(variants)).repeat_interleave(len(digit)))


def _enlarged(pixels: torch.Tensor) -> torch.Tensor:
    """[n, 8, 8] to [n, 3, 32, 32], the input of the tower; the three channels share their memory."""
    large = pixels.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    return large[:, None].expand(-1, 3, -1, -1)
