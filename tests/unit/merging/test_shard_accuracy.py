"""Random models of every element type against the float64 reference, element by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from checkpoint_files import random_checkpoints
from in_process import merge_in_process
from safetensors.torch import load_file
from torch import Tensor

from taumerge.schemas import MergeRequest
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker

MODELS = 9
METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic"},
    {"name": "task_arithmetic", "scale": "mean"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.5},
    {"name": "median"},
    {"name": "cclip", "rho": 1.0},
    {"name": "cclip", "rho": 0.3, "iterations": 3, "norm_scope": "tensor"},
]
DTYPES: dict[str, list[torch.dtype]] = {
    "float64": [torch.float64],
    "float32": [torch.float32],
    "float16": [torch.float16],
    "bfloat16": [torch.bfloat16],
    "mixed": [torch.float16, torch.float32, torch.bfloat16, torch.float64],
}
ROUNDED_CORRECTLY = {torch.bfloat16: 0.999, torch.float16: 0.995}
LARGEST_ERROR = {torch.float32: 1e-6, torch.float64: 1e-7}  # a norm over float32 tensors decides a clipping
Inputs = tuple[str, list[str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    """Base and models for each name in ``DTYPES``."""
    directory = tmp_path_factory.mktemp("random")
    return {name: random_checkpoints(directory / name, MODELS, types) for name, types in DTYPES.items()}


def load(uri: str) -> dict[str, Tensor]:
    return load_file(Path(uri) / "model.safetensors")


def floats(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: one.double().numpy() for name, one in tensors.items() if one.is_floating_point()}


def planned(inputs: Inputs, count: int, method: Mapping[str, Any], output: Path, **options: Any) -> MergePlan:
    body = {"base": inputs[0], "models": inputs[1][:count], "method": method, "output": str(output)}
    return plan_merge(MergeRequest.model_validate(body | options), workers=1, worker_memory=0)


def assert_accurate(
    merged: Mapping[str, Tensor], base: Mapping[str, Tensor], expected: Mapping[str, np.ndarray[Any, Any]]
) -> None:
    """The accuracy that the service promises, by element type."""
    by_type: dict[torch.dtype, list[tuple[Tensor, np.ndarray[Any, Any], Tensor]]] = {}
    for name, wide in expected.items():
        assert merged[name].shape == base[name].shape
        by_type.setdefault(merged[name].dtype, []).append((merged[name], wide, base[name]))
    for dtype, tensors in by_type.items():
        found = np.concatenate([one.double().numpy().ravel() for one, _, _ in tensors])
        wide = np.concatenate([one.ravel() for _, one, _ in tensors])
        theta = np.concatenate([one.double().numpy().ravel() for _, _, one in tensors])
        if dtype in LARGEST_ERROR:
            assert (np.abs(found - wide) <= LARGEST_ERROR[dtype] * (1 + np.abs(theta))).all()
        else:
            name = str(dtype).removeprefix("torch.")
            rounded = reference.correctly_rounded(wide, name)
            assert (found == rounded).mean() >= ROUNDED_CORRECTLY[dtype]
            one_unit = reference.last_place(np.maximum(np.abs(found), np.abs(rounded)), name)
            cancelled = np.abs(theta) * 2.0**-23  # where θ₀ + λ·V is next to nothing, a unit of float32 at θ₀
            assert (np.abs(found - rounded) <= one_unit + cancelled).all()


@pytest.mark.parametrize("count", range(1, MODELS + 1))
@pytest.mark.parametrize("types", DTYPES)
def test_random_models(inputs: dict[str, Inputs], tmp_path: Path, types: str, count: int) -> None:
    base = load(inputs[types][0])
    models = [load(uri) for uri in inputs[types][1][:count]]
    worker = ShardWorker(memory=0)
    for index, method in enumerate(METHODS):
        if index % 3 != count % 3 and types != "float32":
            continue  # a third of the rules for each number of models and type; all of them in float32
        plan = planned(inputs[types], count, method, tmp_path / f"out-{index}", scaling=0.3)
        merged = merge_in_process(plan, [worker]).load()
        amounts = [float(one.steps or 1) for one in plan.training]
        expected = reference.merge(
            floats(base), [floats(model) for model in models], method, scaling=0.3, amounts=amounts
        )
        assert_accurate(merged, base, expected)
        for name, tensor in base.items():
            if not tensor.is_floating_point():
                assert torch.equal(merged[name], tensor)


@pytest.mark.parametrize("method", METHODS[:2] + METHODS[3:4] + METHODS[5:])
def test_unequal_weights(inputs: dict[str, Inputs], tmp_path: Path, method: dict[str, Any]) -> None:
    base_uri, uris = inputs["mixed"]
    weights = [0.3, 0.0, 0.1, 2.5]
    models = [{"uri": uri, "weight": weight} for uri, weight in zip(uris, weights, strict=False)]
    plan = planned(inputs["mixed"], 4, method, tmp_path / "out", models=models, scaling=0.5)
    base = load(base_uri)
    expected = reference.merge(
        floats(base), [floats(load(uri)) for uri in uris[:4]], method, scaling=0.5, weights=weights
    )
    assert_accurate(merge_in_process(plan, [ShardWorker(memory=0)]).load(), base, expected)


def test_task_negation(inputs: dict[str, Inputs], tmp_path: Path) -> None:
    base_uri, uris = inputs["float32"]
    coefficients = [1.0, -0.75]
    models = [{"uri": uri, "coefficient": one} for uri, one in zip(uris, coefficients, strict=False)]
    method = {"name": "task_arithmetic"}
    plan = planned(inputs["float32"], 2, method, tmp_path / "out", models=models, scaling=0.8)
    base = load(base_uri)
    expected = reference.merge(
        floats(base), [floats(load(uri)) for uri in uris[:2]], method, scaling=0.8, coefficients=coefficients
    )
    assert_accurate(merge_in_process(plan, [ShardWorker(memory=0)]).load(), base, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_output_in_another_type(inputs: dict[str, Inputs], tmp_path: Path, dtype: str) -> None:
    base_uri, uris = inputs["mixed"]
    method = {"name": "median"}
    plan = planned(inputs["mixed"], 5, method, tmp_path / "out", dtype=dtype)
    merged = merge_in_process(plan, [ShardWorker(memory=0)]).load()
    assert {one.dtype for one in merged.values() if one.is_floating_point()} == {getattr(torch, dtype)}
    base = load(base_uri)
    expected = reference.merge(floats(base), [floats(load(uri)) for uri in uris[:5]], method)
    assert_accurate(merged, base, expected)


def test_norms_and_cosines(inputs: dict[str, Inputs], tmp_path: Path) -> None:
    base, *models = (floats(load(uri)) for uri in (inputs["mixed"][0], *inputs["mixed"][1][:3]))
    plan = planned(inputs["mixed"], 3, {"name": "task_arithmetic", "scale": "mean"}, tmp_path / "out")
    sums = merge_in_process(plan, [ShardWorker(memory=0)], statistics="gram").sums
    rows = np.stack(
        [np.concatenate([(model[name] - base[name]).ravel() for name in base]) for model in models]
    )
    np.testing.assert_allclose(sums.total_gram(3), rows @ rows.T, rtol=1e-6, atol=1e-9)
    assert sums.merged_norm() == pytest.approx(np.linalg.norm(rows.mean(axis=0)), rel=1e-6)


def peer(models: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A plain average of checkpoints."""
    return {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}


def test_mean_scaled_task_arithmetic_is_the_plain_average(inputs: dict[str, Inputs], tmp_path: Path) -> None:
    plan = planned(inputs["float32"], 4, {"name": "task_arithmetic", "scale": "mean"}, tmp_path / "out")
    merged = merge_in_process(plan, [ShardWorker(memory=0)]).load()
    models = [load(uri) for uri in inputs["float32"][1][:4]]
    names = [name for name, one in models[0].items() if one.is_floating_point()]
    average = peer([{name: model[name] for name in names} for model in models])
    for name in names:
        torch.testing.assert_close(merged[name], average[name], rtol=0, atol=1e-6)
