"""Which examples validation and test are, as far as names of files tell. No torch: the API asks it too.

Validation is what a fine-tune splits off its training split. Where files of one's own have no test part, the
validation data is the test data too.
"""

from __future__ import annotations

from typing import Literal

from taumerge.schemas import Dataset, EvaluationSpec
from workers.checkpoints.checkpoint import local_path
from workers.finetuning.datasets.hub_address import is_hub

__all__ = ["has_part", "overlap"]


def overlap(spec: EvaluationSpec, task: str) -> bool:
    """Whether the examples that ``task`` is reported on may be among those that decide."""
    if spec.report_on is None:
        return False
    if spec.select_on == spec.report_on:
        return True
    dataset = spec.tasks[task].dataset
    return dataset is not None and not all(has_part(dataset, part) for part in ("train", "test"))


def has_part(dataset: Dataset, part: Literal["train", "test"]) -> bool:
    """Whether the data set keeps this part apart, as the readers in ``workers.finetuning`` look for it."""
    if dataset.uri is None or is_hub(dataset.uri):
        return True
    path = local_path(dataset.uri)
    if dataset.format == "image_folder":
        return (path / part).is_dir()
    return path.is_dir() and any(file.name.startswith(part) for file in path.rglob(f"*.{dataset.format}"))
