"""Merges from a real S3 server to it: the bytes of a local merge, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import Fault, Request, S3Server

from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import DiagnoseRequest, MergeResult, Progress
from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.files import RECEIPT, UNFINISHED
from workers.diagnostics import run_diagnose
from workers.settings import WorkerSettings

Merge = Callable[..., MergeResult]


@pytest.fixture
def body(s3: S3Server, golden_body: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The golden merge, from S3 to S3."""
    prefix = tmp_path.name
    models = [
        s3.put(uri, "models", f"{prefix}/in/{Path(uri).name}")
        for uri in (golden_body["base"], *golden_body["models"])
    ]
    s3.requests.clear()
    return golden_body | {"base": models[0], "models": models[1:], "output": f"s3://models/{prefix}/out"}


def out(body: dict[str, Any]) -> str:
    return str(body["output"]).removeprefix("s3://models/")


def test_the_files_are_those_of_a_local_merge(
    merge: Merge, s3: S3Server, golden_body: dict[str, Any], body: dict[str, Any]
) -> None:
    local, remote = merge(golden_body), merge(body)
    assert remote.files == local.files
    assert len(remote.files) > 1
    assert remote.merged_norm == local.merged_norm
    directory = Path(golden_body["output"])
    names = sorted(path.name for path in directory.iterdir())
    assert s3.names("models", out(body)) == names
    for name in names:
        if name != RECEIPT:
            assert s3.content("models", f"{out(body)}/{name}") == (directory / name).read_bytes()
    receipt = json.loads(s3.content("models", f"{out(body)}/{RECEIPT}"))
    assert all(file["version"] for file in receipt["inputs"]["base"]["files"])
    assert open_checkpoint(body["output"]).tensors == open_checkpoint(golden_body["output"]).tensors


def test_a_diagnosis_reads_what_a_merge_reads(
    warm_workers: WorkerSettings, golden_body: dict[str, Any], body: dict[str, Any]
) -> None:
    local, remote = (
        run_diagnose(
            DiagnoseRequest(base=one["base"], models=one["models"]),
            warm_workers,
            lambda progress: None,
            detached=True,
        )
        for one in (golden_body, body)
    )
    assert remote.cosine == local.cosine
    assert remote.verdict == local.verdict
    assert [model.uri for model in remote.models] == body["models"]


def test_the_receipt_is_uploaded_last(merge: Merge, s3: S3Server, body: dict[str, Any]) -> None:
    merge(body)
    written = [
        one.path.rpartition("/")[2]
        for one in s3.requests
        if one.method in ("PUT", "DELETE")
        and f"/{out(body)}/" in one.path
        and f"{UNFINISHED}-" not in one.path
    ]
    assert written[0] == written[-1] == UNFINISHED
    assert written[-2] == RECEIPT
    assert written[-3].endswith(".index.json")


def test_a_busy_store_and_a_bad_network_change_no_byte(
    merge: Merge, s3: S3Server, golden_body: dict[str, Any], body: dict[str, Any]
) -> None:
    local = merge(golden_body)
    count = 0

    def faults(request: Request) -> Fault | None:
        nonlocal count
        count += 1
        kinds = {3: Fault("status", 503), 4: Fault("reset", 100), 5: Fault("short", 50)}
        return kinds.get(count % 7) if request.method == "GET" and request.range else None

    s3.faults = faults
    assert merge(body).files == local.files


def test_an_object_replaced_during_the_merge_fails_it(
    merge: Merge, s3: S3Server, body: dict[str, Any]
) -> None:
    model = body["models"][1].removeprefix("s3://models/") + "/model.safetensors"
    content = bytearray(s3.content("models", model))
    content[-1] ^= 1

    def replace(progress: Progress) -> None:
        if progress.phase == "aggregate" and content:
            s3.client.put_object(Bucket="models", Key=model, Body=bytes(content))
            content.clear()

    with pytest.raises(JobFailed) as failed:
        merge(body, replace)
    assert failed.value.code == "input_changed"
    assert s3.names("models", out(body)) == []


def test_an_existing_output_is_refused_and_replaced_on_demand(
    merge: Merge, s3: S3Server, body: dict[str, Any]
) -> None:
    s3.client.put_object(Bucket="models", Key=f"{out(body)}/model.safetensors", Body=b"old")
    s3.client.put_object(Bucket="models", Key=f"{out(body)}/old.txt", Body=b"old")
    s3.client.put_object(Bucket="models", Key=f"{out(body)}/deeper/old.txt", Body=b"old")
    with pytest.raises(InvalidRequest) as refused:
        merge(body)
    assert [(item.loc, item.code) for item in refused.value.errors] == [(("output",), "output_exists")]
    merge(body | {"overwrite": True})
    names = s3.names("models", out(body))
    assert RECEIPT in names
    assert "deeper/old.txt" in names
    assert not {"old.txt", "model.safetensors", UNFINISHED} & set(names)


def test_what_another_merge_writes_is_left_alone(merge: Merge, s3: S3Server, body: dict[str, Any]) -> None:
    s3.client.put_object(Bucket="models", Key=f"{out(body)}/{UNFINISHED}", Body=b"another")
    with pytest.raises(JobFailed) as failed:
        merge(body)
    assert failed.value.code == "output_exists"
    assert s3.names("models", out(body)) == [UNFINISHED]
    merge(body | {"overwrite": True})
    assert UNFINISHED not in s3.names("models", out(body))


def test_something_that_appears_meanwhile_stays(merge: Merge, s3: S3Server, body: dict[str, Any]) -> None:
    def appear(progress: Progress) -> None:
        if progress.phase == "aggregate":
            s3.client.put_object(Bucket="models", Key=f"{out(body)}/theirs", Body=b"theirs")

    with pytest.raises(JobFailed) as failed:
        merge(body, appear)
    assert failed.value.code == "output_exists"
    assert s3.names("models", out(body)) == ["theirs"]


def test_a_job_that_ended_unseen_is_not_done_again(merge: Merge, s3: S3Server, body: dict[str, Any]) -> None:
    first = merge(body, job_id="merge-1")
    s3.requests.clear()
    assert merge(body, job_id="merge-1").files == first.files
    assert not [one for one in s3.requests if one.method == "PUT"]


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("s3://models", "output_not_writable"),
        ("s3://models/x.safetensors", "output_not_directory"),
        ("{base}", "output_inside_input"),
        ("{base}/deeper", "output_inside_input"),
        ("hf://owner/repo", "unsupported_uri"),
        ("s3://models/a/../b", "unsupported_uri"),
        ("s3://no-such-bucket/out", "output_not_writable"),
    ],
)
def test_outputs_that_cannot_be_written(merge: Merge, body: dict[str, Any], output: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        merge(body | {"output": output.format(base=body["base"])})
    assert [(item.loc, item.code) for item in refused.value.errors] == [(("output",), code)]
