"""How jobs change their state: the statements that the job store's transactions are made of."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, update
from sqlalchemy.dialects import postgresql, sqlite

from service.claims import Claim, LeaseLost
from service.tables import counters, events, jobs
from taumerge.schemas import Job, JobError, JobState

__all__ = ["add_up", "append_event", "end", "fence", "finish", "job_of", "lease_lost", "requeue", "upsert"]


def fence(claim: Claim) -> ColumnElement[bool]:
    """The job of ``claim``, as long as it is this attempt's."""
    return (
        (jobs.c.id == claim.job_id)
        & (jobs.c.state == "running")
        & (jobs.c.owner == claim.owner)
        & (jobs.c.attempt == claim.attempt)
    )


def lease_lost(claim: Claim) -> LeaseLost:
    """What an attempt gets that writes too late."""
    return LeaseLost(f"job {claim.job_id} is no longer run by {claim.owner} as attempt {claim.attempt}")


def finish(connection: Connection, claim: Claim, state: JobState, now: datetime, **outcome: Any) -> None:
    """End the job of ``claim``.

    Raises:
        LeaseLost: the job is no longer this attempt's.
    """
    if not end(connection, fence(claim), state, now, **outcome):
        raise lease_lost(claim)


def end(
    connection: Connection, which: ColumnElement[bool], state: JobState, now: datetime, **outcome: Any
) -> Sequence[Job]:
    """Put ``which`` jobs into an ended ``state`` and return them."""
    rows = connection.execute(
        update(jobs)
        .where(which)
        .values(state=state, finished_at=now, owner=None, lease_expires_at=None, **outcome)
        .returning(jobs)
    ).all()
    for row in rows:
        append_event(connection, row.id, "state", {"state": state})
    return [job_of(row) for row in rows]


def requeue(
    connection: Connection,
    which: ColumnElement[bool],
    reason: str,
    now: datetime,
    max_attempts: int | None,
) -> int:
    """Take ``which`` running jobs from their owner. Returns how many.

    Args:
        max_attempts: lost attempts that make a job fail, this one included; None: nothing was lost, and none fails.
    """
    taken = len(end(connection, which & jobs.c.cancel_requested, "cancelled", now))
    lost = 0 if max_attempts is None else 1
    if max_attempts is not None:
        error = JobError(
            code="worker_lost",
            message=f"the job lost its process in {max_attempts} attempts; the last time: {reason}",
        )
        spent = which & (jobs.c.losses + 1 >= max_attempts)
        taken += len(end(connection, spent, "failed", now, error=error.model_dump(mode="json")))
    rows = connection.execute(
        update(jobs)
        .where(which)
        .values(state="queued", owner=None, lease_expires_at=None, losses=jobs.c.losses + lost)
        .returning(jobs.c.id)
    ).all()
    for row in rows:
        append_event(connection, row.id, "log", {"message": f"back in the queue: {reason}"})
        append_event(connection, row.id, "state", {"state": "queued"})
    return taken + len(rows)


def append_event(connection: Connection, job_id: str, event: str, data: dict[str, Any]) -> None:
    """Add to the job's event stream."""
    connection.execute(insert(events).values(job_id=job_id, event=event, data=data))


def add_up(connection: Connection, name: str, label: str, value: float) -> None:
    """Add ``value`` to a counter."""
    row = {"name": name, "label": label, "value": value}
    upsert(connection, counters, row, {"value": counters.c.value + value})


def upsert(connection: Connection, table: Any, row: dict[str, Any], change: dict[str, Any]) -> None:
    """Insert ``row``, or apply ``change`` to the one with the same primary key."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(row)
    connection.execute(statement.on_conflict_do_update(index_elements=table.primary_key.columns, set_=change))


def job_of(row: Row[Any]) -> Job:
    """The job that a row of the table is."""
    names = Job.model_fields
    return Job.model_validate({name: value for name, value in row._mapping.items() if name in names})
