"""Plain PyTorch: the training loops that one would write for one model and one data set, as the measure of ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop, ToTensor

from taumerge.schemas import TrainSpec
from workers.finetuning.schedule import learning_rate_at


class Photographs(Dataset[tuple[Tensor, int]]):
    """Image files and their labels, cropped as open_clip crops them."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], size: int) -> None:
        self._files, self._labels = files, labels
        self._transform = Compose(
            [
                RandomResizedCrop(size, (0.9, 1.0), interpolation=InterpolationMode.BICUBIC),
                ToTensor(),
                Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with PIL.Image.open(self._files[index]) as image:
            return self._transform(image.convert("RGB")), self._labels[index]


def photographs_loader(data: Photographs, spec: TrainSpec, workers: int) -> Iterable[Any]:
    """Batches in random order; with ``workers`` = 0 they are decoded between the steps."""
    return DataLoader(
        data,
        spec.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def image_loss(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
    """Cross-entropy of the classes."""
    images, labels = (part.to(device, non_blocking=True) for part in batch)
    return F.cross_entropy(model(images), labels)


def text_loss(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
    """Cross-entropy of the responses, by the model itself."""
    tokens, mask, labels = (batch[name].to(device) for name in ("input_ids", "attention_mask", "targets"))
    loss: Tensor = model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def train_plainly(
    model: nn.Module, batches: Iterable[Any], loss_of: Any, spec: TrainSpec, device: torch.device
) -> list[float]:
    """Train ``spec.steps`` steps; returns the time at the end of each."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    times = []
    model.train()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(spec, step)
        loss = loss_of(model, batch, device)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # printed, in a script of one's own
        times.append(time.perf_counter())
        if step + 1 == spec.steps:
            break
    return times
