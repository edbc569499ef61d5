"""NaN, inf and values that do not fit: found, counted, named, dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from in_process import Merged, merge_in_process
from torch import Tensor

from taumerge.errors import JobFailed
from taumerge.schemas import MergeRequest
from workers.aggregation.kernel import BLOCK
from workers.merging.mix import check_sound
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker

LENGTH = 3 * BLOCK
NAN, INF = float("nan"), float("inf")


def tensors(value: float = 0.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"a": torch.full((LENGTH,), value, dtype=dtype), "b": torch.full((3,), value, dtype=dtype)}


class Inputs:
    """A base of zeros, and models of ones, twos and threes."""

    def __init__(self, directory: Path, dtype: torch.dtype = torch.float32) -> None:
        self.directory = directory
        self.base = tensors(0.0, dtype)
        self.models = [tensors(value, dtype) for value in (1.0, 2.0, 3.0)]

    def plan(self, **options: Any) -> MergePlan:
        base = save(self.directory / "base", self.base)
        uris = [save(self.directory / f"ft-{index}", model) for index, model in enumerate(self.models)]
        weights = options.pop("weights", [None] * len(uris))
        models = [{"uri": uri, "weight": weight} for uri, weight in zip(uris, weights, strict=True)]
        body = {"method": {"name": "task_arithmetic", "scale": "mean"}, **options}
        body |= {"base": base, "models": models, "output": str(self.directory / "out")}
        return plan_merge(MergeRequest.model_validate(body), workers=1, worker_memory=0)


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def merge(plan: MergePlan) -> Merged:
    merged = merge_in_process(plan, [ShardWorker(memory=0)])
    check_sound(plan, merged.mix, merged.sums)
    return merged


def failure(plan: MergePlan) -> JobFailed:
    with pytest.raises(JobFailed) as caught:
        merge(plan)
    return caught.value


METHODS: list[Any] = [
    "task_arithmetic",
    "median",
    {"name": "fedgma", "rho": 0.5},
    {"name": "cclip", "rho": 1.0},
]


@pytest.mark.parametrize("method", [*METHODS, {"name": "cclip", "rho": 1.0, "iterations": 2}])
def test_reject_names_model_tensor_and_count(inputs: Inputs, method: Any) -> None:
    inputs.models[1]["a"][[0, 5, BLOCK + 1, LENGTH - 1]] = torch.tensor([NAN, INF, -INF, NAN])
    inputs.models[2]["b"][1] = NAN
    plan = inputs.plan(method=method)
    error = failure(plan)
    assert error.code == "nonfinite"
    uris = [model.uri for model in plan.request.models]
    assert error.details["total"] == 2
    assert [(one["model"], one["loc"], one["tensor"], one["count"]) for one in error.details["found"]] == [
        (uris[1], ["models", 1, "uri"], "a", 4),
        (uris[2], ["models", 2, "uri"], "b", 1),
    ]
    assert uris[1] in str(error)
    assert "4 NaN or inf" in str(error)


@pytest.mark.parametrize("policy", ["reject", "drop_model", "drop_tensor"])
def test_a_base_that_is_not_finite_always_fails(inputs: Inputs, policy: str) -> None:
    inputs.base["a"][[3, 4]] = torch.tensor([INF, NAN])
    plan = inputs.plan(nonfinite=policy)
    error = failure(plan)
    assert error.code == "nonfinite"
    (found,) = error.details["found"]
    assert (found["loc"], found["tensor"], found["count"]) == (["base"], "a", 2)


def test_same_infinity_in_base_and_model_is_not_hidden_by_the_difference(inputs: Inputs) -> None:
    for one in (inputs.base, *inputs.models):
        one["b"][0] = INF
    assert failure(inputs.plan()).details["found"][0]["loc"] == ["base"]


def test_drop_model(inputs: Inputs) -> None:
    inputs.models[1]["b"][0] = NAN
    merged = merge(inputs.plan(nonfinite="drop_model"))
    assert merged.mix.models == (0, 2)
    assert set(merged.load()["a"].tolist()) == {2.0}  # (1 + 3) / 2
    assert set(merged.load()["b"].tolist()) == {2.0}


def test_drop_model_counts_by_model(inputs: Inputs) -> None:
    inputs.models[0]["a"][:7] = INF
    plan = inputs.plan(nonfinite="drop_model", weights=[5.0, 1.0, 3.0])
    merged = merge(plan)
    assert merged.mix.measured.nonfinite == {(0, plan.names.index("a")): 7}
    assert set(merged.load()["a"].tolist()) == {2.75}  # (2·1 + 3·3) / 4


def test_drop_tensor(inputs: Inputs) -> None:
    inputs.models[1]["b"][0] = NAN
    merged = merge(inputs.plan(nonfinite="drop_tensor"))
    assert merged.mix.models == (0, 1, 2)
    assert merged.mix.copied == {"b"}
    assert set(merged.load()["a"].tolist()) == {2.0}
    assert merged.load()["b"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_dropped_tensors_count_in_no_norm(inputs: Inputs, scope: str) -> None:
    inputs.models[0]["b"][0] = INF
    method = {"name": "cclip", "rho": 1e6, "norm_scope": scope}
    merged = merge(inputs.plan(nonfinite="drop_tensor", method=method))
    assert set(merged.load()["a"].tolist()) == {6.0}


def test_no_model_is_left(inputs: Inputs) -> None:
    for model in inputs.models:
        model["b"][0] = NAN
    error = failure(inputs.plan(nonfinite="drop_model"))
    assert (error.code, error.details["total"]) == ("nonfinite", 3)


def test_only_models_without_weight_are_left(inputs: Inputs) -> None:
    inputs.models[0]["b"][0] = NAN
    error = failure(inputs.plan(nonfinite="drop_model", weights=[1.0, 0.0, 0.0]))
    assert error.code == "nonfinite"


@pytest.mark.parametrize("method", METHODS)
def test_overflow_in_float16_names_the_tensor(tmp_path: Path, method: Any) -> None:
    inputs = Inputs(tmp_path, torch.float16)
    inputs.base["b"] = torch.full((3,), 65000.0, dtype=torch.float16)
    for model in inputs.models:
        model["b"] = torch.tensor([65504.0, 65000.0, 65000.0], dtype=torch.float16)
    if isinstance(method, dict) and method["name"] == "cclip":
        method = method | {"rho": 1e9}
    error = failure(inputs.plan(method=method, scaling=3.0))
    assert error.code == "overflow"
    assert error.details == {"tensors": ["b"], "total": 1}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_overflow_in_a_narrower_output(inputs: Inputs, dtype: str) -> None:
    """The most negative float32, which stands in attention masks, is −inf in both 16-bit types."""
    for one in (inputs.base, *inputs.models):
        one["a"][7] = torch.finfo(torch.float32).min
    error = failure(inputs.plan(dtype=dtype))
    assert (error.code, error.details["tensors"]) == ("overflow", ["a"])


def test_overflow_of_a_copied_tensor(inputs: Inputs) -> None:
    inputs.base["only in base"] = torch.tensor([1e6])
    error = failure(inputs.plan(dtype="float16", keys="intersection"))
    assert (error.code, error.details["tensors"]) == ("overflow", ["only in base"])


def test_large_scaling_overflows_float32(inputs: Inputs) -> None:
    for model in inputs.models:
        model["b"] = torch.full((3,), 1e9)
    assert failure(inputs.plan(scaling=1e30)).details == {"tensors": ["b"], "total": 1}


def test_values_beyond_float16_between_the_steps_are_fine(tmp_path: Path) -> None:
    """Sums are in float32: 3·(−61440) fits no float16, the merged value does."""
    inputs = Inputs(tmp_path, torch.float16)
    for model in inputs.models:
        model["b"] = torch.full((3,), -61440.0, dtype=torch.float16)
    merged = merge(inputs.plan(method={"name": "task_arithmetic", "scale": "sum"}, scaling=0.25))
    assert merged.load()["b"].tolist() == [-46080.0] * 3


def test_differing_integers_are_noticed_and_taken_from_the_base(inputs: Inputs) -> None:
    for value, one in enumerate((inputs.base, *inputs.models)):
        one["steps"] = torch.tensor([value], dtype=torch.int64)
        one["ids"] = torch.arange(5)
    plan = inputs.plan()
    merged = merge(plan)
    assert merged.load()["steps"].tolist() == [0]
    assert {plan.names[index] for index in merged.sums.differing} == {"steps"}


@pytest.mark.parametrize("differing", [False, True])
def test_quantised_weights_that_differ_are_not_merged(inputs: Inputs, differing: bool) -> None:
    packed = torch.zeros(1 << 21, dtype=torch.int8)
    inputs.base["packed"] = packed
    for model in inputs.models:
        model["packed"] = packed + differing
    if not differing:
        merge(inputs.plan())
        return
    error = failure(inputs.plan())
    assert (error.code, error.details) == ("quantised", {"tensors": ["packed"], "total": 1})
