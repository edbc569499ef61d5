"""Merged checkpoints that grow on the disk and are then uploaded, because a store can rename nothing.

While the objects arrive a mark lies beside them (``files.UNFINISHED``), by which readers know that they are not
complete; the receipt arrives last, and then the mark goes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from taumerge.errors import JobFailed
from workers.checkpoints.files import RECEIPT, UNFINISHED, Location, names_in, read_small
from workers.checkpoints.layout import FileLayout
from workers.checkpoints.remote import fetching
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import WritableStore, store_of
from workers.checkpoints.writing import Staging

__all__ = ["RemoteStaging", "staging_for"]

_BEFORE = "before"
_UPLOADED = ".uploaded"


class RemoteStaging(Staging):
    """A ``Staging`` in ``work``, whose ``commit`` uploads it to ``place``.

    An attempt that goes on after a crash keeps what was uploaded. Nothing but ``commit`` and ``discard`` touches
    what lies at ``place``, and that only while the mark there is that of this job.
    """

    def __init__(self, place: RemotePath, identity: str, work: Path) -> None:
        super().__init__(work / identity[:16], identity)
        self.place, self._place = place, place
        self._mark = place / UNFINISHED
        self._identity = identity.encode()
        store = store_of(place.scheme)
        assert isinstance(store, WritableStore), "checked before the merge"
        self._store = store

    def create(self, files: Sequence[FileLayout]) -> None:
        """As ``Staging.create``; that the store can be written to shows here, too, and not after hours."""
        probe = self._place / f"{UNFINISHED}-{self._identity[:16].decode()}"
        try:
            with contextlib.suppress(FileExistsError):
                fetching.retried(lambda: self._store.create(probe, b""))
            fetching.retried(lambda: self._store.remove(probe))
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            super().create(files)
        except JobFailed as error:
            message = (
                "The server's work directory, in which an output is made before it is uploaded, is full or "
            )
            raise JobFailed(
                error.code, f"{message}cannot be written. Tell its operator.", error.details
            ) from error

    def commit(self, overwrite: bool) -> None:
        """Upload the files, those that make a checkpoint of them last.

        What is overwritten stays until the first file that replaces one of it has arrived, else until all have.

        Raises:
            JobFailed: ``output_exists`` (something lies there without ``overwrite``, or another merge writes there),
                ``output_unwritable``.
        """
        try:
            self._claim(overwrite)
            uploaded: dict[str, str] = {}
            for path in self._files():
                uploaded[path.name] = self._upload(path)
                if path.name in (self._before() or {}):  # some old and some new files look like a checkpoint
                    self._clear(uploaded)
            self._check(uploaded)
            self._clear(uploaded)
            fetching.retried(lambda: self._store.remove(self._mark))
        except OSError as error:
            raise self._unwritable(error) from error
        shutil.rmtree(self.path, ignore_errors=True)

    def discard(self) -> None:
        """Remove the directory and what was uploaded from it; what lay there before, too, where it is not whole."""
        made = {path.name for path in self._files()} if self.path.is_dir() else set()
        before = self._before()
        super().discard()
        with contextlib.suppress(OSError):  # what cannot be removed keeps the mark, so that nobody reads it
            if self._owner() != self._identity:
                return
            found = fetching.names(self._place)
            if before is None:
                doomed: set[str] = set()
            elif any(name in found and found[name] != version for name, version in before.items()):
                doomed = made | before.keys()
            else:
                doomed = made - before.keys()
            for name in sorted(found.keys() & doomed, key=_rank, reverse=True):
                self._remove(name)
            self._remove(UNFINISHED)

    def _claim(self, overwrite: bool) -> None:
        """Put the mark there, and note what lies there before; without ``overwrite`` that refuses it."""
        if not self._create_mark() and self._owner() != self._identity:
            if not overwrite:
                raise self._exists("another merge is writing there, or left it unfinished")
            # in no version: what another merge has left is not whole, so it goes whatever becomes of this one
            self._note_before(dict.fromkeys(names_in(self._place) - {UNFINISHED}, ""))
            self._remove(UNFINISHED)
            if not self._create_mark():
                raise self._exists("another merge is writing there")
            self._clear({})
        if self._before() is None:
            before = fetching.names(self._place)
            before.pop(UNFINISHED, None)
            if before and not overwrite:
                self._remove(UNFINISHED)
                raise self._exists("something lies there by now, and was left as it is")
            self._note_before(before)

    def _before(self) -> dict[str, str] | None:
        """Versions of what lay there before, by name, until it is cleared away; None before the first upload."""
        try:
            before: dict[str, str] = json.loads((self.journal / _BEFORE).read_bytes())
        except FileNotFoundError:
            return None
        return before

    def _note_before(self, before: Mapping[str, str]) -> None:
        self._write(self.journal / _BEFORE, json.dumps(before).encode())

    def _clear(self, uploaded: Mapping[str, str]) -> None:
        """Remove what lay there before and is not overwritten by now."""
        before, found = self._before() or {}, fetching.names(self._place)
        for name in sorted(found.keys() & before.keys() - uploaded.keys(), key=_rank, reverse=True):
            if before[name] in ("", found[name]):
                self._remove(name)
        self._note_before({})

    def _create_mark(self) -> bool:
        """Whether there was no mark before."""
        try:
            fetching.retried(lambda: self._store.create(self._mark, self._identity))
        except FileExistsError:
            return False
        return True

    def _owner(self) -> bytes | None:
        """The identity in the mark; None without a mark."""
        try:
            return read_small(self._mark, 1000)
        except (FileNotFoundError, ValueError):
            return None

    def _files(self) -> list[Path]:
        """What the directory holds, weights first and the receipt last."""
        return sorted(
            (path for path in self.path.iterdir() if path.is_file()), key=lambda path: _rank(path.name)
        )

    def _upload(self, path: Path) -> str:
        """The version of the uploaded object."""
        note = self.journal / f"{path.name}{_UPLOADED}"
        with contextlib.suppress(OSError):
            return str(json.loads(note.read_bytes()))
        target = self._place / path.name
        fetching.retried(lambda: self._store.upload(path, target))
        version = fetching.stat(target).version
        self._write(note, json.dumps(version).encode())
        return version

    def _check(self, uploaded: Mapping[str, str]) -> None:
        """Refuse what another merge has written to at the same time."""
        found = fetching.names(self._place)
        if self._owner() != self._identity or any(found.get(name) != uploaded[name] for name in uploaded):
            raise self._exists("another merge has written there meanwhile")

    def _remove(self, name: str) -> None:
        fetching.retried(lambda: self._store.remove(self._place / name))

    def _exists(self, problem: str) -> JobFailed:
        return JobFailed(
            "output_exists", f"{self._place}: {problem}. Choose another output, or set overwrite."
        )

    def _unwritable(self, error: OSError) -> JobFailed:
        return JobFailed("output_unwritable", f"{self._place} cannot be written: {error.strerror}.")


def staging_for(place: Location, identity: str, work: Path) -> Staging:
    """The staging of an output; ``work`` is where one for a store grows, on a disk that all workers share."""
    return RemoteStaging(place, identity, work) if isinstance(place, RemotePath) else Staging(place, identity)


def _rank(name: str) -> tuple[int, str]:
    order = (
        0
        if name.endswith(".safetensors")
        else 2
        if name.endswith(".index.json")
        else 3
        if name == RECEIPT
        else 1
    )
    return order, name
