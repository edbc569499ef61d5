"""The progress bar of a job, on stderr."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from taumerge import schemas
from taumerge._events import Event, LogEvent, ProgressEvent, StateEvent

BEST = "best:"
"""A search's metric ``best:RULE`` is the best score of a rule so far."""


class ProgressBar:
    """Phase, share, amount, estimated time left and metrics of one job; draws nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._bar = _Bar(
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
            self._bar.metrics = progress.metrics
        elif state == "succeeded":
            self._bar.update(self._task, description=state, total=1, completed=1, amount="", eta="")
        else:
            self._bar.update(self._task, description=state, amount="", eta="")


class _Bar(Progress):
    """A bar with the metrics of the job below it; those of a search's rules as a table."""

    metrics: Mapping[str, float]

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        metrics = getattr(self, "metrics", {})  # asked for once before the class is whole
        best = {name.removeprefix(BEST): value for name, value in metrics.items() if name.startswith(BEST)}
        others = [
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items() if BEST not in name
        ]
        if others:
            yield Text("  ".join(others), style="dim")
        if best:
            table = Table("rule", "best so far", box=SIMPLE_HEAD)
            for rule, score in sorted(best.items(), key=lambda item: -item[1]):
                table.add_row(rule, f"{score:.4f}")
            yield table


def _amount(count: int, unit: str) -> str:
    return decimal(count) if unit == "bytes" else f"{count:,} {unit}"
