"""Hands tasks to the shard workers, keeps them busy, and reports progress."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import Progress
from workers.merging.pool import ShardActor
from workers.merging.unit import Findings, Unit

Report = Callable[[Progress], None]
"""Told about the progress a few times a second; what it raises stops the merge."""

IN_FLIGHT = 2
"""Calls that a worker has at a time: one that runs and one that waits, so that it never idles."""
TICK_SECONDS = 0.2
DRAIN_SECONDS = 10.0


@dataclass(frozen=True)
class Task:
    """One call of a shard worker."""

    worker: int
    bytes: int
    """What it adds to the progress."""
    start: Callable[[ActorHandle[ShardActor]], ObjectRef[Any]]
    done: Callable[[Any], Iterable[Task]]
    """Takes the answer; returns the tasks that it makes possible."""


def ask_of_units(
    phase: str,
    units: Sequence[Unit],
    actors: Sequence[ActorHandle[ShardActor]],
    report: Report,
    ask: Callable[[ActorHandle[ShardActor], Unit], ObjectRef[Findings]],
) -> list[Findings]:
    """The findings of one call for each unit, in the order of the units; errors as of ``dispatch``."""
    found: dict[int, Findings] = {}

    def task(number: int, unit: Unit) -> Task:
        def done(answer: Findings) -> list[Task]:
            found[number] = answer
            return []

        return Task(unit.worker, unit.input_bytes, lambda actor: ask(actor, unit), done)

    dispatch(phase, [task(number, unit) for number, unit in enumerate(units)], actors, report)
    return [found[number] for number in range(len(units))]


def dispatch(
    phase: str,
    tasks: Sequence[Task],
    actors: Sequence[ActorHandle[ShardActor]],
    report: Report,
    *,
    done_before: int = 0,
) -> None:
    """Run all ``tasks``, and those that they make possible, each on its worker.

    ``done_before`` are the bytes of this phase that an earlier attempt has dealt with; the progress starts there.
    When anything fails no further task is begun, and those under way have ended (or ``DRAIN_SECONDS`` have
    passed) before the error is raised.
    """
    waiting: list[deque[Task]] = [deque() for _ in actors]
    for task in tasks:
        waiting[task.worker].append(task)
    running: dict[ObjectRef[Any], Task] = {}
    progress = Progress(phase=phase, done=done_before, total=done_before + sum(task.bytes for task in tasks))
    begun = time.monotonic()
    try:
        report(progress)
        while running or any(waiting):
            _start(waiting, running, actors)
            ready, _ = ray.wait(list(running), timeout=TICK_SECONDS)
            for reference in ready:
                task = running.pop(reference)
                for next_task in task.done(_answer(reference)):
                    waiting[next_task.worker].append(next_task)
                progress.done += task.bytes
            if progress.done > done_before:
                pace = (time.monotonic() - begun) / (progress.done - done_before)
                progress.eta_seconds = round(pace * (progress.total - progress.done), 1)
            report(progress)
    finally:
        for reference in running:
            ray.cancel(reference)  # takes back what has not begun
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=DRAIN_SECONDS)


def _start(
    waiting: Sequence[deque[Task]],
    running: dict[ObjectRef[Any], Task],
    actors: Sequence[ActorHandle[ShardActor]],
) -> None:
    in_flight = [0] * len(actors)
    for task in running.values():
        in_flight[task.worker] += 1
    for worker, queue in enumerate(waiting):
        while queue and in_flight[worker] < IN_FLIGHT:
            task = queue.popleft()
            running[task.start(actors[worker])] = task
            in_flight[worker] += 1


def _answer(reference: ObjectRef[Any]) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TaumergeError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise JobFailed(
            "worker_lost",
            "a shard worker died three times at the same work, or could not be brought back; look for a lack of memory "
            "on its node, and lower TAUMERGE_WORKER_MEMORY or TAUMERGE_WORKERS",
        ) from error
