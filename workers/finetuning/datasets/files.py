"""Images of one's own: a folder for each class, Parquet files with a column of images, or a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset
from workers.finetuning.datasets.catalogue import CATALOGUE
from workers.finetuning.datasets.hub import HubImage, read_hub
from workers.finetuning.datasets.images import ImageSource, LabelledImages
from workers.finetuning.datasets.layouts import Split

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image_folder(
    directory: Path, split: Split, classes: Sequence[str] | None, loc: Sequence[str | int]
) -> LabelledImages:
    """``directory/CLASS/*``, or ``directory/{train,test}/CLASS/*`` where there are such folders.

    Labels number the folders by name; ``classes`` gives other names in that order.

    Raises:
        InvalidRequest: ``no_images`` or ``class_count``.
    """
    directory = _part_of(directory, split)
    folders = sorted(path for path in directory.iterdir() if path.is_dir()) if directory.is_dir() else []
    images: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        images += found
        labels += [label] * len(found)
    if not images:
        message = "there is no image in it; it has a folder for each class, with the images of the class"
        raise InvalidRequest.at((*loc, "dataset", "uri"), "no_images", message)
    if classes is not None and len(classes) != len(folders):
        message = f"{len(classes)} names are given and there are {len(folders)} folders, one for each class"
        raise InvalidRequest.at((*loc, "classes"), "class_count", message)
    names = classes or [folder.name.replace("_", " ") for folder in folders]
    return LabelledImages(tuple(names), images, labels)


def read_parquet(
    path: Path,
    split: Split,
    columns: Mapping[str, str],
    classes: Sequence[str] | None,
    loc: Sequence[str | int],
) -> LabelledImages:
    """A Parquet file, or a directory of them; those that start with ``train`` or ``test`` are that split.

    The image column holds encoded images, bare or as ``{"bytes": …}`` as Hugging Face data sets write them. The
    label column holds numbers, or names.

    Raises:
        InvalidRequest: ``unknown_column``, ``no_images``, ``unknown_class`` or ``class_names_needed``.
    """
    table = read_tables(path, split, ("image", "label"), columns, loc)
    images, labels = table["image"].to_pylist(), table["label"].to_pylist()
    if not images or None in images or None in labels:
        message = "an image or label is missing in it" if images else "it has no rows"
        raise InvalidRequest.at((*loc, "dataset", "uri"), "no_images", message)
    images = [image["bytes"] if isinstance(image, dict) else image for image in images]
    if not all(isinstance(image, bytes) for image in images):
        message = "the image column holds no encoded images; it takes bytes, or {bytes, path}"
        raise InvalidRequest.at((*loc, "dataset", "columns", "image"), "no_images", message)
    return _labelled(images, labels, classes, _stored_names(table.schema, columns.get("label", "label")), loc)


def read_hub_images(
    dataset: Dataset, split: Split, classes: Sequence[str] | None, loc: Sequence[str | int]
) -> LabelledImages:
    """A data set of the hub, with the columns ``image`` and ``label``; its labels hold numbers, or names.

    Raises:
        InvalidRequest: as ``read_hub``, and ``no_images``, ``unknown_class`` or ``class_names_needed``.
    """
    found = read_hub(dataset, split, ("image", "label"), loc)
    labels = found.column("label")
    if not labels or None in labels:
        message = "a label is missing in it" if labels else "it has no rows"
        raise InvalidRequest.at((*loc, "dataset"), "no_images", message)
    names: Sequence[str] | None = found.class_names
    if dataset.name and (names is None or all(name.isdigit() for name in names)):
        names = CATALOGUE[dataset.name].class_names or names
    images = [HubImage(found.rows, row) for row in range(len(labels))]
    return _labelled(images, labels, classes, names, loc)


def _labelled(
    images: Sequence[ImageSource],
    labels: Sequence[int | str],
    classes: Sequence[str] | None,
    stored: Sequence[str] | None,
    loc: Sequence[str | int],
) -> LabelledImages:
    """The images with their classes: as the request lists them, else as the data ``stored`` them, else as labelled."""
    if isinstance(labels[0], str):
        names = list(classes or sorted(set(map(str, labels))))
        unknown = sorted(set(map(str, labels)) - set(names))
        if unknown:
            message = f"the data has the class {unknown[0]!r}, which is not listed"
            raise InvalidRequest.at((*loc, "classes"), "unknown_class", message)
        numbers = {name: number for number, name in enumerate(names)}
        return LabelledImages(tuple(names), images, [numbers[str(label)] for label in labels])
    named = classes or stored
    if named is None:
        message = "the labels are numbers and the data does not name them; list the names of the classes"
        raise InvalidRequest.at((*loc, "classes"), "class_names_needed", message)
    return LabelledImages(tuple(named), images, [int(label) for label in labels])


def read_tables(
    path: Path,
    split: Split,
    wanted: Sequence[str],
    columns: Mapping[str, str],
    loc: Sequence[str | int],
) -> pa.Table:
    """The ``wanted`` columns of Parquet files as one table, renamed to what they are for; schema metadata kept.

    Raises:
        InvalidRequest: ``unknown_column``, or ``unreadable_dataset``.
    """
    files = [path]
    if path.is_dir():
        files = sorted(path.rglob("*.parquet"))
        files = [file for file in files if file.name.startswith(split)] or files
    names = [columns.get(want, want) for want in wanted]
    tables = []
    metadata = None
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
        except (OSError, pa.ArrowInvalid) as error:
            message = f"{file.name} is no Parquet file that can be read: {error}"
            raise InvalidRequest.at((*loc, "dataset", "uri"), "unreadable_dataset", message) from None
        present = parquet.schema_arrow.names
        for want, name in zip(wanted, names, strict=True):
            if name not in present:
                message = f"{file.name} has no column {name!r} for the {want}; it has {', '.join(present)}"
                raise InvalidRequest.at((*loc, "dataset", "columns", want), "unknown_column", message)
        metadata = metadata or parquet.schema_arrow.metadata
        tables.append(parquet.read(columns=names).select(names).rename_columns(list(wanted)))
    if not tables:
        message = "there is no .parquet file in it"
        raise InvalidRequest.at((*loc, "dataset", "uri"), "unreadable_dataset", message)
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        message = f"its files have columns of different types: {error}"
        raise InvalidRequest.at((*loc, "dataset", "uri"), "unreadable_dataset", message) from None
    return whole.replace_schema_metadata(metadata)


def _part_of(directory: Path, split: Split) -> Path:
    return directory / split if (directory / split).is_dir() else directory


def _stored_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Names of the classes that Hugging Face's ``datasets`` wrote into the file."""
    metadata: dict[str, Any] = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names: list[str] | None = metadata.get("info", {}).get("features", {}).get(column, {}).get("names")
    return names
