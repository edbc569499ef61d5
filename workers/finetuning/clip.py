"""Fine-tuning of CLIP: the image tower is trained, a zero-shot head stays frozen."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from taumerge.schemas import FinetuneRequest
from workers.finetuning.datasets import load_images, prompt_templates
from workers.finetuning.datasets.images import (
    SPLIT_SEED,
    LabelledImages,
    ahead,
    check_images,
    decode,
    split_validation,
)
from workers.finetuning.heads import truncated_prompts, zero_shot_head
from workers.finetuning.tower_adapters import add_adapter, folded
from workers.finetuning.towers import Clip, load_clip
from workers.hardware import Hardware

CROP_AREA = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
"""Random crops as open_clip trains with: share of the image's area, and width over height."""
VALIDATION_BATCH = 256

ImageBatch = tuple[Tensor, Tensor]
"""Images, float32 [n, 3, size, size], and labels, int64 [n]."""


class ImageClassifier(nn.Module):
    """Image tower and zero-shot head: images [n, 3, size, size] to logits [n, classes]."""

    head: Tensor

    def __init__(self, visual: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("head", head, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        features = self.visual(images)
        if isinstance(features, tuple):  # the towers of CoCa give their tokens too
            features = features[0]
        with torch.autocast(features.device.type, enabled=False):  # logits reach 100: too coarse in 16 bits
            return F.normalize(features.float(), dim=-1) @ self.head


class ClipTask:
    """Classification of images; see ``TrainingTask`` for the methods."""

    unit = "images"

    def __init__(
        self,
        request: FinetuneRequest,
        clip: Clip,
        head: Tensor,
        training: LabelledImages,
        validation: LabelledImages,
        hardware: Hardware,
        threads: int,
    ) -> None:
        self._request, self._clip, self._hardware = request, clip, hardware
        self._training, self._validation = training, validation
        self._pool = ThreadPoolExecutor(threads)
        self.model: nn.Module = ImageClassifier(clip.model.visual, head).to(hardware.device)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training split; what is left over comes in another epoch."""
        return max(1, len(self._training) // self._request.train.batch_size)

    def train_batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Sequence[ImageBatch]]:
        """A new random order in each epoch; images are decoded and cropped in threads, ahead of the model."""
        train = self._request.train
        seed = hash((train.seed, epoch)) % 2**63
        order = torch.randperm(len(self._training), generator=torch.Generator().manual_seed(seed)).tolist()
        steps = (
            order[step * train.batch_size : (step + 1) * train.batch_size][rank::world]
            for step in range(first, self.steps_per_epoch)
        )

        def example(index: int) -> Tensor:
            return self._clip.normalised(
                random_crop(decode(self._training.images[index]), self._clip.size, hash((seed, index)))
            )

        for indices, images in ahead(self._pool, example, steps):
            labels = torch.tensor([self._training.labels[index] for index in indices])
            pixels = torch.stack(images)
            if self._hardware.device.type == "cuda":
                pixels = pixels.pin_memory()  # else the copy to the GPU waits for all that is queued there
            size = train.micro_batch_size or len(indices)
            yield list(zip(torch.split(pixels, size), torch.split(labels, size), strict=True))

    def loss(self, model: nn.Module, batch: ImageBatch) -> Tensor:
        """Cross-entropy, without label smoothing."""
        images, labels = (part.to(self._hardware.device, non_blocking=True) for part in batch)
        return F.cross_entropy(model(images), labels)

    def count(self, batch: ImageBatch) -> int:
        """Images."""
        return len(batch[1])

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Top-1 accuracy and mean cross-entropy."""
        model.eval()
        data, device = self._validation, self._hardware.device
        correct = loss = torch.zeros((), dtype=torch.float64, device=device)
        parts = [
            list(range(start, min(start + VALIDATION_BATCH, len(data))))
            for start in range(0, len(data), VALIDATION_BATCH)
        ]

        def example(index: int) -> Tensor:
            return self._clip.evaluation_transform(decode(data.images[index]))

        for indices, images in ahead(self._pool, example, parts):
            labels = torch.tensor([data.labels[index] for index in indices]).to(device)
            with self._hardware.autocast():
                logits = model(torch.stack(images).to(device))
            correct = correct + (logits.argmax(dim=-1) == labels).sum()
            loss = loss + F.cross_entropy(logits, labels, reduction="sum")
        return {"accuracy": float(correct) / len(data), "loss": float(loss) / len(data)} if len(data) else {}

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """open_clip's own layout, in the element types of the base; the text tower is the base's."""
        stored = self._clip.model.state_dict() | dict(weights)
        if self._request.adapter:
            stored = folded(stored, self._request.adapter)
        tensors = {
            name: tensor.to("cpu", self._clip.dtypes.get(name, tensor.dtype)).contiguous()
            for name, tensor in stored.items()
        }
        save_file(tensors, directory / "open_clip_model.safetensors", metadata={"format": "pt"})
        (directory / "open_clip_config.json").write_text(json.dumps(self._clip.config, indent=2) + "\n")
        self._clip.save_tokenizer(directory)

    def record(self) -> dict[str, Any]:
        """Data, head and what was trained."""
        task, adapter = self._request.task, self._request.adapter
        templates = task.templates or list(prompt_templates(task.dataset))
        return {
            "dataset": task.dataset.model_dump(exclude_defaults=True),
            "classes": list(self._training.classes),
            "templates": templates,
            "split_seed": SPLIT_SEED,
            "training_size": len(self._training),
            "validation_size": len(self._validation),
            "skipped_images": self._training.skipped,
            "truncated_prompts": truncated_prompts(self._clip.tokenizer, self._training.classes, templates),
            "method": adapter.kind if adapter else "full",
            "adapter": adapter.model_dump(exclude={"kind"}) if adapter else None,
            "trained": "image tower",
        }


def build_clip_task(request: FinetuneRequest, hardware: Hardware) -> ClipTask:
    """Read the data, load the model and build its head.

    Raises:
        InvalidRequest: located in the request.
    """
    task = request.task
    threads = min(16, len(os.sched_getaffinity(0)))
    data = load_images(task.dataset, "train", task.classes)
    data = check_images(data, skip_corrupt=task.dataset.skip_corrupt, threads=threads, loc=("task",))
    training, validation = split_validation(data)
    clip = load_clip(request.base)
    templates = task.templates or prompt_templates(task.dataset)
    head = zero_shot_head(clip, data.classes, templates, hardware.device)
    clip.model.requires_grad_(False)
    clip.model.visual.requires_grad_(True)
    if request.adapter:
        add_adapter(clip.model.visual, request.adapter)
    return ClipTask(request, clip, head, training, validation, hardware, threads)


def random_crop(image: PIL.Image.Image, size: tuple[int, int], seed: int) -> PIL.Image.Image:
    """A random part of the image, resized to ``size`` (height, width): RandomResizedCrop with a seed of its own.

    (torchvision's draws from the global generator, which threads would share.)
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    width, height = image.size
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(10):
        area, log_ratio, x, y = torch.rand(4, generator=generator).tolist()
        area = width * height * (CROP_AREA[0] + area * (CROP_AREA[1] - CROP_AREA[0]))
        ratio = math.exp(low + log_ratio * (high - low))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            break
    else:  # a very long image: the largest part in the middle within the ratios
        w, h = (
            min(width, round(height * CROP_RATIO[1])),
            min(height, round(width / CROP_RATIO[0])),
        )
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.crop(box).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
