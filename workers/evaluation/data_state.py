"""What the data of an evaluation is by now, as far as its files tell without being read. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from taumerge.schemas import Dataset, EvaluationSpec
from workers.checkpoints.checkpoint import CheckpointError, local_path
from workers.evaluation.preflight import is_file
from workers.evaluation.task_files import TaskFileError, read_task_file
from workers.finetuning.datasets.catalogue import CATALOGUE
from workers.finetuning.preflight import dataset_places

__all__ = ["data_state"]

TIMED = 50_000
"""Files of a data set, the first by name, whose size and time count; of those beyond only the names do: on a network
file system, asking for them all would take minutes."""


def data_state(spec: EvaluationSpec) -> str:
    """Fingerprint of the local files that ``spec`` reads. Data on the hub, and that of added kinds, is not known here.

    Args:
        spec: has passed ``check_evaluation``.
    """
    digest = hashlib.sha256()
    for name, task in spec.tasks.items():
        digest.update(json.dumps([name]).encode())
        if task.dataset is not None:
            for number, path in enumerate(_files_of(task.dataset)):
                what = _file_state(path) if number < TIMED else [str(path)]
                digest.update(json.dumps(what).encode())
        if spec.kind == "lm_eval" and is_file(task.name or name):
            what = _task_state(local_path(task.name or name))
            digest.update(json.dumps(what, default=str).encode())  # YAML has dates
    return digest.hexdigest()


def _file_state(path: Path) -> list[str | int]:
    """Path, size and time of change; the path alone where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]


def _files_of(dataset: Dataset) -> Iterator[Path]:
    """Every file of a data set on this disk, in a fixed order.

    Not the hidden ones, nor what lies beside a named data set: there a search may grow its output.
    """
    for field, uri in dataset_places(dataset):
        with contextlib.suppress(CheckpointError):  # an added kind may read other places
            root, named = local_path(uri), CATALOGUE.get(dataset.name or "")
            if field == "root" and named is not None:
                root /= named.folder
            yield from [root] if root.is_file() else _below(root)


def _below(root: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for directory, folders, files in os.walk(root, followlinks=True):
        status = Path(directory).stat()
        if (status.st_dev, status.st_ino) in seen:  # links that go round in a circle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = _shown(folders)
        yield from (Path(directory, name) for name in _shown(files))


def _shown(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("."))


def _task_state(path: Path) -> list[Any]:
    """What a task file says, those that it includes too, and the state of the data files that it names."""
    try:
        fields = read_task_file(path)
    except TaskFileError:  # one that runs code may read what it likes: most likely what lies beside it
        return [_file_state(one) for one in sorted(path.parent.iterdir()) if one.is_file()]
    files = _flat((fields.get("dataset_kwargs") or {}).get("data_files", []))
    return [fields, [_file_state(Path(name)) for name in files]]


def _flat(files: Any) -> list[str]:
    """``data_files`` is a name, several, or either of them by split."""
    if isinstance(files, dict):
        return [name for names in files.values() for name in _flat(names)]
    return files if isinstance(files, list) else [files]
