"""Merged checkpoints on disk: built in a hidden directory, placed by one rename."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from taumerge.errors import JobFailed
from workers.checkpoints.files import Location, read_small
from workers.checkpoints.layout import FileLayout
from workers.checkpoints.renaming import exchange, rename_new

__all__ = [
    "FileWriter",
    "Staging",
    "free_bytes",
    "name_problem",
    "remove_notes",
    "sha256_of",
    "sync",
]

LARGEST_COPY = 100_000_000
LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes, on every file system that Linux is used with."""
_LONGEST_BELOW = 512
"""Bytes kept free for the names below an output."""
_JOURNAL = ".taumerge-journal"
_PARENTS, _CONTENTS = "parents", "contents"


class Staging:
    """The hidden directory beside ``output`` in which a merged checkpoint grows.

    ``identity`` is that of the job and of everything that decides the bytes (inputs, rule, layout), in at
    least 16 characters: attempts with the same identity share the directory. A second attempt keeps the
    files that the first one finished; should both run at once, they write the same bytes to the same
    places, so sharing is harmless.

    Every method raises ``JobFailed``: ``disk_full``, ``output_exists``, or ``output_unwritable``.
    Nothing but ``commit`` touches ``output``, and ``discard``, which removes the notes that a commit left there.
    """

    def __init__(self, output: Path, identity: str) -> None:
        self.output = output
        self.place: Location = output  # what the output will be, wherever it grows
        self.identity = identity
        self.path = output.with_name(f".{output.name}.{identity[:16]}.partial")
        self.journal = self.path / _JOURNAL  # notes of the attempts, which ``commit`` removes

    def create(self, files: Sequence[FileLayout]) -> None:
        """Make the directory and its missing parents, and every file with its header and full size.

        Files that an earlier attempt finished stay as they are. The space of the others is reserved, so
        that a full disk shows here and not after hours; the caller calls ``discard`` then.
        """
        try:
            finished = self.finished()
            todo = [file for file in files if not (file.name in finished and self._has_size(file))]
            # reserving more than there is would fill the disk for everybody before it fails
            needed, free = sum(self._unallocated(file) for file in todo), free_bytes(self.path)
            if needed > free:
                raise _disk_full(self.output, free, needed)
            self._create_directory()
            for file in todo:
                (self.journal / f"{file.name}.json").unlink(missing_ok=True)  # of one that has lost its size
                self._create_file(file)
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise _disk_full(self.output, free, needed) from error
            raise _failed(error, self.output) from error

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Note durably that the file ``name`` is complete, with a JSON ``record`` of it (its digest, say).

        ``sync`` the file first: after a power failure the record is believed.
        """
        self._write(self.journal / f"{name}.json", json.dumps(record).encode())

    def keep_only(self, contents: str) -> None:
        """Let finished files count only where they have these ``contents``, a fingerprint of what decides their bytes
        and is not known before ``identity``. Others are made again."""
        note = self.journal / _CONTENTS
        try:
            if note.exists() and note.read_text() == contents:
                return
            for record in self.journal.glob("*.json"):
                record.unlink()
        except OSError as error:
            raise _failed(error, self.output) from error
        self._write(note, contents.encode())

    def finished(self) -> dict[str, dict[str, Any]]:
        """The records of the files that are complete, by file name."""
        try:
            return {
                path.name.removesuffix(".json"): json.loads(path.read_bytes())
                for path in sorted(self.journal.glob("*.json"))
            }
        except OSError as error:
            raise _failed(error, self.output) from error

    def write_text(self, name: str, text: str) -> None:
        """Write the small file ``name`` durably."""
        self._write(self.path / name, text.encode())

    def copy(self, source: Location, change: Callable[[bytes], bytes] = bytes) -> None:
        """Copy a small file under its own name, durably; ``change`` gives what is written of what was read."""
        try:
            content = read_small(source, LARGEST_COPY)
        except (OSError, ValueError) as error:
            problem = error.strerror if isinstance(error, OSError) else error
            raise JobFailed(
                "input_unreadable", f"{source} cannot be read: {problem}.", {"file": str(source)}
            ) from error
        self._write(self.path / source.name, change(content))

    def commit(self, overwrite: bool) -> None:
        """Put the directory in the place of ``output``, in one step.

        The caller has synced the tensor files. Without ``overwrite`` whatever exists at ``output`` by now
        stays and the job fails with ``output_exists``. With it, an existing file or directory is swapped
        out and then removed; a removal that fails leaves it in the hidden directory.
        """
        try:
            _sync(self.path)
            # The notes come along: whoever dies before the rename leaves an attempt to go on from.
            if overwrite and os.path.lexists(self.output):
                exchange(self.path, self.output)
            else:
                rename_new(self.path, self.output)
        except FileExistsError as error:
            raise JobFailed(
                "output_exists",
                f"{self.output} exists by now. Nothing of it was changed: choose another output, or set "
                "overwrite.",
            ) from error
        except OSError as error:
            raise _failed(error, self.output) from error
        with contextlib.suppress(OSError):  # the output is in place, whatever comes now
            _sync(self.output.parent)
        remove_notes(self.output)
        _remove(self.path)

    def discard(self) -> None:
        """Remove the directory and the parents that ``create`` made, as far as they are empty.

        Only for the attempt that holds the job: another one with the same identity loses its files.
        """
        try:
            parents = json.loads((self.journal / _PARENTS).read_bytes())
        except OSError:
            parents = []
        _remove(self.path)
        remove_notes(self.output)
        for parent in parents:
            try:
                Path(parent).rmdir()
            except OSError:  # something else lies in it by now
                return

    def _create_directory(self) -> None:
        if self.path.exists() and not self.journal.exists():
            _remove(self.path)  # after a swap it is the old output
        parents = [str(parent) for parent in self.path.parents if not parent.exists()]
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.journal.mkdir(exist_ok=True)
        if parents:
            _write_durably(self.journal / _PARENTS, json.dumps(parents).encode(), self.journal)

    def _create_file(self, file: FileLayout) -> None:
        # no O_TRUNC: another attempt may be writing the same bytes
        fd = os.open(self.path / file.name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            _reserve(fd, file.size)
            os.ftruncate(fd, file.size)
            _write_fully(fd, memoryview(file.header), 0)
        finally:
            os.close(fd)

    def _has_size(self, file: FileLayout) -> bool:
        status = self._status(file)
        return status is not None and status.st_size == file.size

    def _unallocated(self, file: FileLayout) -> int:
        """Bytes of ``file`` for which an earlier attempt has reserved no space."""
        status = self._status(file)
        return file.size if status is None else max(0, file.size - status.st_blocks * 512)

    def _status(self, file: FileLayout) -> os.stat_result | None:
        try:
            return (self.path / file.name).stat()
        except FileNotFoundError:
            return None

    def _write(self, path: Path, content: bytes) -> None:
        try:
            _write_durably(path, content, self.journal)
        except OSError as error:
            raise _failed(error, path) from error


class FileWriter:
    """An existing file, opened to write at given offsets.

    It never creates the file, so an attempt that was given up cannot bring a removed output back.
    Raises ``JobFailed``: ``disk_full`` or ``output_unwritable``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _failed(error, path) from error

    def write_at(self, buffer: memoryview, offset: int) -> None:
        """Write the contiguous ``buffer`` from ``offset`` on, counted from the start of the file."""
        try:
            _write_fully(self._fd, buffer, offset)
        except OSError as error:
            raise _failed(error, self.path) from error

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


def name_problem(output: Path) -> str | None:
    """Why no disk takes the names of ``output`` and of the hidden directory beside it; nothing is looked at."""
    parts = output.parts[1:]
    if not parts:
        return None
    hidden = Staging(output, "0" * 16).path
    longest = _aside(hidden)
    if max(len(os.fsencode(part)) for part in (*parts, longest.name)) > LONGEST_NAME:
        left = LONGEST_NAME - len(os.fsencode(longest.name)) + len(os.fsencode(output.name))
        return f"a name in it is too long: the last may have {left} bytes, the others {LONGEST_NAME}"
    if len(os.fsencode(longest)) + _LONGEST_BELOW > LONGEST_PATH:
        return f"its path is too long: with the names below it, it would have more than {LONGEST_PATH} bytes"
    return None


def remove_notes(output: Path) -> None:
    """Remove the notes of the attempts that a commit has carried into ``output``, where it died before it could."""
    _delete(output / _JOURNAL)


def sync(path: Path) -> None:
    """Wait until the file or directory is on the disk; raises ``JobFailed`` as FileWriter does."""
    try:
        _sync(path)
    except OSError as error:
        raise _failed(error, path) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of the file in hex; raises ``OSError``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user may still write on the disk where ``path`` is or would be."""
    existing = next(place for place in (path, *path.parents) if place.exists())
    status = os.statvfs(existing)
    return status.f_bavail * status.f_frsize


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def _reserve(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise


def _write_fully(fd: int, buffer: memoryview, offset: int) -> None:
    if buffer.nbytes == 0:
        return
    rest = buffer.cast("B")
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest = rest[written:]
        offset += written


def _write_durably(path: Path, content: bytes, scratch: Path) -> None:
    """Write ``path`` whole or not at all; what a crash leaves lies in the directory ``scratch``."""
    temporary = scratch / uuid.uuid4().hex
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: Path) -> None:
    """Remove ``path`` as far as possible, without touching it once it has been renamed away."""
    # Moved aside first: another attempt may be about to rename it onto the output.
    doomed = _aside(path)
    _delete(doomed)
    try:
        path.rename(doomed)
    except OSError:
        return
    _delete(doomed)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.removed")


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):  # is_dir raises too, where the name is too long for a disk
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _disk_full(path: Path, free: int, needed: int | None = None) -> JobFailed:
    wanted = f" and {needed} are needed" if needed is not None else ""
    return JobFailed(
        "disk_full",
        f"The disk of {path} is full: {free} bytes are free{wanted}. "
        "Free some space or choose another output.",
        {"free_bytes": free} | ({"needed_bytes": needed} if needed is not None else {}),
    )


def _failed(error: OSError, path: Path) -> JobFailed:
    if error.errno in _NO_SPACE:
        return _disk_full(path, free_bytes(path))
    return JobFailed(
        "output_unwritable",
        f"{path} cannot be written: {error.strerror}. Check that it exists and is writable.",
    )
