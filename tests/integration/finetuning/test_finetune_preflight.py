"""What is refused before a fine-tune is queued, and the trials of a grid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneRequest, Job
from workers.finetuning.preflight import check_finetune, trials, warnings

RequestFor = Callable[..., FinetuneRequest]


@pytest.fixture
def body(request_for: RequestFor) -> dict[str, Any]:
    return request_for().model_dump(mode="json")


def change(body: dict[str, Any], path: str, value: object) -> FinetuneRequest:
    *parents, last = path.split(".")
    part = body
    for name in parents:
        part = part[name]
    part[last] = value
    return FinetuneRequest.model_validate(body)


def test_a_sound_request_passes(body: dict[str, Any], tmp_path: Path) -> None:
    assert check_finetune(FinetuneRequest.model_validate(body)) == tmp_path / "out"


@pytest.mark.parametrize(
    ("path", "value", "loc", "code"),
    [
        ("base", "/no/such/model", ("base",), "checkpoint_not_found"),
        ("base", "model", ("base",), "unsupported_uri"),
        ("base", "open_clip://ViT-B-32", ("base",), "unknown_model"),
        ("base", "open_clip:///openai", ("base",), "unknown_model"),
        ("base", "open_clip://nope/none", ("base",), "unknown_model"),
        ("task.kind", "causal_lm", ("base",), "unsupported_checkpoint"),
        ("task.dataset.uri", "/no/such/data", ("task", "dataset", "uri"), "not_found"),
        ("task.dataset.format", "jsonl", ("task", "dataset", "format"), "wrong_format"),
        ("task.dataset.columns", {"imag": "x"}, ("task", "dataset", "columns", "imag"), "unknown_column"),
        ("task.templates", ["a photo"], ("task", "templates"), "malformed_template"),
        ("task.templates", ["a {} and a {}"], ("task", "templates"), "malformed_template"),
        ("task.max_length", 12, ("task", "max_length"), "wrong_kind"),
        ("task.packing", True, ("task", "packing"), "wrong_kind"),
        ("train.gradient_checkpointing", True, ("train", "gradient_checkpointing"), "wrong_kind"),
        ("adapter", {"kind": "qlora"}, ("adapter", "kind"), "wrong_kind"),
        ("resources.workers", 10, ("resources", "workers"), "too_many_workers"),
        ("grid", {"steps": [10, 10]}, ("grid",), "repeated_value"),
        ("output", "out", ("output",), "unsupported_uri"),
        ("output", "/dev/null/out", ("output",), "output_not_writable"),
        ("output", f"/tmp/{'a' * 240}", ("output",), "output_not_writable"),
        ("base", f"/tmp/{'a' * 300}", ("base",), "checkpoint_unreadable"),
        ("task.dataset.uri", f"/tmp/{'a' * 300}", ("task", "dataset", "uri"), "not_found"),
    ],
)
def test_a_refusal_is_located(
    body: dict[str, Any], path: str, value: object, loc: tuple[str, ...], code: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_finetune(change(body, path, value))
    assert (loc, code) in [(error.loc, error.code) for error in caught.value.errors]


@pytest.mark.parametrize(
    ("dataset", "field", "code"),
    [
        ({"uri": "hf://datasets/gulls/shades"}, None, None),
        ({"uri": "hf://datasets/gulls/shades@refs/pr/1", "subset": "big"}, None, None),
        ({"name": "mnist", "root": "hf://datasets/gulls/digits", "columns": {"image": "img"}}, None, None),
        ({"uri": "hf://datasets/shades"}, "uri", "unsupported_uri"),
        ({"uri": "hf://datasets/gulls/../../shades"}, "uri", "unsupported_uri"),
        ({"uri": "hf://datasets/gulls/shades@"}, "uri", "unsupported_uri"),
        ({"name": "mnist", "root": "hf://datasets/mnist"}, "root", "unsupported_uri"),
        ({"name": "cifar", "root": "hf://datasets/gulls/cifar"}, "name", "unknown_dataset"),
        ({"uri": "hf://datasets/gulls/shades", "columns": {"imag": "x"}}, "imag", "unknown_column"),
    ],
)
def test_a_data_set_of_the_hub_is_named_with_its_owner(
    body: dict[str, Any], dataset: dict[str, Any], field: str | None, code: str | None
) -> None:
    request = change(body, "task.dataset", dataset)
    found: list[tuple[str | int | None, str | None]] = [(None, None)]
    try:
        check_finetune(request)
    except InvalidRequest as error:
        found = [(item.loc[-1], item.code) for item in error.errors]
    assert found == [(field, code)]


def test_a_data_set_of_the_hub_that_is_not_pinned_is_warned_about(body: dict[str, Any]) -> None:
    [warning] = warnings(change(body, "task.dataset", {"uri": "hf://datasets/gulls/shades"}))
    assert "@REVISION pins it" in warning
    assert warnings(change(body, "task.dataset", {"uri": "hf://datasets/gulls/shades@v1"})) == []


def test_every_model_of_open_clip_is_known(body: dict[str, Any]) -> None:
    import open_clip

    for name in open_clip.list_models():
        check_finetune(change(body, "base", f"open_clip://{name}/some"))


def test_a_base_without_weights_is_refused(body: dict[str, Any], tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "open_clip_config.json").write_bytes((Path(body["base"]) / "open_clip_config.json").read_bytes())
    with pytest.raises(InvalidRequest, match="holds no weights") as caught:
        check_finetune(change(body, "base", str(base)))
    [error] = caught.value.errors
    assert (error.loc, error.code) == (("base",), "checkpoint_not_found")


def test_an_unknown_data_set_is_refused_with_those_there_are(body: dict[str, Any], tmp_path: Path) -> None:
    request = change(body, "task.dataset", {"name": "cifar", "root": str(tmp_path)})
    with pytest.raises(InvalidRequest, match="no data set 'cifar'; there are cars, dtd, eurosat") as caught:
        check_finetune(request)
    assert caught.value.errors[0].loc == ("task", "dataset", "name")


def test_an_output_that_exists_or_overlaps_an_input_is_refused(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidRequest) as caught:
        check_finetune(FinetuneRequest.model_validate(body))
    assert [error.code for error in caught.value.errors] == ["output_exists"]
    with pytest.raises(InvalidRequest) as caught:
        check_finetune(change(body, "output", f"{body['base']}/out"))
    assert [error.code for error in caught.value.errors] == ["output_inside_input"]


def test_a_grid_may_go_on_in_its_directory(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert check_finetune(change(body, "grid", "paper")) == tmp_path / "out"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task.dataset", {"name": "mnist"}),
        ("task.dataset", {"name": "mnist", "root": "/data", "uri": "/data", "format": "parquet"}),
        ("task.dataset", {"uri": "/data"}),
        ("task.dataset", {"name": "mnist", "root": "/data", "columns": {"image": "img"}}),
        ("task.dataset", {"uri": "/data", "format": "parquet", "subset": "big"}),
        ("task.dataset", {"uri": "hf://datasets/gulls/shades", "format": "parquet"}),
        ("task.dataset", {"root": "hf://datasets/gulls/shades"}),
        ("task.dataset", {}),
        ("task.classes", ["only one"]),
        ("train.learning_rate", 0),
        ("train.steps", 0),
        ("train.step", 3),
        ("grid", {"learning_rate": [-1.0]}),
        ("grid", "papers"),
        ("grid", {"learning_rate": [0.1] * 26, "steps": [10] * 39}),
        ("train.steps", 10**400),
        ("resources.gpus", 2),
    ],
)
def test_the_schema_refuses_what_makes_no_sense(body: dict[str, Any], path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        change(body, path, value)


def test_the_papers_grid_has_twelve_trials(body: dict[str, Any]) -> None:
    request = change(body, "grid", "paper")
    runs = trials(request)
    assert [(run.train.learning_rate, run.train.steps) for run in runs] == [
        (rate, steps) for rate in (1e-4, 1e-5, 1e-6) for steps in (1000, 2000, 3000, 4000)
    ]
    assert runs[0].output == f"{request.output}/lr0.0001-steps1000"
    assert all(run.grid is None and run.task == request.task for run in runs)


def test_rates_that_differ_in_a_late_digit_are_two_trials(body: dict[str, Any]) -> None:
    request = change(body, "grid", {"learning_rate": [1e-5, 1.0000001e-5]})
    check_finetune(request)
    names = [run.output.rpartition("/")[2] for run in trials(request)]
    assert names == ["lr1e-05-steps12", "lr1.0000001e-05-steps12"]


def test_a_list_left_out_of_a_grid_is_taken_from_train(body: dict[str, Any]) -> None:
    runs = trials(change(body, "grid", {"learning_rate": [0.1, 0.2]}))
    assert [(run.train.learning_rate, run.train.steps) for run in runs] == [(0.1, 12), (0.2, 12)]
    request = change(body, "grid", None)
    assert trials(request) == [request]


def test_a_warm_up_that_never_ends_is_warned_about(body: dict[str, Any]) -> None:
    [warning] = warnings(change(body, "train.warmup_steps", 12))
    assert "ends at its peak" in warning
    [warning] = warnings(change(body, "train.warmup_steps", 100))
    assert "ends at 12 % of its peak" in warning
    assert warnings(change(body, "train.warmup_steps", 11)) == []


def test_the_result_of_a_job_is_that_of_its_kind() -> None:
    result = {"output": "/out", "seconds": {}, "trials": [{"output": "/out", "learning_rate": 1, "steps": 2}]}
    facts = {"id": "x", "state": "succeeded", "created_at": "2026-01-01T00:00:00Z", "request": {}}
    job = Job.model_validate({**facts, "kind": "finetune", "result": result})
    assert type(job.result).__name__ == "FinetuneResult"
    assert Job.model_validate_json(job.model_dump_json()) == job
    with pytest.raises(ValidationError, match="tensors"):
        Job.model_validate({**facts, "kind": "merge", "result": result})
