"""The job table as a runner uses it: claims, leases, and what a running job writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Self, get_args

from pydantic import BaseModel
from sqlalchemy import Connection, Engine, delete, exists, func, insert, literal, select, update

from service.claims import Claim, Staged
from service.tables import events, jobs, open_engine, runners, staging
from service.transitions import add_up, append_event, fence, finish, lease_lost, requeue, upsert
from taumerge.schemas import JobError, JobKind, JobResult, MergeResult, Progress

__all__ = ["Attempts"]


def _now() -> datetime:
    return datetime.now(UTC)


def _json(part: BaseModel) -> Any:
    """``part`` as JSON has it: null for NaN and infinity, which PostgreSQL does not take."""
    return json.loads(part.model_dump_json())


class Attempts:
    """Attempts to run jobs. What a running job writes is fenced by its owner and attempt."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = _now) -> None:
        self._engine = engine
        self._reading = engine.execution_options(reads_only=True)
        self._clock = clock
        # SQLite lets one connection write, and the others look again after pauses of up to 100 ms: a thread may be
        # passed over for seconds. Threads of this process wait for each other here, where the next one is woken.
        self._turn: AbstractContextManager[Any] = (
            threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()
        )

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to the database at ``url`` and create what is missing there (errors: ``open_engine``)."""
        return cls(open_engine(url))

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that writes."""
        with self._turn, self._engine.begin() as connection:
            yield connection

    def claim(
        self,
        owner: str,
        *,
        lease_seconds: float,
        max_attempts: int,
        kinds: Collection[JobKind] = get_args(JobKind),
    ) -> Claim | None:
        """Take the oldest queued job of these ``kinds`` for ``owner``; None where there is none.

        A job waits while another one writes to its output: in a store their files could mix. Jobs whose lease has run
        out go back to the queue first, or fail once ``max_attempts`` were lost.
        """
        now = self._clock()
        running = jobs.alias()
        output_is_free = ~exists().where(
            running.c.state == "running",
            running.c.request["output"].as_string() == jobs.c.request["output"].as_string(),
        )
        oldest = (
            select(jobs.c.id)
            .where(jobs.c.state == "queued", jobs.c.kind.in_(kinds), output_is_free)
            .order_by(jobs.c.created_at, jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        claim = (
            update(jobs)
            .where(jobs.c.id == oldest, jobs.c.state == "queued")
            .values(
                state="running",
                owner=owner,
                attempt=jobs.c.attempt + 1,
                lease_expires_at=now + timedelta(seconds=lease_seconds),
                started_at=func.coalesce(jobs.c.started_at, literal(now, jobs.c.started_at.type)),
            )
            .returning(jobs)
        )
        with self._writing() as connection:
            expired = (jobs.c.state == "running") & (jobs.c.lease_expires_at < now)
            if lost := requeue(connection, expired, "no sign of life from its runner", now, max_attempts):
                add_up(connection, "lease_losses", "", lost)
            row = connection.execute(claim).one_or_none()
            if row is None:
                return None
            append_event(connection, row.id, "state", {"state": "running"})
            if row.attempt > 1:
                add_up(connection, "retries", row.kind, 1)
                append_event(connection, row.id, "log", {"message": f"attempt {row.attempt} starts"})
        return Claim(row.id, row.kind, row.request, owner, row.attempt)

    def heartbeat(self, owner: str, held: Collection[Claim], lease_seconds: float) -> None:
        """Renew the leases of the attempts that ``owner`` runs at the moment, and say that it is there.

        Whatever else stands in its name, because a write of its own was lost, runs out and starts again.
        """
        now = self._clock()
        with self._writing() as connection:
            for claim in held:
                connection.execute(
                    update(jobs)
                    .where(fence(claim))
                    .values(lease_expires_at=now + timedelta(seconds=lease_seconds))
                )
            upsert(connection, runners, {"owner": owner, "seen_at": now}, {"seen_at": now})
            connection.execute(delete(runners).where(runners.c.seen_at < now - timedelta(days=1)))

    def leave(self, owner: str) -> None:
        """Let go of everything that ``owner`` holds: its jobs start again elsewhere, at once."""
        with self._writing() as connection:
            mine = (jobs.c.state == "running") & (jobs.c.owner == owner)
            requeue(connection, mine, "its runner was stopped", self._clock(), max_attempts=None)
            connection.execute(delete(runners).where(runners.c.owner == owner))

    def lost(self, claim: Claim, reason: str, *, max_attempts: int) -> None:
        """The attempt's process died: queue the job again, or fail it once ``max_attempts`` were lost.

        A claim that is no longer valid changes nothing.
        """
        with self._writing() as connection:
            requeue(connection, fence(claim), reason, self._clock(), max_attempts)

    def runner_seen_at(self) -> datetime | None:
        """When a runner last gave a sign of life."""
        with self._reading.begin() as connection:
            seen_at: datetime | None = connection.execute(select(func.max(runners.c.seen_at))).scalar_one()
        return seen_at

    def note_staging(self, claim: Claim, directory: Staged) -> None:
        """Note the hidden directory that the attempt is about to make, so that it is removed whatever happens.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        row = {"job_id": claim.job_id, "output": directory.output, "identity": directory.identity}
        with self._writing() as connection:
            if connection.execute(select(jobs.c.id).where(fence(claim))).one_or_none() is None:
                raise lease_lost(claim)
            connection.execute(insert(staging).values(row))

    def report(self, claim: Claim, progress: Progress) -> bool:
        """Write the job's progress; whether its cancellation was asked for.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        data = _json(progress)
        with self._writing() as connection:
            cancel = connection.execute(
                update(jobs).where(fence(claim)).values(progress=data).returning(jobs.c.cancel_requested)
            ).scalar_one_or_none()
            if cancel is None:
                raise lease_lost(claim)
            # A newer progress supersedes all before it, so only the newest is kept.
            connection.execute(
                delete(events).where(events.c.job_id == claim.job_id, events.c.event == "progress")
            )
            append_event(connection, claim.job_id, "progress", data)
        return bool(cancel)

    def succeed(self, claim: Claim, result: JobResult, progress: Progress | None = None) -> None:
        """End the job with its result and its last progress.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        added: list[tuple[str, str, float]] = []
        if isinstance(result, MergeResult):
            added += [
                ("bytes", "read", float(result.bytes_read)),
                ("bytes", "written", float(result.bytes_written)),
            ]
            added += [("seconds", phase, seconds) for phase, seconds in sorted(result.seconds.items())]
        with self._writing() as connection:
            outcome = {"result": _json(result)}
            if progress is not None:
                outcome["progress"] = _json(progress)
            finish(connection, claim, "succeeded", self._clock(), **outcome)
            for name, label, value in added:
                add_up(connection, name, label, value)

    def fail(self, claim: Claim, error: JobError) -> None:
        """End the job with an error.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._writing() as connection:
            finish(connection, claim, "failed", self._clock(), error=_json(error))

    def cancelled(self, claim: Claim) -> None:
        """End the job as cancelled.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._writing() as connection:
            finish(connection, claim, "cancelled", self._clock())
