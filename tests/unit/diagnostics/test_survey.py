"""The pass over the shards and its numbers, against dense vectors in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import random_checkpoints, save
from numpy.typing import NDArray
from safetensors.torch import load_file

from taumerge.schemas import DiagnoseRequest, DiagnoseResult
from workers.aggregation.kernel import BLOCK
from workers.diagnostics.measure import build_result
from workers.diagnostics.preflight import DiagnosisPlan, check_diagnose
from workers.merging import plan as plan_module
from workers.merging.shard import ShardWorker
from workers.merging.sums import Sums
from workers.merging.unit import Findings

SHAPES = {
    "embed.weight": (9, BLOCK // 4 + 77),
    "layers.0.a": (300, 501),
    "layers.0.b": (7,),
    "layers.1.a": (BLOCK + 3,),
    "scale": (),
}
Inputs = tuple[str, list[str]]


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def inputs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The last of five models is the base."""
    directory = tmp_path_factory.mktemp(request.param)
    return random_checkpoints(directory, 5, [getattr(torch, request.param)], shapes=SHAPES, seed=3)


@pytest.fixture(autouse=True)
def several_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SLICE", 2 * BLOCK)


def planned(inputs: Inputs, workers: int = 1) -> DiagnosisPlan:
    base, models = inputs
    weighted = [{"uri": uri, "weight": index + 1} for index, uri in enumerate(models)]
    request = DiagnoseRequest.model_validate({"base": base, "models": weighted})
    return check_diagnose(request, workers=workers)


def surveyed(plan: DiagnosisPlan, chunk: int | None = None) -> list[Findings]:
    workers = [ShardWorker(0, chunk) for _ in range(plan.survey.workers)]
    units = plan.survey.units()
    return [workers[unit.worker].survey(unit, plan.survey.inputs) for unit in units]


def diagnosed(plan: DiagnosisPlan, chunk: int | None = None) -> DiagnoseResult:
    return build_result(plan.survey, Sums.of(surveyed(plan, chunk)), ())


def dense(inputs: Inputs, prefix: str = "") -> NDArray[np.float64]:
    """The task vectors as rows."""
    base, *models = (load_file(Path(uri) / "model.safetensors") for uri in (inputs[0], *inputs[1]))
    names = [name for name in sorted(SHAPES) if name.startswith(prefix)]
    return np.stack(
        [
            np.concatenate([(model[name].double() - base[name].double()).numpy().ravel() for name in names])
            for model in models
        ]
    )


def histogram(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    votes = np.abs(np.sign(rows).sum(0))[(rows != 0).any(0)].astype(int)
    return np.bincount(votes, minlength=len(rows) + 1) / len(votes)


def test_numbers_are_those_of_dense_vectors(inputs: Inputs) -> None:
    rows = dense(inputs)
    result = diagnosed(planned(inputs))
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose([model.norm for model in result.models], norms, rtol=1e-6)
    with np.errstate(invalid="ignore"):
        cosines = rows @ rows.T / np.outer(norms, norms)
    np.testing.assert_allclose(np.array(result.cosine, dtype=float), cosines, atol=1e-6)
    merged = np.arange(1, 6) / 15 @ rows
    assert result.merged_norm == pytest.approx(np.linalg.norm(merged), rel=1e-6)
    shares = [weight / 15 * row @ merged / (merged @ merged) for weight, row in enumerate(rows, start=1)]
    assert [model.share for model in result.models] == pytest.approx(shares, abs=1e-6)
    assert result.agreement == pytest.approx(histogram(rows).tolist(), abs=1e-12)


def test_numbers_by_layer_are_those_of_the_layers(inputs: Inputs) -> None:
    result = diagnosed(planned(inputs))
    assert [group.name for group in result.groups] == ["embed", "layers.0", "layers.1", "scale"]
    sizes = [group.parameters for group in result.groups]
    assert sizes == [9 * (BLOCK // 4 + 77), 300 * 501 + 7, BLOCK + 3, 1]
    for group in result.groups[:3]:
        rows = dense(inputs, group.name + ".")
        np.testing.assert_allclose(group.norms, np.linalg.norm(rows, axis=1), rtol=1e-6)
        assert group.agreement == pytest.approx(histogram(rows).tolist(), abs=1e-12)
        unit = rows[:4] / np.linalg.norm(rows[:4], axis=1, keepdims=True)
        pairs = (unit @ unit.T)[np.tril_indices(4, -1)]
        assert group.mean_cosine == pytest.approx(pairs.mean(), abs=1e-6)


def test_training_records_give_effective_weights(inputs: Inputs) -> None:
    result = diagnosed(planned(inputs))
    amounts = np.array([0.1 / (index + 1) for index in range(5)])  # as random_checkpoints records them
    effective = amounts / amounts.sum()
    assert [model.effective_weight for model in result.models] == pytest.approx(effective.tolist())
    weights = np.arange(1, 6) / 15
    assert result.chi_square == pytest.approx(((weights - effective) ** 2 / effective).sum())


def test_a_model_equal_to_the_base_has_no_cosines_and_is_named(inputs: Inputs) -> None:
    result = diagnosed(planned(inputs))
    assert result.models[4].norm == 0.0
    assert result.cosine[4] == [None] * 5
    assert [row[4] for row in result.cosine] == [None] * 5
    [warning] = result.warnings
    assert warning.startswith("models.4 is equal to the base, though 450 steps of training are recorded")


def test_chunks_and_workers_change_no_bit(inputs: Inputs) -> None:
    expected = diagnosed(planned(inputs), BLOCK)
    assert diagnosed(planned(inputs), 7 * BLOCK) == expected
    for count in (2, 4):
        plan = planned(inputs, count)
        assert len({unit.worker for unit in plan.survey.units()}) > 1
        assert diagnosed(plan) == expected


def test_an_adapter_counts_as_what_it_adds_to_the_base(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(300, 500, generator=generator), torch.randn(300, generator=generator)
    base = save(tmp_path / "base", {"model.layer.weight": weight, "model.layer.bias": bias})
    factors = [
        (torch.randn(4, 500, generator=generator), torch.randn(300, 4, generator=generator)) for _ in range(2)
    ]
    for index, (a, b) in enumerate(factors):
        prefix = "base_model.model.model.layer.lora_"
        path = Path(
            save(tmp_path / f"lora-{index}", {f"{prefix}A.weight": a, f"{prefix}B.weight": b.contiguous()})
        )
        (path / "model.safetensors").rename(path / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["layer"]}
        (path / "adapter_config.json").write_text(json.dumps(config))
    result = diagnosed(planned((base, [str(tmp_path / f"lora-{index}") for index in range(2)])))
    deltas = np.stack([2 * (b.double() @ a.double()).numpy().ravel() for a, b in factors])
    norms = np.linalg.norm(deltas, axis=1)
    np.testing.assert_allclose([model.norm for model in result.models], norms, rtol=1e-6)
    cosine = deltas[0] @ deltas[1] / norms.prod()
    assert result.cosine[0][1] == pytest.approx(cosine, abs=1e-6)
    assert result.agreement == pytest.approx(histogram(deltas).tolist(), abs=1e-4)
    assert [group.name for group in result.groups] == ["model.layer"]


def test_what_is_not_finite_is_found(tmp_path: Path) -> None:
    base = save(tmp_path / "base", {"a": torch.zeros(5), "b": torch.zeros(3)})
    tensors = {"a": torch.tensor([1.0, torch.nan, 2.0, torch.inf, 0.0]), "b": torch.ones(3)}
    model = save(tmp_path / "ft", tensors)
    [findings] = surveyed(planned((base, [model])))
    assert findings.nonfinite == {(0, 0): 2}
    assert findings.agreement[1].tolist() == [0, 3]


def test_nothing_changed_at_all(tmp_path: Path) -> None:
    uris = [save(tmp_path / name, {"a": torch.ones(5)}) for name in ("base", "one", "two")]
    result = diagnosed(planned((uris[0], uris[1:])))
    assert result.agreement == [0.0, 0.0, 0.0]
    assert [model.share for model in result.models] == [None, None]
    assert (result.merged_norm, result.groups[0].mean_cosine, result.chi_square) == (0.0, None, None)
