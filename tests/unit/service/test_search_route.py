"""POST /search and POST /diagnose: what is queued, and what is refused and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from service.store import Store
from taumerge.schemas import Job, MergeRequest, Plan

TENSORS = {"weight": torch.ones(4, 3), "bias": torch.zeros(3)}


def no_merge(request: MergeRequest) -> Plan:
    raise AssertionError("this is not planned as a merge")


@pytest.fixture
def http(tmp_path: Path) -> Iterator[TestClient]:
    store = Store.open(f"sqlite:///{tmp_path}/jobs.sqlite3")
    settings = Settings(
        read_roots=str(tmp_path / "in"), write_roots=str(tmp_path / "made"), state_dir=tmp_path / "state"
    )
    yield TestClient(
        create_app(settings, store, plan=no_merge, wake=lambda kind: None), base_url="http://127.0.0.1:8000"
    )
    store.close()


@pytest.fixture
def search(tmp_path: Path) -> dict[str, Any]:
    """A search that can be queued."""
    base = save(tmp_path / "in" / "base", TENSORS)
    (Path(base) / "open_clip_config.json").write_text("{}")
    models = [save(tmp_path / "in" / name, TENSORS, training={"steps": 10, "lr_sum": 0.1}) for name in "ab"]
    (tmp_path / "made").mkdir()
    (tmp_path / "in" / "data" / "MNIST").mkdir(parents=True)
    dataset = {"name": "mnist", "root": str(tmp_path / "in" / "data")}
    return {
        "base": base,
        "models": [{"uri": uri, "task": f"task-{index}"} for index, uri in enumerate(models)],
        "evaluation": {"kind": "clip", "tasks": {f"task-{index}": {"dataset": dataset} for index in (0, 1)}},
        "output": str(tmp_path / "made" / "best"),
    }


@pytest.fixture
def diagnosis(search: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A diagnosis that can be queued."""
    return {
        "base": search["base"],
        "models": [model["uri"] for model in search["models"]],
        "output": str(tmp_path / "made" / "diagnosis"),
    }


@pytest.mark.parametrize("kind", ["search", "diagnose"])
def test_a_job_is_queued(
    http: TestClient, search: dict[str, Any], diagnosis: dict[str, Any], kind: str
) -> None:
    answer = http.post(f"/{kind}", json=search if kind == "search" else diagnosis)
    assert answer.status_code == 202, answer.text
    job = Job.model_validate_json(answer.content)
    assert (job.kind, job.state, answer.headers["location"]) == (kind, "queued", f"/jobs/{job.id}")
    assert [one["id"] for one in http.get(f"/jobs?kind={kind}").json()["jobs"]] == [job.id]


def test_a_diagnosis_needs_no_output(http: TestClient, diagnosis: dict[str, Any]) -> None:
    assert http.post("/diagnose", json=diagnosis | {"output": None}).status_code == 202


def refused(http: TestClient, kind: str, body: dict[str, Any]) -> set[tuple[str, str]]:
    answer = http.post(f"/{kind}", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert http.get("/jobs").json()["jobs"] == []
    return {(".".join(map(str, error["loc"])), error["code"]) for error in answer.json()["errors"]}


@pytest.mark.parametrize(
    ("change", "place", "code"),
    [
        ({"base": "/elsewhere"}, "base", "not_allowed"),
        ({"output": "/elsewhere"}, "output", "not_allowed"),
        ({"methods": ["nonsense"]}, "methods.0.name", "unknown_method"),
        ({"methods": [{"name": "cclip", "rho": [1.0, -1.0]}]}, "methods.0.rho.1", "greater_than"),
        ({"scaling": []}, "scaling", "value_error"),
        ({"budget": {"evaluations": 0}}, "budget.evaluations", "greater_than_equal"),
    ],
)
def test_a_refusal_of_a_search_is_located(
    http: TestClient, search: dict[str, Any], change: dict[str, Any], place: str, code: str
) -> None:
    assert (place, code) in refused(http, "search", search | change)


def test_what_an_evaluation_reads_must_be_in_a_root(http: TestClient, search: dict[str, Any]) -> None:
    search["evaluation"]["tasks"]["task-1"] = {"dataset": {"name": "mnist", "root": "/elsewhere"}}
    assert ("evaluation.tasks.task-1.dataset.root", "not_allowed") in refused(http, "search", search)


def test_every_task_has_one_model(http: TestClient, search: dict[str, Any]) -> None:
    search["models"][1]["task"] = "nobody"
    assert ("models.1.task", "unknown_task") in refused(http, "search", search)


def test_fednova_needs_a_record_of_every_model(http: TestClient, search: dict[str, Any]) -> None:
    (Path(search["models"][0]["uri"]) / "training.json").unlink()
    assert ("models.0.training.steps", "missing_training") in refused(http, "search", search)


def test_a_diagnosis_outside_the_roots_is_refused(http: TestClient, diagnosis: dict[str, Any]) -> None:
    assert ("output", "not_allowed") in refused(http, "diagnose", diagnosis | {"output": "/elsewhere"})
