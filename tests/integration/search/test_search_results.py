"""What a search finds, against merges to disk that are loaded and scored one by one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import perceptrons
import pytest
import ray
import torch
from checkpoint_files import save
from perceptrons import INPUTS, TASKS, logged, search_body
from ray._private.internal_api import node_stats
from safetensors.torch import load_file
from standin_evaluator import StandIn

from taumerge.schemas import EvaluationSpec, Progress, SearchResult
from workers.merging import plan as plan_module
from workers.search import run as run_module

Search = Callable[..., SearchResult]
Merge = Callable[..., Any]

METHODS: list[dict[str, Any]] = [
    {"name": "task_arithmetic", "scale": ["sum", "mean"]},
    {"name": "fednova"},
    {"name": "fedgma"},
    {"name": "median", "even": ["midpoint", "lower"]},
    {"name": "cclip", "rho": [0.5, 4.0, 1e6]},
]


def plain_scores(directory: str, body: dict[str, Any], split: Any) -> dict[str, float]:
    """The scores of a checkpoint that is loaded from the disk."""
    spec = EvaluationSpec.model_validate(body["evaluation"])
    for task in spec.tasks.values():
        task.options.pop("log", None)
    loaded = StandIn(directory, spec)
    return {task: loaded.evaluate(task, split) for task in TASKS}


def normalised(scores: dict[str, float], individual: dict[str, float]) -> float:
    return fmean(scores[task] / individual[task] for task in TASKS)


def test_an_exhaustive_search_is_a_plain_loop_of_merges_to_the_last_digit(
    search: Search, merge: Merge, body: dict[str, Any], tmp_path: Path
) -> None:
    heard: list[Progress] = []
    body["evaluation"]["evaluators"] = len(TASKS)
    result = search(body | {"methods": METHODS}, heard.append, job_id="search-1")
    evaluations = len(logged(tmp_path))

    # 2 + 1 + 9 + 2 + 3 candidates, of which some are the same V
    assert len(result.evaluations) == 17 * 5
    by_uri = {model["task"]: model["uri"] for model in body["models"]}
    individual = {
        split: {task: plain_scores(by_uri[task], body, split)[task] for task in TASKS}
        for split in ("validation", "test")
    }
    for split, scores in individual.items():
        assert result.individual[split].tasks == scores
        assert result.zero_shot[split].tasks == plain_scores(body["base"], body, split)
    for number, one in enumerate(result.evaluations):
        request = {
            "base": body["base"],
            "models": list(by_uri.values()),
            "method": one.method,
            "scaling": one.scaling,
            "output": str(tmp_path / "loop" / str(number)),
        }
        merge(request)
        scores = plain_scores(request["output"], body, "validation")
        assert one.tasks == scores
        assert one.score == normalised(scores, individual["validation"])
        assert one.average == fmean(scores.values())
        if one == best_of(result.evaluations):
            winner = request

    # the winner on disk is the merge that the loop made
    best = result.best
    assert (best.method, best.scaling) == (winner["method"], winner["scaling"])
    written, expected = Path(body["output"]), Path(winner["output"])
    assert (written / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    receipt = json.loads((written / "taumerge.json").read_text())
    assert (receipt["job"], receipt["method"], receipt["request"]["scaling"]) == (
        "search-1",
        best.method,
        best.scaling,
    )
    assert best.test is not None
    test = plain_scores(body["output"], body, "test")
    assert (best.test.tasks, best.test.score) == (test, normalised(test, individual["test"]))
    for name, of_rule in result.best_by_method.items():
        mine = [one for one in result.evaluations if one.method["name"] == name]
        assert of_rule.model_dump(exclude={"test"}) == best_of(mine).model_dump()
        assert of_rule.test is not None

    # equal directions are evaluated once: with three models A is 1/3 or 1, so nine ρ are two masks, one of which damps
    # nothing, as task_arithmetic; nor does a radius beyond all norms; the median of three is the same both ways
    distinct = 2 + 1 + 1 + 1 + 2
    tests = {(json.dumps(one.method), one.scaling) for one in result.best_by_method.values()}
    assert len(TASKS) * (distinct * 5 + 2) + 2 * len(TASKS) <= evaluations
    assert evaluations <= len(TASKS) * (distinct * 5 + 2 + len(tests)) + 2 * len(TASKS)

    assert f"{distinct * 5} evaluations, as equal merges share one" in (written / "report.html").read_text()

    # the evidence lies beside the weights, and nothing else does
    assert SearchResult.model_validate_json((written / "search.json").read_text()).best == best
    assert {"search.parquet", "report.html", "score.png", "tasks.png"} <= {
        path.name for path in written.iterdir()
    }
    assert [path.name for path in written.iterdir() if path.name.startswith(".")] == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".best")] == []

    # progress
    evaluate = [one for one in heard if one.phase == "evaluate"]
    assert all(first.done <= second.done for first, second in pairwise(evaluate))
    assert evaluate[-1].total == distinct * 5
    assert evaluate[-1].metrics["evaluators"] == 3
    assert {one.phase for one in heard} >= {"measure", "directions", "baseline", "evaluate", "test"}
    assert result.complete
    assert result.seconds["evaluate"] > 0

    # another attempt of a job whose output is in place takes it as its result
    again = search(body | {"methods": METHODS}, job_id="search-1")
    assert again.evaluations == result.evaluations
    assert len(logged(tmp_path)) == evaluations


def best_of(evaluations: list[Any]) -> Any:
    return max(evaluations, key=lambda one: one.score)


def test_what_fits_neither_the_object_store_nor_its_type(
    search: Search, merge: Merge, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """V is computed unit by unit for every λ; where a merged value overflows there is no score."""
    for number, model in enumerate(body["models"]):
        tensors = load_file(Path(model["uri"]) / "model.safetensors")
        tensors["head.bias"] = torch.full_like(tensors["head.bias"], 20000.0)
        model["uri"] = save(tmp_path / f"huge-{number}", tensors)
    monkeypatch.setattr(run_module, "room_for_directions", lambda: 100)
    monkeypatch.setattr(plan_module, "SLICE", 64)  # several units
    result = search(body | {"methods": ["task_arithmetic"], "scaling": [0.5, 1.0, 1.5, 2.0]})
    assert [one.scaling for one in result.evaluations] == [0.5, 1.0]
    assert any("2 λ from 1.5 on" in warning and "head.bias" in warning for warning in result.warnings)
    assert any("object store" in warning for warning in result.warnings)
    for one in result.evaluations:
        output = str(tmp_path / f"merged-{one.scaling}")
        models = [model["uri"] for model in body["models"]]
        merge(
            {"base": body["base"], "models": models, "method": one.method, "scaling": one.scaling}
            | {"output": output}
        )
        assert one.tasks == plain_scores(output, body, "validation")


def stored() -> int:
    """Bytes in the object store."""
    [node] = [one for one in ray.nodes() if one["Alive"]]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return int(stats.store_stats.object_store_bytes_used)


def test_nothing_of_the_searches_of_a_process_stays_in_the_object_store(
    search: Search, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hidden = 4096  # so that V of a rule takes 256 KiB and more
    monkeypatch.setitem(perceptrons.SHAPES, "body.weight", (hidden, INPUTS))
    monkeypatch.setitem(perceptrons.SHAPES, "head.weight", (perceptrons.CLASSES, hidden))
    body = search_body(tmp_path) | {"methods": ["task_arithmetic", "median"], "scaling": [0.3, 1.0]}
    before, during = stored(), 0

    def watch(progress: Progress) -> None:
        nonlocal during
        if progress.phase == "evaluate":
            during = max(during, stored() - before)

    for number in range(3):
        search(body | {"output": str(tmp_path / str(number))}, watch)
    assert during > 2 * hidden * INPUTS * 4
    deadline = time.monotonic() + 20
    while (left := stored() - before) > hidden * INPUTS * 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left < hidden * INPUTS * 4
