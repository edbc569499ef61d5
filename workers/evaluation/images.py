"""Images of a split as a CLIP tower takes them, decoded and resized once and kept as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor
from torchvision import transforms

from workers.finetuning.datasets.images import LabelledImages, ahead, decode
from workers.finetuning.towers import Clip

KEPT_BYTES = 4 * 2**30
"""What an evaluator keeps of its images. 224 × 224 takes 147 KiB: the paper's eight validation splits are 2.9 GiB."""


class Preprocessing:
    """open_clip's preprocessing in two steps that together give the same numbers to the bit.

    The first, up to the size of the tower, is slow and gives bytes; the second scales and normalises them.
    """

    def __init__(self, clip: Clip, device: torch.device) -> None:
        *resize, scale, normalise = cast(transforms.Compose, clip.evaluation_transform).transforms
        assert isinstance(scale, transforms.ToTensor)
        assert isinstance(normalise, transforms.Normalize)
        self._resize = transforms.Compose([*resize, transforms.PILToTensor()])
        # Tensors, not numbers: by a number a GPU multiplies with the reciprocal, which rounds otherwise.
        self._largest = torch.tensor(255.0, device=device)
        self._mean, self._deviation = (
            torch.as_tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
            for values in (normalise.mean, normalise.std)
        )
        self.shape = (3, *clip.size)
        self._device = device

    def bytes_of(self, image: Any) -> Tensor:
        """A PIL image as uint8 [3, height, width]."""
        return cast(Tensor, self._resize(image))

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, height, width] as float32 on the device."""
        return pixels.to(self._device).float().div_(self._largest).sub_(self._mean).div_(self._deviation)


class Images:
    """One split of a task.

    Args:
        keep: keep the images once they are decoded, rather than decode them for every evaluation.
    """

    def __init__(
        self, data: LabelledImages, preprocessing: Preprocessing, pool: ThreadPoolExecutor, *, keep: bool
    ) -> None:
        self._data, self._preprocessing, self._pool, self._keep = data, preprocessing, pool, keep
        self._kept: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        return len(self._data)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images, uint8 [n, 3, height, width], and labels, int64 [n], in order; ``size`` is always the same."""
        if self._kept:
            yield from self._kept
            return
        decoded = []
        for batch in self._decoded(size):
            yield batch
            if self._keep:
                decoded.append(batch)
        self._kept = decoded

    def _decoded(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        data = self._data

        def example(index: int) -> Tensor:
            return self._preprocessing.bytes_of(decode(data.images[index]))

        steps = (range(start, min(start + size, len(data))) for start in range(0, len(data), size))
        for indices, images in ahead(self._pool, example, steps):
            yield torch.stack(images), torch.tensor([data.labels[index] for index in indices])


def kept_bytes(count: int, preprocessing: Preprocessing) -> int:
    """Bytes of ``count`` decoded images."""
    channels, height, width = preprocessing.shape
    return count * channels * height * width
