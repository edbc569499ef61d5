"""Zero-shot classification with CLIP: top-1 accuracy under frozen heads of the base's text tower."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset, EvaluationSpec, EvaluationTask, Split
from workers.checkpoints.checkpoint import open_checkpoint
from workers.evaluation.images import KEPT_BYTES, Images, Preprocessing, kept_bytes
from workers.evaluation.parameters import checkpoint_parameters
from workers.evaluation.splits import has_part
from workers.finetuning.clip import ImageClassifier
from workers.finetuning.datasets import load_images, prompt_templates
from workers.finetuning.datasets.images import LabelledImages, fixed_order, sound_images, split_validation
from workers.finetuning.heads import zero_shot_head
from workers.finetuning.towers import load_clip
from workers.hardware import Hardware


class ClipEvaluator:
    """One image tower with a head for each task; see ``Evaluator`` for the methods."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        classifiers: Mapping[str, ImageClassifier],
        images: Mapping[tuple[str, Split], Images],
        preprocessing: Preprocessing,
        batch_size: int,
        hardware: Hardware,
    ) -> None:
        self.parameters = parameters
        self._classifiers, self._images, self._preprocessing = classifiers, images, preprocessing
        self._batch_size, self._hardware = batch_size, hardware

    def evaluate(self, task: str, split: Split) -> float:
        """Top-1 accuracy."""
        images = self._images[task, split]
        correct = torch.zeros((), dtype=torch.int64, device=self._hardware.device)
        for pixels, labels in images.batches(self._batch_size):
            with torch.inference_mode():
                correct = (
                    correct + (self._logits(task, pixels).argmax(dim=-1) == labels.to(correct.device)).sum()
                )
        return int(correct) / len(images)

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        """Cross-entropy of the labels; the text tower has no part in it."""
        for pixels, labels in self._images[task, split].batches(self._batch_size):
            logits = self._logits(task, pixels)
            yield F.cross_entropy(logits, labels.to(logits.device)), len(labels)

    def _logits(self, task: str, pixels: Tensor) -> Tensor:
        with self._hardware.autocast():
            logits: Tensor = self._classifiers[task](self._preprocessing.normalised(pixels))
        return logits


def build_clip_evaluator(
    base: str, spec: EvaluationSpec, tasks: Sequence[str], hardware: Hardware
) -> ClipEvaluator:
    """Load the model, its heads and the images of ``tasks``; see ``build_evaluator``."""
    threads = min(16, len(os.sched_getaffinity(0)))
    data = {
        (task, split): part
        for task in tasks
        for split, part in _splits(spec.tasks[task], threads, ("evaluation", "tasks", task)).items()
    }
    clip = load_clip(base)
    classifiers = {}
    for task in tasks:
        wanted, classes = spec.tasks[task], data[task, "validation"].classes
        templates = wanted.templates or prompt_templates(_dataset(wanted))
        head = zero_shot_head(clip, classes, templates, hardware.device)
        classifiers[task] = ImageClassifier(clip.model.visual, head.to(hardware.device)).eval()
    clip.model.to(hardware.device).eval()
    preprocessing = Preprocessing(clip, hardware.device)
    return ClipEvaluator(
        checkpoint_parameters(open_checkpoint(base), clip.model),
        classifiers,
        _kept_where_room(data, spec.select_on, preprocessing, ThreadPoolExecutor(threads)),
        preprocessing,
        spec.batch_size,
        hardware,
    )


def _splits(task: EvaluationTask, threads: int, loc: tuple[str | int, ...]) -> dict[Split, LabelledImages]:
    """Validation as a fine-tune splits it off, and the data set's own test split, or else validation again."""
    dataset = _dataset(task)

    def sound(data: LabelledImages) -> LabelledImages:
        return sound_images(data, skip_corrupt=dataset.skip_corrupt, threads=threads, loc=loc)

    train = load_images(dataset, "train", task.classes, loc)
    if dataset.skip_corrupt:  # the split is drawn from what is left
        train = sound(train)
    validation = sound(split_validation(train)[1])
    test = validation
    if has_part(dataset, "test"):
        test = sound(_test_split(dataset, task.classes, train.classes, loc))
    found: dict[Split, LabelledImages] = {"validation": validation, "test": test}
    for split, part in found.items():
        _check(part, split, loc)
        found[split] = part.subset(sorted(fixed_order(len(part))[: task.limit]))
    return found


def _test_split(
    dataset: Dataset, given: list[str] | None, classes: tuple[str, ...], loc: tuple[str | int, ...]
) -> LabelledImages:
    # Numbers in Parquet get their names from the training split; folders name the classes themselves.
    names = given if dataset.format == "image_folder" else list(classes)
    test = load_images(dataset, "test", names, loc)
    if test.classes != classes:
        other = sorted(set(test.classes) ^ set(classes))
        message = f"training and test images have different classes ({', '.join(map(repr, other[:10]))} in only one)"
        raise InvalidRequest.at((*loc, "dataset"), "class_mismatch", message)
    return test


def _check(data: LabelledImages, split: Literal["validation", "test"], loc: tuple[str | int, ...]) -> None:
    if not len(data):
        least = "; a tenth of the training images is validation data, so there must be 10 at least"
        message = f"it has no {split} images{least if split == 'validation' else ''}"
        raise InvalidRequest.at((*loc, "dataset"), "no_evaluation_data", message)
    if len(data.classes) < 2:
        message = f"every image has the class {data.classes[0]!r}; there must be two classes at least"
        raise InvalidRequest.at((*loc, "dataset"), "too_few_classes", message)


def _dataset(task: EvaluationTask) -> Dataset:
    assert task.dataset is not None, "checked before the job"
    return task.dataset


def _kept_where_room(
    data: Mapping[tuple[str, Split], LabelledImages],
    first: Split,
    preprocessing: Preprocessing,
    pool: ThreadPoolExecutor,
) -> dict[tuple[str, Split], Images]:
    """``Images`` of each split; those of the split ``first``, which is evaluated again and again, are kept before."""
    room = KEPT_BYTES
    images = {}
    for key in sorted(data, key=lambda key: key[1] != first):
        needed = kept_bytes(len(data[key]), preprocessing)
        keep = needed <= room
        room -= needed if keep else 0
        images[key] = Images(data[key], preprocessing, pool, keep=keep)
    return images
