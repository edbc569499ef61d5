"""What is refused of an evaluation before its job, and where it says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from taumerge.errors import InvalidRequest
from taumerge.schemas import EvaluationSpec
from workers.checkpoints.checkpoint import Checkpoint, open_checkpoint
from workers.evaluation import build_evaluator, check_evaluation, overlap, places

TASK_FILE = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
"""


def write_base(directory: Path, *configs: str) -> Checkpoint:
    directory.mkdir()
    save_file({"weight": torch.zeros(2)}, directory / "model.safetensors")
    for name in configs:
        (directory / name).write_text("{}")
    return open_checkpoint(str(directory))


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    """Headers that every kind is content with."""
    return write_base(tmp_path / "base", "config.json", "open_clip_config.json")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A directory with a JSONL file of training texts."""
    directory = tmp_path / "texts"
    directory.mkdir()
    (directory / "train.jsonl").write_text(json.dumps({"text": "good", "label": "pos"}) + "\n")
    return directory


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "sums.jsonl").write_text("{}\n")
    path = directory / "sums.yaml"
    path.write_text(TASK_FILE)
    return path


def spec_of(kind: str, task: dict[str, Any], **fields: Any) -> EvaluationSpec:
    return EvaluationSpec.model_validate({"kind": kind, "tasks": {"one": task}, **fields})


def problems(base: Checkpoint, spec: EvaluationSpec, *, code_allowed: bool = False) -> dict[str, str]:
    """Place → code of what is wrong."""
    found = check_evaluation(base, spec, code_allowed=code_allowed)
    return {".".join(map(str, item.loc)): item.code for item in found}


def images(directory: Path) -> dict[str, Any]:
    return {"dataset": {"uri": str(directory), "format": "image_folder"}}


def test_sound_specifications_pass(base: Checkpoint, shades: Path, texts: Path, task_file: Path) -> None:
    jsonl = {"dataset": {"uri": f"file://{texts}", "format": "jsonl"}, "classes": ["pos", "neg"], "limit": 5}
    clip = images(shades) | {"templates": ["a {}."]}
    assert problems(base, spec_of("clip", clip)) == {}
    assert problems(base, spec_of("classification", jsonl | {"max_length": 16})) == {}
    assert (
        problems(base, spec_of("lm_eval", {"name": str(task_file), "metric": "acc", "num_fewshot": 2})) == {}
    )
    assert problems(base, spec_of("lm_eval", {"name": "gsm8k"})) == {}


def test_a_kind_that_nobody_installed_is_refused_with_those_there_are(base: Checkpoint) -> None:
    (item,) = check_evaluation(base, spec_of("clap", {}), code_allowed=False)
    assert (item.loc, item.code) == (("evaluation", "kind"), "unknown_evaluator")
    assert all(kind in item.msg for kind in ("clip", "classification", "lm_eval", "standin"))


def test_the_tasks_of_an_added_kind_are_its_own_business(base: Checkpoint) -> None:
    assert problems(base, spec_of("standin", {"options": {"teacher": "x"}, "metric": "y"})) == {}


def test_fields_that_a_kind_has_no_use_for_are_refused(base: Checkpoint, shades: Path, texts: Path) -> None:
    clip = images(shades) | {
        "max_length": 5,
        "name": "x",
        "metric": "acc",
        "num_fewshot": 1,
        "options": {"a": 1},
    }
    assert problems(base, spec_of("clip", clip)) == dict.fromkeys(
        [
            f"evaluation.tasks.one.{field}"
            for field in ("max_length", "name", "metric", "num_fewshot", "options")
        ],
        "wrong_kind",
    )
    jsonl = {"dataset": {"uri": str(texts), "format": "jsonl"}, "templates": ["a {}."]}
    assert problems(base, spec_of("classification", jsonl)) == {
        "evaluation.tasks.one.templates": "wrong_kind"
    }
    harness = images(shades) | {"classes": ["a", "b"]}
    assert problems(base, spec_of("lm_eval", harness)) == {
        "evaluation.tasks.one.dataset": "wrong_kind",
        "evaluation.tasks.one.classes": "wrong_kind",
    }


@pytest.mark.parametrize(
    ("task", "place", "code"),
    [
        ({}, "dataset", "missing"),
        ({"dataset": {"name": "imagenet", "root": "/"}}, "dataset.name", "unknown_dataset"),
        ({"dataset": {"name": "mnist", "root": "/absent"}}, "dataset.root", "not_found"),
        ({"dataset": {"uri": "/absent", "format": "image_folder"}}, "dataset.uri", "not_found"),
        ({"dataset": {"uri": "/tmp", "format": "jsonl"}}, "dataset.format", "wrong_format"),
        (
            {"dataset": {"uri": "/tmp", "format": "parquet", "columns": {"text": "t"}}},
            "dataset.columns.text",
            "unknown_column",
        ),
        (
            {"dataset": {"uri": "/tmp", "format": "image_folder"}, "templates": ["no place"]},
            "templates",
            "malformed_template",
        ),
    ],
)
def test_data_sets_are_checked_as_those_of_a_fine_tune(
    task: dict[str, Any], place: str, code: str, base: Checkpoint
) -> None:
    assert problems(base, spec_of("clip", task)) == {f"evaluation.tasks.one.{place}": code}


def test_the_base_must_be_of_the_kind(tmp_path: Path, shades: Path) -> None:
    transformers, clip = (
        write_base(tmp_path / "t", "config.json"),
        write_base(tmp_path / "c", "open_clip_config.json"),
    )
    assert problems(transformers, spec_of("clip", images(shades))) == {"evaluation.kind": "wrong_kind"}
    assert problems(clip, spec_of("lm_eval", {"name": "gsm8k"})) == {"evaluation.kind": "wrong_kind"}


def test_without_the_harness_its_kind_is_refused(base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert problems(base, spec_of("lm_eval", {"name": "gsm8k"})) == {"evaluation.kind": "harness_missing"}


def test_task_files_are_read_beforehand_and_code_is_the_operators_to_allow(
    base: Checkpoint, task_file: Path
) -> None:
    spec = spec_of("lm_eval", {"name": f"file://{task_file}"})
    task_file.write_text(TASK_FILE + "process_docs: !function utils.process\n")
    assert problems(base, spec) == {"evaluation.tasks.one.name": "unsafe_task"}
    assert problems(base, spec, code_allowed=True) == {}
    task_file.write_text("task: [")
    assert problems(base, spec, code_allowed=True) == {"evaluation.tasks.one.name": "malformed_task"}
    task_file.unlink()
    assert problems(base, spec) == {"evaluation.tasks.one.name": "malformed_task"}
    assert problems(base, spec_of("lm_eval", {"name": "s3://x/y.yaml"})) == {
        "evaluation.tasks.one.name": "unsupported_uri"
    }


def test_every_place_that_is_read_is_told(task_file: Path) -> None:
    spec = EvaluationSpec.model_validate(
        {
            "kind": "added",
            "tasks": {
                "named": {"dataset": {"name": "mnist", "root": "/data"}},
                "own/images": {"dataset": {"uri": "file:///images", "format": "image_folder"}},
            },
        }
    )
    assert places(spec) == [
        (("evaluation", "tasks", "named", "dataset", "root"), "/data"),
        (("evaluation", "tasks", "own/images", "dataset", "uri"), "file:///images"),
    ]
    tasks = {"harness": {"name": "gsm8k"}, "file": {"name": str(task_file)}, "/tasks/key.yaml": {}}
    assert places(EvaluationSpec.model_validate({"kind": "lm_eval", "tasks": tasks})) == [
        (("evaluation", "tasks", "file", "name"), str(task_file)),
        (("evaluation", "tasks", "/tasks/key.yaml", "name"), "/tasks/key.yaml"),
    ]


def test_validation_and_test_overlap_unless_files_keep_them_apart(tmp_path: Path) -> None:
    def overlapping(dataset: dict[str, Any], **fields: Any) -> bool:
        return overlap(spec_of("any", {"dataset": dataset}, **fields), "one")

    folder = {"uri": str(tmp_path / "images"), "format": "image_folder"}
    (tmp_path / "images" / "cat").mkdir(parents=True)
    assert overlapping(folder)
    assert not overlapping(folder, report_on=None)
    (tmp_path / "images" / "test" / "cat").mkdir(parents=True)
    assert overlapping(folder), "training images are then all images"
    (tmp_path / "images" / "train" / "cat").mkdir(parents=True)
    assert not overlapping(folder)
    assert overlapping(folder, select_on="test", report_on="test")

    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for name in ("train-0.jsonl", "deep/test.jsonl", "test.parquet"):
        (tmp_path / "texts" / name).touch()
    assert not overlapping({"uri": str(tmp_path / "texts"), "format": "jsonl"})
    assert overlapping({"uri": str(tmp_path / "texts"), "format": "parquet"})
    assert overlapping({"uri": str(tmp_path / "texts" / "train-0.jsonl"), "format": "jsonl"})
    assert not overlapping({"name": "mnist", "root": "/data"})
    assert not overlap(spec_of("lm_eval", {"name": "gsm8k"}), "one")


def test_an_installed_entry_point_builds_its_kind_and_nothing_else_does(
    base: Checkpoint, tmp_path: Path
) -> None:
    teacher = tmp_path / "perceptron"
    teacher.mkdir()
    weights = {
        "scale": torch.ones(3),
        "frozen": torch.zeros(3),
        "body.weight": torch.eye(3),
        "head.weight": torch.eye(3),
        "head.bias": torch.zeros(3),
    }
    save_file(weights, teacher / "model.safetensors")
    spec = spec_of("standin", {"options": {"teacher": str(teacher), "flip": 0.0}})
    evaluator = build_evaluator(str(teacher), spec, ["one"], None)  # type: ignore[arg-type]  # it has no use for any
    assert evaluator.evaluate("one", "validation") == 1.0
    with pytest.raises(InvalidRequest, match="standin_evaluator:build"):
        build_evaluator(str(teacher), spec_of("standin_evaluator:build", {}), [], None)  # type: ignore[arg-type]


def test_preflight_loads_no_torch_and_no_harness() -> None:
    script = (
        "import sys; from workers.evaluation import check_evaluation, normalised, overlap, places; "
        "print([name for name in ('torch', 'transformers', 'open_clip', 'lm_eval') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
