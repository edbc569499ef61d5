"""What every remote store can do, and which one serves a place."""

from __future__ import annotations

import errno
import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.remote.path import RemotePath

__all__ = [
    "LISTED",
    "ChangedObject",
    "ObjectStat",
    "Store",
    "TransientError",
    "WritableStore",
    "store_of",
    "unreadable",
]

LISTED = 10_000
"""Objects that a checkpoint's directory may have."""


class TransientError(OSError):
    """A failure that may not happen again: throttling, a reset, a body cut short."""

    def __init__(self, problem: str) -> None:
        super().__init__(errno.EIO, problem)


class ChangedObject(OSError):
    """The object is no longer the version that was asked for."""

    def __init__(self) -> None:
        super().__init__(errno.ESTALE, "the object was replaced")


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """An object as it is now."""

    size: int
    version: str
    """ETag, generation, or commit and hash: another one whenever the bytes are others."""


class Store(ABC):
    """One try of each operation.

    Raises ``FileNotFoundError``, ``PermissionError``, ``TransientError``, or another ``OSError`` whose ``strerror``
    says why, without addresses or secrets.
    """

    def pinned(self, path: RemotePath) -> RemotePath:
        """``path`` at the revision that it means now; itself where a store has no revisions."""
        return path

    @abstractmethod
    def names(self, directory: RemotePath) -> dict[str, str]:
        """The objects directly in ``directory``, name → version; empty where there are none."""

    @abstractmethod
    def stat(self, path: RemotePath) -> ObjectStat:
        """Size and version of the object."""

    @abstractmethod
    def read(self, path: RemotePath, version: str, start: int, end: int) -> bytes:
        """The bytes from ``start`` to before ``end`` of that version; perhaps fewer where a connection breaks.

        Raises:
            ChangedObject: the object has another version by now.
        """


class WritableStore(Store):
    """A store that outputs can be written to; raises as ``Store`` does."""

    @abstractmethod
    def upload(self, source: Path, path: RemotePath) -> None:
        """Write a file in parts; the object appears when the last one has arrived."""

    @abstractmethod
    def create(self, path: RemotePath, content: bytes) -> None:
        """Write a small object that must not exist; raises ``FileExistsError`` when it does."""

    @abstractmethod
    def remove(self, path: RemotePath) -> None:
        """Remove the object, if it is there."""


_CLASSES = {
    "s3": ("workers.checkpoints.remote.s3", "S3Store", "s3"),
    "gs": ("workers.checkpoints.remote.gs", "GoogleStore", "gs"),
    "hf": ("workers.checkpoints.remote.hub", "HubStore", "hf"),
    "https": ("workers.checkpoints.remote.web", "WebStore", "https"),
    "http": ("workers.checkpoints.remote.web", "WebStore", "https"),
}


@cache
def store_of(scheme: str) -> Store:
    """The store for places of ``scheme``, with the credentials of this process's environment.

    Raises:
        CheckpointError: ``extra_missing``: what it needs is not installed.
    """
    module, name, extra = _CLASSES[scheme]
    try:
        store: Store = getattr(importlib.import_module(module), name)()
    except ModuleNotFoundError as error:
        raise CheckpointError(
            "extra_missing",
            f"{scheme}:// needs {error.name}, which is not installed on this server: install taumerge-server[{extra}].",
        ) from error
    return store


def unreadable(problem: str) -> OSError:
    """An error that no repetition mends."""
    return OSError(errno.EIO, problem)
