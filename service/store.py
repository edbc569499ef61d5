"""The job table: the queue, and the only durable state of the service.

Every method is one transaction. What a running job writes is fenced by its owner and attempt: once
the job has gone to another attempt, a late write changes nothing and raises ``LeaseLost``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from ulid import ULID

from service.claims import Claim, Event, IdempotencyConflict, JobEnded, LeaseLost, UnknownJob
from service.tables import counters, events, jobs, open_engine, runners
from taumerge.errors import InvalidRequest
from taumerge.schemas import Job, JobError, JobKind, JobResult, JobState, MergeResult, Progress

__all__ = ["Store"]


def _now() -> datetime:
    return datetime.now(UTC)


class Store:
    """Jobs, their events and what they add up to. Safe to share between threads, not across a fork."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = _now) -> None:
        self._engine = engine
        self._reading = engine.execution_options(reads_only=True)
        self._clock = clock

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to the database at ``url`` and create what is missing there (errors: ``open_engine``)."""
        return cls(open_engine(url))

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    # ------------------------------------------------------------------------------------ clients

    def create(self, kind: JobKind, request: Mapping[str, Any], idempotency_key: str | None = None) -> Job:
        """Queue a job, or return the one that the same key and request made before.

        Raises:
            IdempotencyConflict: the key belongs to another request.
        """
        row = {
            "id": f"{kind}-{ULID()}",
            "kind": kind,
            "state": "queued",
            "created_at": self._clock(),
            "request": dict(request),
            "idempotency_key": idempotency_key,
            "request_hash": _request_hash(kind, request),
        }
        try:
            with self._engine.begin() as connection:
                job = _job(connection.execute(insert(jobs).values(row).returning(jobs)).one())
                _append(connection, job.id, "state", {"state": "queued"})
                return job
        except IntegrityError:
            earlier = idempotency_key and self.find_by_key(idempotency_key, kind, request)
            if not earlier:
                raise
            return earlier

    def find_by_key(self, idempotency_key: str, kind: JobKind, request: Mapping[str, Any]) -> Job | None:
        """The job that this key made, if there is one.

        Raises:
            IdempotencyConflict: the key belongs to another request.
        """
        with self._reading.begin() as connection:
            row = connection.execute(
                select(jobs).where(jobs.c.idempotency_key == idempotency_key)
            ).one_or_none()
        if row is None:
            return None
        if row.request_hash != _request_hash(kind, request):
            raise IdempotencyConflict(
                f"this idempotency key belongs to job {row.id}, which has another request; use a new key"
            )
        return _job(row)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJob: there is none with this id.
        """
        with self._reading.begin() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise UnknownJob(f"there is no job {job_id}")
        return _job(row)

    def list(
        self,
        *,
        kind: JobKind | None = None,
        state: JobState | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> tuple[Sequence[Job], str | None]:
        """Up to ``limit`` jobs, newest first, and the cursor of the next page (None on the last).

        Raises:
            InvalidRequest: the cursor is none that this method returned.
        """
        age = (jobs.c.created_at, jobs.c.id)
        query = select(jobs).order_by(*(column.desc() for column in age)).limit(limit + 1)
        if kind is not None:
            query = query.where(jobs.c.kind == kind)
        if state is not None:
            query = query.where(jobs.c.state == state)
        with self._reading.begin() as connection:
            if cursor is not None:
                last = connection.execute(select(*age).where(jobs.c.id == cursor)).one_or_none()
                if last is None:
                    raise InvalidRequest.at(
                        ["query", "cursor"], "invalid_cursor", "use next_cursor of the page before, unchanged"
                    )
                query = query.where(tuple_(*age) < tuple(last))
            page = [_job(row) for row in connection.execute(query)]
        return page[:limit], page[limit - 1].id if len(page) > limit else None

    def request_cancel(self, job_id: str) -> Job:
        """Ask for cancellation: a queued job ends at once, a running one when its process notices.

        Raises:
            UnknownJob: there is none with this id.
            JobEnded: the job has already ended.
        """
        with self._engine.begin() as connection:
            ended = self._end(connection, (jobs.c.id == job_id) & (jobs.c.state == "queued"), "cancelled")
            if ended:
                return ended[0]
            row = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == "running")
                .values(cancel_requested=True)
                .returning(jobs)
            ).one_or_none()
            if row is not None:
                return _job(row)
        job = self.get(job_id)
        raise JobEnded(f"job {job_id} has ended: it {_ENDING[job.state]}")

    def events_after(self, job_id: str, event_id: int) -> Sequence[Event]:
        """The job's events after ``event_id``, oldest first."""
        query = select(events.c.id, events.c.event, events.c.data)
        query = query.where(events.c.job_id == job_id, events.c.id > event_id).order_by(events.c.id)
        with self._reading.begin() as connection:
            return [Event(*row) for row in connection.execute(query)]

    # ------------------------------------------------------------------------------------ runners

    def claim(self, owner: str, *, lease_seconds: float, max_attempts: int) -> Claim | None:
        """Take the oldest queued job for ``owner``; None where there is none.

        Jobs whose lease has run out go back to the queue first, or fail after ``max_attempts``.
        """
        now = self._clock()
        oldest = (
            select(jobs.c.id)
            .where(jobs.c.state == "queued")
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
                progress=None,
            )
            .returning(jobs)
        )
        with self._engine.begin() as connection:
            expired = (jobs.c.state == "running") & (jobs.c.lease_expires_at < now)
            self._requeue(connection, expired, "no sign of life from its runner", max_attempts)
            row = connection.execute(claim).one_or_none()
            if row is None:
                return None
            _append(connection, row.id, "state", {"state": "running"})
            if row.attempt > 1:
                _append(
                    connection, row.id, "log", {"message": f"attempt {row.attempt} of {max_attempts} starts"}
                )
        return Claim(row.id, row.kind, row.request, owner, row.attempt)

    def heartbeat(self, owner: str, lease_seconds: float) -> None:
        """Renew the leases of every job that ``owner`` runs, and say that it is there."""
        now = self._clock()
        with self._engine.begin() as connection:
            connection.execute(
                update(jobs)
                .where(jobs.c.state == "running", jobs.c.owner == owner)
                .values(lease_expires_at=now + timedelta(seconds=lease_seconds))
            )
            self._upsert(connection, runners, {"owner": owner, "seen_at": now}, {"seen_at": now})
            connection.execute(delete(runners).where(runners.c.seen_at < now - timedelta(days=1)))

    def leave(self, owner: str) -> None:
        """Let go of everything that ``owner`` holds: its jobs start again elsewhere, at once."""
        with self._engine.begin() as connection:
            mine = (jobs.c.state == "running") & (jobs.c.owner == owner)
            self._requeue(connection, mine, "its runner was stopped", max_attempts=None)
            connection.execute(delete(runners).where(runners.c.owner == owner))

    def lost(self, claim: Claim, reason: str, *, max_attempts: int) -> None:
        """The attempt's process died: queue the job again, or fail it after ``max_attempts``.

        A claim that is no longer valid changes nothing.
        """
        with self._engine.begin() as connection:
            self._requeue(connection, _fence(claim), reason, max_attempts)

    def runner_seen_at(self) -> datetime | None:
        """When a runner last gave a sign of life."""
        with self._reading.begin() as connection:
            seen_at: datetime | None = connection.execute(select(func.max(runners.c.seen_at))).scalar_one()
        return seen_at

    # ------------------------------------------------------------------------------- a running job

    def report(self, claim: Claim, progress: Progress) -> bool:
        """Write the job's progress; whether its cancellation was asked for.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        data = progress.model_dump(mode="json")
        with self._engine.begin() as connection:
            cancel = connection.execute(
                update(jobs).where(_fence(claim)).values(progress=data).returning(jobs.c.cancel_requested)
            ).scalar_one_or_none()
            if cancel is None:
                raise _lease_lost(claim)
            # A newer progress supersedes all before it, so only the newest is kept.
            connection.execute(
                delete(events).where(events.c.job_id == claim.job_id, events.c.event == "progress")
            )
            _append(connection, claim.job_id, "progress", data)
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
        with self._engine.begin() as connection:
            outcome = {"result": result.model_dump(mode="json")}
            if progress is not None:
                outcome["progress"] = progress.model_dump(mode="json")
            self._finish(connection, claim, "succeeded", **outcome)
            for name, label, value in added:
                row = {"name": name, "label": label, "value": value}
                self._upsert(connection, counters, row, {"value": counters.c.value + value})

    def fail(self, claim: Claim, error: JobError) -> None:
        """End the job with an error.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._engine.begin() as connection:
            self._finish(connection, claim, "failed", error=error.model_dump(mode="json"))

    def cancelled(self, claim: Claim) -> None:
        """End the job as cancelled.

        Raises:
            LeaseLost: the job is no longer this attempt's.
        """
        with self._engine.begin() as connection:
            self._finish(connection, claim, "cancelled")

    # ------------------------------------------------------------------------------------- metrics

    def count_jobs(self) -> dict[tuple[JobKind, JobState], int]:
        """How many jobs there are of each kind and state."""
        query = select(jobs.c.kind, jobs.c.state, func.count()).group_by(jobs.c.kind, jobs.c.state)
        with self._reading.begin() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def totals(self) -> dict[tuple[str, str], float]:
        """What all merges add up to: ``("bytes", "read" | "written")`` and ``("seconds", phase)``."""
        with self._reading.begin() as connection:
            return {(row.name, row.label): row.value for row in connection.execute(select(counters))}

    # ------------------------------------------------------------------------------------ internals

    def _finish(self, connection: Connection, claim: Claim, state: JobState, **outcome: Any) -> None:
        if not self._end(connection, _fence(claim), state, **outcome):
            raise _lease_lost(claim)

    def _end(
        self, connection: Connection, which: ColumnElement[bool], state: JobState, **outcome: Any
    ) -> Sequence[Job]:
        """Put ``which`` jobs into an ended ``state`` and return them."""
        rows = connection.execute(
            update(jobs)
            .where(which)
            .values(state=state, finished_at=self._clock(), owner=None, lease_expires_at=None, **outcome)
            .returning(jobs)
        ).all()
        for row in rows:
            _append(connection, row.id, "state", {"state": state})
        return [_job(row) for row in rows]

    def _requeue(
        self, connection: Connection, which: ColumnElement[bool], reason: str, max_attempts: int | None
    ) -> None:
        """Take ``which`` running jobs from their owner; without ``max_attempts`` none of them fails."""
        self._end(connection, which & jobs.c.cancel_requested, "cancelled")
        if max_attempts is not None:
            error = JobError(
                code="worker_lost",
                message=f"the job lost its process at each of {max_attempts} attempts; the last time: {reason}",
            )
            self._end(
                connection,
                which & (jobs.c.attempt >= max_attempts),
                "failed",
                error=error.model_dump(mode="json"),
            )
        rows = connection.execute(
            update(jobs)
            .where(which)
            .values(state="queued", owner=None, lease_expires_at=None, progress=None)
            .returning(jobs.c.id)
        ).all()
        for row in rows:
            _append(connection, row.id, "log", {"message": f"back in the queue: {reason}"})
            _append(connection, row.id, "state", {"state": "queued"})

    def _upsert(
        self, connection: Connection, table: Any, row: dict[str, Any], change: dict[str, Any]
    ) -> None:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(table).values(row)
        connection.execute(
            statement.on_conflict_do_update(index_elements=table.primary_key.columns, set_=change)
        )


_ENDING = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}


def _fence(claim: Claim) -> ColumnElement[bool]:
    return (
        (jobs.c.id == claim.job_id)
        & (jobs.c.state == "running")
        & (jobs.c.owner == claim.owner)
        & (jobs.c.attempt == claim.attempt)
    )


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"job {claim.job_id} is no longer run by {claim.owner} as attempt {claim.attempt}")


def _append(connection: Connection, job_id: str, event: str, data: dict[str, Any]) -> None:
    connection.execute(insert(events).values(job_id=job_id, event=event, data=data))


def _request_hash(kind: JobKind, request: Mapping[str, Any]) -> str:
    canonical = json.dumps([kind, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _job(row: Row[Any]) -> Job:
    names = Job.model_fields
    return Job.model_validate({name: value for name, value in row._mapping.items() if name in names})
