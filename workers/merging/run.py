"""A merge from request to result: plan, measure, aggregate, commit. The driver adds numbers; it needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import ObjectRef
from ray.actor import ActorHandle

from taumerge.errors import JobFailed, TaumergeError
from taumerge.schemas import MergeRequest, MergeResult, Progress
from workers.aggregation.rule import Needs
from workers.checkpoints.checkpoint import CheckpointError, companions
from workers.checkpoints.dtypes import declared
from workers.checkpoints.files import RECEIPT, UNFINISHED, Location, each, locate, names_in, read_small
from workers.checkpoints.layout import index_json
from workers.checkpoints.reading import unchanged
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.staging import staging_for
from workers.checkpoints.writing import Staging, remove_notes
from workers.clock import Clock
from workers.merging.dispatch import Report, Task, ask_of_units, dispatch
from workers.merging.mix import Mix, check_sound, decide, needs_measuring
from workers.merging.plan import MergePlan
from workers.merging.pool import ShardActor, shard_actors, worker_count
from workers.merging.preflight import plan_merge
from workers.merging.result import build_receipt, build_result
from workers.merging.sums import Sums
from workers.merging.unit import Findings, Unit
from workers.settings import WorkerSettings

LARGEST_RECEIPT = 100_000_000

Actors = Sequence[ActorHandle[ShardActor]]


class Superseded(TaumergeError):
    """Raised by a report when another attempt has taken the job over; what is staged is left to that attempt."""

    code = "superseded"


LEFT_TO_OTHERS = (Superseded, SystemExit)
"""What ends an attempt whose staged files the next one goes on from. Ray ends the processes of a runner that has died
with SIGTERM, which raises SystemExit in them."""


def unnoted(staging: Staging) -> None:
    """For a job without anybody who removes what a crash leaves behind."""


def run_merge(
    request: MergeRequest,
    settings: WorkerSettings,
    report: Report,
    *,
    job_id: str = "",
    detached: bool = False,
    staged: Callable[[Staging], None] = unnoted,
) -> MergeResult:
    """Carry out ``request`` on the Ray cluster that this process is connected to.

    The output appears whole or not at all. Whatever stops the merge, nothing is left behind; only a crash of
    this process leaves a hidden directory, in which the next attempt goes on.

    Args:
        report: told about the progress a few times a second; what it raises stops the merge.
        job_id: attempts of one job share what they have staged.
        detached: use shard workers that outlive this process, and leave them running.
        staged: told about the hidden directory before it is made.

    Raises:
        InvalidRequest: it cannot be carried out (any more).
        JobFailed: it was begun and failed.
    """
    if job_id and (earlier := committed(request.output, job_id)):
        return MergeResult.model_validate(earlier[1]["result"])
    clock = Clock()
    with clock.phase("plan"):
        plan = plan_merge(
            request,
            workers=worker_count(settings),
            worker_memory=int(settings.worker_memory),
            pickle_dir=settings.pickle_dir,
        )
        actors = shard_actors(settings, detached=detached)
    identity = hashlib.sha256(f"{job_id} {plan.identity}".encode()).hexdigest()
    staging = staging_for(plan.output, identity, settings.work_dir)
    staged(staging)
    try:
        with clock.phase("measure"):
            mix = decide(plan, measure(plan, actors, report) if needs_measuring(plan) else Sums())
        result = stage_merge(plan, mix, staging, actors, report, clock, job_id)
        report(
            Progress(phase="commit", done=1, total=1, unit="steps")
        )  # an attempt that was declared dead goes no further
        with clock.phase("commit"):
            staging.commit(request.overwrite)
        return result.model_copy(update={"seconds": clock.seconds})
    except LEFT_TO_OTHERS:
        raise
    except BaseException:
        staging.discard()
        raise


def measure(plan: MergePlan, actors: Actors, report: Report) -> Sums:
    """Pass 1: the sums that the rule and ``nonfinite`` need, over all models."""
    needs: Needs = "gram" if plan.rule.needs == "gram" else "norms"
    return Sums.of(
        ask_of_units(
            "measure",
            plan.units(),
            actors,
            report,
            lambda actor, unit: actor.measure.remote(unit, plan.inputs, needs),
        )
    )


def stage_merge(
    plan: MergePlan, mix: Mix, staging: Staging, actors: Actors, report: Report, clock: Clock, job_id: str
) -> MergeResult:
    """All of a merge after the first pass, but for the commit: ``staging`` then holds every file of the output."""
    with clock.phase("aggregate"):
        staging.create(plan.files)
        sums, digests = _aggregate(plan, mix, staging, actors, report)
        check_sound(plan, mix, sums)
    check_unchanged(plan)
    result = build_result(plan, mix, sums, digests, clock.seconds)
    receipt = build_receipt(plan, mix, result, sums, job_id)
    _write_small_files(plan, receipt, staging)
    return result


def _aggregate(
    plan: MergePlan, mix: Mix, staging: Staging, actors: Actors, report: Report
) -> tuple[Sums, dict[str, str]]:
    """Pass 2: every output file that no earlier attempt finished. Returns the sums and the files' SHA-256."""
    statistics: Needs = "gram" if plan.request.statistics == "full" else "norms"
    sums = Sums()
    digests: dict[str, str] = {}
    finished = staging.finished()
    for name, record in finished.items():
        sums.include(Sums.from_json(record["sums"]))
        digests[name] = record["sha256"]

    every_unit = plan.units(mix.models, mix.copied)
    units = [unit for unit in every_unit if unit.file not in finished]
    findings: dict[str, dict[int, Findings]] = {}
    left = Counter(unit.file for unit in units)

    def merge(number: int, unit: Unit) -> Task:
        coefficients = mix.of_unit(unit)

        def start(actor: ActorHandle[ShardActor]) -> ObjectRef[Findings]:
            return actor.merge.remote(
                unit, plan.inputs, staging.path, plan.rule, coefficients, plan.request.scaling, statistics
            )

        def done(answer: Findings) -> list[Task]:
            findings.setdefault(unit.file, {})[number] = answer
            left[unit.file] -= 1
            return [] if left[unit.file] else [finish(unit.file, unit.worker)]

        return Task(unit.worker, unit.input_bytes, start, done)

    def finish(name: str, worker: int) -> Task:
        def done(digest: str) -> list[Task]:
            in_order = findings.get(name, {})
            of_file = Sums.of(in_order[number] for number in sorted(in_order))
            if of_file.sound:  # else the merge fails in the end, and no later attempt must miss why
                staging.finish(name, {"sha256": digest, "sums": of_file.to_json()})
            sums.include(of_file)
            digests[name] = digest
            return []

        return Task(worker, 0, lambda actor: actor.finish.remote(staging.path / name), done)

    tasks = [merge(number, unit) for number, unit in enumerate(units)]
    empty = [file.name for file in plan.files if not left[file.name] and file.name not in finished]
    tasks += [finish(name, 0) for name in empty]
    done_before = sum(unit.input_bytes for unit in every_unit if unit.file in finished)
    dispatch("aggregate", tasks, actors, report, done_before=done_before)
    return sums, digests


def check_unchanged(plan: MergePlan) -> None:
    """Refuse what was read from files that somebody was writing.

    Raises:
        JobFailed: ``input_changed``.
    """
    changed = []
    for checkpoint in (plan.base, *plan.models):
        same = each(unchanged, checkpoint.files, checkpoint.directory)
        changed += [file.name for file, kept in zip(checkpoint.files, same, strict=True) if not kept]
    if changed:
        raise JobFailed(
            "input_changed",
            f"{changed[0]} was changed during the merge; submit the job again when its writer has finished",
            {"files": changed},
        )


def committed(output: str, job_id: str) -> tuple[Location, dict[str, Any]] | None:
    """The place and the receipt of what an attempt of this job put there and died before it could say so."""
    try:
        place = locate(output)
        if isinstance(place, RemotePath) and UNFINISHED in names_in(place):
            return None
        receipt = json.loads(read_small(place / RECEIPT, LARGEST_RECEIPT))
        if receipt["job"] != job_id:
            return None
    except (CheckpointError, OSError, ValueError, KeyError, TypeError):  # no receipt of ours
        return None
    if isinstance(place, Path):
        remove_notes(place)  # it may have died over them
    return place, receipt


def _write_small_files(plan: MergePlan, receipt: dict[str, Any], staging: Staging) -> None:
    dtype = plan.request.dtype
    try:
        beside = companions(plan.base)
    except CheckpointError as error:
        raise JobFailed("input_unreadable", error.message) from error
    for path in beside:
        if path.name == "config.json" and dtype is not None:
            staging.copy(path, lambda config: declared(config, dtype))
        else:
            staging.copy(path)
    if len(plan.files) > 1:
        stem = plan.files[0].name.rsplit("-", 3)[0]
        staging.write_text(f"{stem}.safetensors.index.json", index_json(plan.files))
    # last of all: whoever finds a receipt finds a complete checkpoint
    staging.write_text(RECEIPT, json.dumps(receipt, indent=2) + "\n")
