"""Fine-tuning of language models: instructions for causal language models, classes for sequence classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneRequest
from workers.finetuning.datasets.images import SPLIT_SEED, split_indices
from workers.finetuning.language_models import BaseModel, load_model, open_base
from workers.finetuning.text import LabelledTexts, read_instructions, read_labelled_texts
from workers.finetuning.text_batches import (
    TextBatch,
    labelled_batch,
    language_batch,
    packed_batch,
    packs,
    steps_of_epoch,
)
from workers.finetuning.text_encoding import (
    NO_LOSS,
    Encoded,
    Example,
    encode_instructions,
    encode_labelled_texts,
)
from workers.hardware import Hardware

CLOSE = 1e-3
"""How much the log-probabilities of an example may change when it is packed, relative to the largest."""

Row = list[Example]
"""The examples of one sequence: one, or with packing as many as fit."""


@dataclass(frozen=True)
class Data:
    """The examples of a fine-tune, split."""

    encoded: Encoded
    training: list[Row]
    validation: list[Row]
    length: int
    """Tokens that examples were cut to."""
    classes: tuple[str, ...] | None


class LanguageTask:
    """Language modelling or classification of texts; see ``TrainingTask`` for the methods."""

    def __init__(
        self,
        request: FinetuneRequest,
        base: BaseModel,
        model: nn.Module,
        initialised: Sequence[str],
        data: Data,
        hardware: Hardware,
    ) -> None:
        self.model = model
        self.unit = "tokens" if data.classes is None else "texts"
        self._request, self._base, self._data, self._hardware = request, base, data, hardware
        self._initialised = list(initialised)
        self._padding = base.padding or 0  # masked wherever it stands

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in the training split; what is left over comes in another epoch."""
        return max(1, len(self._data.training) // self._request.train.batch_size)

    def train_batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Sequence[TextBatch]]:
        """A new random order in each epoch, with texts of similar length in one step."""
        train, rows = self._request.train, self._data.training
        lengths = [sum(len(example.tokens) for example in row) for row in rows]
        steps = steps_of_epoch(lengths, train.batch_size, hash((train.seed, epoch)) % 2**63)
        for step in steps[first:]:
            yield self._batches([rows[index] for index in step[rank::world]])

    def loss(self, model: nn.Module, batch: TextBatch) -> Tensor:
        """Cross-entropy, without label smoothing: over the tokens of the responses, or over the texts."""
        logits, targets = self._predict(model, batch)
        return F.cross_entropy(logits, targets, ignore_index=NO_LOSS)

    def count(self, batch: TextBatch) -> int:
        """Tokens of responses, or texts."""
        return int((batch["targets"] != NO_LOSS).sum())

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Mean cross-entropy and accuracy, for causal language models that of the next token of a response."""
        model.eval()
        correct = loss = 0.0
        count = 0
        for start in range(0, len(self._data.validation), self._request.train.batch_size):
            for batch in self._batches(self._data.validation[start : start + self._request.train.batch_size]):
                with self._hardware.autocast():
                    logits, targets = self._predict(model, batch)
                correct += float((logits.argmax(dim=-1) == targets).sum())
                loss += float(F.cross_entropy(logits, targets, ignore_index=NO_LOSS, reduction="sum"))
                count += self.count(batch)
        return {"accuracy": correct / count, "loss": loss / count} if count else {}

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        """As transformers and peft save: the whole model in the element types of the base, or the adapter."""
        model: Any = self.model
        if self._request.adapter:
            model.save_pretrained(directory, state_dict=dict(weights), save_embedding_layers=False)
        else:
            stored = {
                name: tensor.to(self._base.dtypes.get(name, self._base.dtype))
                if tensor.is_floating_point()
                else tensor
                for name, tensor in weights.items()
            }
            for tied, source in model.all_tied_weights_keys.items():
                stored[tied] = stored[source]  # one storage, so that it is saved once
            model.save_pretrained(directory, state_dict=stored)
            model.config.dtype = self._base.dtype  # transformers wrote that of the training
            model.config.save_pretrained(directory)
        self._base.tokenizer.save_pretrained(directory)

    def record(self) -> dict[str, Any]:
        """Data, what became of long texts, and what was trained."""
        task, adapter, data = self._request.task, self._request.adapter, self._data
        return {
            "dataset": task.dataset.model_dump(exclude_defaults=True),
            "classes": data.classes,
            "split_seed": SPLIT_SEED,
            "training_size": sum(map(len, data.training)),
            "validation_size": sum(map(len, data.validation)),
            "max_length": data.length,
            "truncated_texts": data.encoded.truncated,
            "dropped_texts": data.encoded.dropped,
            "packing": task.packing,
            "method": adapter.kind if adapter else "full",
            "adapter": adapter.model_dump(exclude={"kind"}) if adapter else None,
            "initialised_tensors": self._initialised,
        }

    def _batches(self, rows: Sequence[Row]) -> list[TextBatch]:
        size = self._request.train.micro_batch_size or len(rows)
        return [self._batch(rows[at : at + size]) for at in range(0, len(rows), size)]

    def _batch(self, rows: Sequence[Row]) -> TextBatch:
        if self._request.task.packing:
            return packed_batch(rows, self._padding)
        examples = [example for row in rows for example in row]
        collate = language_batch if self._data.classes is None else labelled_batch
        return collate(examples, self._padding)

    def _predict(self, model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Logits, float32 [terms, vocabulary or classes], and the targets, int64 [terms]."""
        device = self._hardware.device
        inputs = {name: part.to(device) for name, part in batch.items() if name != "targets"}
        targets = batch["targets"]
        if self._data.classes is not None:
            return model(**inputs).logits.float(), targets.to(device)
        # Only responses are looked at: the logits of a large vocabulary in float32 take most of the memory. Where they
        # stand is found on the CPU, since a GPU would be waited for.
        rows, places = (targets[:, 1:] != NO_LOSS).nonzero(as_tuple=True)
        targets = targets[rows, places + 1].to(device)
        logits = model(**inputs, use_cache=False).logits[rows.to(device), places.to(device)]
        return logits.float(), targets


def build_language_task(request: FinetuneRequest, hardware: Hardware) -> LanguageTask:
    """Read the data, load model and tokenizer, and encode the texts.

    Raises:
        InvalidRequest: located in the request.
    """
    base = open_base(request.base)
    length = text_length(base, request.task.max_length)
    if request.task.kind == "causal_lm":
        instructions = read_instructions(request.task.dataset, "train")
        model, initialised = load_model(request, base, None, hardware)
        encoded = encode_instructions(base.tokenizer, instructions, length, _vocabulary(model))
        classes = None
    else:
        texts: LabelledTexts = read_labelled_texts(request.task, "train", base.classes)
        model, initialised = load_model(request, base, texts.classes, hardware)
        encoded = encode_labelled_texts(base.tokenizer, texts, length, _vocabulary(model))
        classes = texts.classes
    examples = encoded.examples
    training, validation = ([examples[index] for index in part] for part in split_indices(len(examples)))
    rows = [_rows(part, length, request.task.packing) for part in (training, validation)]
    if len(rows[0]) < request.resources.workers:
        message = f"{len(rows[0])} sequences cannot be shared by {request.resources.workers} workers"
        raise InvalidRequest.at(("resources", "workers"), "too_many_workers", message)
    if request.task.packing:
        _check_packing(model, rows[0], hardware)
    data = Data(encoded, rows[0], rows[1], length, classes)
    return LanguageTask(request, base, model, initialised, data, hardware)


def text_length(base: BaseModel, wanted: int | None) -> int:
    """Tokens that texts are cut to: ``wanted``, or what the model takes.

    Raises:
        InvalidRequest: at ``task.max_length``: ``context_unknown`` or ``over_context``.
    """
    context, loc = base.context, ("task", "max_length")
    if wanted is None and context is None:
        message = "neither model nor tokenizer say how many tokens they take; give max_length"
        raise InvalidRequest.at(loc, "context_unknown", message)
    if wanted is not None and context is not None and wanted > context:
        raise InvalidRequest.at(loc, "over_context", f"the model takes {context} tokens, less than {wanted}")
    return wanted or context or 0


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _rows(examples: Sequence[Example], length: int, packing: bool) -> list[Row]:
    if not packing or not examples:
        return [[example] for example in examples]
    filled = packs([len(example.tokens) for example in examples], length)
    return [[examples[index] for index in pack] for pack in filled]


@torch.no_grad()
def _check_packing(model: nn.Module, rows: Sequence[Row], hardware: Hardware) -> None:
    """Make sure that the model keeps the examples of a sequence apart: not every architecture does.

    Raises:
        InvalidRequest: ``packing_unsupported``.
    """
    row = next((row for row in rows if len(row) > 1), None)
    if row is None:
        return
    row = row[:2]
    model.eval()
    packed, alone = packed_batch([row], 0), packed_batch([row[1:]], 0)
    with hardware.autocast():
        together, single = (
            model(
                input_ids=batch["input_ids"].to(hardware.device),
                position_ids=batch["position_ids"].to(hardware.device),
                use_cache=False,
            )
            .logits[0]
            .float()
            for batch in (packed, alone)
        )
    difference = float((together[len(row[0].tokens) :] - single).abs().max() / single.abs().max())
    tolerance = CLOSE if hardware.dtype is torch.float32 else 50 * CLOSE
    if not difference < tolerance:
        message = "this model lets packed examples see one another; set packing to false"
        raise InvalidRequest.at(("task", "packing"), "packing_unsupported", message)
