"""Error answers: RFC 9457 problem documents for whatever goes wrong, and never a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionLeft
from starlette.exceptions import HTTPException

from service.claims import IdempotencyConflict, JobEnded, QueueFull, UnknownJob
from taumerge.errors import ErrorItem, InvalidRequest, TaumergeError
from taumerge.schemas import Problem

__all__ = ["documented", "install", "problem"]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
_STATUS: Mapping[type[TaumergeError], int] = {
    UnknownJob: 404,
    JobEnded: 409,
    IdempotencyConflict: 409,
    QueueFull: 429,
}
_QUEUE_RETRY_SECONDS = 5


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[ErrorItem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error answer."""
    title = HTTPStatus(status).phrase
    document = Problem(title=title, status=status, detail=detail, code=code, errors=list(errors))
    return Response(document.model_dump_json(), status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of these error answers."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem document."""
    for error in _STATUS:
        app.add_exception_handler(error, _refused)
    app.add_exception_handler(InvalidRequest, _invalid)
    app.add_exception_handler(RequestValidationError, _not_in_schema)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(NoConnectionLeft, _database)
    app.add_exception_handler(Exception, _unexpected)


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TaumergeError)
    headers = {"Retry-After": str(_QUEUE_RETRY_SECONDS)} if isinstance(error, QueueFull) else None
    return problem(_STATUS[type(error)], error.code, str(error), headers=headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)
    return problem(422, error.code, str(error), errors=error.errors)


async def _not_in_schema(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _invalid(request, InvalidRequest([_located(item) for item in error.errors()]))


def _located(item: Mapping[str, Any]) -> ErrorItem:
    """A schema error; its place is relative to the body, or starts with ``query`` or ``header``."""
    if item["type"] == "json_invalid":
        position = item["loc"][-1]
        return ErrorItem(
            loc=(), code="json_invalid", msg=f"not JSON: {item['ctx']['error']}, character {position}"
        )
    loc = item["loc"][1:] if item["loc"][0] == "body" else item["loc"]
    return ErrorItem(loc=tuple(loc), code=item["type"], msg=item["msg"])


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's answer to a body that its parser gives up on
        message = "not JSON that can be read: it is not UTF-8, or nested too deep"
        return await _invalid(request, InvalidRequest.at([], "json_invalid", message))
    code = _CODES.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"))
    return problem(error.status_code, code, error.detail, headers=error.headers)


async def _database(request: Request, error: Exception) -> Response:
    log.error("%s %s: %s", request.method, request.url.path, error)
    return problem(
        503, "database_unavailable", "the job store does not answer; try again", headers={"Retry-After": "1"}
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return problem(500, "internal_error", "an error in the service itself; its operator finds it in the log")
