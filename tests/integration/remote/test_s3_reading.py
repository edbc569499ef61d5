"""Checkpoints on a real S3 server: what is read, how often, and what happens when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_files import random_checkpoints, save
from s3_server import Fault, Request, S3Server
from safetensors.torch import load_file

from taumerge.errors import JobFailed
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint, read_training
from workers.checkpoints.files import RECEIPT, UNFINISHED, read_small
from workers.checkpoints.reading import open_reader, unchanged
from workers.checkpoints.remote.fetching import ATTEMPTS
from workers.checkpoints.remote.reader import coalesced


@pytest.fixture
def stored(s3: S3Server, tmp_path: Path) -> str:
    """A checkpoint of 20 MB, of which the first tensor takes 64 KiB."""
    torch.manual_seed(0)
    tensors = {"a": torch.randn(128, 128), "b": torch.randn(5_000_000)}
    save(tmp_path / "big", tensors, training={"steps": 7, "lr_sum": 0.5})
    (tmp_path / "big" / "config.json").write_text("{}")
    uri = s3.put(tmp_path / "big", "models", f"{tmp_path.name}/big")
    s3.requests.clear()
    return uri


def every_second(fault: Fault) -> Callable[[Request], Fault | None]:
    """``fault`` at the first, third, … GET."""
    count = 0

    def faults(request: Request) -> Fault | None:
        nonlocal count
        count += request.method == "GET"
        return fault if request.method == "GET" and count % 2 else None

    return faults


def read_all(uri: str) -> bytes:
    file = open_checkpoint(uri).files[0]
    buffer = bytearray(file.state.size)
    with open_reader(file) as reader:
        reader.prefetch([(0, file.state.size)])
        reader.read_into(memoryview(buffer), 0)
    return bytes(buffer)


def test_a_checkpoint_opens_as_on_a_disk(stored: str, tmp_path: Path) -> None:
    ours, theirs = open_checkpoint(stored), open_checkpoint(str(tmp_path / "big"))
    assert ours.tensors == theirs.tensors
    assert read_training(ours) == read_training(theirs)
    assert [path.name for path in companions(ours)] == ["config.json"]
    assert read_small(ours.directory / "config.json", 100) == b"{}"


def test_a_header_is_one_read_of_64_kib(s3: S3Server, stored: str) -> None:
    open_checkpoint(stored)
    assert s3.reads("model.safetensors") == ["bytes=0-65535"]


def test_a_longer_header_is_read_in_two(s3: S3Server, tmp_path: Path) -> None:
    tensors = {f"layers.{number}.weight": torch.zeros(1) for number in range(2000)}
    uri = s3.put(save(tmp_path / "wide", tensors), "models", f"{tmp_path.name}/wide")
    assert open_checkpoint(uri).tensors.keys() == tensors.keys()
    first, second = s3.reads("model.safetensors")
    assert first == "bytes=0-65535"
    assert second is not None
    assert second.startswith("bytes=65536-")


def test_bytes_are_those_of_the_file_in_few_requests(s3: S3Server, stored: str, tmp_path: Path) -> None:
    assert read_all(stored) == (tmp_path / "big" / "model.safetensors").read_bytes()
    assert len(s3.reads("model.safetensors")) == 1 + 3  # 20 MB by 8 MiB


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 503),
        Fault("status", 429),
        Fault("status", 500),
        Fault("reset", 10_000),
        Fault("short", 10_000),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.number}",
)
def test_reads_are_repeated(s3: S3Server, stored: str, tmp_path: Path, fault: Fault) -> None:
    s3.faults = every_second(fault)
    assert read_all(stored) == (tmp_path / "big" / "model.safetensors").read_bytes()


def test_a_store_that_stays_busy_is_given_up(s3: S3Server, stored: str) -> None:
    file = open_checkpoint(stored).files[0]
    s3.requests.clear()
    s3.faults = lambda request: Fault("status", 503)
    with open_reader(file) as reader, pytest.raises(JobFailed) as failed:
        reader.read_into(memoryview(bytearray(8)), 0)
    assert failed.value.code == "input_unreadable"
    assert "SlowDown" in str(failed.value)
    assert len(s3.requests) == ATTEMPTS
    with pytest.raises(CheckpointError, match="busy") as refused:
        open_checkpoint(stored)
    assert refused.value.code == "checkpoint_unreadable"


def test_a_replaced_object_is_noticed(s3: S3Server, stored: str, tmp_path: Path) -> None:
    file = open_checkpoint(stored).files[0]
    assert unchanged(file)
    content = bytearray((tmp_path / "big" / "model.safetensors").read_bytes())
    content[-1] ^= 1  # the size stays
    key = stored.removeprefix("s3://models/") + "/model.safetensors"
    s3.client.put_object(Bucket="models", Key=key, Body=bytes(content))
    assert not unchanged(file)
    with open_reader(file) as reader, pytest.raises(JobFailed) as failed:
        reader.read_into(memoryview(bytearray(8)), 0)
    assert failed.value.code == "input_changed"
    s3.client.delete_object(Bucket="models", Key=key)
    with open_reader(file) as reader, pytest.raises(JobFailed) as failed:
        reader.read_into(memoryview(bytearray(8)), 0)
    assert failed.value.code == "input_changed"


def test_the_fingerprint_is_that_of_the_bytes(s3: S3Server, stored: str, tmp_path: Path) -> None:
    before = open_checkpoint(stored).fingerprint
    s3.put(tmp_path / "big", "models", f"{tmp_path.name}/big")
    assert open_checkpoint(stored).fingerprint == before
    changed = load_file(tmp_path / "big" / "model.safetensors")
    s3.put(save(tmp_path / "other", {**changed, "a": changed["a"] + 1}), "models", f"{tmp_path.name}/big")
    assert open_checkpoint(stored).fingerprint != before


def test_a_map_of_the_whole_file(stored: str, tmp_path: Path) -> None:
    with open_reader(open_checkpoint(stored).files[0]) as reader:
        mapped = reader.map()
    assert mapped[:] == (tmp_path / "big" / "model.safetensors").read_bytes()


def test_one_file_is_a_checkpoint(stored: str) -> None:
    opened = open_checkpoint(f"{stored}/model.safetensors")
    assert opened.stem == "model"
    assert companions(opened) == []


def test_shards_behind_an_index(s3: S3Server, tmp_path: Path) -> None:
    base, _ = random_checkpoints(tmp_path, 1, [torch.float32])
    uri = s3.put(base, "models", f"{tmp_path.name}/base")
    assert open_checkpoint(uri).tensors == open_checkpoint(base).tensors


@pytest.mark.parametrize("uri", ["s3://models/nothing", "s3://models/x.safetensors", "s3://no-such-bucket/a"])
def test_nothing_there(s3: S3Server, uri: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(uri)
    assert refused.value.code == "checkpoint_not_found"


def test_an_unfinished_output_is_no_checkpoint(s3: S3Server, stored: str) -> None:
    key = stored.removeprefix("s3://models/")
    s3.client.put_object(Bucket="models", Key=f"{key}/{RECEIPT}", Body=b"{}")
    s3.client.put_object(Bucket="models", Key=f"{key}/{UNFINISHED}", Body=b"x")
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(stored)
    assert refused.value.code == "unfinished_checkpoint"


def test_neighbouring_ranges_are_one_request() -> None:
    kib, mib = 1 << 10, 1 << 20
    near = [(0, 10), (300, 100 * kib), (150 * kib, kib)]
    assert list(coalesced([*near, (9 * mib, 17 * mib), (4 * mib, 0)])) == [
        (0, 151 * kib),
        (9 * mib, 17 * mib),
        (17 * mib, 25 * mib),
        (25 * mib, 26 * mib),
    ]
