"""θ₀ + λ·V set in place, against merges to disk that are loaded again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import random_checkpoints, save
from in_process import merge_in_process
from safetensors.torch import load_file
from torch import Tensor

from taumerge.errors import InvalidRequest, TaumergeError
from taumerge.schemas import MergeRequest
from workers.aggregation.kernel import BLOCK
from workers.checkpoints.checkpoint import open_checkpoint
from workers.merging import plan as plan_module
from workers.merging.mix import decide
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker
from workers.merging.sums import Sums
from workers.merging.unit import MergedSlice
from workers.search import model as model_module
from workers.search.directions import merged_slices
from workers.search.model import MergedModel


class Holder:
    """An evaluator that only holds parameters, in float32 as on a CPU."""

    def __init__(self, uri: str) -> None:
        self.parameters = {
            name: torch.nn.Parameter(tensor.float(), requires_grad=False)
            for name, tensor in load_file(Path(uri) / "model.safetensors").items()
            if tensor.is_floating_point()
        }

    def evaluate(self, task: str, split: str) -> float:
        return float(task)

    def copies(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.parameters.items()}


@pytest.fixture(autouse=True)
def several_slices_of_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLICE", BLOCK // 2)
    monkeypatch.setattr(model_module, "CHUNK", 37)


def planned(base: str, models: list[str], method: object, output: Path, **options: Any) -> MergePlan:
    body = {"base": base, "models": models, "method": method, "output": str(output), **options}
    return plan_merge(MergeRequest.model_validate(body), workers=1, worker_memory=0)


def direction(plan: MergePlan) -> list[list[MergedSlice]]:
    """V of each unit."""
    worker = ShardWorker(0)
    measured = Sums.of(worker.measure(unit, plan.inputs, "norms") for unit in plan.units())
    mix = decide(plan, measured)
    return [
        worker.direction(unit, plan.inputs, plan.rule, mix.of_unit(unit))[1]
        for unit in plan.units()
        if any(part.merged for part in unit.slices)
    ]


def moved(model: MergedModel, plan: MergePlan, merged: list[list[MergedSlice]], scaling: float) -> set[str]:
    return set().union(
        *(
            model.move(slices, values, scaling)
            for slices, values in zip(merged_slices(plan), merged, strict=True)
        )
    )


def model_of(holder: Holder, plan: MergePlan) -> MergedModel:
    return MergedModel(holder, plan.base, plan.names, plan.comparison.merged, threads=3)


def loaded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32],
        [torch.bfloat16],
        [torch.float16],
        [torch.float64],
        [torch.float32, torch.bfloat16, torch.float64, torch.float16],
    ],
    ids=lambda dtypes: "-".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
)
def test_any_sequence_of_merges_in_place_is_each_time_the_merge_that_one_loads_from_disk(
    dtypes: list[torch.dtype], tmp_path: Path
) -> None:
    base, models = random_checkpoints(tmp_path, 4, dtypes)
    methods: list[dict[str, Any]] = [{"name": "median"}, {"name": "cclip", "rho": 0.4}]
    plans = [planned(base, models, method, tmp_path / "out") for method in methods]
    directions = [direction(plan) for plan in plans]
    holder = Holder(base)
    model = model_of(holder, plans[0])
    for number, (which, scaling) in enumerate([(0, 0.3), (0, 1.7), (1, 0.05), (0, 0.0), (1, 2.0)]):
        assert moved(model, plans[which], directions[which], scaling) == set()
        plan = planned(base, models, methods[which], tmp_path / "out", scaling=scaling)
        written = merge_in_process(plan, [ShardWorker(0)], name=str(number)).load()
        assert same(holder.copies(), loaded(written))


def test_a_tensor_that_no_model_changed_returns_to_the_base(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(50), "b": torch.randn(70)}
    base = save(tmp_path / "base", tensors)
    first = save(tmp_path / "first", tensors | {"a": tensors["a"] + 1})
    second = save(tmp_path / "second", tensors | {"b": tensors["b"] + 1})
    one, other = (planned(base, [uri], "task_arithmetic", tmp_path / "out") for uri in (first, second))
    holder = Holder(base)
    model = model_of(holder, one)
    moved(model, one, direction(one), 0.5)
    moved(model, other, direction(other), 1.0)
    assert same(holder.copies(), loaded(load_file(Path(second) / "model.safetensors")))


def test_a_checkpoint_is_taken_as_it_is_stored_and_left_behind_by_the_next_merge(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(50), "extra": torch.randn(9)}
    base = save(tmp_path / "base", tensors)
    tuned = save(tmp_path / "tuned", {"a": tensors["a"] * 2, "extra": torch.randn(4)})
    plan = planned(base, [tuned], "task_arithmetic", tmp_path / "out", keys="intersection")
    holder = Holder(base)
    model = model_of(holder, plan)
    model.load(open_checkpoint(tuned))
    assert same(holder.copies(), {"a": tensors["a"] * 2, "extra": tensors["extra"]})
    moved(model, plan, direction(plan), 0.0)
    assert same(holder.copies(), tensors)


def test_values_outside_the_range_of_the_stored_type_are_told(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a": torch.ones(5).half(), "b": torch.ones(5)})
    tuned = save(tmp_path / "tuned", {"a": torch.full((5,), 30000.0).half(), "b": torch.full((5,), 2.0)})
    plan = planned(base, [tuned], "task_arithmetic", tmp_path / "out")
    model = model_of(Holder(base), plan)
    values = direction(plan)
    assert moved(model, plan, values, 2.0) == set()
    assert moved(model, plan, values, 2.5) == {"a"}


def test_a_model_without_a_merged_tensor_is_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a": torch.ones(5), "b": torch.ones(5)})
    plan = planned(base, [base], "task_arithmetic", tmp_path / "out")
    holder = Holder(base)
    del holder.parameters["b"]
    with pytest.raises(InvalidRequest, match="no place for b"):
        model_of(holder, plan)


def test_scores_are_those_of_the_evaluator(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a": torch.ones(5)})
    model = model_of(Holder(base), planned(base, [base], "median", tmp_path / "out"))
    scores, seconds = model.score(["0.5", "0.25"], "test")
    assert scores == {"0.5": 0.5, "0.25": 0.25}
    assert seconds >= 0


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "out_of_memory",
            "batch_size",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "out_of_memory",
            "batch_size",
        ),
        (KeyError("label\nand more"), "evaluation_failed", "task '0.5' failed: KeyError: 'label"),
        (ValueError(), "evaluation_failed", "ValueError: "),
        (InvalidRequest.at(("base",), "class_mismatch", "told"), "invalid_request", "told"),
    ],
)
def test_whatever_an_evaluator_raises_is_an_error_that_says_what_to_do(
    error: Exception, code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(task: str, split: str) -> float:
        raise error

    base = save(tmp_path / "base", {"a": torch.ones(5)})
    holder = Holder(base)
    model = model_of(holder, planned(base, [base], "median", tmp_path / "out"))
    monkeypatch.setattr(holder, "evaluate", fail)
    with pytest.raises(TaumergeError, match=re.escape(told)) as caught:
        model.score(["0.5"], "test")
    assert caught.value.code == code
