"""The progress bar of a job, on stderr."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from taumerge import schemas
from taumerge._events import Event, LogEvent, ProgressEvent, StateEvent


class ProgressBar:
    """Phase, share, amount and estimated time left of one job; draws nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
            redirect_stdout=False,  # stdout is the caller's
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None, amount="", eta="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def draw(self, event: Event) -> None:
        """Draw what an event says."""
        match event:
            case ProgressEvent():
                self.show("running", event)
            case StateEvent():
                self._console.print(event.state)
                self.show(event.state, None)
            case LogEvent():
                self._console.print(event.message)

    def show(self, state: schemas.JobState, progress: schemas.Progress | None) -> None:
        """Draw a job in this state, this far."""
        if state == "running" and progress is not None:
            self._bar.update(
                self._task,
                description=progress.phase,
                completed=progress.done,
                total=progress.total or None,
                amount=f"{_amount(progress.done, progress.unit)} of {_amount(progress.total, progress.unit)}",
                eta="" if progress.eta_seconds is None else f"{progress.eta_seconds:.0f} s left",
            )
        elif state == "succeeded":
            self._bar.update(self._task, description=state, total=1, completed=1, amount="", eta="")
        else:
            self._bar.update(self._task, description=state, amount="", eta="")


def _amount(count: int, unit: str) -> str:
    return decimal(count) if unit == "bytes" else f"{count:,} {unit}"
