"""Sequence classifiers: the scores are those of a model that is merged to disk and loaded by transformers itself."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from language_files import bert, bert_classifier, llama, save, write_jsonl
from merged_files import put, write_merged
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset, EvaluationSpec
from workers.evaluation import Evaluator, build_evaluator
from workers.finetuning.datasets.hub import HubSplit
from workers.finetuning.datasets.layouts import Split
from workers.hardware import Hardware

CLASSES = ("even", "odd", "zero")
BATCH = 7


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save(bert_classifier(*CLASSES), tmp_path_factory.mktemp("base") / "bert", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of different length, named by their class; 300 to train on and 90 to test on."""
    directory = tmp_path_factory.mktemp("numbers")
    draw = random.Random(0)
    for part, count in (("train", 300), ("test", 90)):
        rows = [draw.randrange(10 ** draw.randrange(1, 9)) * (index % 3 != 0) for index in range(count)]
        texts = [{"text": str(row), "label": "zero" if row == 0 else CLASSES[row % 2]} for row in rows]
        write_jsonl(directory / f"{part}.jsonl", texts)
    return directory


def spec_of(data: Path, **task: Any) -> EvaluationSpec:
    one = {"dataset": {"uri": str(data), "format": "jsonl"}, **task}
    return EvaluationSpec.model_validate(
        {"kind": "classification", "tasks": {"numbers": one}, "batch_size": BATCH}
    )


def build(base: Path, spec: EvaluationSpec, cpu: Hardware) -> Evaluator:
    return build_evaluator(str(base), spec, ["numbers"], cpu)


def rows_of(data: Path, split: str) -> list[dict[str, str]]:
    part = "test" if split == "test" else "train"
    rows = [json.loads(line) for line in (data / f"{part}.jsonl").read_text().splitlines()]
    if split == "test":
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[index] for index in order[len(rows) - len(rows) // 10 :]]


@torch.inference_mode()
def plain_accuracy(directory: Path, rows: list[dict[str, str]]) -> float:
    """What somebody gets who knows nothing of this package."""
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    correct = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        inputs = tokenizer([row["text"] for row in part], padding=True, return_tensors="pt")
        predicted = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits.argmax(-1)
        correct += sum(
            model.config.id2label[label] == row["label"]
            for label, row in zip(predicted.tolist(), part, strict=True)
        )
    return correct / len(rows)


def test_scores_are_those_of_the_merged_directory_loaded_by_transformers(
    base: Path, numbers: Path, cpu: Hardware, tmp_path: Path
) -> None:
    evaluator = build(base, spec_of(numbers), cpu)
    assert {tensor.dtype for tensor in evaluator.parameters.values()} == {torch.float32}
    seen = set()
    for scaling in (0.0, 1.0, 2.0):
        merged = write_merged(base, tmp_path / str(scaling), scaling)
        put(evaluator, merged)
        found = evaluator.evaluate("numbers", "validation"), evaluator.evaluate("numbers", "test")
        assert found == tuple(
            plain_accuracy(merged, rows_of(numbers, split)) for split in ("validation", "test")
        )
        seen.add(found)
    assert len(seen) == 3, "another model has another score"


def test_losses_are_cross_entropy_and_can_be_differentiated(base: Path, numbers: Path, cpu: Hardware) -> None:
    evaluator = build(base, spec_of(numbers), cpu)
    bias = evaluator.parameters["classifier.bias"].requires_grad_()
    parts = [
        (torch.autograd.grad(loss, bias)[0], terms)
        for loss, terms in evaluator.losses("numbers", "validation")
    ]
    assert [terms for _, terms in parts] == [7, 7, 7, 7, 2]
    # By the bias, the gradient of cross-entropy is the mean of what is predicted less what is: it sums to zero.
    assert all(abs(float(gradient.sum())) < 1e-6 < float(gradient.abs().max()) for gradient, _ in parts)


def test_one_file_is_validation_and_test(base: Path, numbers: Path, cpu: Hardware) -> None:
    evaluator = build(base, spec_of(numbers / "train.jsonl"), cpu)
    expected = plain_accuracy(base, rows_of(numbers, "validation"))
    assert [evaluator.evaluate("numbers", split) for split in ("validation", "test")] == [expected] * 2


def test_limit_draws_from_texts_that_are_sorted_by_class(
    base: Path, numbers: Path, cpu: Hardware, tmp_path: Path
) -> None:
    (tmp_path / "train.jsonl").write_text((numbers / "train.jsonl").read_text())
    rows = sorted(rows_of(numbers, "test"), key=lambda row: row["label"])
    write_jsonl(tmp_path / "test.jsonl", rows)
    evaluator = build(base, spec_of(tmp_path, limit=10), cpu)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0)).tolist()
    kept = [rows[index] for index in sorted(order[:10])]
    assert {row["label"] for row in kept} == set(CLASSES)
    assert evaluator.evaluate("numbers", "test") == plain_accuracy(base, kept)


def test_test_texts_may_lack_a_class(base: Path, numbers: Path, cpu: Hardware, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text((numbers / "train.jsonl").read_text())
    rows = [row for row in rows_of(numbers, "test") if row["label"] != "zero"]
    write_jsonl(data / "test.jsonl", rows)
    evaluator = build(base, spec_of(data), cpu)
    assert evaluator.evaluate("numbers", "test") == plain_accuracy(base, rows)


def test_a_data_set_of_the_hub_may_number_the_classes_otherwise(
    base: Path, numbers: Path, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [*CLASSES[1:], CLASSES[0]]

    def read(dataset: Dataset, split: Split, wanted: Sequence[str]) -> HubSplit:
        rows = [json.loads(line) for line in (numbers / f"{split}.jsonl").read_text().splitlines()]
        columns = {
            "text": [row["text"] for row in rows],
            "label": [names.index(row["label"]) for row in rows],
        }
        return HubSplit(columns, names)

    monkeypatch.setattr("workers.finetuning.text.read_hub", read)
    evaluator = build(base, spec_of(numbers, dataset={"uri": "hf://datasets/gulls/numbers"}), cpu)
    assert [evaluator.evaluate("numbers", split) for split in ("validation", "test")] == [
        plain_accuracy(base, rows_of(numbers, split)) for split in ("validation", "test")
    ]


def test_heads_and_data_that_do_not_fit_are_refused_by_name(
    base: Path, numbers: Path, cpu: Hardware, tmp_path: Path
) -> None:
    at = ("evaluation", "tasks", "numbers")

    def refusal(base: Path, spec: EvaluationSpec) -> tuple[tuple[str | int, ...], str, str]:
        with pytest.raises(InvalidRequest) as refused:
            build(base, spec, cpu)
        (item,) = refused.value.errors
        return item.loc, item.code, item.msg

    four = spec_of(numbers, classes=[*CLASSES, "prime"])
    assert refusal(base, four)[:2] == ((*at, "dataset"), "empty_class")
    two = save(bert_classifier("a", "b"), tmp_path / "two")
    assert refusal(two, spec_of(numbers, classes=list(CLASSES)))[:2] == ((*at, "classes"), "class_count")
    assert refusal(base, spec_of(numbers, max_length=65))[:2] == ((*at, "max_length"), "over_context")

    few = write_jsonl(tmp_path / "few.jsonl", rows_of(numbers, "test")[:9])
    assert refusal(base, spec_of(few))[:2] == ((*at, "dataset"), "no_evaluation_data")

    masked = save(bert(), tmp_path / "masked")
    place, code, message = refusal(masked, spec_of(numbers))
    assert (place, code) == (("base",), "architecture_mismatch")
    assert "classifier.weight" in message
    assert "cls.predictions" in message
    causal = save(llama(), tmp_path / "causal")
    assert "score.weight" in refusal(causal, spec_of(numbers))[2]
