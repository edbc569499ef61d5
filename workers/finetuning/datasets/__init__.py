"""Image data sets: the eight of the paper by name, or one's own image folders, Parquet files and those of the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset
from workers.checkpoints.checkpoint import local_path
from workers.finetuning.datasets.catalogue import CATALOGUE, DEFAULT_TEMPLATES
from workers.finetuning.datasets.hub_address import is_hub

if TYPE_CHECKING:
    from workers.finetuning.datasets.images import LabelledImages
    from workers.finetuning.datasets.layouts import Split

__all__ = ["load_images", "prompt_templates"]


def prompt_templates(dataset: Dataset) -> tuple[str, ...]:
    """The prompts of a data set, ``{}`` for the name of a class."""
    return CATALOGUE[dataset.name].templates if dataset.name else DEFAULT_TEMPLATES


def load_images(
    dataset: Dataset, split: Split, classes: Sequence[str] | None, loc: Sequence[str | int] = ("task",)
) -> LabelledImages:
    """One split of a data set. Images stay where they are until they are decoded.

    Args:
        classes: names of the classes by label, in the place of the data set's.
        loc: place of the task in the request, for errors.

    Raises:
        InvalidRequest: ``unreadable_dataset``, ``unknown_column``, ``no_images``, ``class_count``,
            ``label_out_of_range``, ``empty_class``, …
    """
    from workers.finetuning.datasets.files import read_hub_images, read_image_folder, read_parquet
    from workers.finetuning.datasets.images import check_labels
    from workers.finetuning.datasets.layouts import LAYOUTS

    if is_hub(dataset.uri) or is_hub(dataset.root):
        data = read_hub_images(dataset, split, classes, loc)
        check_labels(data, loc)
        return data
    if dataset.uri is not None:
        if dataset.format == "parquet":
            data = read_parquet(local_path(dataset.uri), split, dataset.columns, classes, loc)
        else:
            data = read_image_folder(local_path(dataset.uri), split, classes, loc)
        check_labels(data, loc)
        return data

    name, root = dataset.name or "", dataset.root or ""
    try:
        data = LAYOUTS[name](local_path(root), split)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        message = f"{name} cannot be read there as `workers.finetuning.datasets.layouts` lays it out: {_told(error)}"
        raise InvalidRequest.at((*loc, "dataset", "root"), "unreadable_dataset", message) from error
    names = classes or CATALOGUE[name].class_names or data.classes
    if len(names) < len(data.classes):
        message = f"{len(names)} names are given and {name} has {len(data.classes)} classes"
        raise InvalidRequest.at((*loc, "classes"), "class_count", message)
    data = replace(data, classes=tuple(names))
    check_labels(data, loc)
    return data


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return str(error).replace(" You can use download=True to download it", "")
