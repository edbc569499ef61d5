"""Google Cloud Storage, through gcsfs. Credentials are the application default ones of the server."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError
from google.auth.exceptions import GoogleAuthError

from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import (
    LISTED,
    ChangedObject,
    ObjectStat,
    TransientError,
    WritableStore,
    unreadable,
)

__all__ = ["GoogleStore"]

Answer = TypeVar("Answer")

PART_BYTES = 16 * 2**20


class GoogleStore(WritableStore):
    """Objects of Google Cloud Storage, pinned by their generations."""

    def __init__(self) -> None:
        self._fs = GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)

    def names(self, directory: RemotePath) -> dict[str, str]:
        try:
            found = self._run(lambda: self._fs.ls(_place(directory), detail=True, refresh=True))
        except FileNotFoundError:
            return {}
        if len(found) > LISTED:
            raise unreadable(f"the directory has more than {LISTED} objects")
        return {
            one["name"].rpartition("/")[2]: str(one["generation"]) for one in found if one["type"] == "file"
        }

    def stat(self, path: RemotePath) -> ObjectStat:
        found = self._run(lambda: self._fs.info(_place(path), refresh=True))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "there is no such object")
        return ObjectStat(int(found["size"]), str(found["generation"]))

    def read(self, path: RemotePath, version: str, start: int, end: int) -> bytes:
        def get() -> bytes:
            content: bytes = self._fs.cat_file(_place(path), start=start, end=end, generation=version)
            return content

        try:
            return self._run(get)
        except FileNotFoundError as error:
            raise ChangedObject from error  # that generation has been replaced

    def upload(self, source: Path, path: RemotePath) -> None:
        self._run(lambda: self._fs.put_file(str(source), _place(path), chunksize=PART_BYTES))

    def create(self, path: RemotePath, content: bytes) -> None:
        self._run(lambda: self._fs.pipe_file(_place(path), content, mode="create"))

    def remove(self, path: RemotePath) -> None:
        try:
            self._run(lambda: self._fs.rm_file(_place(path)))
        except FileNotFoundError:
            return

    def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except (TimeoutError, OSError, HttpError, GoogleAuthError, aiohttp.ClientError) as error:
            raise _translated(error) from error


def _place(path: RemotePath) -> str:
    return f"{path.root}/{path.key}".rstrip("/")


def _translated(error: Any) -> OSError:
    """The error without what the server wrote, which may hold addresses and keys."""
    status = int(getattr(error, "code", None) or getattr(error, "status", None) or 0)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    if isinstance(error, FileExistsError) or status == 412:
        return FileExistsError(errno.EEXIST, "it exists")
    if isinstance(error, GoogleAuthError | PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, "the store denies it; see the server's credentials")
    if status == 429 or status >= 500 or isinstance(error, aiohttp.ClientError | asyncio.TimeoutError):
        return TransientError(f"the store is busy or cut off ({status or type(error).__name__})")
    return unreadable(f"the store cannot be used ({status or type(error).__name__})")
