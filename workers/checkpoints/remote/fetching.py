"""Reads from stores, repeated where that helps, many at a time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import ObjectStat, TransientError, store_of

__all__ = ["IN_FLIGHT", "PART_BYTES", "fetch", "in_parallel", "names", "read_part", "retried", "stat"]

Item = TypeVar("Item")
Answer = TypeVar("Answer")

IN_FLIGHT = 12
"""Requests that one process has at a time."""
PART_BYTES = 8 * 2**20
"""Bytes that one request reads at most."""
ATTEMPTS = 8
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 10.0


def retried(call: Callable[[], Answer]) -> Answer:
    """The answer of ``call``, which is repeated after a ``TransientError``: later and later, at random times."""
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except TransientError:
            if attempt == ATTEMPTS - 1:
                raise
        time.sleep(random.uniform(0.5, 1) * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**attempt))
    raise AssertionError("unreachable")


def names(directory: RemotePath) -> dict[str, str]:
    """The objects directly in ``directory`` and their versions; raises as ``Store`` does."""
    store = store_of(directory.scheme)
    return retried(lambda: store.names(directory))


def stat(path: RemotePath) -> ObjectStat:
    """Size and version of an object; raises as ``Store`` does."""
    store = store_of(path.scheme)
    return retried(lambda: store.stat(path))


def read_part(path: RemotePath, version: str, start: int, end: int) -> bytes:
    """Exactly the bytes from ``start`` to before ``end``; raises as ``Store`` does."""
    if start == end:
        return b""
    store = store_of(path.scheme)

    def whole() -> bytes:
        content = store.read(path, version, start, end)
        if len(content) != end - start:
            raise TransientError(f"{len(content)} of {end - start} bytes arrived")
        return content

    return retried(whole)


def fetch(path: RemotePath, version: str, start: int, end: int) -> Future[bytes]:
    """``read_part`` in the background, ``IN_FLIGHT`` of them at a time."""
    return _pool().submit(read_part, path, version, start, end)


def in_parallel(call: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """``call`` of each item, in their order; the first error in that order is raised."""
    return list(_pool().map(call, items))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="store")
