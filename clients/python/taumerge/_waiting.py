"""Waiting for a job to end: how often to ask, what to show, and what its end means. No I/O."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from taumerge.errors import JobCancelled, JobFailed, WaitTimeout
from taumerge.schemas import Job

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 2.0
GROWTH = 1.5

ProgressReport: TypeAlias = bool | Callable[[Job], object]


class Polling:
    """The pauses between the polls of one job."""

    def __init__(self, job_id: str, timeout: float | None) -> None:
        self._job_id = job_id
        self._timeout = math.inf if timeout is None else timeout
        self._deadline = time.monotonic() + self._timeout
        self._pause = SHORTEST_PAUSE_SECONDS

    def pause_seconds(self) -> float:
        """Pause before the next poll; raises WaitTimeout if no time is left for one."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeout(
                f"job {self._job_id} has not ended within {self._timeout:g} s and goes on; "
                "wait again, or cancel it"
            )
        pause, self._pause = self._pause, min(self._pause * GROWTH, LONGEST_PAUSE_SECONDS)
        return min(pause, left)


@contextmanager
def reporting(progress: ProgressReport) -> Iterator[Callable[[Job], object]]:
    """The function that every poll's job is given to."""
    if callable(progress):
        yield progress
    elif progress:
        from taumerge._progress import ProgressBar  # programs that draw nothing need not load rich

        with ProgressBar() as bar:
            yield lambda job: bar.show(job.state, job.progress)
    else:
        yield lambda job: None


def succeeded(job: Job) -> Job:
    """The ended job if it succeeded; raises JobFailed or JobCancelled if not."""
    if job.state == "cancelled":
        raise JobCancelled(f"job {job.id} was cancelled")
    if job.error is not None:
        raise JobFailed(job.error.code, job.error.message, job.error.details)
    return job
