"""A job's server-sent events, read from the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import ServerSentEvent

from service.store import Store

__all__ = ["follow"]

POLL_SECONDS = 0.1


async def follow(store: Store, job_id: str, after: int, seconds: float) -> AsyncIterator[ServerSentEvent]:
    """The job's events with an id above ``after``, until the job has ended or ``seconds`` have passed."""
    deadline = time.monotonic() + seconds
    while True:
        # The state first: once the job has ended no event follows, so those read next are the last.
        ended = (await run_in_threadpool(store.get, job_id)).ended
        for event in await run_in_threadpool(store.events_after, job_id, after):
            after = event.id
            yield ServerSentEvent(id=str(event.id), event=event.event, data=event.data)
        if ended or time.monotonic() > deadline:
            return
        await asyncio.sleep(POLL_SECONDS)
