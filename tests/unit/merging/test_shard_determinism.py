"""The same bytes whatever the chunks, the number of workers, and what is resident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_checkpoints
from in_process import Merged, merge_in_process

from taumerge.schemas import MergeRequest
from workers.aggregation.kernel import BLOCK
from workers.merging import plan as plan_module
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker

SHAPES = {
    "large": (9, BLOCK + 77),
    "scalar": (),
    "empty": (0, 3),
    "odd": (BLOCK // 2 + 1,),
    "matrix": (300, 501),
}
METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "fedgma", "rho": 0.6},
    {"name": "median"},
    {"name": "cclip", "rho": 2.0},
    {"name": "cclip", "rho": 0.7, "iterations": 3},
    {"name": "cclip", "rho": 0.7, "iterations": 2, "norm_scope": "tensor"},
]
Inputs = tuple[str, list[str]]


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    directory = tmp_path_factory.mktemp(request.param)
    return random_checkpoints(directory, 5, [getattr(torch, request.param)], shapes=SHAPES, seed=5)


@pytest.fixture(autouse=True)
def several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLICE", 8 * BLOCK)


def planned(inputs: Inputs, method: dict[str, Any], output: Path, workers: int = 1) -> MergePlan:
    base, models = inputs
    body = {"base": base, "models": models, "method": method, "output": str(output), "scaling": 0.7}
    request = MergeRequest.model_validate(body | {"max_shard_size": "600KB"})
    return plan_merge(request, workers=workers, worker_memory=0)


def outcome(merged: Merged) -> tuple[list[str], tuple[float, ...], dict[str, Any]]:
    """Everything that must not change."""
    return merged.digests, merged.mix.coefficients, merged.sums.to_json()


@pytest.mark.parametrize("method", METHODS)
def test_chunks_workers_and_residency_change_no_bit(
    inputs: Inputs, tmp_path: Path, method: dict[str, Any]
) -> None:
    plan = planned(inputs, method, tmp_path / "out")
    expected = outcome(
        merge_in_process(plan, [ShardWorker(memory=0, chunk_elements=BLOCK)], statistics="gram")
    )
    for blocks in (2, 7):
        worker = ShardWorker(memory=0, chunk_elements=blocks * BLOCK)
        again = merge_in_process(plan, [worker], statistics="gram", name=f"chunks{blocks}")
        assert outcome(again) == expected
    for count in (2, 4):
        workers = [ShardWorker(memory=1 << 30) for _ in range(count)]
        shared = planned(inputs, method, tmp_path / "out", count)
        assert len({unit.worker for unit in shared.units()}) > 1
        for run in ("first", "second"):
            again = merge_in_process(shared, workers, statistics="gram", name=f"{run}{count}")
            assert outcome(again) == expected
        assert again.mix.measured.bytes_read + again.sums.bytes_read == 0


def test_resident_inputs_serve_every_rule(inputs: Inputs, tmp_path: Path) -> None:
    plan = planned(inputs, METHODS[0], tmp_path / "out")
    worker = ShardWorker(memory=1 << 30)
    first = merge_in_process(plan, [worker])
    assert first.sums.bytes_read == plan.describe().input_bytes
    for index, method in enumerate(METHODS):
        warm = merge_in_process(planned(inputs, method, tmp_path / "out"), [worker], name=f"warm{index}")
        assert warm.mix.measured.bytes_read + warm.sums.bytes_read == 0
        cold = merge_in_process(
            planned(inputs, method, tmp_path / "out"), [ShardWorker(memory=0)], name=f"cold{index}"
        )
        assert warm.digests == cold.digests


def test_half_of_the_inputs_resident(inputs: Inputs, tmp_path: Path) -> None:
    plan = planned(inputs, METHODS[0], tmp_path / "out")
    total = plan.describe().input_bytes
    worker = ShardWorker(memory=total // 2)
    first = merge_in_process(plan, [worker])
    second = merge_in_process(plan, [worker], name="second")
    assert first.digests == second.digests
    assert first.sums.bytes_read == total
    assert total // 3 < second.sums.bytes_read < total


def test_units_may_be_repeated_anywhere(inputs: Inputs, tmp_path: Path) -> None:
    """A unit that is done again, by another worker, writes the same bytes and finds out the same."""
    plan = planned(inputs, METHODS[2], tmp_path / "out")
    first = merge_in_process(plan, [ShardWorker(memory=0)])
    other = ShardWorker(memory=0)
    for unit in reversed(plan.units()):
        numbers = first.mix.of_unit(unit)
        done, again = (
            other.merge(unit, plan.inputs, first.staging.path, plan.rule, numbers, 0.7, "norms")
            for _ in range(2)
        )
        assert str(done) == str(again)
    assert [other.finish(first.staging.path / file.name) for file in plan.files] == first.digests


def test_chunks_are_whole_blocks() -> None:
    with pytest.raises(ValueError, match=str(BLOCK)):
        ShardWorker(memory=0, chunk_elements=BLOCK + 1)
