"""V as the search gets it, against the bytes of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_checkpoints, save
from in_process import merge_in_process
from safetensors.torch import load_file

from taumerge.schemas import MergeRequest
from workers.aggregation.kernel import BLOCK, add_scaled
from workers.merging import plan as plan_module
from workers.merging.mix import decide, needs_measuring
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import TORCH_DTYPES, ShardWorker
from workers.merging.sums import Sums
from workers.merging.unit import DirectionPart, MergedSlice

METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.6},
    {"name": "median"},
    {"name": "cclip", "rho": 0.7, "norm_scope": "tensor"},
]
SCALING = 0.3


@pytest.fixture(autouse=True)
def several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLICE", BLOCK)


def planned(base: str, models: list[str], method: object, output: Path) -> MergePlan:
    body = {"base": base, "models": models, "method": method, "output": str(output), "scaling": SCALING}
    return plan_merge(MergeRequest.model_validate(body), workers=1, worker_memory=0)


def directions(plan: MergePlan, chunk: int | None = None) -> list[tuple[DirectionPart, list[MergedSlice]]]:
    worker = ShardWorker(0, chunk)
    measured = Sums()
    if needs_measuring(plan):
        measured = Sums.of(worker.measure(unit, plan.inputs, "norms") for unit in plan.units())
    mix = decide(plan, measured)
    return [worker.direction(unit, plan.inputs, plan.rule, mix.of_unit(unit)) for unit in plan.units()]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method["name"]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_adding_the_direction_to_the_base_is_the_merge_to_disk(
    method: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    base, models = random_checkpoints(tmp_path, 4, [dtype])
    plan = planned(base, models, method, tmp_path / "out")
    merged = merge_in_process(plan, [ShardWorker(0)])
    written = merged.load()
    originals = load_file(Path(base) / "model.safetensors")
    for unit, (_, slices) in zip(plan.units(), directions(plan), strict=True):
        for part, one in zip((part for part in unit.slices if part.merged), slices, strict=True):
            place = slice(part.start, part.start + part.elements)
            name = plan.names[part.tensor]
            expected, original = written[name].view(-1)[place], originals[name].view(-1)[place]
            if one.values is None:
                assert torch.equal(expected, original)
                continue
            out = torch.empty(part.elements, dtype=TORCH_DTYPES[part.dtype])
            assert add_scaled(original, torch.from_numpy(one.values), SCALING, one.square, out)
            assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))
    total = sum(one.square for _, slices in directions(plan) for one in slices)
    assert total**0.5 == pytest.approx(merged.sums.merged_norm(), rel=1e-9)


def test_a_slice_that_no_model_changed_costs_nothing(tmp_path: Path) -> None:
    frozen, moved = torch.randn(BLOCK + 5), torch.zeros(7)
    base = save(tmp_path / "base", {"frozen": frozen, "moved": moved})
    tuned = save(tmp_path / "ft", {"frozen": frozen, "moved": moved + 1e-30})  # its square vanishes
    plan = planned(base, [tuned], "task_arithmetic", tmp_path / "out")
    found = directions(plan)
    kept = [one.values for _, slices in found for one in slices if one.values is not None]
    assert [values.tolist() for values in kept] == [[pytest.approx(1e-30)] * 7]
    assert sum(direction.bytes for direction, _ in found) == 7 * 4


def test_the_digest_tells_whether_two_directions_are_equal(tmp_path: Path) -> None:
    base, models = random_checkpoints(tmp_path, 5, [torch.float32])

    def digest(method: dict[str, Any], chunk: int | None = None) -> list[bytes]:
        return [one.digest for one, _ in directions(planned(base, models, method, tmp_path / "out"), chunk)]

    # one of the five models is the base itself: A is 0, 2/5 or 4/5
    assert digest({"name": "fedgma", "rho": 0.45}) == digest({"name": "fedgma", "rho": 0.7})
    assert digest({"name": "fedgma", "rho": 0.45}) != digest({"name": "fedgma", "rho": 0.3})
    assert digest({"name": "cclip", "rho": 1e6}) == digest({"name": "task_arithmetic"})
    assert digest({"name": "median"}, BLOCK) == digest({"name": "median"}, 2 * BLOCK)
