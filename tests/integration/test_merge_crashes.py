"""Workers and drivers that are killed in the middle: the same bytes in the end, and little is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors import safe_open

from taumerge.schemas import MergeResult, Progress
from workers.merging import Superseded
from workers.merging.pool import NAMESPACE

Merge = Callable[..., MergeResult]


def worker_pids() -> list[int]:
    """Process ids of the warm shard workers."""
    names = [
        one["name"]
        for one in ray.util.list_named_actors(all_namespaces=True)
        if one["namespace"] == NAMESPACE
    ]
    actors = [ray.get_actor(name, NAMESPACE) for name in names if name.startswith("shard-")]
    pids: list[int] = ray.get([actor.__ray_call__.remote(lambda self: os.getpid()) for actor in actors])
    return pids


def finished_files(output: Path) -> dict[str, int]:
    """Output files that are recorded as complete, with the time of their last write."""
    found = {}
    for record in output.parent.glob(f".{output.name}.*.partial/.taumerge-journal/*.safetensors.json"):
        path = record.parent.parent / record.name.removesuffix(".json")
        found[path.name] = path.stat().st_mtime_ns
    return found


def test_a_killed_worker_is_replaced_and_only_its_unfinished_files_are_redone(
    merge: Merge, golden_body: dict[str, Any], tmp_path: Path
) -> None:
    expected = merge(golden_body)
    victim, *others = worker_pids()
    output = tmp_path / "again"
    finished: dict[str, int] = {}
    stopped = False

    def kill(progress: Progress) -> None:
        nonlocal finished, stopped
        if progress.phase != "aggregate" or finished:
            return
        if progress.done * 3 >= progress.total and not stopped:
            os.kill(victim, signal.SIGSTOP)  # from now on it holds calls that it does not answer
            stopped = True
            time.sleep(0.3)
        elif stopped and (finished := finished_files(output)):
            os.kill(victim, signal.SIGKILL)

    try:
        result = merge(golden_body | {"output": str(output)}, kill)
    finally:
        if victim in worker_pids():
            os.kill(victim, signal.SIGCONT)
    assert [one.sha256 for one in result.files] == [one.sha256 for one in expected.files]
    assert 0 < len(finished) < len(result.files)
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished
    pids = worker_pids()
    assert victim not in pids
    assert set(others) <= set(pids)


def test_the_next_attempt_of_a_killed_driver_goes_on(
    merge: Merge, ray_session: str, golden_body: dict[str, Any], tmp_path: Path
) -> None:
    expected = merge(golden_body)
    output = tmp_path / "results/out"
    body = golden_body | {"output": str(output)}
    script = Path(__file__).with_name("dying_driver.py")
    died = subprocess.run(
        [sys.executable, str(script), ray_session, "job-1", json.dumps(body), "3"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    (hidden,) = output.parent.iterdir()
    assert hidden.name.startswith(".out.")
    finished = finished_files(output)
    assert 3 <= len(finished) < len(expected.files)

    seen: list[tuple[int, int]] = []

    def note(progress: Progress) -> None:
        if progress.phase == "aggregate":
            seen.append((progress.done, progress.total))

    result = merge(body, note, job_id="job-1")
    assert 0 < seen[0][0] < seen[0][1]  # the progress goes on as well
    assert seen[-1][0] == seen[-1][1]
    assert [one.sha256 for one in result.files] == [one.sha256 for one in expected.files]
    assert result.merged_norm == expected.merged_norm
    assert result.cosine == expected.cosine
    assert {name: (output / name).stat().st_mtime_ns for name in finished} == finished
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "end", [Superseded("another attempt has the job"), SystemExit("the process receives a SIGTERM")], ids=repr
)
def test_an_attempt_that_is_ended_from_outside_leaves_its_files_to_the_next_one(
    merge: Merge, golden_body: dict[str, Any], tmp_path: Path, end: BaseException
) -> None:
    output = tmp_path / "results/out"
    body = golden_body | {"output": str(output)}

    def lose(progress: Progress) -> None:
        if progress.phase == "aggregate" and len(finished_files(output)) >= 2:
            raise end

    with pytest.raises(type(end)):
        merge(body, lose, job_id="job-2")
    kept = finished_files(output)
    assert len(kept) >= 2
    merge(body, job_id="job-2")
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    for path in output.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert list(file.keys())
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_an_attempt_after_the_commit_returns_the_committed_result(
    merge: Merge, golden_body: dict[str, Any]
) -> None:
    first = merge(golden_body, job_id="job-3")
    receipt = Path(golden_body["output"]) / "taumerge.json"
    written = receipt.stat().st_mtime_ns
    again = merge(golden_body, job_id="job-3")
    assert again.files == first.files
    assert receipt.stat().st_mtime_ns == written
