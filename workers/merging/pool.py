"""The shard workers as Ray actors: found, or started and pinned to their accelerators. Warm between merges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

from taumerge import __version__
from taumerge.errors import JobFailed
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from workers.aggregation.rule import Needs, Rule
    from workers.merging.unit import DirectionPart, Findings, MergedSlice, Unit

NAMESPACE = "taumerge"
ANSWER_SECONDS = 2.0
READY_SECONDS = 120.0
"""How long starting a worker may take: importing torch from a cold disk, or a cluster that scales up."""
SHARD_GPUS = 0.51
"""More than half of a GPU, so that no two shard workers share one; the rest is for evaluators and fine-tunes beside
the warm worker, which holds little of the GPU's memory."""
BESIDE_SHARD_GPUS = 0.49


class ShardActor:
    """A ``ShardWorker`` as an actor. The driver must stay light, so torch is imported in the actor only."""

    def __init__(self, memory: int) -> None:
        from workers.merging.shard import ShardWorker

        self._worker = ShardWorker(memory)

    def ready(self) -> bool:
        """Answers when the worker has started."""
        return True

    def resident_bytes(self) -> int:
        """See ``Residency.used``."""
        return self._worker.resident_bytes

    def measure(self, unit: Unit, inputs: str, needs: Needs) -> Findings:
        """See ``ShardWorker.measure``."""
        return self._worker.measure(unit, inputs, needs)

    def survey(self, unit: Unit, inputs: str) -> Findings:
        """See ``ShardWorker.survey``."""
        return self._worker.survey(unit, inputs)

    def merge(
        self,
        unit: Unit,
        inputs: str,
        directory: Path,
        rule: Rule,
        coefficients: Sequence[Sequence[float]],
        scaling: float,
        statistics: Needs,
    ) -> Findings:
        """See ``ShardWorker.merge``."""
        return self._worker.merge(unit, inputs, directory, rule, coefficients, scaling, statistics)

    @ray.method(num_returns=2)  # the driver reads the first alone
    def direction(
        self, unit: Unit, inputs: str, rule: Rule, coefficients: Sequence[Sequence[float]]
    ) -> tuple[DirectionPart, list[MergedSlice]]:
        """See ``ShardWorker.direction``."""
        return self._worker.direction(unit, inputs, rule, coefficients)

    def finish(self, path: Path) -> str:
        """See ``ShardWorker.finish``."""
        return self._worker.finish(path)


def worker_count(settings: WorkerSettings) -> int:
    """Number of shard workers: as set, else the GPUs of the cluster, else its CPUs. Needs an initialised Ray."""
    if settings.workers:
        return settings.workers
    resources = _resources()
    return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))


def shard_actors(settings: WorkerSettings, *, detached: bool) -> list[ActorHandle[ShardActor]]:
    """The shard workers of this cluster, ready to work.

    Args:
        detached: they outlive this process and are found again by the next caller with the same settings;
            else they end with it.

    Raises:
        JobFailed: ``capacity_unavailable`` when the cluster has no such accelerator or cannot start them.
    """
    count = worker_count(settings)
    options = _options(settings, count)
    # Settings and version are in the name: workers of an older configuration are never mistaken for these.
    key = hashlib.sha256(f"{__version__} {settings.worker_memory} {options} {count}".encode()).hexdigest()[
        :12
    ]
    lifetime: dict[str, Any] = (
        {"lifetime": "detached", "namespace": NAMESPACE, "get_if_exists": True} if detached else {}
    )
    actor_class = ray.remote(ShardActor)
    actors: list[Any] = []  # Ray's own types lose the class here
    for index in range(count):
        name = f"shard-{key}-{index}" if detached else None
        actors.append(
            actor_class.options(**options, **lifetime, name=name).remote(int(settings.worker_memory))
        )
    _wait_until_ready(actors, options)
    return actors


def stop_shard_actors() -> None:
    """Stop every detached shard worker of this cluster."""
    for name in warm_shard_actors():
        ray.kill(ray.get_actor(name, NAMESPACE))


def warm_shard_actors() -> list[str]:
    """The names of the detached shard workers of this cluster."""
    named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [
        one["name"] for one in named if one["namespace"] == NAMESPACE and one["name"].startswith("shard-")
    ]


def resident_bytes() -> int | None:
    """Bytes of tensors that the detached shard workers keep; None where some are too busy to say."""
    try:
        actors = [ray.get_actor(name, NAMESPACE) for name in warm_shard_actors()]
        asked = [actor.resident_bytes.remote() for actor in actors]
        return sum(ray.get(asked, timeout=ANSWER_SECONDS))
    except (ValueError, ray.exceptions.GetTimeoutError):  # ValueError: one has just been stopped
        return None


def _options(settings: WorkerSettings, count: int) -> dict[str, Any]:
    resources = _resources()
    # No CPU is claimed: warm workers must not keep other work of the cluster from starting.
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_restarts": -1,  # a killed worker comes back,
        "max_task_retries": 2,  # and a unit that kills its worker three times fails the job
        "scheduling_strategy": "SPREAD",
    }
    if settings.accelerator_type:
        if f"accelerator_type:{settings.accelerator_type}" not in resources:
            raise JobFailed(
                "capacity_unavailable",
                f"no node of this Ray cluster has an accelerator of type {settings.accelerator_type}; add one, or "
                "change TAUMERGE_ACCELERATOR_TYPE",
            )
        options["accelerator_type"] = settings.accelerator_type
    if settings.accelerator_type or resources.get("GPU", 0):
        gpus = resources.get("GPU", 0)
        if gpus < count:
            raise JobFailed(
                "capacity_unavailable",
                f"{count} shard workers need a GPU each and this Ray cluster has {gpus:g}; lower TAUMERGE_WORKERS",
            )
        options["num_gpus"] = SHARD_GPUS
    return options


def _wait_until_ready(actors: Sequence[ActorHandle[ShardActor]], options: dict[str, Any]) -> None:
    checks = [actor.ready.remote() for actor in actors]
    try:
        ray.get(checks, timeout=READY_SECONDS)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
        if "num_gpus" in options:
            for actor in actors:  # else they would wait, and take the GPU as soon as there is one
                ray.kill(actor)
        raise JobFailed(
            "capacity_unavailable",
            f"the shard workers could not be started within {READY_SECONDS:.0f} s with {options}; are other "
            "jobs holding the GPUs?",
        ) from error


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
