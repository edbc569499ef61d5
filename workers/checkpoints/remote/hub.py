"""Models of the Hugging Face hub, through huggingface_hub. ``HF_ENDPOINT`` and ``HF_TOKEN`` are the server's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import LISTED, ObjectStat, Store, TransientError, unreadable

__all__ = ["HubStore"]

Answer = TypeVar("Answer")

_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of the HTTP client that huggingface_hub uses, httpx or httpx2."""


class HubStore(Store):
    """Files of model repositories, pinned by the commit: what a commit holds never changes."""

    def __init__(self) -> None:
        self._fs = HfFileSystem(skip_instance_cache=True)

    def pinned(self, path: RemotePath) -> RemotePath:
        info = self._run(lambda: HfApi().model_info(path.root, revision=path.revision or None))
        if info.sha is None:
            raise unreadable("the hub names no commit")
        return replace(path, revision=info.sha)

    def names(self, directory: RemotePath) -> dict[str, str]:
        try:
            found: Any = self._run(lambda: self._fs.ls(_place(directory), detail=True))
        except FileNotFoundError:
            return {}
        if len(found) > LISTED:
            raise unreadable(f"the directory has more than {LISTED} files")
        return {one["name"].rpartition("/")[2]: _version(one) for one in found if one["type"] == "file"}

    def stat(self, path: RemotePath) -> ObjectStat:
        found: dict[str, Any] = self._run(lambda: self._fs.info(_place(path)))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        return ObjectStat(int(found["size"]), _version(found))

    def read(self, path: RemotePath, version: str, start: int, end: int) -> bytes:
        def get() -> bytes:
            with self._fs.open(_place(path), "rb", cache_type="none") as file:
                file.seek(start)
                content: bytes = file.read(end - start)
                return content

        return self._run(get)

    def _run(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except (OSError, _HTTPError, EntryNotFoundError, HFValidationError, NotImplementedError) as error:
            raise _translated(error) from error


def _place(path: RemotePath) -> str:
    revision = f"@{quote(path.revision, safe='')}" if path.revision else ""
    return f"{path.root}{revision}/{path.key}".rstrip("/")


def _version(found: dict[str, Any]) -> str:
    lfs = found.get("lfs")
    return str(lfs["sha256"] if lfs else found.get("blob_id"))


def _translated(error: Exception) -> OSError:
    """The error without what the server wrote, which may hold addresses and keys."""
    response = getattr(error, "response", None)
    status = response.status_code if isinstance(error, HfHubHTTPError) and response is not None else 0
    if isinstance(error, FileNotFoundError | EntryNotFoundError | HFValidationError) or status == 404:
        return FileNotFoundError(
            errno.ENOENT, "there is no such repository, revision or file, or it is private"
        )
    if status in (401, 403):
        return PermissionError(errno.EACCES, "the hub denies it; see the server's HF_TOKEN")
    if status == 429 or status >= 500 or (isinstance(error, _HTTPError) and not status):
        return TransientError(f"the hub is busy or cut off ({status or type(error).__name__})")
    return unreadable(f"the hub cannot be used ({status or type(error).__name__})")
