"""What the job store hands out, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from taumerge.errors import TaumergeError
from taumerge.schemas import JobKind

__all__ = [
    "Claim",
    "Event",
    "IdempotencyConflict",
    "JobEnded",
    "LeaseLost",
    "QueueFull",
    "Staged",
    "UnknownJob",
]


class UnknownJob(TaumergeError):
    """There is no job with this id."""

    code = "job_not_found"


class JobEnded(TaumergeError):
    """The job has ended and can no longer be cancelled."""

    code = "job_ended"


class IdempotencyConflict(TaumergeError):
    """The idempotency key belongs to another request."""

    code = "idempotency_conflict"


class QueueFull(TaumergeError):
    """As many jobs wait as may."""

    code = "queue_full"


class LeaseLost(TaumergeError):
    """The job is no longer this attempt's: stop working on it and write nothing more."""

    code = "lease_lost"


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt of a job, as long as its lease is renewed."""

    job_id: str
    kind: JobKind
    request: dict[str, Any]
    owner: str
    attempt: int


class Staged(NamedTuple):
    """A hidden directory in which an output grows; see ``Staging``."""

    output: str
    """A path, or the URI of a place in a store."""
    identity: str


class Event(NamedTuple):
    """One entry of a job's event stream."""

    id: int
    event: str
    data: dict[str, Any]
