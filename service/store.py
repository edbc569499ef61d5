"""The job table: the queue, and the only durable state of the service.

Every method is one transaction. What a running job writes is fenced by its owner and attempt: once
the job has gone to another attempt, a late write changes nothing and raises ``LeaseLost``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    case,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from ulid import ULID

from service.attempts import Attempts
from service.claims import Event, IdempotencyConflict, JobEnded, QueueFull, Staged, UnknownJob
from service.tables import counters, events, jobs, staging, take_turns
from service.transitions import append_event, end, job_of, upsert
from taumerge.errors import InvalidRequest
from taumerge.schemas import ENDED, Job, JobKind, JobState

__all__ = ["RESUMED_KINDS", "Store"]

RESUMED_KINDS: frozenset[JobKind] = frozenset({"search", "finetune"})
"""Long jobs: what they leave behind when they fail lets the user's next attempt go on from it."""


class Store(Attempts):
    """Jobs, their events and what they add up to. Safe to share between threads, not across a fork."""

    # ------------------------------------------------------------------------------------ clients

    def create(
        self,
        kind: JobKind,
        request: Mapping[str, Any],
        idempotency_key: str | None = None,
        *,
        max_queued: int | None = None,
    ) -> Job:
        """Queue a job, or return the one that the same key and request made before.

        Args:
            max_queued: jobs that may wait, this one included; None: any number.

        Raises:
            IdempotencyConflict: the key belongs to another request.
            QueueFull: as many jobs wait already.
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
        with self._writing() as connection:
            take_turns(connection, "queue")  # so that no other job is queued between the count and the insert
            if idempotency_key is not None and (earlier := _by_key(connection, idempotency_key)) is not None:
                return _same_request(earlier, kind, request)
            if max_queued is not None:
                _check_queue(connection, max_queued)
            job = job_of(connection.execute(insert(jobs).values(row).returning(jobs)).one())
            append_event(connection, job.id, "state", {"state": "queued"})
        return job

    def check_queue(self, max_queued: int) -> None:
        """Refuse early what ``create`` would refuse.

        Raises:
            QueueFull: ``max_queued`` jobs wait already.
        """
        with self._reading.begin() as connection:
            _check_queue(connection, max_queued)

    def find_by_key(self, idempotency_key: str, kind: JobKind, request: Mapping[str, Any]) -> Job | None:
        """The job that this key made, if there is one.

        Raises:
            IdempotencyConflict: the key belongs to another request.
        """
        with self._reading.begin() as connection:
            row = _by_key(connection, idempotency_key)
        return None if row is None else _same_request(row, kind, request)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises:
            UnknownJob: there is none with this id.
        """
        with self._reading.begin() as connection:
            row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise UnknownJob(f"there is no job {job_id}")
        return job_of(row)

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
            page = [job_of(row) for row in connection.execute(query)]
        return page[:limit], page[limit - 1].id if len(page) > limit else None

    def request_cancel(self, job_id: str) -> Job:
        """Ask for cancellation: a queued job ends at once, a running one when its process notices.

        Raises:
            UnknownJob: there is none with this id.
            JobEnded: the job has already ended.
        """
        with self._writing() as connection:
            ended = end(
                connection, (jobs.c.id == job_id) & (jobs.c.state == "queued"), "cancelled", self._clock()
            )
            if ended:
                return ended[0]
            row = connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == "running")
                .values(cancel_requested=True)
                .returning(jobs)
            ).one_or_none()
            if row is not None:
                return job_of(row)
        job = self.get(job_id)
        raise JobEnded(f"job {job_id} has ended: it {_ENDING[job.state]}")

    def events_after(self, job_id: str, event_id: int) -> Sequence[Event]:
        """The job's events after ``event_id``, oldest first."""
        query = select(events.c.id, events.c.event, events.c.data)
        after = literal(
            event_id, BigInteger()
        )  # a client may name any; PostgreSQL would not take it for an id
        query = query.where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id)
        with self._reading.begin() as connection:
            return [Event(*row) for row in connection.execute(query)]

    # ---------------------------------------------------------------------------------- housekeeping

    def forget(self, ended_before: datetime) -> int:
        """Delete the jobs that ended before then, with their events. Returns how many."""
        with self._writing() as connection:
            old = connection.execute(
                delete(jobs)
                .where(jobs.c.state.in_(ENDED), jobs.c.finished_at < ended_before)
                .returning(jobs.c.id)
            )
            return len(old.all())

    def orphans(self) -> Sequence[Staged]:
        """The noted directories that no job will go on with.

        Those of a merge or diagnosis that has ended, and of a job that is forgotten: the evaluations of a search and
        the last checkpoint of a fine-tune are of use to a later attempt of the user's.
        """
        kept = jobs.c.state.not_in(ENDED) | jobs.c.kind.in_(RESUMED_KINDS)
        query = select(staging.c.output, staging.c.identity, func.max(case((kept, 1), else_=0)).label("kept"))
        query = query.outerjoin_from(staging, jobs, staging.c.job_id == jobs.c.id)
        query = query.group_by(staging.c.output, staging.c.identity)
        with self._reading.begin() as connection:
            return [Staged(row.output, row.identity) for row in connection.execute(query) if not row.kept]

    def swept(self, directory: Staged) -> None:
        """The directory is gone."""
        with self._writing() as connection:
            connection.execute(
                delete(staging).where(
                    staging.c.output == directory.output, staging.c.identity == directory.identity
                )
            )

    # ------------------------------------------------------------------------------------- metrics

    def count_jobs(self) -> dict[tuple[JobKind, JobState], int]:
        """How many jobs there are of each kind and state."""
        query = select(jobs.c.kind, jobs.c.state, func.count()).group_by(jobs.c.kind, jobs.c.state)
        with self._reading.begin() as connection:
            return {(row[0], row[1]): row[2] for row in connection.execute(query)}

    def note_resident(self, nbytes: int) -> None:
        """What the shard workers keep resident at the moment."""
        row = {"name": "resident_bytes", "label": "", "value": float(nbytes)}
        with self._writing() as connection:
            upsert(connection, counters, row, {"value": row["value"]})

    def totals(self) -> dict[tuple[str, str], float]:
        """What was counted.

        ``("bytes", "read" | "written")`` and ``("seconds", phase)`` of all merges, ``("retries", kind)``,
        ``("lease_losses", "")``, and ``("resident_bytes", "")`` as last noted.
        """
        with self._reading.begin() as connection:
            return {(row.name, row.label): row.value for row in connection.execute(select(counters))}


_ENDING = {"succeeded": "succeeded", "failed": "failed", "cancelled": "was cancelled"}


def _request_hash(kind: JobKind, request: Mapping[str, Any]) -> str:
    canonical = json.dumps([kind, request], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _by_key(connection: Connection, idempotency_key: str) -> Row[Any] | None:
    return connection.execute(select(jobs).where(jobs.c.idempotency_key == idempotency_key)).one_or_none()


def _same_request(row: Row[Any], kind: JobKind, request: Mapping[str, Any]) -> Job:
    if row.request_hash != _request_hash(kind, request):
        raise IdempotencyConflict(
            f"this idempotency key belongs to job {row.id}, which has another request; use a new key"
        )
    return job_of(row)


def _check_queue(connection: Connection, max_queued: int) -> None:
    if connection.execute(select(func.count()).where(jobs.c.state == "queued")).scalar_one() >= max_queued:
        raise QueueFull(
            f"{max_queued} jobs are waiting, and no more may (TAUMERGE_MAX_QUEUED_JOBS); try again later"
        )
