"""Whether evaluation data has changed since a search scored something on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taumerge.schemas import EvaluationSpec
from workers.evaluation import data_state as module
from workers.evaluation.data_state import data_state

TASK = (
    "{task: sums, include: common.yaml, dataset_path: json, dataset_kwargs: {data_files: {test: [a.jsonl]}}}"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with all that the tasks of these tests read, and more."""
    for name in ("MNIST/raw/train", "birds/jay/1.png", "birds/tit/1.png", "tasks/a.jsonl", "tasks/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    (tmp_path / "tasks" / "sums.yaml").write_text(TASK)
    (tmp_path / "tasks" / "common.yaml").write_text("{test_split: test, metadata: {date: 2026-01-02}}")
    return tmp_path


def state(data: Path) -> dict[str, str]:
    """The state of a named data set, of images of one's own, and of a task of the harness."""
    specs: dict[str, dict[str, Any]] = {
        "named": {"kind": "clip", "tasks": {"a": {"dataset": {"name": "mnist", "root": str(data)}}}},
        "own": {
            "kind": "clip",
            "tasks": {"a": {"dataset": {"uri": f"file://{data}/birds", "format": "image_folder"}}},
        },
        "harness": {"kind": "lm_eval", "tasks": {str(data / "tasks" / "sums.yaml"): {}, "gsm8k": {}}},
    }
    return {name: data_state(EvaluationSpec.model_validate(spec)) for name, spec in specs.items()}


def written(name: str, text: str = "new!") -> Callable[[Path], object]:
    """A change: the file is written."""
    return lambda data: (data / name).write_text(text)


def moved_on(data: Path) -> None:
    """A change of the time alone."""
    os.utime(data / "birds" / "tit" / "1.png", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (written("MNIST/raw/train"), {"named"}),
        (written("birds/jay/2.png"), {"own"}),
        (moved_on, {"own"}),
        (lambda data: (data / "birds/tit/1.png").rename(data / "birds/jay/2.png"), {"own"}),
        (lambda data: (data / "birds/tit/1.png").unlink(), {"own"}),
        (written("tasks/a.jsonl"), {"harness"}),
        (written("tasks/common.yaml", "{test_split: test, num_fewshot: 2}"), {"harness"}),
        (written("tasks/b.jsonl"), set()),  # which nobody reads
        (written("model.safetensors"), set()),  # an output beside a named data set
        (written("birds/.best"), set()),  # the hidden directory of an output
    ],
)
def test_a_change_of_the_data_is_seen_and_no_other(
    change: Callable[[Path], object], changed: set[str], data: Path
) -> None:
    before = state(data)
    assert state(data) == before
    change(data)
    after = state(data)
    assert {name for name in before if after[name] != before[name]} == changed


def test_a_task_that_runs_code_may_read_what_lies_beside_it(data: Path) -> None:
    (data / "tasks" / "sums.yaml").write_text(TASK[:-1] + ", process_docs: !function code.process}")
    before = state(data)["harness"]
    (data / "tasks" / "code.py").touch()
    assert state(data)["harness"] != before


def test_of_very_many_files_only_the_names_count(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMED", 1)
    before = state(data)["own"]
    moved_on(data)
    assert state(data)["own"] == before
    (data / "birds" / "tit" / "2.png").touch()
    assert state(data)["own"] != before


def test_links_that_go_round_in_a_circle_end(data: Path) -> None:
    (data / "birds" / "jay" / "all").symlink_to(data / "birds")
    before = state(data)["own"]
    written("birds/tit/1.png")(data)
    assert state(data)["own"] != before
