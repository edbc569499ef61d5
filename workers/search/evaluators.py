"""The evaluators as Ray actors: each holds one model and the data of its tasks, beside the shard workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import ray
from ray import ObjectRef

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import EvaluationSpec, Split
from workers import spare
from workers.checkpoints.checkpoint import Checkpoint
from workers.merging.dispatch import TICK_SECONDS
from workers.merging.pool import BESIDE_SHARD_GPUS, READY_SECONDS
from workers.search.directions import Kept, Values, merged_slices
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.merging.plan import MergePlan
    from workers.merging.unit import MergedSlice, Slice

Tick = Callable[[], None]
"""Called a few times a second while the driver waits; what it raises ends the waiting."""


@dataclass(frozen=True)
class Outcome:
    """What evaluating one model gave."""

    tasks: dict[str, float] = field(default_factory=dict)
    """Score of each task; empty where merged values overflow their type."""
    evaluating: float = 0.0
    """Seconds of forward passes and scoring; of several evaluators the longest."""
    overflowed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pending:
    """A model that the evaluators are scoring."""

    tasks: tuple[str, ...]
    moved: Sequence[ObjectRef[None]]
    scored: Sequence[ObjectRef[Outcome]]
    begun: float = field(default_factory=time.perf_counter)

    def wait(self, tick: Tick) -> tuple[Outcome, float]:
        """The outcome over all evaluators, and the wall seconds since it was begun."""
        outcomes: list[Outcome] = gather([*self.moved, *self.scored], tick)[len(self.moved) :]
        scores = {task: score for outcome in outcomes for task, score in outcome.tasks.items()}
        whole = Outcome(
            {task: scores[task] for task in self.tasks if task in scores},
            max(outcome.evaluating for outcome in outcomes),
            frozenset[str]().union(*(outcome.overflowed for outcome in outcomes)),
        )
        return whole, time.perf_counter() - self.begun


class EvaluatorActor:
    """A ``MergedModel`` as an actor. The driver must stay light, so torch is imported in the actor only."""

    def __init__(self) -> None:
        self.empty()

    def empty(self) -> None:
        """Let go of all that belongs to a job. Answers as soon as the actor has started."""
        vars(self).clear()
        self._tasks: tuple[str, ...] = ()
        self._kept: Kept = {}
        self._held: list[tuple[int, list[MergedSlice]]] = []
        self._overflowed: set[str] = set()

    def release(self) -> None:
        """``empty``, and give the memory of the GPU back to the other processes on it."""
        import torch

        self.empty()
        torch.cuda.empty_cache()

    def load(
        self,
        base: Checkpoint,
        spec: EvaluationSpec,
        tasks: Sequence[str],
        threads: int,
        names: Sequence[str],
        slices: Sequence[Sequence[Slice]],
        code_allowed: bool,
    ) -> None:
        """Build the model and read the data of ``tasks``.

        Args:
            threads: of a CPU.
            names: the tensors of the merge plan, by which ``slices`` name theirs.
            slices: the merged slices of each unit.
            code_allowed: whether tasks may run code.
        """
        from workers.search.model import build_model

        tensors = {names[part.tensor] for parts in slices for part in parts}
        self._model = build_model(base, spec, tasks, threads, names, tensors, code_allowed=code_allowed)
        self._slices, self._tasks = slices, tuple(tasks)

    def keep(self, kept: Kept) -> None:
        """Have V of these directions in the object store until ``empty``."""
        self._kept = kept

    def hold(self, digest: str, values: Sequence[Values] | None) -> None:
        """Take up V for ``move``: ``values``, unit by unit, or what is kept of ``digest``. Nothing of it is copied."""
        self._held = list(enumerate(ray.get(list(self._kept[digest] if values is None else values))))

    def move(self, scaling: float) -> None:
        """Set the model to θ₀ + λ·V, with the V that is held."""
        for unit, merged in self._held:
            self.move_unit(unit, merged, scaling)

    def move_unit(self, unit: int, merged: list[MergedSlice], scaling: float) -> None:
        """Set the slices of one unit to θ₀ + λ·V; V comes through the object store."""
        self._overflowed |= self._model.move(self._slices[unit], merged, scaling)

    def take(self, checkpoint: Checkpoint) -> None:
        """Set the model to what a checkpoint holds."""
        self._model.load(checkpoint)

    def score(self, split: Split, tasks: Sequence[str] | None = None) -> Outcome:
        """Score the model as it was set since the last call; by default on all tasks of this evaluator."""
        overflowed, self._overflowed = frozenset(self._overflowed), set()
        if overflowed:
            return Outcome(overflowed=overflowed)
        return Outcome(*self._model.score(self._tasks if tasks is None else tasks, split))


class Evaluators:
    """The evaluator actors of one job.

    As a context: where the job succeeds they are kept for the next one, unless tasks may run code in them; else killed.
    """

    def __init__(
        self,
        spec: EvaluationSpec,
        settings: WorkerSettings,
        actor_class: type[EvaluatorActor] = EvaluatorActor,
    ) -> None:
        cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus, gpus = int(cluster.get("CPU", 1)), int(cluster.get("GPU", 0))
        tasks = list(spec.tasks)
        count = min(spec.evaluators or gpus or cpus, len(tasks))
        self.tasks = tuple(tuple(tasks[index::count]) for index in range(count))
        """The tasks of each evaluator."""
        self._spec = spec
        self._code_allowed = settings.allow_code_execution
        self._threads = max(1, cpus // count)
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": "SPREAD"}
        if settings.accelerator_type:
            options["accelerator_type"] = settings.accelerator_type
        if settings.accelerator_type or gpus:
            options["num_gpus"] = BESIDE_SHARD_GPUS
        self._kind = (actor_class, options, count)
        remote_class = ray.remote(actor_class).options(**options)
        # Ray's own types lose the class here
        self.actors: Sequence[Any] = _alive(spare.take(self._kind)) or [
            remote_class.remote() for _ in range(count)
        ]
        self._started = [actor.empty.remote() for actor in self.actors]
        self._loading: list[ObjectRef[None]] = []

    def load(self, plan: MergePlan) -> None:
        """Let every evaluator build the model of the base and read its data; ``wait`` waits for them."""
        slices = ray.put(merged_slices(plan))
        self._loading = [
            actor.load.remote(
                plan.base, self._spec, tasks, self._threads, plan.names, slices, self._code_allowed
            )
            for actor, tasks in zip(self.actors, self.tasks, strict=True)
        ]

    def wait(self, tick: Tick) -> None:
        """Wait until every evaluator is loaded.

        Raises:
            InvalidRequest, JobFailed: what only the data or the model shows; ``capacity_unavailable``.
        """
        begun, count = time.monotonic(), len(self._started)
        while len(ray.wait(self._started, num_returns=count, timeout=TICK_SECONDS)[0]) < count:
            tick()
            if time.monotonic() - begun > READY_SECONDS:
                raise JobFailed(
                    "capacity_unavailable",
                    f"the {count} evaluators could not be started within {READY_SECONDS:.0f} s: other jobs hold "
                    "the GPUs; lower evaluation.evaluators, or try later",
                )
        gather(self._loading, tick)

    def keep(self, kept: Kept) -> None:
        """Let every evaluator have V of these directions; whoever hands them over need not have them any longer."""
        for actor in self.actors:
            actor.keep.remote(kept)

    def score(self, split: Split, moved: Sequence[ObjectRef[None]]) -> Pending:
        """Score the model that all evaluators were set to; ``moved`` are their answers to that."""
        return Pending(tuple(self._spec.tasks), moved, [actor.score.remote(split) for actor in self.actors])

    def of_task(self, task: str) -> Any:
        """The evaluator that has the data of ``task``."""
        return next(actor for actor, tasks in zip(self.actors, self.tasks, strict=True) if task in tasks)

    def kill(self) -> None:
        """End the evaluators, whatever they are doing."""
        spare.end(self.actors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or self._code_allowed:
            self.kill()
            return
        for actor in self.actors:
            actor.release.remote()
        spare.keep(self._kind, self.actors)


def _alive(actors: Sequence[Any]) -> Sequence[Any]:
    """``actors`` if all of them answer; else none, and they are killed."""
    try:
        ray.get([actor.empty.remote() for actor in actors], timeout=spare.IDLE_SECONDS)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        spare.end(actors)
        return ()
    return actors


def gather(references: Sequence[ObjectRef[Any]], tick: Tick) -> list[Any]:
    """The answers of evaluators, in order; ``tick`` is called while they work.

    Raises:
        TaumergeError: what an evaluator raised, or ``worker_lost``.
    """
    left = list(references)
    try:
        while left:
            tick()
            done, left = ray.wait(left, num_returns=len(left), timeout=TICK_SECONDS)
            ray.get(done)
        return ray.get(list(references))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TaumergeError):
            raise error.cause from None
        raise
    except ray.exceptions.RayActorError as error:
        raise JobFailed(
            "worker_lost",
            "an evaluator died; look for a lack of memory on its node, and lower evaluation.batch_size or "
            "evaluation.evaluators. What was evaluated is kept: the same request goes on from there",
        ) from error
