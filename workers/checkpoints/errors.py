"""The error of everything that reads a checkpoint."""

from __future__ import annotations

from typing import Any

from taumerge.errors import TaumergeError

__all__ = ["CheckpointError"]


class CheckpointError(TaumergeError):
    """A checkpoint cannot be used as it is. Callers add the place in the request and raise InvalidRequest.

    ``code`` is a stable word, ``message`` says what is wrong and what to do about it.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message)
