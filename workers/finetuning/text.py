"""Texts to train on: prompts with responses, or texts with labels, from JSONL and Parquet files or the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset, FinetuneTask
from workers.checkpoints.checkpoint import local_path
from workers.finetuning.datasets.files import read_tables
from workers.finetuning.datasets.hub import read_hub
from workers.finetuning.datasets.hub_address import is_hub
from workers.finetuning.datasets.images import check_classes
from workers.finetuning.datasets.layouts import Split

LOC = ("task", "dataset")


@dataclass(frozen=True)
class Instructions:
    """What to answer to what."""

    prompts: list[str]
    responses: list[str]


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and the classes that they belong to."""

    classes: tuple[str, ...]
    """Names of the classes, by label."""
    texts: list[str]
    labels: list[int]


def read_instructions(dataset: Dataset, split: Split) -> Instructions:
    """The columns ``prompt`` and ``response`` of a split.

    Raises:
        InvalidRequest: ``unreadable_dataset``, ``unknown_column``, ``malformed_row`` or ``no_texts``.
    """
    columns, _ = _read_columns(dataset, split, ("prompt", "response"))
    return Instructions(
        _texts(columns["prompt"], dataset, "prompt"), _texts(columns["response"], dataset, "response")
    )


def read_labelled_texts(task: FinetuneTask, split: Split, known: Sequence[str] | None) -> LabelledTexts:
    """The columns ``text`` and ``label`` of a split; a label is a name, or a number from 0 on.

    The classes are ``task.classes``, or else the ``known`` ones of the base, or else those that a data set of the hub
    names, or the names in the data in alphabetical order, or the numbers.

    Raises:
        InvalidRequest: as ``read_instructions``, and ``unknown_class``, ``label_out_of_range``; ``empty_class`` or
            ``too_few_classes`` in a training split.
    """
    columns, stored = _read_columns(task.dataset, split, ("text", "label"))
    texts, given = _texts(columns["text"], task.dataset, "text"), columns["label"]
    if stored and not task.classes and known and set(stored) == set(known):
        # The base may number them otherwise. What is no number of theirs is refused below.
        given = [dict(enumerate(stored)).get(label, label) for label in given]
    listed = task.classes or known or stored
    classes: Sequence[str]
    if all(isinstance(label, str) for label in given):
        classes = listed or sorted(set(given))
        unknown = sorted(set(given) - set(classes))
        if unknown:
            message = f"the data has the class {unknown[0]!r}, which is not listed"
            raise InvalidRequest.at(("task", "classes"), "unknown_class", message)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = [numbers[label] for label in given]
    elif all(type(label) is int for label in given):
        labels = list(given)
        # n texts have n classes at most; a label beyond them is a mistake, however large.
        classes = listed or [str(number) for number in range(min(max(labels), len(labels)) + 1)]
        outside = [row for row, label in enumerate(labels) if not 0 <= label < len(classes)]
        if outside:
            message = (
                f"row {outside[0]} has label {labels[outside[0]]} and there are {len(classes)} classes, from 0 on "
                f"({len(outside)} such rows)"
            )
            raise InvalidRequest.at(LOC, "label_out_of_range", message)
    else:
        row = next(
            row
            for row, label in enumerate(given)
            if type(label) not in (str, int) or type(label) is not type(given[0])
        )
        message = (
            f"row {row} has the label {given[row]!r}; labels are all names or all whole numbers from 0 on"
        )
        raise InvalidRequest.at(_column(task.dataset, "label"), "malformed_row", message)
    if split == "train":
        check_classes(classes, labels, "text", ("task",))
        if len(classes) < 2:
            message = f"every text has the class {classes[0]!r}; a classifier needs two at least"
            raise InvalidRequest.at(LOC, "too_few_classes", message)
    return LabelledTexts(tuple(classes), texts, labels)


def _read_columns(
    dataset: Dataset, split: Split, wanted: Sequence[str]
) -> tuple[dict[str, list[Any]], list[str] | None]:
    """The values of each column, and the names of the classes where the data set numbers and names them."""
    stored = None
    if is_hub(dataset.uri):
        found = read_hub(dataset, split, wanted)
        stored = found.class_names
        columns = {want: found.column(want) for want in wanted}
    else:
        columns = _read_files(dataset, split, wanted)
    if not columns[wanted[0]]:
        raise InvalidRequest.at((*LOC, "uri"), "no_texts", "it has no rows")
    return columns, stored


def _read_files(dataset: Dataset, split: Split, wanted: Sequence[str]) -> dict[str, list[Any]]:
    path = local_path(dataset.uri or "")
    if dataset.format == "parquet":
        table = read_tables(path, split, wanted, dataset.columns, ("task",))
        return {want: table[want].to_pylist() for want in wanted}
    rows = [row for file in _jsonl_files(path, split) for row in _read_jsonl(file, dataset, wanted)]
    return {want: [row[number] for row in rows] for number, want in enumerate(wanted)}


def _jsonl_files(path: Path, split: Split) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.rglob("*.jsonl"))
    if not files:
        raise InvalidRequest.at((*LOC, "uri"), "unreadable_dataset", "there is no .jsonl file in it")
    return [file for file in files if file.name.startswith(split)] or files


def _read_jsonl(path: Path, dataset: Dataset, wanted: Sequence[str]) -> list[list[Any]]:
    names = [dataset.columns.get(want, want) for want in wanted]
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("it is no JSON object")
                for want, name in zip(wanted, names, strict=True):
                    if name not in row:
                        message = (
                            f"line {number} of {path.name} has no column {name!r} for the {want}; it has "
                            f"{', '.join(row) or 'none'}"
                        )
                        raise InvalidRequest.at((*LOC, "columns", want), "unknown_column", message)
                rows.append([row[name] for name in names])
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path.name} cannot be read as UTF-8 text: {error}"
        raise InvalidRequest.at((*LOC, "uri"), "unreadable_dataset", message) from None
    except (ValueError, RecursionError) as error:
        message = f"line {number} of {path.name} is no JSON object that can be read: {error}"
        raise InvalidRequest.at((*LOC, "uri"), "malformed_row", message) from None
    return rows


def _texts(values: list[Any], dataset: Dataset, want: str) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            message = (
                f"row {row} has {str(value)[:40]!r} as its {want}, which is no text; repair or remove the row"
            )
            raise InvalidRequest.at(_column(dataset, want), "malformed_row", message)
    return values


def _column(dataset: Dataset, want: str) -> tuple[str, ...]:
    return (*LOC, "columns", want)
