"""The one error hierarchy of taumerge, shared by the workers, the service, the SDK and the command line.

    TaumergeError
    ├── InvalidRequest        a request that cannot be carried out; located errors       HTTP 422
    ├── JobFailed             an accepted job that ended in failure                      job.error
    ├── JobCancelled          an accepted job that was cancelled
    ├── WaitTimeout           the caller stopped waiting for a job, which goes on
    ├── ServiceUnreachable    no answer from the service after every retry
    └── ApiError              any other error answer of the service
        ├── Unauthorized      no token, or a wrong one                                   401, 403
        ├── NotFound          no such job                                                404
        ├── Conflict          an ended job, or a reused idempotency key                  409
        └── Unavailable       the service is overloaded or not ready                     429, 503

Every error carries a ``code``: a short stable word that programs may compare, the same over HTTP, in
the SDK and on the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

__all__ = [
    "ApiError",
    "Conflict",
    "ErrorItem",
    "InvalidRequest",
    "JobCancelled",
    "JobFailed",
    "NotFound",
    "ServiceUnreachable",
    "TaumergeError",
    "Unauthorized",
    "Unavailable",
    "WaitTimeout",
]


class ErrorItem(BaseModel):
    """One thing that is wrong with a request, and where."""

    loc: tuple[str | int, ...]
    """Path into the request body, for example ``("models", 1, "uri")``."""
    code: str
    """Stable word, for example ``"shape_mismatch"``."""
    msg: str
    """What is wrong and what to do about it."""

    def __str__(self) -> str:
        place = ".".join(str(part) for part in self.loc)
        return f"{place}: {self.msg}" if place else self.msg


class TaumergeError(Exception):
    """Base of every error that taumerge raises on purpose."""

    code: str = "error"


class InvalidRequest(TaumergeError):
    """The request cannot be carried out as it stands.

    Raised by whoever finds out first: the schema, the preflight of a merge, or the service by HTTP 422.
    """

    code = "invalid_request"

    def __init__(self, errors: Sequence[ErrorItem]) -> None:
        if not errors:
            raise ValueError("InvalidRequest needs at least one error")
        self.errors = list(errors)
        super().__init__("; ".join(str(item) for item in self.errors))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors,)

    @classmethod
    def at(cls, loc: Sequence[str | int], code: str, msg: str) -> InvalidRequest:
        """A refusal with a single located error."""
        return cls([ErrorItem(loc=tuple(loc), code=code, msg=msg)])

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: Sequence[str | int] = ()) -> InvalidRequest:
        """The located errors of a schema validation, below ``prefix``."""
        return cls(
            [
                ErrorItem(loc=(*prefix, *item["loc"]), code=item["type"], msg=item["msg"])
                for item in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        )


class JobFailed(TaumergeError):
    """An accepted job ended in failure; ``code``, ``message`` and ``details`` are those of ``job.error``."""

    code = "job_failed"

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        self.code = code
        self.message = message
        self.details = details or {}
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.message, self.details)


class JobCancelled(TaumergeError):
    """An accepted job was cancelled before it finished."""

    code = "cancelled"


class WaitTimeout(TaumergeError):
    """The job has not ended in the time that the caller gave it; it goes on."""

    code = "wait_timeout"


class ServiceUnreachable(TaumergeError):
    """The service gave no answer: wrong address, not running, or the network is down."""

    code = "unreachable"


class ApiError(TaumergeError):
    """The service answered with an error (an RFC 9457 problem document, where it sent one)."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.code, str(self))


class Unauthorized(ApiError):
    """401 without a token, 403 with a wrong one."""


class NotFound(ApiError):
    """404: no such job."""


class Conflict(ApiError):
    """409: the job has ended, or the idempotency key belongs to another request."""


class Unavailable(ApiError):
    """429 or 503 after every retry: the service is overloaded or not ready."""
