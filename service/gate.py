"""What every request passes before the routes: the bearer token and the limit on the body."""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem

__all__ = ["MAX_BODY_BYTES", "BearerToken", "BodyLimit"]

MAX_BODY_BYTES = 1_000_000
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


class BodyLimit:
    """Refuses bodies above ``MAX_BODY_BYTES`` with 413, declared or streamed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the request body is larger than {MAX_BODY_BYTES} bytes")
            return message

        await self._app(scope, limited, send)
