"""Ranged reads of tensor data from files that must not change meanwhile."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from taumerge.errors import JobFailed
from workers.checkpoints.files import FileRecord, FileState, state_of
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.reader import RemoteReader, input_changed, input_unreadable

__all__ = ["FileReader", "Reader", "open_reader", "unchanged"]


class FileReader:
    """An open file of weights on a disk.

    Raises:
        JobFailed: ``input_changed`` when the file is no longer the one that was recorded,
            ``input_unreadable`` when it cannot be read.
    """

    def __init__(self, record: FileRecord) -> None:
        assert isinstance(record.path, Path)
        self.record = record
        try:
            self._fd = os.open(record.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._changed() from error
        except OSError as error:
            raise self._unreadable(error) from error
        if FileState.of(os.fstat(self._fd)) != record.state:
            self.close()
            raise self._changed()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the contiguous ``buffer`` with the file's bytes from ``offset`` on."""
        if buffer.nbytes == 0:
            return
        rest = buffer.cast("B")
        while rest:
            try:
                read = os.preadv(self._fd, [rest], offset)
            except OSError as error:
                raise self._unreadable(error) from error
            if read == 0:
                raise self._changed()
            rest = rest[read:]
            offset += read

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing to do: the system reads ahead."""

    def map(self) -> mmap.mmap:
        """All of the file for reading, without a copy of it; stays valid when the reader is closed."""
        return mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _changed(self) -> JobFailed:
        return input_changed(self.record)

    def _unreadable(self, error: OSError) -> JobFailed:
        return input_unreadable(self.record, error)


Reader = FileReader | RemoteReader


def open_reader(record: FileRecord) -> Reader:
    """The file for reading; raises as ``FileReader`` and ``RemoteReader`` do."""
    return RemoteReader(record) if isinstance(record.path, RemotePath) else FileReader(record)


def unchanged(record: FileRecord) -> bool:
    """Whether the file at the recorded path is still the recorded one."""
    try:
        return state_of(record.path) == record.state
    except OSError:
        return False
