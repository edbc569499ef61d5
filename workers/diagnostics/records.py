"""What training records say, and where they contradict themselves, each other or the checkpoints. No torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taumerge.errors import ErrorItem
from taumerge.schemas import ModelRef, Training
from workers.checkpoints.checkpoint import Checkpoint, CheckpointError, local_path, read_record, read_training

SLACK = 1.0 + 1e-6
"""Sums of learning rates are sums of rounded numbers."""


def read_records(
    models: Sequence[ModelRef], checkpoints: Sequence[Checkpoint], errors: list[ErrorItem]
) -> list[dict[str, Any]]:
    """``training.json`` of every model, empty where there is none.

    A record that cannot be read, or whose numbers cannot be, is an error at ``models.i.training`` unless the request
    gives both numbers.
    """
    records = []
    for index, (model, checkpoint) in enumerate(zip(models, checkpoints, strict=True)):
        record: dict[str, Any] = {}
        try:
            record = read_record(checkpoint)
            given = model.training or Training()
            if given.steps is None or given.lr_sum is None:
                read_training(checkpoint)
            if given.lr_sum is None:
                errors += _impossible(index, record)
        except CheckpointError as error:
            errors.append(ErrorItem(loc=("models", index, "training"), code=error.code, msg=error.message))
        records.append(record)
    return records


def contradictions(
    base: Checkpoint,
    models: Sequence[ModelRef],
    checkpoints: Sequence[Checkpoint],
    records: Sequence[dict[str, Any]],
) -> list[str]:
    """What does not fit together and yet stops nothing."""
    found = _different_bases(base, records)
    for index, (model, checkpoint, record) in enumerate(zip(models, checkpoints, records, strict=True)):
        name = f"models.{index}"
        for field, value in (model.training or Training()).model_dump(exclude_none=True).items():
            if record.get(field, value) != value:
                found.append(
                    f"{name}: the request says {field} {value:g} and its training record {record[field]}; the request "
                    "counts"
                )
        found += [f"{name}: {problem}" for problem in _misfits(checkpoint, record)]
    return found


def missing_records(training: Sequence[Training]) -> list[str]:
    """The warning that numbers are left out for want of sums of learning rates."""
    missing = [f"models.{index}" for index, one in enumerate(training) if one.lr_sum is None]
    if not missing:
        return []
    return [
        f"{', '.join(missing)}: no lr_sum, neither in a training.json beside the weights nor in the request; effective "
        "weights and χ² are left out"
    ]


def _impossible(index: int, record: dict[str, Any]) -> list[ErrorItem]:
    """A sum of learning rates that no schedule below the peak can have."""
    numbers = [record.get(field) for field in ("steps", "lr_sum", "learning_rate")]
    if not all(isinstance(one, int | float) for one in numbers):
        return []
    steps, lr_sum, peak = (float(one) for one in numbers if one is not None)
    if lr_sum <= steps * peak * SLACK:
        return []
    message = (
        f"training.json contradicts itself: lr_sum {lr_sum:g} is more than {steps:g} steps at the peak learning rate "
        f"{peak:g} can add up to; correct it, or give training.lr_sum in the request"
    )
    return [
        ErrorItem(
            loc=("models", index, "training", "lr_sum"), code="training_record_contradicts", msg=message
        )
    ]


def _different_bases(base: Checkpoint, records: Sequence[dict[str, Any]]) -> list[str]:
    """Records that name another base than the request or than each other. Models move, so it is no error."""
    here = {_place(base.uri)}
    if isinstance(base.directory, Path):
        here.add(str(local_path(base.uri).resolve()))
    named: dict[str, list[str]] = {}
    for index, record in enumerate(records):
        if isinstance(record.get("base"), str):
            named.setdefault(_place(record["base"]), []).append(f"models.{index}")
    # A name like open_clip://… says nothing about which directory holds that model.
    found = [
        f"{', '.join(models)}: trained from {place} according to the training record, and the base here is {base.uri}; "
        "if that is another model, τ_t means nothing"
        for place, models in named.items()
        if place.startswith("/") and place not in here
    ]
    if len(named) > 1 and not found:
        listed = "; ".join(f"{', '.join(models)} {place}" for place, models in named.items())
        found.append(f"the training records name different bases ({listed}); if they are, τ_t means nothing")
    return found


def _misfits(checkpoint: Checkpoint, record: dict[str, Any]) -> list[str]:
    """Where the record describes other weights than lie beside it."""
    found = []
    adapter, method = checkpoint.adapter, record.get("method")
    if adapter is not None and method == "full":
        found.append("its training record says method full, and it is an adapter")
    settings = record.get("adapter")
    if adapter is not None and isinstance(settings, dict) and settings.get("rank") != adapter.get("r", 8):
        found.append(
            f"its training record says rank {settings.get('rank')} and its adapter_config.json {adapter.get('r', 8)}"
        )
    sizes = {file.name: file.state.size for file in checkpoint.files}
    for name, recorded in _recorded_sizes(record).items():
        if name in sizes and sizes[name] != recorded:
            found.append(
                f"{name} has {sizes[name]} bytes and had {recorded} when its training record was written; is the "
                "record that of these weights?"
            )
    return found


def _recorded_sizes(record: dict[str, Any]) -> dict[str, int]:
    try:
        return {file["name"]: file["bytes"] for file in record["result"]["files"]}
    except (KeyError, TypeError):  # a record of another program
        return {}


def _place(uri: str) -> str:
    """The path that a URI names, as text: what a record names is not looked up."""
    try:
        return os.path.normpath(local_path(uri))
    except CheckpointError:
        return uri
