"""Accuracy of sequence classifiers of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import InvalidRequest
from taumerge.schemas import EvaluationSpec, EvaluationTask, FinetuneTask, Split
from workers.checkpoints.checkpoint import open_checkpoint
from workers.evaluation.parameters import checkpoint_parameters
from workers.evaluation.splits import has_part
from workers.finetuning.datasets.images import fixed_order, split_indices
from workers.finetuning.language import text_length
from workers.finetuning.language_models import BaseModel, load_pretrained, open_base, set_classes
from workers.finetuning.text import LabelledTexts, read_labelled_texts
from workers.finetuning.text_batches import labelled_batch
from workers.finetuning.text_encoding import Example, encode_labelled_texts
from workers.hardware import Hardware


class ClassificationEvaluator:
    """One classifier for all tasks; see ``Evaluator`` for the methods."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        model: Any,
        examples: Mapping[tuple[str, Split], Sequence[Example]],
        padding: int,
        batch_size: int,
        hardware: Hardware,
    ) -> None:
        self.parameters = parameters
        self._model, self._examples, self._padding = model, examples, padding
        self._batch_size, self._hardware = batch_size, hardware

    def evaluate(self, task: str, split: Split) -> float:
        """Accuracy."""
        correct = 0
        with torch.inference_mode():
            for logits, targets in self._predictions(task, split):
                correct += int((logits.argmax(dim=-1) == targets).sum())
        return correct / len(self._examples[task, split])

    def losses(self, task: str, split: Split) -> Iterator[tuple[Tensor, int]]:
        """Cross-entropy of the labels."""
        for logits, targets in self._predictions(task, split):
            yield F.cross_entropy(logits, targets), len(targets)

    def _predictions(self, task: str, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits, float32 [n, classes], and labels of each batch."""
        examples = self._examples[task, split]
        for start in range(0, len(examples), self._batch_size):
            batch = labelled_batch(examples[start : start + self._batch_size], self._padding)
            inputs = {name: part.to(self._hardware.device) for name, part in batch.items()}
            targets = inputs.pop("targets")
            with self._hardware.autocast():
                logits = self._model(**inputs).logits
            yield logits.float(), targets


def build_classification_evaluator(
    base: str, spec: EvaluationSpec, tasks: Sequence[str], hardware: Hardware
) -> ClassificationEvaluator:
    """Load the model and the texts of ``tasks``; see ``build_evaluator``."""
    opened = open_base(base)
    texts = {task: _read(task, spec.tasks[task], opened) for task in tasks}
    for task in tasks:
        with _located(task):
            set_classes(opened, texts[task]["validation"].classes)
    model, info = load_pretrained(opened, classifier=True, dtype=torch.float32)
    parameters = checkpoint_parameters(
        open_checkpoint(base), model.to(hardware.device).eval(), info["unexpected_keys"]
    )
    examples: dict[tuple[str, Split], Sequence[Example]] = {}
    for task in tasks:
        with _located(task):
            for split, encoded in _encoded(spec.tasks[task], texts[task], opened, model).items():
                kept = sorted(fixed_order(len(encoded))[: spec.tasks[task].limit])
                examples[task, split] = [encoded[index] for index in kept]
    return ClassificationEvaluator(
        parameters, model, examples, opened.padding or 0, spec.batch_size, hardware
    )


def _read(name: str, task: EvaluationTask, base: BaseModel) -> dict[Split, LabelledTexts]:
    assert task.dataset is not None, "checked before the job"
    wanted = FinetuneTask(kind="classification", dataset=task.dataset, classes=task.classes)
    with _located(name):
        train = read_labelled_texts(wanted, "train", base.classes)
        _, validation = split_indices(len(train.texts))
        if not validation:
            message = "a tenth of the training texts is validation data, so there must be 10 at least"
            raise InvalidRequest.at(("task", "dataset"), "no_evaluation_data", message)
        found: dict[Split, LabelledTexts] = {
            "validation": replace(
                train,
                texts=[train.texts[index] for index in validation],
                labels=[train.labels[index] for index in validation],
            )
        }
        found["test"] = found["validation"]
        if has_part(task.dataset, "test"):
            found["test"] = read_labelled_texts(wanted, "test", train.classes)
        return found


def _encoded(
    task: EvaluationTask, texts: Mapping[Split, LabelledTexts], base: BaseModel, model: Any
) -> dict[Split, list[Example]]:
    length = text_length(base, task.max_length)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return {
        split: encode_labelled_texts(base.tokenizer, part, length, vocabulary).examples
        for split, part in texts.items()
    }


@contextmanager
def _located(task: str) -> Iterator[None]:
    """Readers of a fine-tune's data locate errors in ``task``: here it is one of ``evaluation.tasks``."""
    try:
        yield
    except InvalidRequest as error:
        errors = [
            item.model_copy(update={"loc": ("evaluation", "tasks", task, *item.loc[1:])})
            if item.loc[:1] == ("task",)
            else item
            for item in error.errors
        ]
        raise InvalidRequest(errors) from error
