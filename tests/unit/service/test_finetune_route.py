"""POST /finetune: what is queued, what is refused and where, and what becomes of its result."""

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
from taumerge.schemas import FinetuneResult, Job, MergeRequest, Plan, TrialResult

RESULT = FinetuneResult(
    output="/out",
    trials=[
        TrialResult(output="/out", learning_rate=1e-5, steps=2000, lr_sum=0.01, validation={"accuracy": 0.9})
    ],
    seconds={"finetune": 12.5},
)


def no_merge(request: MergeRequest) -> Plan:
    raise AssertionError("a fine-tune is not planned as a merge")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/jobs.sqlite3")
    yield store
    store.close()


@pytest.fixture
def http(tmp_path: Path, store: Store) -> TestClient:
    settings = Settings(
        read_roots=str(tmp_path / "in"), write_roots=str(tmp_path / "made"), state_dir=tmp_path / "state"
    )
    return TestClient(
        create_app(settings, store, plan=no_merge, wake=lambda kind: None), base_url="http://127.0.0.1:8000"
    )


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    base = Path(save(tmp_path / "in" / "base", {"a": torch.zeros(2)}))
    (base / "open_clip_config.json").write_text("{}")
    (tmp_path / "made").mkdir()
    (tmp_path / "in" / "data").mkdir()
    return {
        "base": str(base),
        "task": {"kind": "clip", "dataset": {"name": "mnist", "root": f"file://{tmp_path}/in/data"}},
        "output": str(tmp_path / "made" / "ft"),
    }


def test_a_fine_tune_is_queued(http: TestClient, store: Store, body: dict[str, Any]) -> None:
    answer = http.post("/finetune", json=body)
    assert answer.status_code == 202
    job = Job.model_validate_json(answer.content)
    assert (job.kind, job.state, answer.headers["location"]) == ("finetune", "queued", f"/jobs/{job.id}")
    assert job.request["train"]["steps"] == 2000
    listed = http.get("/jobs?kind=finetune").json()["jobs"]
    assert [one["id"] for one in listed] == [job.id]
    assert http.get("/jobs?kind=merge").json()["jobs"] == []


def test_a_repeated_request_gives_the_same_job(http: TestClient, body: dict[str, Any]) -> None:
    headers = {"Idempotency-Key": "k"}
    first, again = (http.post("/finetune", json=body, headers=headers) for _ in range(2))
    assert first.json()["id"] == again.json()["id"]
    other = body | {"train": {"steps": 3}}
    assert http.post("/finetune", json=other, headers=headers).status_code == 409


def test_its_result_is_shown(http: TestClient, store: Store, body: dict[str, Any]) -> None:
    job_id = http.post("/finetune", json=body).json()["id"]
    claim = store.claim("runner", lease_seconds=60, max_attempts=3)
    assert claim is not None
    assert claim.kind == "finetune"
    store.succeed(claim, RESULT)
    job = Job.model_validate_json(http.get(f"/jobs/{job_id}").content)
    assert job.result == RESULT
    assert store.totals() == {}  # those are of merges


@pytest.mark.parametrize(
    ("change", "loc", "code"),
    [
        ({"base": "/elsewhere/base"}, ["base"], "not_allowed"),
        ({"output": "/elsewhere/ft"}, ["output"], "not_allowed"),
        (
            {"task": {"kind": "clip", "dataset": {"name": "mnist", "root": "/elsewhere"}}},
            ["task", "dataset", "root"],
            "not_allowed",
        ),
        (
            {"task": {"kind": "clip", "dataset": {"uri": "/elsewhere", "format": "image_folder"}}},
            ["task", "dataset", "uri"],
            "not_allowed",
        ),
        ({"adapter": {"kind": "qlora"}}, ["adapter", "kind"], "wrong_kind"),
        ({"grid": "all"}, None, None),
    ],
)
def test_a_refusal_is_located(
    http: TestClient, body: dict[str, Any], change: dict[str, Any], loc: list[str] | None, code: str | None
) -> None:
    answer = http.post("/finetune", json=body | change)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    if loc is not None:
        assert (loc, code) in [(error["loc"], error["code"]) for error in answer.json()["errors"]]
    assert http.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize("name", ["a" * 240, "a" * 300, "a/" * 3000 + "a"])
def test_names_that_no_disk_takes_are_refused(
    http: TestClient, body: dict[str, Any], tmp_path: Path, name: str
) -> None:
    answer = http.post("/finetune", json=body | {"output": f"{tmp_path}/made/{name}"})
    assert answer.status_code == 422
    assert [(one["loc"], one["code"]) for one in answer.json()["errors"]] == [
        (["output"], "output_not_writable")
    ]
    assert http.post("/finetune", json=body | {"base": f"{tmp_path}/in/{name}"}).status_code == 422


def test_a_model_by_name_is_in_no_root(http: TestClient, body: dict[str, Any]) -> None:
    assert http.post("/finetune", json=body | {"base": "open_clip://ViT-B-32/openai"}).status_code == 202
