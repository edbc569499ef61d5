"""The files of a checkpoint, on a disk or in a store: which there are, their state, and small reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.remote import fetching
from workers.checkpoints.remote.path import RemotePath, is_remote, parse_remote
from workers.checkpoints.remote.store import store_of

__all__ = [
    "RECEIPT",
    "UNFINISHED",
    "FileRecord",
    "FileState",
    "Location",
    "each",
    "is_directory",
    "local_path",
    "locate",
    "names_in",
    "pinned",
    "read_small",
    "state_of",
]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Location = Path | RemotePath

RECEIPT = "taumerge.json"
"""The receipt of a merge, which is the last file of its output that appears."""
UNFINISHED = ".taumerge-unfinished"
"""Lies in a store's directory while a merge puts its output there: what else lies there is not complete."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells one state of a file from another."""

    size: int
    mtime_ns: int = 0
    ctime_ns: int = 0
    """Nobody sets it back, as tar and cp -p do with the other time; a freed inode is soon given away again."""
    inode: int = 0
    version: str = ""
    """In a store: ETag, generation, or hash; it has neither times nor inode."""

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of weights as it was when its header was read."""

    name: str
    """Relative to the checkpoint's directory."""
    path: Location
    state: FileState
    header_sha256: str


def local_path(uri: str) -> Path:
    """The absolute path that ``uri`` names: ``file:///…`` (percent-decoded), or a plain absolute path.

    Raises:
        CheckpointError: ``unsupported_uri`` for everything else.
    """
    path = None
    if uri.startswith("/"):
        path = uri
    elif uri.startswith("file://") and not set(uri) & set("?#"):
        try:
            path = unquote(uri.removeprefix("file://").removeprefix("localhost"), errors="strict")
        except UnicodeDecodeError:
            path = None
    if path is None or not path.startswith("/") or "\0" in path or "::" in uri or not _is_unicode(path):
        raise CheckpointError(
            "unsupported_uri",
            "This is no location that can be used: write file:///absolute/path (special characters "
            "percent-encoded, no query or fragment) or a plain absolute path.",
        )
    return Path("/" + path.lstrip("/"))


def locate(uri: str) -> Location:
    """The place that ``uri`` names, on a disk as ``local_path`` or in a store as ``parse_remote`` reads it.

    Raises:
        CheckpointError: ``unsupported_uri``.
    """
    return parse_remote(uri) if is_remote(uri) else local_path(uri)


def is_directory(location: Location) -> bool:
    """Whether a checkpoint there is a directory. A store knows no directories, so there the name says it."""
    return location.suffix != ".safetensors" if isinstance(location, RemotePath) else location.is_dir()


def names_in(directory: Location) -> set[str]:
    """Names of what lies directly in ``directory``; raises ``OSError``."""
    if isinstance(directory, RemotePath):
        return set(fetching.names(directory))
    return {entry.name for entry in os.scandir(directory)}


def state_of(path: Location) -> FileState:
    """The state of a regular file; raises ``OSError``."""
    if isinstance(path, RemotePath):
        found = fetching.stat(path)
        return FileState(found.size, version=found.version)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is not a regular file")
    return FileState.of(status)


def read_small(path: Location, largest: int) -> bytes:
    """All of a small file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``largest`` bytes; the message says so.
    """
    if isinstance(path, RemotePath):
        found = fetching.stat(path)
        if found.size > largest:
            raise ValueError(f"is larger than {largest} bytes")
        return fetching.read_part(path, found.version, 0, found.size)
    if path.exists() and not path.is_file():
        raise ValueError("is not a regular file")
    with path.open("rb") as file:
        raw = file.read(largest + 1)
    if len(raw) > largest:
        raise ValueError(f"is larger than {largest} bytes")
    return raw


def each(call: Callable[[Item], Answer], items: Sequence[Item], place: Location) -> list[Answer]:
    """``call`` of each item, in order; at the same time where ``place`` is a store, which takes long to answer."""
    return (
        fetching.in_parallel(call, items) if isinstance(place, RemotePath) else [call(item) for item in items]
    )


def pinned(location: Location) -> Location:
    """``location`` at the revision that it means now; raises ``OSError``."""
    if not isinstance(location, RemotePath):
        return location
    store = store_of(location.scheme)
    return fetching.retried(lambda: store.pinned(location))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
