"""The two clients of the service: ``Client`` blocks, ``AsyncClient`` awaits; they have the same methods."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any, TypeVar, Unpack

import httpx

from taumerge import _calls
from taumerge._calls import DiagnoseFields, FinetuneFields, MergeFields, SearchFields
from taumerge._events import RECONNECT_SECONDS, Event, EventStream
from taumerge._transport import Call, Service
from taumerge._waiting import Polling, ProgressReport, reporting, succeeded
from taumerge.schemas import (
    DiagnoseRequest,
    FinetuneRequest,
    Job,
    JobKind,
    JobState,
    MergeRequest,
    MethodInfo,
    Plan,
    SearchRequest,
)

__all__ = ["AsyncClient", "Client"]

T = TypeVar("T")


class Client:
    """A blocking client of the service.

    Connection errors, 429 and 503 are tried again with back-off and jitter. What still fails raises
    ServiceUnreachable, Unauthorized, Unavailable or another ApiError, from every method.
    """

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 60.0, retries: int = 3
    ) -> None:
        """
        Args:
            url: address of the service; default: ``TAUMERGE_URL``, else ``http://127.0.0.1:8000``.
            token: bearer token; default: ``TAUMERGE_TOKEN``, else none.
            timeout: seconds of silence after which an attempt has failed.
            retries: attempts after the first.
        """
        self._service = Service(url, token, timeout, retries)
        self._http = httpx.Client(base_url=self._service.url, headers=self._service.headers)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def merge(
        self,
        request: MergeRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MergeFields],
    ) -> Job:
        """Queue a merge, given as a request (or recipe), or as its fields: base, models, method, output, …

        The fields are those of MergeRequest, with the same defaults.

        Args:
            wait: seconds, at most 60, that the service may hold its answer until the job has ended;
                the job may still be running after that.
            idempotency_key: the same key and request always give the same job; default: a new one.

        Raises:
            InvalidRequest: the merge cannot be carried out; its ``errors`` say where and why.
            Conflict: the key belongs to another request.
        """
        return self._send(_calls.merge(request, fields, wait=wait, idempotency_key=idempotency_key))

    def search(
        self,
        request: SearchRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[SearchFields],
    ) -> Job:
        """Queue a search for the best rule, its parameters and λ, given as a request (or recipe), or as its fields.

        The fields are those of SearchRequest, with the same defaults; arguments and errors are those of ``merge``.
        """
        return self._send(_calls.search(request, fields, wait=wait, idempotency_key=idempotency_key))

    def finetune(
        self,
        request: FinetuneRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[FinetuneFields],
    ) -> Job:
        """Queue a fine-tune, given as a request (or recipe), or as its fields: base, task, train, output, …

        The fields are those of FinetuneRequest, with the same defaults; arguments and errors are those of ``merge``.
        """
        return self._send(_calls.finetune(request, fields, wait=wait, idempotency_key=idempotency_key))

    def diagnose(
        self,
        request: DiagnoseRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[DiagnoseFields],
    ) -> Job:
        """Queue a diagnosis of heterogeneity, given as a request (or recipe), or as its fields.

        The fields are those of DiagnoseRequest, with the same defaults; arguments and errors are those of ``merge``.
        """
        return self._send(_calls.diagnose(request, fields, wait=wait, idempotency_key=idempotency_key))

    def plan(
        self, request: MergeRequest | Mapping[str, Any] | None = None, /, **fields: Unpack[MergeFields]
    ) -> Plan:
        """What a merge would do, from headers only; raises as ``merge`` does and queues nothing."""
        return self._send(_calls.plan(request, fields))

    def job(self, job_id: str) -> Job:
        """One job. Raises NotFound if there is none."""
        return self._send(_calls.job(job_id))

    def jobs(
        self, *, kind: JobKind | None = None, state: JobState | None = None, limit: int | None = None
    ) -> Iterator[Job]:
        """Jobs, newest first: at most ``limit``, or all; read page by page."""
        listing = _calls.JobListing(kind, state, limit)
        while call := listing.next_call():
            yield from listing.jobs(self._send(call))

    def follow(self, job_id: str) -> Iterator[Event]:
        """The events of a job, from its first, as they happen, until it has ended.

        Connections that end or break are resumed where they stopped. Raises NotFound if there is no such job.
        """
        stream, retry = EventStream(), self._service.retry()
        while True:
            pause = RECONNECT_SECONDS
            with closing(self._send(_calls.events(job_id, stream.last_id))) as answer:
                try:
                    for chunk in answer.iter_bytes():
                        for event in stream.decode(chunk):
                            retry.reset()
                            yield event
                            if stream.ended:
                                return
                except httpx.RequestError as error:
                    pause = self._service.pause_seconds(retry, error)
            stream.disconnected()
            time.sleep(pause)

    def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        progress: ProgressReport = False,
        check: bool = True,
    ) -> Job:
        """Poll a job until it has ended.

        Args:
            timeout: seconds to wait at most; default: for ever.
            progress: True draws a progress bar on a terminal's stderr; a function is called with
                the job at every poll.
            check: raise if the job did not succeed; False returns it however it ended.

        Raises:
            JobFailed: the job failed; code, message and details are those of ``job.error``.
            JobCancelled: the job was cancelled.
            WaitTimeout: the job has not ended within ``timeout``; it goes on.
            NotFound: there is no such job.
        """
        polling = Polling(job_id, timeout)
        with reporting(progress) as report:
            while True:
                job = self.job(job_id)
                report(job)
                if job.ended:
                    return succeeded(job) if check else job
                time.sleep(polling.pause_seconds())

    def cancel(self, job_id: str) -> Job:
        """Ask for cancellation; ``wait`` tells when it has happened. Raises Conflict if the job has ended."""
        return self._send(_calls.cancel(job_id))

    def methods(self) -> list[MethodInfo]:
        """Every rule of merging, with its parameters."""
        return self._send(_calls.methods())

    def health(self) -> dict[str, Any]:
        """What the service says about itself, for example ``{"status": "ok"}``."""
        return self._send(_calls.health())

    def _send(self, call: Call[T]) -> T:
        retry = self._service.retry()
        while True:
            try:
                answer = self._http.send(self._service.request(self._http, call), stream=call.stream)
                if answer.is_success:
                    return self._service.read(call, answer)
                answer.read()
                pause = self._service.pause_seconds(retry, answer)
            except httpx.RequestError as error:
                pause = self._service.pause_seconds(retry, error)
            time.sleep(pause)


class AsyncClient:
    """``Client`` for asyncio: the same arguments, methods and errors."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 60.0, retries: int = 3
    ) -> None:
        self._service = Service(url, token, timeout, retries)
        self._http = httpx.AsyncClient(base_url=self._service.url, headers=self._service.headers)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def merge(
        self,
        request: MergeRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[MergeFields],
    ) -> Job:
        """See ``Client.merge``."""
        return await self._send(_calls.merge(request, fields, wait=wait, idempotency_key=idempotency_key))

    async def search(
        self,
        request: SearchRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[SearchFields],
    ) -> Job:
        """See ``Client.search``."""
        return await self._send(_calls.search(request, fields, wait=wait, idempotency_key=idempotency_key))

    async def finetune(
        self,
        request: FinetuneRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[FinetuneFields],
    ) -> Job:
        """See ``Client.finetune``."""
        return await self._send(_calls.finetune(request, fields, wait=wait, idempotency_key=idempotency_key))

    async def diagnose(
        self,
        request: DiagnoseRequest | Mapping[str, Any] | None = None,
        /,
        *,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Unpack[DiagnoseFields],
    ) -> Job:
        """See ``Client.diagnose``."""
        return await self._send(_calls.diagnose(request, fields, wait=wait, idempotency_key=idempotency_key))

    async def plan(
        self, request: MergeRequest | Mapping[str, Any] | None = None, /, **fields: Unpack[MergeFields]
    ) -> Plan:
        """See ``Client.plan``."""
        return await self._send(_calls.plan(request, fields))

    async def job(self, job_id: str) -> Job:
        """See ``Client.job``."""
        return await self._send(_calls.job(job_id))

    async def jobs(
        self, *, kind: JobKind | None = None, state: JobState | None = None, limit: int | None = None
    ) -> AsyncIterator[Job]:
        """See ``Client.jobs``."""
        listing = _calls.JobListing(kind, state, limit)
        while call := listing.next_call():
            for job in listing.jobs(await self._send(call)):
                yield job

    async def follow(self, job_id: str) -> AsyncIterator[Event]:
        """See ``Client.follow``."""
        stream, retry = EventStream(), self._service.retry()
        while True:
            pause = RECONNECT_SECONDS
            async with aclosing(await self._send(_calls.events(job_id, stream.last_id))) as answer:
                try:
                    async for chunk in answer.aiter_bytes():
                        for event in stream.decode(chunk):
                            retry.reset()
                            yield event
                            if stream.ended:
                                return
                except httpx.RequestError as error:
                    pause = self._service.pause_seconds(retry, error)
            stream.disconnected()
            await asyncio.sleep(pause)

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,
        progress: ProgressReport = False,
        check: bool = True,
    ) -> Job:
        """See ``Client.wait``."""
        polling = Polling(job_id, timeout)
        with reporting(progress) as report:
            while True:
                job = await self.job(job_id)
                report(job)
                if job.ended:
                    return succeeded(job) if check else job
                await asyncio.sleep(polling.pause_seconds())

    async def cancel(self, job_id: str) -> Job:
        """See ``Client.cancel``."""
        return await self._send(_calls.cancel(job_id))

    async def methods(self) -> list[MethodInfo]:
        """See ``Client.methods``."""
        return await self._send(_calls.methods())

    async def health(self) -> dict[str, Any]:
        """See ``Client.health``."""
        return await self._send(_calls.health())

    async def _send(self, call: Call[T]) -> T:
        retry = self._service.retry()
        while True:
            try:
                answer = await self._http.send(self._service.request(self._http, call), stream=call.stream)
                if answer.is_success:
                    return self._service.read(call, answer)
                await answer.aread()
                pause = self._service.pause_seconds(retry, answer)
            except httpx.RequestError as error:
                pause = self._service.pause_seconds(retry, error)
            await asyncio.sleep(pause)
