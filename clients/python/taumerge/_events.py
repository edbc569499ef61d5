"""Server-sent events of a job: their types, and the stream that outlives its connections. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

from pydantic import BaseModel, ValidationError

from taumerge.errors import ApiError
from taumerge.schemas import ENDED, JobState, Progress

RECONNECT_SECONDS = 0.2
"""Pause before a connection that ended regularly is followed by another."""


class ProgressEvent(Progress):
    """The job has come further."""

    event: Literal["progress"] = "progress"


class StateEvent(BaseModel):
    """The job is in another state."""

    event: Literal["state"] = "state"
    state: JobState


class LogEvent(BaseModel):
    """The job has something to say."""

    event: Literal["log"] = "log"
    message: str


Event: TypeAlias = ProgressEvent | StateEvent | LogEvent

_TYPES: dict[str, type[Event]] = {"progress": ProgressEvent, "state": StateEvent, "log": LogEvent}


class EventStream:
    """The events of one job, over as many connections as it takes."""

    def __init__(self) -> None:
        self.last_id = ""
        """``Last-Event-ID`` of the next connection."""
        self.ended = False
        """Whether the event of the final state has come."""
        self.disconnected()

    def disconnected(self) -> None:
        """Drop the event that the last connection did not complete."""
        self._partial = b""
        self._fields: dict[str, str] = {}

    def decode(self, chunk: bytes) -> Iterator[Event]:
        """The events that ``chunk`` completes."""
        # Split on LF alone (with CRLF in mind): JSON text may hold other characters that str.splitlines splits on.
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            if text := line.decode("utf-8", "replace").removesuffix("\r"):
                self._field(text)
            elif event := self._dispatch():
                yield event

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        self._fields[name] = value

    def _dispatch(self) -> Event | None:
        fields, self._fields = self._fields, {}
        event = None
        # A newer service may send events that this client does not know.
        if "data" in fields and (known := _TYPES.get(fields.get("event", ""))):
            try:
                event = known.model_validate_json(fields["data"])
            except ValidationError:
                message = f"not a {fields['event']} event: {fields['data']}"
                raise ApiError(200, "unexpected_answer", message) from None
        self.last_id = fields.get("id", self.last_id)
        if isinstance(event, StateEvent):
            self.ended = event.state in ENDED
        return event
