"""What every request passes before the routes: the host that it names or the token, and the limit on the body."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem
from service.settings import is_loopback

__all__ = ["MAX_BODY_BYTES", "BearerToken", "BodyLimit", "LoopbackHost"]

MAX_BODY_BYTES = 1_000_000
_TOO_LARGE = f"the request body is larger than {MAX_BODY_BYTES} bytes"
_OPEN_PATHS = frozenset({"/healthz", "/readyz"})


class BearerToken:
    """Lets requests through that carry the token: 401 without one, 403 with a wrong one.

    ``/healthz`` and ``/readyz`` are open, because a load balancer has no token.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            refusal = problem(
                401,
                "unauthorized",
                "this service needs the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Bearer realm="taumerge"'},
            )
        elif secrets.compare_digest(given.encode("latin-1"), self._token):
            await self._app(scope, receive, send)
            return
        else:
            refusal = problem(403, "forbidden", "this is not the token of the service")
        await refusal(scope, receive, send)


class LoopbackHost:
    """Lets requests through that are addressed to this machine by a loopback name, for a service without a token.

    A page of somebody else's, under a name that it has pointed here, would be of one origin with the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or _names_loopback(scope):
            await self._app(scope, receive, send)
            return
        refusal = problem(
            403,
            "forbidden",
            "without a token this service answers requests to 127.0.0.1, localhost or [::1] only",
        )
        await refusal(scope, receive, send)


def _names_loopback(scope: Scope) -> bool:
    try:
        host = urlsplit(f"//{Headers(scope=scope).get('host', '')}").hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)


class BodyLimit:
    """Refuses bodies above ``MAX_BODY_BYTES`` with 413: declared ones at once, streamed ones when they exceed it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
            await problem(413, "request_too_large", _TOO_LARGE)(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, _TOO_LARGE)
            return message

        await self._app(scope, limited, send)
