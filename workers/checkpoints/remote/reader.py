"""Reads of tensor data from an object that must not change meanwhile, ahead of the computation."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Self

from taumerge.errors import JobFailed
from workers.checkpoints.files import FileRecord
from workers.checkpoints.remote.fetching import IN_FLIGHT, PART_BYTES, fetch
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import ChangedObject

__all__ = ["GAP_BYTES", "RemoteReader", "coalesced", "input_changed", "input_unreadable"]

GAP_BYTES = 1 << 18
"""Bytes between two ranges that are read along rather than left for another request."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A range that is being read, or has been."""

    start: int
    end: int
    content: Future[bytes]


class RemoteReader:
    """A file of weights in a store, in the version that was recorded.

    What is prefetched is kept until ``close``: the caller bounds it.

    Raises:
        JobFailed: ``input_changed`` when the object is no longer the one that was recorded,
            ``input_unreadable`` when it cannot be read, after all retries.
    """

    def __init__(self, record: FileRecord) -> None:
        assert isinstance(record.path, RemotePath)
        self.record = record
        self._path = record.path
        self._parts: list[_Part] = []

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Begin to read ``ranges`` (offset, bytes), neighbouring ones together."""
        self._parts += [self._begin(start, end) for start, end in coalesced(ranges)]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the contiguous ``buffer`` with the file's bytes from ``offset`` on."""
        if buffer.nbytes == 0:
            return
        rest = buffer.cast("B")
        while rest:
            part = self._part_at(offset, offset + len(rest))
            count = min(part.end - offset, len(rest))
            begin = offset - part.start
            rest[:count] = memoryview(self._content(part))[begin : begin + count]
            rest = rest[count:]
            offset += count

    def map(self) -> mmap.mmap:
        """All of the file, from an unnamed copy on the disk; stays valid when the reader is closed."""
        with tempfile.TemporaryFile() as copy:
            self.copy_to(copy)
            copy.flush()
            return mmap.mmap(copy.fileno(), 0, access=mmap.ACCESS_READ)

    def copy_to(self, copy: BinaryIO) -> None:
        """Write all of the file."""
        window: list[_Part] = []
        for start, end in coalesced([(0, self.record.state.size)]):
            window.append(self._begin(start, end))
            if len(window) == IN_FLIGHT:
                copy.write(self._content(window.pop(0)))
        for part in window:
            copy.write(self._content(part))

    def close(self) -> None:
        for part in self._parts:
            part.content.cancel()
        self._parts = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, start: int, end: int) -> _Part:
        return _Part(start, end, fetch(self._path, self.record.state.version, start, end))

    def _part_at(self, start: int, end: int) -> _Part:
        """A part that holds ``start``: a prefetched one, else a new one that ends where the next part begins."""
        for part in self._parts:
            if part.start <= start < part.end:
                return part
        return self._begin(start, min([end, *(part.start for part in self._parts if part.start > start)]))

    def _content(self, part: _Part) -> bytes:
        try:
            return part.content.result()
        except (ChangedObject, FileNotFoundError) as error:
            raise input_changed(self.record) from error
        except OSError as error:
            raise input_unreadable(self.record, error) from error


def coalesced(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """(start, end) of requests that cover ``ranges`` (offset, bytes): few, none above ``PART_BYTES``, none twice."""
    joined: list[list[int]] = []
    for offset, nbytes in sorted(one for one in ranges if one[1]):
        if joined and offset <= joined[-1][1] + GAP_BYTES:
            joined[-1][1] = max(joined[-1][1], offset + nbytes)
        else:
            joined.append([offset, offset + nbytes])
    for start, end in joined:
        yield from ((place, min(place + PART_BYTES, end)) for place in range(start, end, PART_BYTES))


def input_changed(record: FileRecord) -> JobFailed:
    """The error for a file that is no longer the recorded one."""
    return JobFailed(
        "input_changed",
        f"{record.path} was changed or removed after the job had read its header. "
        "Submit the job again when the file is complete.",
        {"file": str(record.path)},
    )


def input_unreadable(record: FileRecord, error: OSError) -> JobFailed:
    """The error for a file that cannot be read."""
    return JobFailed(
        "input_unreadable", f"{record.path} cannot be read: {error.strerror}.", {"file": str(record.path)}
    )
