"""The parts of the demo around a merge: candidates, choice, metrics, the table, the service's process."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from examples.digits.evaluation import average, normalised
from examples.digits.selection import SCALES, SERVER_STEPS, Models, methods, scalings, select
from examples.digits.table import Finetuned, Merged, results_table
from service.local import local_service
from taumerge import Client, Job, MergeResult

MODELS = Models(Path("/models/base"), [Path("/models/a"), Path("/models/b")])


def merge_result(
    norms: Sequence[float], coefficients: Sequence[float | None], cosine: float | None = None
) -> MergeResult:
    reports = [
        {"uri": f"/models/{index}", "norm": norm, "coefficient": coefficient}
        for index, (norm, coefficient) in enumerate(zip(norms, coefficients, strict=True))
    ]
    answer = {
        "output": "/models/merged",
        "files": [],
        "tensors": {"merged": 1, "copied": 0, "dropped": 0},
        "models": reports,
        "cosine": [[1.0, cosine], [cosine, 1.0]],
        "merged_norm": 3.5,
        "scaling": 0.25,
        "seconds": {},
        "bytes_read": 0,
        "bytes_written": 0,
    }
    return MergeResult.model_validate(answer)


class RecordingClient:
    """Takes merges and keeps what was asked; every job has succeeded."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def merge(self, **fields: Any) -> Job:
        self.requests.append(fields)
        return self.wait("merge-1")

    def wait(self, job_id: str) -> Job:
        result = merge_result([1.0, 2.0], [0.5, 0.5])
        answer = {"id": job_id, "kind": "merge", "state": "succeeded", "request": {}, "result": result}
        return Job.model_validate({"created_at": "2026-01-01T00:00:00Z", **answer})


def test_clipping_candidates_span_the_norms_without_the_largest() -> None:
    rhos = [method["rho"] for method in methods("cclip", [6.0, 1.0, 3.0])]
    assert rhos == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])


def test_fedgma_candidates_mask_four_models_differently() -> None:
    agreements = {abs(4 - 2 * negative) / 4 for negative in range(5)}
    masks = [
        {value: 1 if value >= method["rho"] else value for value in agreements}
        for method in methods("fedgma", [1.0])
    ]
    assert masks[0] != masks[1]


def test_every_rule_is_compared_at_the_same_steps() -> None:
    for rule, scale in SCALES.items():
        factor = 4 if scale == "sum" else 1
        assert [factor * value for value in scalings(rule, 4)] == pytest.approx(SERVER_STEPS)


def test_select_merges_every_candidate_and_keeps_the_best(tmp_path: Path) -> None:
    client = RecordingClient()
    scores = iter([0.2, 0.9, 0.9, 0.4])
    done: list[int] = []
    best = select(
        cast(Client, client),
        MODELS,
        methods("fedgma", [1.0]),
        [0.1, 0.2],
        lambda path: next(scores),
        tmp_path / "candidate",
        lambda: done.append(1),
    )
    assert (best.method, best.scaling, best.score) == ({"name": "fedgma", "rho": 0.5}, 0.2, 0.9)
    asked = [(request["method"]["rho"], request["scaling"]) for request in client.requests]
    assert asked == [(0.5, 0.1), (0.5, 0.2), (1.0, 0.1), (1.0, 0.2)]
    assert all(request["overwrite"] for request in client.requests)
    assert len(done) == 4


def test_normalised_accuracy_is_the_mean_of_the_ratios() -> None:
    merged, individual = {"a": 0.4, "b": 0.9}, {"a": 0.8, "b": 0.9}
    assert average(merged) == pytest.approx(0.65)
    assert normalised(merged, individual) == pytest.approx((0.5 + 1.0) / 2)


def test_table_shows_what_was_measured() -> None:
    record = {"steps": 100, "lr_sum": 0.051}
    accuracies = {"a": 0.5, "b": 0.75}
    finetuned = {name: Finetuned(record, accuracies, accuracies) for name in accuracies}
    clipped = merge_result([1.25, 2.5], [0.125, None], cosine=0.2)
    undefined = merge_result([0.0, 2.5], [0.25, 0.25], cosine=None)
    table = results_table(
        {"a": 0.25, "b": 0.5},
        finetuned,
        [
            Merged({"name": "cclip", "rho": 1.5}, clipped, accuracies),
            Merged({"name": "median"}, undefined, accuracies),
        ],
    )
    console = Console(file=io.StringIO(), width=110)
    console.print(table)
    lines = [line.split() for line in cast(io.StringIO, console.file).getvalue().splitlines()]
    assert ["base", "25.0", "50.0", "37.5", "58.3"] in lines
    assert ["a", "100", "steps,", "A=0.0510", "1.25", "0.200", "50.0", "75.0", "62.5", "100.0"] in lines
    assert ["cclip", "ρ=1.5", "0.25", "3.50", "0.200", "50.0", "75.0", "62.5", "100.0"] in lines
    assert ["c", "0.125", "–"] in lines
    assert ["median", "0.25", "3.50", "–", "50.0", "75.0", "62.5", "100.0"] in lines


def test_a_service_that_does_not_start_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with local_service(tmp_path) as url, pytest.raises(RuntimeError, match=r"service\.log"):
        url()
