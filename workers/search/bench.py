"""Puts a direction and a λ to the test: shard workers compute V, evaluators set their models to θ₀ + λ·V."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ray import ObjectRef

from taumerge.schemas import Split
from workers.merging.dispatch import Report
from workers.merging.unit import DirectionPart
from workers.search.directions import Direction, Recipe, Shards, Values, silent
from workers.search.evaluators import Evaluators, Outcome, Pending, Tick, gather
from workers.search.journal import Record

IN_FLIGHT = 4
"""Units of a direction too large to keep that wait for the evaluators at a time."""


def idle() -> None:
    """A tick that does nothing."""


@dataclass
class Bench:
    """Everything that scoring a merged model takes. Only one process at a time may use the evaluators."""

    shards: Shards
    evaluators: Evaluators
    room: int
    """Bytes of V that the evaluators may hold; a larger V is computed for every λ anew, unit by unit, and dropped."""
    kept: frozenset[str] = frozenset()
    """Digests of the directions whose V the evaluators keep. References to V stay out of here: Ray Tune would pin them
    for as long as this process lives."""
    _held: str | None = field(default=None, init=False)

    def begin(
        self,
        direction: Direction,
        scaling: float,
        split: Split,
        *,
        tick: Tick = idle,
        report: Report = silent,
    ) -> Pending:
        """Let the evaluators score θ₀ + λ·V on all tasks.

        Args:
            tick: called while evaluators take V over.
            report: told how far computing V is.
        """
        begun = time.perf_counter()
        actors = self.evaluators.actors
        if self.holds(direction):
            self._hold(direction, tick, report)
            moved = [actor.move.remote(scaling) for actor in actors]
        else:
            self._held = None
            moved = stream(self.shards, direction.recipe, scaling, actors, tick, report)
        return replace(self.evaluators.score(split, moved), begun=begun)

    def holds(self, direction: Direction) -> bool:
        """Whether the evaluators can hold V, so that going to another λ computes nothing anew."""
        return direction.bytes <= self.room

    def release(self) -> None:
        """Forget what the evaluators hold: another process has used them."""
        self._held = None

    def _hold(self, direction: Direction, tick: Tick, report: Report) -> None:
        if self._held == direction.digest:
            return
        self._held = None
        values = None if direction.digest in self.kept else self._compute(direction.recipe, report)
        gather([actor.hold.remote(direction.digest, values) for actor in self.evaluators.actors], tick)
        self._held = direction.digest

    def _compute(self, recipe: Recipe, report: Report) -> Sequence[Values]:
        found: dict[int, Values] = {}

        def take(_: int, unit: int, part: DirectionPart, values: Values) -> None:
            found[unit] = values

        self.shards.compute([recipe], take, report)
        return [found[unit] for unit in range(len(self.shards.units))]


def stream(
    shards: Shards, recipe: Recipe, scaling: float, actors: Sequence[Any], tick: Tick, report: Report
) -> list[ObjectRef[None]]:
    """Set the models of ``actors`` to θ₀ + λ·V unit by unit, and drop each unit when they have it.

    Returns the last answers to come, which the caller gathers.
    """
    moving: deque[list[ObjectRef[None]]] = deque()

    def take(_: int, unit: int, part: DirectionPart, values: Values) -> None:
        moving.append([actor.move_unit.remote(unit, values, scaling) for actor in actors])
        while len(moving) > IN_FLIGHT:
            gather(moving.popleft(), tick)

    shards.compute([recipe], take, report)
    return [reference for references in moving for reference in references]


def record_of(direction: Direction, scaling: float, split: Split, outcome: Outcome, seconds: float) -> Record:
    """What the journal keeps of a merged model that was scored."""
    return Record(
        direction.digest,
        scaling,
        split,
        outcome.tasks,
        round(seconds, 6),
        round(outcome.evaluating, 6),
        sorted(outcome.overflowed),
    )
