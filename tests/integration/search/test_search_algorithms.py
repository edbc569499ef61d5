"""Which merged models a search evaluates, and what it does with those that cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from perceptrons import HIDDEN, INPUTS, TASKS, logged
from safetensors.torch import load_file, save_file
from standin_evaluator import StandIn

from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import EvaluationSpec, Progress, SearchResult
from workers.search import tuning

Search = Callable[..., SearchResult]
Merge = Callable[..., Any]
RANK = 3


def test_adaptive_search_evaluates_a_part_and_finds_the_best_of_what_it_evaluated(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    body["scaling"] = {"from": 0.05, "to": 2.0, "step": 0.05}
    result = search(body | {"methods": ["task_arithmetic", "median"], "algorithm": "adaptive"})
    for rule in ("task_arithmetic", "median"):
        mine = [one for one in result.evaluations if one.method["name"] == rule]
        assert 3 <= len(mine) <= 12
        assert result.best_by_method[rule].score == max(one.score for one in mine)
    assert len(logged(tmp_path)) == len(TASKS) * (len(result.evaluations) + 2 + 2) + 2 * len(TASKS)
    assert result.complete


def test_optuna_evaluates_as_many_points_as_the_budget_has(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    body |= {"methods": ["task_arithmetic", "median"], "algorithm": "optuna", "budget": {"evaluations": 6}}
    result = search(body)
    assert len(result.evaluations) == 6
    assert result.complete
    assert len(logged(tmp_path)) == len(TASKS) * (6 + 2 + 2) + 2 * len(TASKS)


def test_where_optuna_only_repeats_itself_the_budget_is_spent_all_the_same(
    search: Search, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "SUGGESTIONS", 1)  # of ten points nine times one: some point is repeated
    body |= {"methods": ["task_arithmetic", "median"], "algorithm": "optuna", "budget": {"evaluations": 9}}
    heard: list[Progress] = []
    result = search(body, heard.append)
    assert len(result.evaluations) == 9
    assert result.complete
    assert [(one.done, one.total) for one in heard if one.phase == "evaluate"][-1] == (9, 9)


def adapter(directory: Path, seed: int) -> tuple[str, torch.Tensor]:
    """A LoRA adapter of ``body``, and what it adds to its weight."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(shape, generator=generator) for shape in ((RANK, INPUTS), (HIDDEN, RANK)))
    directory.mkdir()
    factors = {"base_model.model.body.lora_A.weight": a, "base_model.model.body.lora_B.weight": b * 0.1}
    save_file(factors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["body"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory), (b * 0.1) @ a


def test_adapters_are_searched_as_the_whole_models_that_they_stand_for(
    search: Search, merge: Merge, body: dict[str, Any], tmp_path: Path
) -> None:
    base = load_file(Path(body["base"]) / "model.safetensors")
    dense, adapted = [], []
    for seed, model in enumerate(body["models"]):
        uri, change = adapter(tmp_path / f"adapter-{seed}", seed)
        adapted.append(model | {"uri": uri})
        whole = base | {"body.weight": base["body.weight"] + change}
        dense.append(model | {"uri": save(tmp_path / f"dense-{seed}", whole)})
        options = body["evaluation"]["tasks"][model["task"]]["options"]
        options |= {"teacher": dense[-1]["uri"], "flip": 0.05}
    body |= {"methods": ["task_arithmetic", "median"], "scaling": [0.3, 1.0]}
    result = search(body | {"models": adapted})
    spec = EvaluationSpec.model_validate(body["evaluation"])
    for one in dense:
        expected = StandIn(one["uri"], spec).evaluate(one["task"], "validation")
        assert result.individual["validation"].tasks[one["task"]] == expected > 0.8
    for number, evaluation in enumerate(result.evaluations):
        output = str(tmp_path / f"merged-{number}")
        models = [one["uri"] for one in adapted]
        merge(
            {"base": body["base"], "models": models, "method": evaluation.method}
            | {"scaling": evaluation.scaling, "output": output}
        )
        merged = StandIn(output, spec)
        assert evaluation.tasks == {task: merged.evaluate(task, "validation") for task in TASKS}


def test_a_task_on_which_its_own_model_scores_zero_is_named_before_any_merged_model(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    tensors = load_file(Path(body["models"][1]["uri"]) / "model.safetensors")
    tensors["head.bias"] = torch.zeros_like(tensors["head.bias"])
    tensors["head.bias"][0] = 1000.0  # always class 0, which the teacher never says
    teacher = load_file(
        Path(body["evaluation"]["tasks"]["digits"]["options"]["teacher"]) / "model.safetensors"
    )
    teacher["head.bias"][0] = -1000.0
    options = body["evaluation"]["tasks"]["digits"]["options"]
    options |= {"teacher": save(tmp_path / "never", teacher), "flip": 0.0}
    body["models"][1]["uri"] = save(tmp_path / "always", tensors)
    with pytest.raises(JobFailed, match="digits") as failed:
        search(body | {"methods": ["median"]})
    assert failed.value.code == "individual_score_zero"
    assert len(logged(tmp_path)) == len(TASKS) * 2 + len(TASKS) * 2
    # whoever repairs the data posts the same request, which must not be answered from what is kept
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".best")] == []


def test_nan_in_a_model_is_found_before_anything_is_evaluated(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    tensors = load_file(Path(body["models"][1]["uri"]) / "model.safetensors")
    tensors["body.weight"][2, 3] = float("nan")
    body["models"][1]["uri"] = save(tmp_path / "nan", tensors)
    with pytest.raises(JobFailed, match="body") as failed:
        search(body | {"methods": ["median"]})
    assert failed.value.code == "nonfinite"
    assert logged(tmp_path) == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".best")] == []


def test_what_an_evaluator_refuses_comes_back_located(search: Search, body: dict[str, Any]) -> None:
    for task in body["evaluation"]["tasks"].values():
        task["options"]["refuse"] = "no such class"
    with pytest.raises(InvalidRequest, match="no such class"):
        search(body)


def test_what_an_added_evaluator_raises_names_its_task(search: Search, body: dict[str, Any]) -> None:
    body["evaluation"]["tasks"]["signs"]["options"]["fail"] = "no such sign\nsecond line"
    with pytest.raises(JobFailed, match="scoring task 'signs' failed: StandInError: no such sign") as failed:
        search(body)
    assert failed.value.code == "evaluation_failed"
    assert "second line" not in failed.value.message


def test_foreground_search(search: Search, ray_session: str, body: dict[str, Any], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(body | {"methods": ["median"], "scaling": [0.5, 1.0]}))
    settings = {"TAUMERGE_WORKERS": "1", "TAUMERGE_ACCELERATOR_TYPE": "V100", "RAY_ADDRESS": ray_session}
    done = subprocess.run(
        [sys.executable, "-m", "workers.search", str(recipe)],
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | settings,
    )
    assert done.returncode == 0, done.stderr
    assert len(SearchResult.model_validate_json(done.stdout).evaluations) == 2
    assert "evaluate: 100 % of 2 evaluations" in done.stderr
    assert "Traceback" not in done.stderr
