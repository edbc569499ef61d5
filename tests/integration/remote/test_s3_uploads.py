"""Outputs on a real S3 server: multipart uploads that break off, and go on."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from checkpoint_files import random_checkpoints
from in_process import merge_in_process
from s3_server import Fault, S3Server

from taumerge.errors import JobFailed
from taumerge.schemas import MergeRequest
from workers.checkpoints.files import RECEIPT, UNFINISHED
from workers.checkpoints.layout import lay_out
from workers.checkpoints.remote import s3 as s3_store
from workers.checkpoints.remote.path import parse_remote
from workers.checkpoints.remote.staging import RemoteStaging
from workers.checkpoints.writing import FileWriter
from workers.merging.preflight import plan_merge
from workers.merging.shard import ShardWorker

FILES = lay_out(
    [("a", "U8", (11_000_000,)), ("b", "U8", (12_000_000,))],
    stem="model",
    max_shard_bytes=12_000_000,
    metadata={},
)
NAMES = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"
ALL = [*NAMES, INDEX, RECEIPT]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 * 2**20)  # the smallest that S3 takes


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"{tmp_path.name}/out"


def staged(prefix: str, work: Path, identity: str = "0123456789abcdef0") -> RemoteStaging:
    """A finished output in its work directory."""
    staging = RemoteStaging(parse_remote(f"s3://models/{prefix}"), identity, work)
    staging.create(FILES)
    for file in FILES:
        with FileWriter(staging.path / file.name) as writer:
            for offset, nbytes in file.tensors.values():
                writer.write_at(memoryview(os.urandom(nbytes)), offset)
        staging.finish(file.name, {})
    staging.write_text(INDEX, "{}")
    staging.write_text(RECEIPT, "{}")
    return staging


def test_two_workers_write_the_bytes_of_a_local_merge(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    base, models = random_checkpoints(tmp_path / "in", 3, [torch.float32, torch.bfloat16])
    stored = [s3.put(uri, "models", f"{prefix}/{Path(uri).name}") for uri in (base, *models)]
    body = {
        "method": {"name": "cclip", "rho": 2.0},
        "scaling": 0.3,
        "max_shard_size": "150KB",
        "statistics": "full",
    }
    output = f"s3://models/{prefix}/merged"
    here = {"base": base, "models": models, "output": str(tmp_path / "merged")}
    there = {"base": stored[0], "models": stored[1:], "output": output}
    digests = []
    for places in (here, there):
        plan = plan_merge(MergeRequest.model_validate(body | places), workers=2, worker_memory=0)
        merged = merge_in_process(
            plan, [ShardWorker(0), ShardWorker(1 << 20)], name="merge", work=tmp_path / "work"
        )
        digests.append(merged.digests)
    assert digests[0] == digests[1]
    assert len(digests[1]) > 1
    ahead = plan.describe().peak_memory_bytes - plan.peak_memory(0, 0)
    assert ahead == 2 * max(unit.input_bytes for unit in plan.units())
    merged.staging.commit(overwrite=False)
    uploaded = [s3.content("models", f"{prefix}/merged/{file.name}") for file in plan.files]
    assert [hashlib.sha256(content).hexdigest() for content in uploaded] == digests[0]


def test_parts_arrive_as_one_object(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    staging = staged(prefix, tmp_path / "work")
    expected = {name: (staging.path / name).read_bytes() for name in NAMES}
    s3.requests.clear()
    staging.commit(overwrite=False)
    assert {name: s3.content("models", f"{prefix}/{name}") for name in NAMES} == expected
    assert s3.names("models", prefix) == ALL
    parts = [one for one in s3.requests if one.method == "PUT" and one.path.endswith(NAMES[1])]
    assert len(parts) == 3
    assert not (tmp_path / "work").exists() or not any((tmp_path / "work").iterdir())


def test_an_attempt_goes_on_with_what_is_uploaded(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    staging = staged(prefix, tmp_path / "work")
    s3.faults = lambda request: (
        Fault("status", 400) if request.method != "GET" and request.path.endswith(NAMES[1]) else None
    )
    with pytest.raises(JobFailed) as failed:
        staging.commit(overwrite=False)
    assert failed.value.code == "output_unwritable"
    assert s3.names("models", prefix) == [UNFINISHED, NAMES[0]]
    s3.faults = lambda request: None
    s3.requests.clear()
    again = RemoteStaging(staging.place, "0123456789abcdef0", tmp_path / "work")
    again.create(FILES)
    assert sorted(again.finished()) == NAMES
    again.commit(overwrite=False)
    assert s3.names("models", prefix) == ALL
    assert not [one for one in s3.requests if one.method in ("PUT", "POST") and one.path.endswith(NAMES[0])]


def test_discarding_removes_what_was_uploaded(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    staging = staged(prefix, tmp_path / "work")
    s3.client.put_object(Bucket="models", Key=f"{prefix}/deeper/theirs", Body=b"")
    s3.faults = lambda request: Fault("status", 400) if request.path.endswith(RECEIPT) else None
    with pytest.raises(JobFailed):
        staging.commit(overwrite=False)
    s3.faults = lambda request: None
    staging.discard()
    assert s3.names("models", prefix) == ["deeper/theirs"]
    assert not staging.path.exists()


def store_old(s3: S3Server, prefix: str, names: Sequence[str]) -> None:
    """A checkpoint that lies at the output already."""
    for name in names:
        s3.client.put_object(Bucket="models", Key=f"{prefix}/{name}", Body=b"old")


def fail_at(s3: S3Server, name: str) -> None:
    s3.faults = lambda request: (
        Fault("status", 400) if request.method != "GET" and request.path.endswith(name) else None
    )


def test_what_is_overwritten_stays_until_something_replaces_it(
    s3: S3Server, prefix: str, tmp_path: Path
) -> None:
    old = [NAMES[0], INDEX, RECEIPT, "model-00003-of-00003.safetensors"]
    store_old(s3, prefix, old)
    staging = staged(prefix, tmp_path / "work")
    fail_at(s3, NAMES[0])
    with pytest.raises(JobFailed):
        staging.commit(overwrite=True)
    assert s3.names("models", prefix) == sorted([UNFINISHED, *old])
    s3.faults = lambda request: None
    staging.discard()
    assert s3.names("models", prefix) == sorted(old)
    assert {s3.content("models", f"{prefix}/{name}") for name in old} == {b"old"}


def test_what_is_overwritten_goes_as_a_whole(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    store_old(s3, prefix, [NAMES[0], INDEX, RECEIPT, "model-00003-of-00003.safetensors"])
    staging = staged(prefix, tmp_path / "work")
    fail_at(s3, NAMES[1])
    with pytest.raises(JobFailed):
        staging.commit(overwrite=True)
    assert s3.names("models", prefix) == [UNFINISHED, NAMES[0]]
    s3.faults = lambda request: None
    staging.discard()
    assert s3.names("models", prefix) == []


def test_an_overwrite_goes_on_after_a_crash(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_old(s3, prefix, [INDEX, "model.safetensors", "config.json"])
    first = staged(prefix, tmp_path / "work")
    monkeypatch.setattr(first, "_clear", lambda uploaded: sys.exit("killed"))
    with pytest.raises(SystemExit):  # the index has replaced the old one
        first.commit(overwrite=True)
    assert s3.names("models", prefix) == sorted(
        [UNFINISHED, *NAMES, INDEX, "model.safetensors", "config.json"]
    )
    again = RemoteStaging(first.place, "0123456789abcdef0", tmp_path / "work")
    again.commit(overwrite=True)
    assert s3.names("models", prefix) == ALL
    assert b"old" not in {s3.content("models", f"{prefix}/{name}") for name in ALL}


def test_a_crash_after_something_was_replaced_leaves_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_old(s3, prefix, [INDEX, "model.safetensors", "config.json"])
    staging = staged(prefix, tmp_path / "work")
    monkeypatch.setattr(staging, "_clear", lambda uploaded: sys.exit("killed"))
    with pytest.raises(SystemExit):
        staging.commit(overwrite=True)
    RemoteStaging(staging.place, "0123456789abcdef0", tmp_path / "work").discard()
    assert s3.names("models", prefix) == []


def test_what_a_dead_merge_left_goes_whatever_becomes_of_the_next(
    s3: S3Server, prefix: str, tmp_path: Path
) -> None:
    dead, second = staged(prefix, tmp_path / "1"), staged(prefix, tmp_path / "2", "fedcba98765432100")
    fail_at(s3, INDEX)
    with pytest.raises(JobFailed):
        dead.commit(overwrite=False)
    assert s3.names("models", prefix) == [UNFINISHED, *NAMES]
    fail_at(s3, NAMES[0])
    with pytest.raises(JobFailed):
        second.commit(overwrite=True)
    s3.faults = lambda request: None
    second.discard()
    assert s3.names("models", prefix) == []


def test_parts_are_repeated(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    staging = staged(prefix, tmp_path / "work")
    expected = (staging.path / NAMES[0]).read_bytes()
    failed: set[str] = set()

    def once(request: object) -> Fault | None:
        key = f"{request}"
        if "PUT" not in key or key in failed:
            return None
        failed.add(key)
        return Fault("status", 503)

    s3.faults = once
    staging.commit(overwrite=False)
    assert s3.content("models", f"{prefix}/{NAMES[0]}") == expected


def test_a_merge_that_lost_its_place_to_another_says_so(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = staged(prefix, tmp_path / "1"), staged(prefix, tmp_path / "2", "fedcba98765432100")
    check = first._check

    def overtaken(uploaded: Mapping[str, str]) -> None:
        second._claim(overwrite=True)
        check(uploaded)

    monkeypatch.setattr(first, "_check", overtaken)
    with pytest.raises(JobFailed) as failed:
        first.commit(overwrite=False)
    assert failed.value.code == "output_exists"
    first.discard()
    assert s3.names("models", prefix) == [UNFINISHED]
    second.commit(overwrite=True)
    assert s3.names("models", prefix) == ALL


def test_a_bucket_that_cannot_be_written_shows_at_once(s3: S3Server, tmp_path: Path) -> None:
    s3.faults = lambda request: Fault("status", 403) if request.method == "PUT" else None
    staging = RemoteStaging(parse_remote("s3://models/denied"), "0123456789abcdef0", tmp_path / "work")
    with pytest.raises(JobFailed) as failed:
        staging.create(FILES)
    assert failed.value.code == "output_unwritable"
    assert not staging.path.exists()
