"""Splits of data sets of the Hugging Face hub, fetched by its ``datasets`` library into the user's cache.

The library runs no code of a data set. What is fetched stays in its cache (``HF_HOME``), by commit; with
``HF_HUB_OFFLINE=1`` the cache alone is read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset
from workers.finetuning.datasets.hub_address import HubAddress, hub_address

if TYPE_CHECKING:
    from workers.finetuning.datasets.layouts import Split

SPLITS: Mapping[str, Sequence[str]] = {"train": ("train",), "test": ("test", "validation")}
"""What the splits are called on the hub; the first that is there counts."""
MESSAGE_LENGTH = 300
"""Characters of the library's messages that are passed on."""


@dataclass(frozen=True)
class HubSplit:
    """The wanted columns of a split."""

    rows: Any
    """``datasets.Dataset`` with the columns under the names of what they are for; images are not decoded."""
    class_names: list[str] | None
    """Names that the data set gives to the numbers in its column ``label``."""

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return list(self.rows[name])


@dataclass(frozen=True)
class HubImage:
    """An image of the hub, in its row; read when it is needed."""

    rows: Any
    row: int

    def read(self) -> bytes:
        """The encoded image; raises ``OSError``."""
        image = self.rows[self.row]["image"]
        content = image["bytes"] if isinstance(image, dict) else image
        if content is None:
            return _cached(Path(image["path"])).read_bytes()
        assert isinstance(content, bytes)
        return content


def read_hub(
    dataset: Dataset, split: Split, wanted: Sequence[str], loc: Sequence[str | int] = ("task",)
) -> HubSplit:
    """The ``wanted`` columns of a split of the data set at ``dataset.uri``, or ``dataset.root``.

    Args:
        loc: place of the task in the request, for errors.

    Raises:
        InvalidRequest: ``hub_unavailable``, ``unknown_dataset``, ``unreadable_dataset``, ``unknown_split`` or
            ``unknown_column``.
    """
    place = (*loc, "dataset", "root" if dataset.uri is None else "uri")
    builder = _prepared(hub_address(dataset.uri or dataset.root or ""), dataset.subset, place)
    named = next((name for name in SPLITS[split] if name in builder.info.splits), None)
    if named is None:
        message = f"it has no split {split}; it has {', '.join(builder.info.splits)}"
        raise InvalidRequest.at(place, "unknown_split", message)
    rows = builder.as_dataset(split=named)
    columns = {dataset.columns.get(want, want): want for want in wanted}
    for name, want in columns.items():
        if name not in rows.column_names:
            message = f"the split {named} has no column {name!r} for the {want}; it has {', '.join(rows.column_names)}"
            raise InvalidRequest.at((*loc, "dataset", "columns", want), "unknown_column", message)
    rows = rows.select_columns(list(columns)).rename_columns(columns)
    if "image" in columns.values():
        rows = _undecoded(rows, (*loc, "dataset", "columns", "image"))
    return HubSplit(rows, getattr(rows.features.get("label"), "names", None))


def _prepared(address: HubAddress, subset: str | None, place: tuple[str | int, ...]) -> Any:
    """The library's builder, with its data in the cache."""
    if importlib.util.find_spec("datasets") is None:
        message = "the library `datasets` is not installed on the worker: install taumerge-server[datasets]"
        raise InvalidRequest.at(place, "hub_unavailable", message)
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    # the HTTP library that raises is another one in each version
    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    datasets.disable_progress_bars()
    try:
        builder = datasets.load_dataset_builder(address.repository, subset, revision=address.revision)
        _check_files(builder, address, place)
        builder.download_and_prepare()
    except (datasets.exceptions.DatasetNotFoundError, RepositoryNotFoundError) as error:
        revision = f" at {address.revision}" if address.revision else ""
        message = f"the hub shows no data set {address.repository}{revision}; it may be misspelt, or private"
        raise InvalidRequest.at(place, "unknown_dataset", message) from error
    except (ConnectionError, http_error, OfflineModeIsEnabled) as error:
        message = f"the hub cannot be reached, and it is not in the worker's cache: {_told(error)}"
        raise InvalidRequest.at(place, "hub_unavailable", message) from error
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        message = f"`datasets` cannot read it: {_told(error)}"
        raise InvalidRequest.at(place, "unreadable_dataset", message) from error
    return builder


def _check_files(builder: Any, address: HubAddress, place: tuple[str | int, ...]) -> None:
    """A repository says itself where its files are; that must not be a file of this machine, or somebody's server."""
    prefix = f"hf://datasets/{address.repository}@".lower()
    files = [file for split in (builder.config.data_files or {}).values() for file in split]
    foreign = [file for file in files if not file.lower().startswith(prefix)]
    if foreign:
        message = f"it names files outside its repository, {foreign[0]}; copy what you need into a data set of your own"
        raise InvalidRequest.at(place, "unreadable_dataset", message)


def _undecoded(rows: Any, place: tuple[str | int, ...]) -> Any:
    import datasets

    feature = rows.features["image"]
    if isinstance(feature, datasets.Image):
        return rows.cast_column("image", datasets.Image(decode=False))
    if getattr(feature, "dtype", None) in {"binary", "large_binary"}:
        return rows
    message = f"the image column holds no encoded images but {feature}"
    raise InvalidRequest.at(place, "no_images", message)


def _cached(path: Path) -> Path:
    """``path``, which a row names; only files that ``datasets`` has fetched are read."""
    from datasets import config
    from huggingface_hub import constants

    resolved = path.resolve()
    caches = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, constants.HF_HUB_CACHE)
    if not any(resolved.is_relative_to(Path(cache).resolve()) for cache in caches):
        raise OSError(f"{path.name} is no file of the data set")
    return resolved


def _told(error: BaseException) -> str:
    return " ".join(str(error).split())[:MESSAGE_LENGTH]
