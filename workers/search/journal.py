"""What a search has evaluated so far, on disk: a line of JSON for each evaluation, written durably."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from taumerge.errors import JobFailed

NAME = "evaluations.jsonl"
_END = "end"

Key = tuple[str, float, str]
"""Model, λ and split of an evaluation."""


@dataclass(frozen=True)
class Record:
    """One model scored on one split."""

    model: str
    """``base``, ``models.<index>``, or the digest of a direction."""
    scaling: float
    """λ; 1 for the base and the models."""
    split: str
    tasks: dict[str, float]
    """Score of each task; empty where the merged values overflow their type."""
    seconds: float
    """Wall time from one evaluation to the next."""
    evaluating: float
    """Of that, forward passes and scoring: the longest of the evaluators."""
    overflowed: list[str] = field(default_factory=list)
    """Tensors with merged values outside the range of their type."""
    elapsed: float = 0.0
    """Seconds that the search had taken by then, earlier attempts included."""

    @property
    def key(self) -> Key:
        return self.model, self.scaling, self.split


class Journal:
    """The records of a search, those of earlier attempts included.

    A crash may tear the last line: lines that cannot be read are passed over, and what they said is evaluated again.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME
        self.records: dict[Key, Record] = {}
        self.ended: str | None = None
        """Why the evaluation of merged models was over before everything was evaluated; null while it is not."""
        with _writable(self._path):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            content = self._path.read_bytes()
            if content and not content.endswith(b"\n"):
                os.write(self._fd, b"\n")
        for line in content.splitlines():
            self._take(line)
        self.elapsed = max((record.elapsed for record in self.records.values()), default=0.0)
        """Seconds that earlier attempts took."""
        self.evaluating = 0.0
        """Seconds of forward passes and scoring in this attempt."""

    def append(self, record: Record) -> None:
        """Keep ``record``; it is on the disk when this returns."""
        self._write(asdict(record))
        self.records[record.key] = record
        self.evaluating += record.evaluating

    def end(self, reason: str) -> None:
        """Note that no further merged model is to be evaluated, so that a later attempt decides as this one does."""
        self.ended = reason
        self._write({_END: reason})

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, line: bytes) -> None:
        try:
            content = json.loads(line)
            if _END in content:
                self.ended = content[_END]
                return
            record = Record(**content)
        except (ValueError, TypeError):  # torn
            return
        self.records[record.key] = record

    def _write(self, content: dict[str, Any]) -> None:
        with _writable(self._path):
            os.write(self._fd, (json.dumps(content) + "\n").encode())
            os.fdatasync(self._fd)


def evaluations_in(directory: Path) -> bool:
    """Whether a journal there holds anything, readable or not; so it may where that cannot be found out."""
    try:
        return (directory / NAME).stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JobFailed(
            "output_unwritable",
            f"{path} cannot be written: {error.strerror}; free some space, or check its rights",
        ) from error
