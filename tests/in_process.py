"""A merge in this process, without Ray: every unit by the shard worker that the plan gives it to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from workers.aggregation.rule import Needs
from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.remote.staging import staging_for
from workers.checkpoints.writing import Staging
from workers.merging.mix import Mix, decide, needs_measuring
from workers.merging.plan import MergePlan
from workers.merging.shard import ShardWorker
from workers.merging.sums import Sums


@dataclass
class Merged:
    """What came out, before it is committed."""

    mix: Mix
    sums: Sums
    digests: list[str]
    """SHA-256 of the output files."""
    staging: Staging

    def load(self) -> dict[str, Tensor]:
        """All tensors of the output."""
        tensors: dict[str, Tensor] = {}
        for path in sorted(self.staging.path.glob("*.safetensors")):
            open_checkpoint(str(path))  # it is a checkpoint that we would accept
            tensors |= load_file(path)
        return tensors


def merge_in_process(
    plan: MergePlan,
    workers: Sequence[ShardWorker],
    *,
    statistics: Needs = "norms",
    name: str = "0",
    work: Path | None = None,
) -> Merged:
    """Both passes of ``plan``; attempts with different names do not share their files.

    An output in a store grows in ``work``.
    """
    measured = Sums()
    if needs_measuring(plan):
        needs: Needs = "gram" if plan.rule.needs == "gram" else "norms"
        measured = Sums.of(workers[unit.worker].measure(unit, plan.inputs, needs) for unit in plan.units())
    mix = decide(plan, measured)
    staging = staging_for(plan.output, name.rjust(16, "0"), work or Path("/nonexistent"))
    staging.create(plan.files)
    sums = Sums.of(
        workers[unit.worker].merge(
            unit, plan.inputs, staging.path, plan.rule, mix.of_unit(unit), plan.request.scaling, statistics
        )
        for unit in plan.units(mix.models, mix.copied)
    )
    digests = [workers[0].finish(staging.path / file.name) for file in plan.files]
    return Merged(mix, sums, digests, staging)
