"""The experiment through the service: fine-tune, diagnose, search every rule, merge the winner, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from examples.miniature.finetunes import KINDS, Kind, Training, Workshop, draw_trainings
from examples.miniature.tasks import TASKS, pictures_version, recipe, write_tasks
from taumerge import Client, DiagnoseResult, Job, MergeResult, SearchResult

BASE = Path(__file__).parent / "base"
METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic", "scale": "mean"},
    {"name": "fednova", "scale": "mean", "normalize_by": ["steps", "lr_sum"]},
    {"name": "fedgma", "scale": "mean"},
    {"name": "median", "scale": "mean"},
    {"name": "cclip", "scale": "mean"},
]
"""The rules, all as means of the task vectors, so that one grid of λ covers the same range for each."""
SCALING = {"from": 0.1, "to": 4.0, "step": 0.1}

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What came of one set of fine-tunes."""

    kind: Kind
    draw: int
    trainings: Sequence[Training]
    diagnosis: DiagnoseResult
    search: SearchResult
    merge: MergeResult
    """Of the winner."""


def run(
    service_url: Callable[[], str],
    directory: Path,
    console: Console,
    draws: int = 1,
    methods: Sequence[dict[str, Any]] = METHODS,
) -> list[Outcome]:
    """Carry out ``draws`` draws of both kinds of training; models and reports stay below ``directory``.

    ``service_url`` waits for the service; it is called when the pictures of the tasks are drawn.
    """
    columns = (TextColumn("{task.description:<38}"), BarColumn(), TextColumn("{task.fields[note]}"))
    outcomes = []
    with Bars(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as bars:
        drawing = bars.add_task("draw the tasks", total=1, note="")
        data = draw_tasks(directory)
        _end(bars, drawing, f"{len(TASKS)} tasks")
        waiting = bars.add_task("wait for the service", total=1, note="")
        with Client(service_url()) as client:
            _end(bars, waiting, "")
            workshop = Workshop(client, BASE, data, directory / "finetunes")
            for draw in range(draws):
                sets = {kind: draw_trainings(kind, draw) for kind in KINDS}
                _fine_tune(workshop, draw, [one for trainings in sets.values() for one in trainings], bars)
                for kind, trainings in sets.items():
                    outcomes.append(_merge(workshop, draw, kind, trainings, methods, directory, bars))
    return outcomes


def draw_tasks(directory: Path) -> Path:
    """The directory with the pictures of the tasks; drawn unless what decides them is unchanged."""
    data = directory / f"tasks-{pictures_version()}"
    if not data.exists():
        growing = data.with_suffix(".growing")
        write_tasks(growing)
        growing.rename(data)
    return data


def _fine_tune(workshop: Workshop, draw: int, trainings: Sequence[Training], bars: Bars) -> None:
    bar = bars.add_task(f"{draw}: {len(trainings)} fine-tunes", total=None, note="")

    def progress(done: int, total: int) -> None:
        note = f"{done:,} of {total:,} steps" if total else "all there"
        bars.update(bar, completed=done if total else 1, total=total or 1, note=note)

    workshop.fine_tune(trainings, progress)
    _end(bars, bar, f"{sum(one.steps for one in trainings):,} steps")


def _merge(
    workshop: Workshop,
    draw: int,
    kind: Kind,
    trainings: Sequence[Training],
    methods: Sequence[dict[str, Any]],
    directory: Path,
    bars: Bars,
) -> Outcome:
    """Diagnose a set of fine-tunes, search every rule, and merge with the best."""
    client, base, place = workshop.client, str(workshop.base), directory / f"draw-{draw}" / kind
    models = {one.task: str(workshop.path(one)) for one in trainings}
    place.mkdir(parents=True, exist_ok=True)

    diagnosing = client.diagnose(
        base=base, models=list(models.values()), output=str(place / "diagnosis"), overwrite=True
    )
    diagnosis = _result(client, diagnosing, DiagnoseResult, f"{draw}, {kind}: diagnose", bars)
    searching = client.search(
        base=base,
        models=[{"uri": uri, "task": task} for task, uri in models.items()],
        methods=list(methods),
        scaling=SCALING,
        evaluation={"kind": "clip", "tasks": {task: recipe(workshop.data, task) for task in models}},
        algorithm="adaptive",
        output=str(place / "search"),
        overwrite=True,
    )
    search = _result(client, searching, SearchResult, f"{draw}, {kind}: search", bars)
    merging = client.merge(
        base=base,
        models=list(models.values()),
        method=search.best.method,
        scaling=search.best.scaling,
        statistics="full",
        output=str(place / "merged"),
        overwrite=True,
    )
    merge = _result(client, merging, MergeResult, f"{draw}, {kind}: merge the winner", bars)
    return Outcome(kind, draw, trainings, diagnosis, search, merge)


def _result(client: Client, job: Job, expected: type[Result], title: str, bars: Bars) -> Result:
    """The result of a job, with a bar that follows it."""
    bar = bars.add_task(title, total=None, note="")

    def follow(job: Job) -> None:
        if job.progress:
            one = job.progress
            best = f"  best {one.metrics['best']:.3f}" if "best" in one.metrics else ""
            bars.update(bar, completed=one.done, total=one.total or None, note=f"{one.phase}{best}")

    ended = client.wait(job.id, progress=follow)
    _end(bars, bar, ended.progress.phase if ended.progress else "")
    assert isinstance(ended.result, expected), "wait raises unless the job succeeded"
    return ended.result


def _end(bars: Bars, bar: TaskID, note: str) -> None:
    """Fill a bar. Where the output is no terminal, and shows no bars, a line says that it is done."""
    bars.update(bar, completed=1, total=1, note=note)
    if not bars.console.is_terminal:
        task = bars.tasks[bar]
        bars.console.print(f"{task.description}: {task.finished_time or 0:.0f} s  {note}", soft_wrap=True)
