"""The merged task vectors V of the candidates, computed by the shard workers. Equal ones are found by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import ObjectRef

from taumerge.schemas import Progress
from workers.aggregation import Rule
from workers.merging.dispatch import Report, Task, dispatch
from workers.merging.mix import Mix
from workers.merging.plan import MergePlan
from workers.merging.run import Actors
from workers.merging.sums import Sums
from workers.merging.unit import DirectionPart, Slice, Unit

Values = Any
"""A reference to V of one unit, a list of ``MergedSlice``, in Ray's object store."""

Kept = Mapping[str, Sequence[Values]]
"""V of directions, unit by unit, by digest."""

SHARES = 3
"""The object store of a node is used so: a third for directions that are kept for the whole search, a third for the
one that is being searched, and a third for everybody else."""


@dataclass(frozen=True)
class Recipe:
    """How the shard workers compute V: a rule, and its coefficients."""

    rule: Rule
    mix: Mix

    @classmethod
    def of(cls, rule: Rule, mix: Mix) -> Recipe:
        """Without what was measured: it is large, and only the coefficients count from here on."""
        return cls(rule, replace(mix, measured=Sums()))


@dataclass(frozen=True)
class Direction:
    """A merged task vector V along which λ is searched."""

    digest: str
    """SHA-256 over every bit of V, in hex. Equal directions have equal scores."""
    recipe: Recipe
    bytes: int
    """Bytes of V, without the slices that are zero everywhere."""


@dataclass(frozen=True)
class Shards:
    """The shard workers, and the units with anything to merge."""

    actors: Actors
    units: tuple[Unit, ...]
    inputs: str

    @classmethod
    def of(cls, plan: MergePlan, actors: Actors, models: Sequence[int] | None = None) -> Shards:
        return cls(actors, tuple(_units(plan, models)), plan.inputs)

    def compute(
        self,
        recipes: Sequence[Recipe],
        take: Callable[[int, int, DirectionPart, Values], None],
        report: Report,
    ) -> None:
        """Compute V for each recipe, unit by unit, a few units at a time.

        Args:
            take: called with the places of recipe and unit, in any order of units, and what the worker returned.
        """

        def task(recipe: int, number: int, unit: Unit) -> Task:
            values: list[Values] = []
            how = recipes[recipe]

            def start(actor: Any) -> ObjectRef[Any]:
                part, kept = actor.direction.remote(unit, self.inputs, how.rule, how.mix.of_unit(unit))
                values.append(kept)
                return part  # type: ignore[no-any-return]

            def done(part: DirectionPart) -> list[Task]:
                take(recipe, number, part, values.pop())
                return []

            return Task(unit.worker, unit.input_bytes, start, done)

        tasks = [
            task(recipe, number, unit)
            for recipe in range(len(recipes))
            for number, unit in enumerate(self.units)
        ]
        dispatch("directions", tasks, self.actors, report)


def survey(
    shards: Shards, recipes: Sequence[Recipe], room: int, report: Report
) -> tuple[list[Direction], Kept]:
    """Compute V for every recipe once: one direction for each, where recipes with equal V share one.

    As many directions as fit into ``room`` bytes are there to be kept for the whole search, the first ones first.
    """
    found: dict[int, dict[int, tuple[DirectionPart, Values]]] = {}
    directions: dict[int, Direction] = {}
    known: dict[str, Direction] = {}
    kept: dict[str, list[Values]] = {}
    used = 0

    def take(recipe: int, unit: int, part: DirectionPart, values: Values) -> None:
        nonlocal used
        parts = found.setdefault(recipe, {})
        # what does not fit is dropped unit by unit, so that no direction fills the store
        fits = used + part.bytes <= room
        used += part.bytes if fits else 0
        parts[unit] = (part, values if fits else None)
        if len(parts) == len(shards.units):
            in_order = [parts[number] for number in range(len(shards.units))]
            whole = _direction(recipes[recipe], [one for one, _ in in_order])
            directions[recipe] = known.setdefault(whole.digest, whole)
            if directions[recipe] is whole and all(there is not None for _, there in in_order):
                kept[whole.digest] = [there for _, there in in_order]
            else:
                used -= sum(one.bytes for one, there in in_order if there is not None)
            del found[recipe]

    shards.compute(recipes, take, report)
    return [directions[recipe] for recipe in range(len(recipes))], kept


def room_for_directions() -> int:
    """Bytes of one share of the smallest object store of the cluster."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    stores = [node["Resources"].get("object_store_memory", 0) for node in nodes if node["Alive"]]
    return int(min(stores) // SHARES)


def merged_slices(plan: MergePlan) -> list[list[Slice]]:
    """The merged slices of each unit of ``Shards.of(plan, …)``, whichever models take part."""
    return [[part for part in unit.slices if part.merged] for unit in _units(plan, None)]


def _units(plan: MergePlan, models: Sequence[int] | None) -> list[Unit]:
    return [unit for unit in plan.units(models) if any(part.merged for part in unit.slices)]


def _direction(recipe: Recipe, parts: Sequence[DirectionPart]) -> Direction:
    digest = hashlib.sha256(b"".join(part.digest for part in parts)).hexdigest()
    return Direction(digest, recipe, sum(part.bytes for part in parts))


def silent(progress: Progress) -> None:
    """A report that nobody listens to."""
