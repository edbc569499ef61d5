"""What both clients share beneath their calls: addresses, retries, and answers as values or typed errors. No I/O."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Any, Generic, TypeAlias, TypeVar

import httpx
from pydantic import ValidationError

from taumerge.errors import (
    ApiError,
    Conflict,
    InvalidRequest,
    NotFound,
    ServiceUnreachable,
    TaumergeError,
    Unauthorized,
    Unavailable,
)
from taumerge.schemas import Problem

DEFAULT_URL = "http://127.0.0.1:8000"

BACKOFF_SECONDS = 0.5
"""Longest pause before the first retry; each further one may take twice as long."""
LONGEST_BACKOFF_SECONDS = 8.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
"""A service that asks for more patience than this is reported, not waited for."""

T = TypeVar("T")
Failure: TypeAlias = httpx.Response | httpx.RequestError
"""How an attempt failed: an error answer, or none."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request to the service and how to read its answer.

    Every call is safe to repeat: it reads, or it cancels, or it queues under an idempotency key.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    """Raises ValueError for an answer that taumerge would not give."""
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: str | None = None
    """Body as JSON text."""
    stream: bool = False
    """Leave the body of a good answer unread."""
    held_seconds: float = 0.0
    """How long the service may hold the answer back on purpose."""


class Service:
    """Where the service is, who calls it, and how patiently."""

    def __init__(self, url: str | None, token: str | None, timeout: float, retries: int) -> None:
        self.url = _checked_url(url or os.environ.get("TAUMERGE_URL") or DEFAULT_URL)
        self.headers = {"User-Agent": f"taumerge/{version('taumerge')}", "Accept": "application/json"}
        if token := _checked_token(token or os.environ.get("TAUMERGE_TOKEN") or ""):
            self.headers["Authorization"] = f"Bearer {token}"
        self._hint = f"is {self.url} the service's address?"
        self._timeout = timeout
        self._retries = retries

    def request(self, http: httpx.Client | httpx.AsyncClient, call: Call[Any]) -> httpx.Request:
        """The next attempt of ``call``."""
        headers = dict(call.headers)
        if call.content is not None:
            headers["Content-Type"] = "application/json"
        return http.build_request(
            call.method,
            call.path,
            params=call.params,
            headers=headers,
            content=call.content,
            timeout=httpx.Timeout(self._timeout, read=self._timeout + call.held_seconds),
        )

    def retry(self) -> Retry:
        """A new count of attempts."""
        return Retry(self._retries)

    def pause_seconds(self, retry: Retry, failure: Failure) -> float:
        """Pause before the next attempt, after one that failed.

        Raises, where there is to be no other attempt:
            ServiceUnreachable: there was no answer.
            InvalidRequest: the service refused the request.
            ApiError: the service answered with another error.
        """
        if (pause := retry.pause_seconds(failure)) is not None:
            return pause
        if isinstance(failure, httpx.Response):
            raise self._refusal(failure)
        reason = str(failure) or type(failure).__name__
        raise ServiceUnreachable(
            f"{self.url} gives no answer ({reason}); start the service with `make serve`, "
            "or set TAUMERGE_URL to its address"
        ) from failure

    def read(self, call: Call[T], answer: httpx.Response) -> T:
        """The value of a good answer to ``call``."""
        try:
            return call.read(answer)
        except ValueError:
            raise ApiError(
                answer.status_code,
                "unexpected_answer",
                f"{_line(answer)}, but not as this version of taumerge expects; {self._hint}",
            ) from None

    def _refusal(self, answer: httpx.Response) -> TaumergeError:
        status = answer.status_code
        try:
            problem = Problem.model_validate_json(answer.content)
        except ValidationError:
            code = "unexpected_answer"
            message = f"{_line(answer)} without saying why; {self._hint}"
            errors = []
        else:
            code, message, errors = problem.code, problem.detail, problem.errors
        if status == 422:
            return InvalidRequest(errors) if errors else InvalidRequest.at((), code, message)
        return _ERRORS.get(status, ApiError)(status, code, message)


_ERRORS: dict[int, type[ApiError]] = {
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    409: Conflict,
    429: Unavailable,
    503: Unavailable,
}


class Retry:
    """The attempts of one call: exponential back-off with full jitter, never before ``Retry-After``."""

    def __init__(self, retries: int) -> None:
        self._retries = retries
        self._made = 0

    def reset(self) -> None:
        """Count from the start again, after a success."""
        self._made = 0

    def pause_seconds(self, failure: Failure) -> float | None:
        """Pause before the next attempt; None where there is to be none."""
        asked = 0.0
        if isinstance(failure, httpx.Response):
            if failure.status_code not in (429, 503):
                return None
            asked = _retry_after_seconds(failure)
        if self._made >= self._retries or asked > LONGEST_RETRY_AFTER_SECONDS:
            return None
        ceiling = min(BACKOFF_SECONDS * 2**self._made, LONGEST_BACKOFF_SECONDS)
        self._made += 1
        return asked + random.uniform(0, ceiling)


def _retry_after_seconds(answer: httpx.Response) -> float:
    """What ``Retry-After`` asks for, as seconds or as an HTTP date; 0 where it says nothing readable."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:  # the obsolete zone "-0000"; HTTP dates are in UTC
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _line(answer: httpx.Response) -> str:
    return f"{answer.request.method} {answer.request.url} was answered {answer.status_code}"


def _checked_url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest.at(("url",), "invalid_url", f"{url!r} is not an address: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        message = f"{url!r} is not an address: write it as http://HOST:PORT or https://HOST"
        raise InvalidRequest.at(("url",), "invalid_url", message)
    return url


def _checked_token(token: str) -> str:
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise InvalidRequest.at(("token",), "invalid_token", "a token has only printable ASCII characters")
    return token
