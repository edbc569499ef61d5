"""S3 and what speaks its protocol, through s3fs. Endpoint and credentials are those of the AWS environment."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from fsspec.asyn import sync
from s3fs import S3FileSystem

from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import (
    LISTED,
    ChangedObject,
    ObjectStat,
    TransientError,
    WritableStore,
    unreadable,
)

__all__ = ["S3Store"]

Answer = TypeVar("Answer")

PART_BYTES = 16 * 2**20
PARTS_IN_FLIGHT = 8
MOST_PARTS = 10_000
"""What S3 allows of one upload."""
CONNECT_SECONDS, READ_SECONDS = 10, 60

_TRANSIENT = {"SlowDown", "Throttling", "RequestTimeout", "RequestTimeTooSkewed", "InternalError", "429"}
_TRANSIENT |= {"ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded", "BadDigest", "IncompleteBody"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Forbidden", "403"}
_ABSENT = {"NoSuchKey", "NoSuchBucket", "NotFound", "404"}
_CHANGED = {"PreconditionFailed", "412"}


class S3Store(WritableStore):
    """Objects of S3, pinned by their ETags."""

    def __init__(self) -> None:
        # Retries with jitter are the callers'; several layers of them would multiply.
        config = {
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            "max_pool_connections": 32,
        }
        self._fs = S3FileSystem(
            config_kwargs=config,
            max_concurrency=PARTS_IN_FLIGHT,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self._fs.retries = 1
        # But of an upload the parts are repeated, not the whole.
        self._parts = S3FileSystem(
            max_concurrency=PARTS_IN_FLIGHT, use_listings_cache=False, skip_instance_cache=True
        )

    def names(self, directory: RemotePath) -> dict[str, str]:
        prefix = f"{directory.key}/" if directory.key else ""
        found: dict[str, str] = {}
        token: dict[str, str] = {}
        while True:
            answer = self._call(
                "list_objects_v2", Bucket=directory.root, Prefix=prefix, Delimiter="/", **token
            )
            found |= {one["Key"].removeprefix(prefix): one["ETag"] for one in answer.get("Contents", ())}
            if len(found) > LISTED:
                raise unreadable(f"the directory has more than {LISTED} objects")
            if not answer.get("IsTruncated"):
                return found
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def stat(self, path: RemotePath) -> ObjectStat:
        answer = self._call("head_object", Bucket=path.root, Key=path.key)
        return ObjectStat(answer["ContentLength"], answer["ETag"])

    def read(self, path: RemotePath, version: str, start: int, end: int) -> bytes:
        span = f"bytes={start}-{end - 1}"

        async def get() -> bytes:
            call = self._fs._call_s3(
                "get_object", Bucket=path.root, Key=path.key, Range=span, IfMatch=version
            )
            answer = await call
            async with answer["Body"] as body:
                content: bytes = await body.read()
                return content

        return self._run(get())

    def upload(self, source: Path, path: RemotePath) -> None:
        part = max(PART_BYTES, -(-source.stat().st_size // MOST_PARTS))
        self._run(self._parts._put_file(str(source), f"{path.root}/{path.key}", chunksize=part))

    def create(self, path: RemotePath, content: bytes) -> None:
        self._call("put_object", Bucket=path.root, Key=path.key, Body=content, IfNoneMatch="*")

    def remove(self, path: RemotePath) -> None:
        self._call("delete_object", Bucket=path.root, Key=path.key)

    def _call(self, method: str, **arguments: Any) -> Any:
        return self._run(self._fs._call_s3(method, **arguments))

    def _run(self, work: Awaitable[Answer]) -> Answer:
        async def run() -> Answer:
            return await work

        try:
            answer: Answer = sync(self._fs.loop, run)
        except (TimeoutError, OSError, ClientError, BotoCoreError, aiohttp.ClientError) as error:
            raise _translated(error) from error
        return answer


def _translated(error: BaseException) -> OSError:
    """The error without what the server wrote, which may hold addresses and keys."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(cause, ClientError):
        details = cause.response.get("Error", {})
        code, status = (
            str(details.get("Code")),
            cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0),
        )
        if code in _CHANGED:
            return (
                FileExistsError(errno.EEXIST, "it exists")
                if isinstance(error, FileExistsError)
                else ChangedObject()
            )
        if code in _TRANSIENT or status == 429 or status >= 500:
            return TransientError(f"the store is busy ({code})")
        if code in _ABSENT:
            return FileNotFoundError(errno.ENOENT, "there is no such object")
        if code in _DENIED:
            return PermissionError(
                errno.EACCES, f"the store denies it ({code}); see the server's credentials"
            )
        return unreadable(f"the store answers {code}")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "there is no such object")
    if isinstance(error, NoCredentialsError):
        return PermissionError(errno.EACCES, "the server has no credentials for this store")
    if isinstance(error, HTTPClientError | aiohttp.ClientError | asyncio.TimeoutError | OSError):
        return TransientError(f"the connection to the store failed ({type(error).__name__})")
    return unreadable(f"the store cannot be used ({type(error).__name__})")
