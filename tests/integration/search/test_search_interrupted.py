"""Searches that are killed, cancelled, or run out of their budget, and go on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from perceptrons import logged

from taumerge.errors import JobCancelled, JobFailed
from taumerge.schemas import Progress, SearchResult
from workers.search import report as report_module
from workers.search.journal import NAME

Search = Callable[..., SearchResult]


def journal_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the journal in the hidden directory."""
    output = Path(body["output"])
    (path,) = output.parent.glob(f".{output.name}.*.partial/.taumerge-journal/{NAME}")
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluations_in(lines: list[dict[str, Any]]) -> int:
    """Calls of the evaluator that the journal answers for."""
    return sum(len(line["tasks"]) for line in lines)


def without_seconds(result: SearchResult) -> dict[str, Any]:
    """All of a result but how long it took."""
    told: dict[str, Any] = result.model_dump(exclude={"seconds", "files", "warnings"})
    for one in (*told["evaluations"], told["best"], *told["best_by_method"].values()):
        del one["seconds"]
    return told


def test_a_killed_search_goes_on_and_finds_the_same(
    search: Search, ray_session: str, body: dict[str, Any], tmp_path: Path
) -> None:
    body |= {"methods": ["median", {"name": "fedgma", "rho": 0.9}]}
    undisturbed = search(body | {"output": str(tmp_path / "undisturbed")})
    before = len(logged(tmp_path))
    script = Path(__file__).with_name("dying_search.py")
    died = subprocess.run(
        [sys.executable, str(script), ray_session, json.dumps(body), "4"],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(list(tmp_path.glob(".best*"))) == 1  # Tune's own files lie inside
    kept = journal_of(body)
    assert 4 <= sum(len(line["model"]) == 64 for line in kept) < len(undisturbed.evaluations)
    begun = len(logged(tmp_path))

    result = search(body)
    assert len(logged(tmp_path)) - begun == before - evaluations_in(kept)
    assert without_seconds(result) == without_seconds(undisturbed) | {"output": body["output"]}
    assert [one.sha256 for one in result.files] == [one.sha256 for one in undisturbed.files]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".best")] == []


def test_a_search_is_cancelled_in_the_middle_of_an_evaluation_and_keeps_what_it_has(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    body |= {"methods": ["median"], "scaling": {"from": 0, "to": 50, "step": 0.01}}
    waiting = tmp_path / "wait"
    for task in body["evaluation"]["tasks"].values():
        task["options"]["wait"] = str(waiting)
    raised = 0.0

    def cancel(progress: Progress) -> None:
        nonlocal raised
        if progress.phase != "evaluate":
            return
        if waiting.exists():
            raised = time.monotonic()
            raise JobCancelled("enough")
        if progress.done >= 2:
            waiting.touch()  # from now on no evaluation ends

    with pytest.raises(JobCancelled):
        search(body, cancel)
    assert raised
    assert time.monotonic() - raised < 2
    assert 2 <= sum(len(line["model"]) == 64 for line in journal_of(body)) < 5001
    assert not Path(body["output"]).exists()


def test_a_budget_of_evaluations_is_kept_to_the_last(search: Search, body: dict[str, Any]) -> None:
    result = search(body | {"methods": "paper", "budget": {"evaluations": 7}})
    assert not result.complete
    # task arithmetic whole, and two λ of the next rule
    assert [(one.method["name"], one.scaling) for one in result.evaluations[:7]] == [
        *(("task_arithmetic", scaling) for scaling in body["scaling"]),
        *(("fednova", scaling) for scaling in body["scaling"][:2]),
    ]
    assert len({(json.dumps(one.tasks), one.scaling) for one in result.evaluations}) <= 7


def test_a_budget_of_time_that_is_over_at_once_is_an_error_and_leaves_no_output(
    search: Search, body: dict[str, Any]
) -> None:
    with pytest.raises(JobFailed, match="before the first evaluation") as failed:
        search(body | {"budget": {"minutes": 1e-6}})
    assert failed.value.code == "budget_too_small"
    assert not Path(body["output"]).exists()


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No report can be written, and so a search ends with its weights staged."""
    error = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(report_module, "write_report", side_effect=error):
        with pytest.raises(JobFailed, match="No space left") as failed:
            yield
        assert failed.value.code == "output_unwritable"


def test_a_disk_that_is_full_when_the_report_is_written_costs_no_evaluation(
    search: Search, body: dict[str, Any], tmp_path: Path
) -> None:
    body |= {"methods": ["median"], "scaling": [0.3, 1.0]}
    with full_disk():
        search(body)
    evaluated = len(logged(tmp_path))
    assert search(body).complete
    assert len(logged(tmp_path)) == evaluated


def test_staged_weights_of_another_winner_are_not_taken(
    search: Search, merge: Callable[..., Any], body: dict[str, Any], tmp_path: Path
) -> None:
    body |= {"methods": ["median"], "scaling": [0.3, 1.0]}
    with full_disk():
        search(body)
    lines = journal_of(body)
    first, second = (one for one in lines if len(one["model"]) == 64 and one["split"] == "validation")
    first["tasks"], second["tasks"] = second["tasks"], first["tasks"]
    [path] = tmp_path.glob(f".best.*.partial/.taumerge-journal/{NAME}")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    winner = search(body).best
    models = [model["uri"] for model in body["models"]]
    asked = {"base": body["base"], "models": models, "method": winner.method, "scaling": winner.scaling}
    merged = merge(asked | {"output": str(tmp_path / "merged")})
    assert [one.sha256 for one in merged.files] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(body["output"]).glob("*.safetensors")
    ]
