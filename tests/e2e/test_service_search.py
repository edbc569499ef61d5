"""A search and a diagnosis through the running service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest

from taumerge import Client, InvalidRequest, Job, SearchResult


@pytest.fixture(scope="module")
def request_body(service: Any, inputs: Path, body: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A search over two fine-tunes of the toy model."""
    with Client(service.url) as client:
        jobs = [client.finetune(body(f"searched-{steps}", steps=steps)) for steps in (5, 15)]
        for job in jobs:
            client.wait(job.id, timeout=180)
    dataset = {"uri": str(inputs / "data"), "format": "image_folder"}
    return {
        "base": str(inputs / "base"),
        "models": [{"uri": str(inputs / f"searched-{steps}"), "task": f"task-{steps}"} for steps in (5, 15)],
        "methods": ["task_arithmetic", {"name": "fednova", "scale": ["sum", "mean"]}],
        "scaling": [0.5, 1.0],
        "evaluation": {
            "kind": "clip",
            "tasks": {f"task-{steps}": {"dataset": dataset} for steps in (5, 15)},
            "report_on": None,
        },
        "output": str(inputs / "best"),
    }


def test_a_search_writes_the_best_merge_with_its_evidence(
    service: Any, inputs: Path, request_body: dict[str, Any]
) -> None:
    with Client(service.url) as client:
        job = client.wait(client.search(request_body).id, timeout=240)
    result = job.result
    assert isinstance(result, SearchResult)
    assert len(result.evaluations) == 6
    assert result.complete
    assert result.best.score == max(one.score for one in result.evaluations)
    best = inputs / "best"
    receipt = json.loads((best / "taumerge.json").read_text())
    assert receipt["request"]["scaling"] == result.best.scaling
    assert receipt["method"] == result.best.method
    assert {"search.json", "search.parquet", "report.html"} <= {path.name for path in best.iterdir()}
    assert json.loads((best / "search.json").read_text())["best"]["score"] == result.best.score
    assert open_clip.create_model(f"local-dir:{best}").visual.image_size == (32, 32)


def test_searches_that_begin_together_keep_apart(
    service: Any, inputs: Path, request_body: dict[str, Any]
) -> None:
    bodies = [
        request_body | {"methods": ["median"], "scaling": [0.25, 1.5, 3.0], "output": str(inputs / "median")},
        request_body | {"methods": ["task_arithmetic"], "output": str(inputs / "plain")},
    ]

    def found(job: Job) -> list[tuple[str, float, float]]:
        assert isinstance(job.result, SearchResult)
        return [(one.method["name"], one.scaling, one.score) for one in job.result.evaluations]

    with Client(service.url) as client:
        jobs = [client.search(body) for body in bodies]
        together = [found(client.wait(job.id, timeout=240)) for job in jobs]
        alone = [
            found(client.wait(client.search(body | {"overwrite": True}).id, timeout=240)) for body in bodies
        ]
    assert together == alone
    assert [len(one) for one in together] == [3, 2]


def test_a_search_that_cannot_run_is_refused_where_it_is_wrong(
    service: Any, request_body: dict[str, Any]
) -> None:
    models = [request_body["models"][0], request_body["models"][1] | {"task": "nobody"}]
    with Client(service.url) as client, pytest.raises(InvalidRequest) as refused:
        client.search(request_body | {"models": models, "output": request_body["output"] + "-2"})
    assert ("models", 1, "task") in {error.loc for error in refused.value.errors}


def test_a_diagnosis_tells_how_differently_the_models_were_trained(
    service: Any, inputs: Path, request_body: dict[str, Any]
) -> None:
    models = [model["uri"] for model in request_body["models"]]
    with Client(service.url) as client:
        job = client.diagnose(base=request_body["base"], models=models, output=str(inputs / "diagnosis"))
        result = client.wait(job.id, timeout=60).result
    sums = [1e-3 * (steps / 2 + 1) for steps in (5, 15)]
    effective = [one / sum(sums) for one in sums]
    assert [model.effective_weight for model in result.models] == pytest.approx(effective)
    assert result.chi_square == pytest.approx(sum((0.5 - w) ** 2 / w for w in effective))
    assert (inputs / "diagnosis" / "report.html").is_file()
