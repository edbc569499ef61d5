"""Diagnoses on Ray: the same numbers on any number of workers, the output whole or not there, cancelling."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import save
from perceptrons import TASKS, search_body
from safetensors.numpy import load_file
from standin_evaluator import EXAMPLES, StandIn

from taumerge.errors import InvalidRequest, JobCancelled, JobFailed
from taumerge.schemas import DiagnoseRequest, DiagnoseResult, EvaluationSpec, Progress
from workers.diagnostics import run_diagnose
from workers.merging import stop_shard_actors
from workers.settings import WorkerSettings

Diagnose = Callable[..., DiagnoseResult]


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


@pytest.fixture
def diagnose(warm_workers: WorkerSettings) -> Diagnose:
    """Runs diagnoses on two warm shard workers."""

    def run(body: dict[str, Any], report: Callable[[Progress], None] = ignore, **more: Any) -> DiagnoseResult:
        request = DiagnoseRequest.model_validate(body)
        settings = more.pop("settings", warm_workers)
        return run_diagnose(request, settings, report, detached=settings is warm_workers, **more)

    return run


@pytest.fixture
def body(golden_body: dict[str, Any]) -> dict[str, Any]:
    """A diagnosis of the golden checkpoints."""
    return {"base": golden_body["base"], "models": golden_body["models"]}


def test_a_diagnosis_of_the_golden_models(diagnose: Diagnose, body: dict[str, Any]) -> None:
    phases = []
    result = diagnose(body, lambda progress: phases.append(progress.phase))
    base, *models = (load_file(Path(uri) / "model.safetensors") for uri in (body["base"], *body["models"]))
    rows = np.stack(
        [
            np.concatenate([(model[name].astype(np.float64) - base[name]).ravel() for name in base])
            for model in models
        ]
    )
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose([model.norm for model in result.models], norms, rtol=1e-6)
    cosines = rows @ rows.T / np.outer(norms, norms)
    np.testing.assert_allclose(np.array(result.cosine, dtype=float), cosines, atol=1e-6)
    assert result.merged_norm == pytest.approx(np.linalg.norm(rows.mean(0)), rel=1e-6)
    assert result.verdict[0].startswith("training is heterogeneous: χ² = 1.15, ft-rotation carries 63 %")
    assert set(phases) == {"survey"}
    assert result.seconds.keys() == {"plan", "survey"}
    assert (result.output, result.files, result.warnings) == (None, [], [])


def test_the_output_holds_numbers_pictures_and_a_report(
    diagnose: Diagnose, body: dict[str, Any], tmp_path: Path
) -> None:
    body["output"] = str(tmp_path / "new" / "diagnosis")
    result = diagnose(body, job_id="diagnose-1")
    output = tmp_path / "new" / "diagnosis"
    assert {path.name: path.stat().st_size for path in output.iterdir()} == {
        file.name: file.bytes for file in result.files
    }
    assert {"diagnosis.json", "report.html", "cosine.png", "layers.png"} < {
        file.name for file in result.files
    }
    assert [path.name for path in output.parent.iterdir()] == ["diagnosis"]
    record = json.loads((output / "diagnosis.json").read_text())
    assert record["result"]["chi_square"] == result.chi_square
    assert [one["uri"] for one in record["inputs"]] == [body["base"], *body["models"]]
    # a second attempt of the same job takes the output for its own; another job may not have it
    assert diagnose(body, job_id="diagnose-1").files == result.files
    with pytest.raises(InvalidRequest) as caught:
        diagnose(body, job_id="diagnose-2")
    assert [error.code for error in caught.value.errors] == ["output_exists"]
    assert diagnose(body | {"overwrite": True}, job_id="diagnose-2").output == body["output"]


def test_a_cancelled_diagnosis_leaves_nothing(
    diagnose: Diagnose, body: dict[str, Any], tmp_path: Path
) -> None:
    def cancel(progress: Progress) -> None:
        raise JobCancelled("enough")

    with pytest.raises(JobCancelled):
        diagnose(body | {"output": str(tmp_path / "results" / "out")}, cancel)
    assert not (tmp_path / "results").exists()


def test_what_is_not_finite_fails_and_is_named(diagnose: Diagnose, tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(5), "b": torch.zeros(3)}
    base = save(tmp_path / "base", tensors)
    model = save(tmp_path / "ft", tensors | {"b": torch.tensor([0.0, torch.nan, 1.0])})
    with pytest.raises(JobFailed) as caught:
        diagnose({"base": base, "models": [model]})
    assert caught.value.code == "nonfinite"
    assert caught.value.details["found"] == [
        {"model": model, "loc": ["models", 0, "uri"], "tensor": "b", "count": 1}
    ]
    assert "drop_model" not in caught.value.message


def test_gradients_are_those_of_the_average_on_disk(
    diagnose: Diagnose, merge: Callable[..., Any], tmp_path: Path
) -> None:
    search = search_body(tmp_path)
    uris = [model["uri"] for model in search["models"]]
    phases: list[tuple[str, int]] = []
    result = diagnose(
        {"base": search["base"], "models": uris, "evaluation": search["evaluation"]},
        lambda progress: phases.append((progress.phase, progress.done)),
    )
    average = {"name": "task_arithmetic", "scale": "mean"}
    merge({"base": search["base"], "models": uris, "method": average, "output": str(tmp_path / "average")})

    spec = EvaluationSpec.model_validate(search["evaluation"])
    loaded = StandIn(str(tmp_path / "average"), spec)
    moved = [
        tensor.requires_grad_() for name, tensor in sorted(loaded.parameters.items()) if name != "frozen"
    ]
    gradients = []
    for task in TASKS:
        losses = [loss * count / EXAMPLES for loss, count in loaded.losses(task, "validation")]
        parts = torch.autograd.grad(torch.stack(losses).sum(), moved)
        gradients.append(torch.cat([part.flatten().double() for part in parts]))
    norms = [float(gradient.norm()) for gradient in gradients]
    assert result.gradients is not None
    assert result.gradients.norms == pytest.approx(norms, rel=1e-5)
    assert result.gradients.zeta_square == pytest.approx(sum(norm**2 for norm in norms) / 3, rel=1e-5)
    together = float(torch.stack(gradients).sum(0).square().sum())
    assert result.gradients.diversity == pytest.approx(sum(norm**2 for norm in norms) / together, rel=1e-4)
    assert {("gradients", done) for done in range(3)} < set(phases)
    assert result.seconds.keys() == {"plan", "survey", "gradients"}


def test_models_that_are_the_base_have_no_gradients_to_take(diagnose: Diagnose, tmp_path: Path) -> None:
    search = search_body(tmp_path)
    evaluation = search["evaluation"] | {"tasks": {"shapes": search["evaluation"]["tasks"]["shapes"]}}
    result = diagnose({"base": search["base"], "models": [search["base"]], "evaluation": evaluation})
    assert result.gradients is None
    assert result.verdict[0].startswith("every model is equal to the base")


def test_one_two_and_four_workers_find_the_same(diagnose: Diagnose, body: dict[str, Any]) -> None:
    outcomes = [diagnose(body)]
    stop_shard_actors()  # they hold two of the four GPUs
    for count in (1, 4):
        settings = WorkerSettings(workers=count, accelerator_type="V100", worker_memory=0)
        outcomes.append(diagnose(body, settings=settings))
    shown = [one.model_dump_json(exclude={"seconds"}) for one in outcomes]
    assert len(set(shown)) == 1
