"""What is refused before a diagnosis, and what is only warned of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save

from taumerge.errors import InvalidRequest
from taumerge.schemas import DiagnoseRequest
from workers.diagnostics.preflight import check_diagnose

RECORD = {"steps": 100, "lr_sum": 0.05, "learning_rate": 0.001, "method": "full"}


@pytest.fixture
def body(tmp_path: Path) -> dict[str, Any]:
    """A base and two models with records."""
    uris = [
        save(tmp_path / name, {"a": torch.full((4,), float(value))}, training=RECORD if value else None)
        for value, name in enumerate(["base", "one", "two"])
    ]
    return {"base": uris[0], "models": [{"uri": uri} for uri in uris[1:]]}


def record(body: dict[str, Any], index: int, **changes: Any) -> None:
    path = Path(body["models"][index]["uri"]) / "training.json"
    path.write_text(json.dumps({**RECORD, **changes}))


def warnings(body: dict[str, Any]) -> tuple[str, ...]:
    return check_diagnose(DiagnoseRequest.model_validate(body)).warnings


def refusals(body: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(InvalidRequest) as caught:
        check_diagnose(DiagnoseRequest.model_validate(body))
    return [(error.loc, error.code) for error in caught.value.errors]


def test_nothing_to_say(body: dict[str, Any], tmp_path: Path) -> None:
    plan = check_diagnose(DiagnoseRequest.model_validate(body | {"output": str(tmp_path / "out")}))
    assert plan.warnings == ()
    assert plan.output == tmp_path / "out"
    assert [one.lr_sum for one in plan.survey.training] == [0.05, 0.05]
    assert check_diagnose(DiagnoseRequest.model_validate(body)).output is None


@pytest.mark.parametrize("name", ["a" * 240, "a" * 300 + "/out", "a/" * 3000 + "out"])
def test_an_output_of_a_name_that_no_disk_takes_is_refused(
    body: dict[str, Any], tmp_path: Path, name: str
) -> None:
    assert refusals(body | {"output": f"{tmp_path}/{name}"}) == [(("output",), "output_not_writable")]


def test_missing_records_leave_numbers_out(body: dict[str, Any]) -> None:
    (Path(body["models"][1]["uri"]) / "training.json").unlink()
    [warning] = warnings(body)
    assert warning.startswith("models.1: no lr_sum")
    assert "χ² are left out" in warning
    body["models"][1]["training"] = {"lr_sum": 0.1}
    assert warnings(body) == ()


def test_the_request_wins_over_the_record_and_it_says_so(body: dict[str, Any]) -> None:
    body["models"][0]["training"] = {"lr_sum": 0.1, "steps": 100}
    plan = check_diagnose(DiagnoseRequest.model_validate(body))
    assert plan.survey.training[0].lr_sum == 0.1
    assert plan.warnings == (
        "models.0: the request says lr_sum 0.1 and its training record 0.05; the request counts",
    )


@pytest.mark.parametrize("changes", [{"steps": 0}, {"steps": -3}, {"lr_sum": 0.0}, {"lr_sum": "much"}])
def test_records_with_impossible_numbers_are_refused(body: dict[str, Any], changes: dict[str, Any]) -> None:
    record(body, 1, **changes)
    assert refusals(body) == [(("models", 1, "training"), "malformed_training_record")]
    body["models"][1]["training"] = {"steps": 100, "lr_sum": 0.05}
    assert check_diagnose(DiagnoseRequest.model_validate(body)).survey.training[1].steps == 100


def test_a_sum_of_learning_rates_above_steps_times_peak_contradicts(body: dict[str, Any]) -> None:
    record(body, 0, lr_sum=0.1)  # 100 steps at the peak of 0.001: a constant schedule
    assert warnings(body) == ()
    record(body, 0, lr_sum=0.101)
    assert refusals(body) == [(("models", 0, "training", "lr_sum"), "training_record_contradicts")]
    body["models"][0]["training"] = {"lr_sum": 0.05}
    [warning] = warnings(body)
    assert "the request counts" in warning


def test_records_of_another_base(body: dict[str, Any]) -> None:
    record(body, 0, base=body["base"])
    record(body, 1, base="file://" + body["base"] + "/../base/")
    assert warnings(body) == ()
    record(body, 1, base="/models/other")
    [warning] = warnings(body)
    assert warning.startswith("models.1: trained from /models/other")
    record(body, 0, base="file:///models/other")
    [warning] = warnings(body)
    assert warning.startswith("models.0, models.1: trained from /models/other")


def test_records_that_name_a_published_base(body: dict[str, Any]) -> None:
    record(body, 0, base="open_clip://ViT-B-32/openai")
    record(body, 1, base="open_clip://ViT-B-32/openai")
    assert warnings(body) == ()
    record(body, 1, base="open_clip://ViT-B-16/openai")
    [warning] = warnings(body)
    assert "different bases (models.0 open_clip://ViT-B-32/openai; models.1 open_clip://ViT-B-16" in warning


def test_a_record_of_other_weights(body: dict[str, Any]) -> None:
    size = (Path(body["models"][0]["uri"]) / "model.safetensors").stat().st_size
    files = [{"name": "model.safetensors", "bytes": size, "sha256": ""}]
    record(body, 0, result={"files": files})
    assert warnings(body) == ()
    files[0]["bytes"] = size + 8
    record(body, 0, result={"files": files})
    [warning] = warnings(body)
    assert warning.startswith("models.0: model.safetensors has")
    record(body, 0, result={"files": "none"})
    assert warnings(body) == ()


def test_a_record_that_does_not_know_of_the_adapter(body: dict[str, Any], tmp_path: Path) -> None:
    base = save(tmp_path / "linear", {"layer.weight": torch.zeros(4, 6)})
    uri = tmp_path / "adapter"
    save(
        uri,
        {
            "base_model.model.layer.lora_A.weight": torch.ones(2, 6),
            "base_model.model.layer.lora_B.weight": torch.ones(4, 2),
        },
        training={**RECORD, "adapter": {"rank": 8}},
    )
    (uri / "model.safetensors").rename(uri / "adapter_model.safetensors")
    (uri / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["layer"]})
    )
    found = warnings({"base": base, "models": [str(uri)]})
    assert [warning.split(", ")[0] for warning in found] == [
        "models.0: its training record says method full",
        "models.0: its training record says rank 8 and its adapter_config.json 2",
    ]


def test_every_refusal_at_once(body: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    body["models"][0]["coefficient"] = 1.0
    body["models"][1]["weight"] = 1.0
    body["output"] = str(tmp_path / "taken")
    assert refusals(body) == [
        (("models", 0, "coefficient"), "coefficients_not_allowed"),
        (("output",), "output_exists"),
    ]
    body["models"] = [{"uri": str(tmp_path / "nowhere")}]
    body["output"] = body["base"]
    assert refusals(body) == [
        (("models", 0, "uri"), "checkpoint_not_found"),
        (("output",), "output_exists"),
    ]


def test_the_output_must_not_overlap_an_input(body: dict[str, Any]) -> None:
    body |= {"output": body["models"][0]["uri"], "overwrite": True}
    assert refusals(body) == [(("output",), "output_inside_input")]


def test_a_task_for_each_model(body: dict[str, Any]) -> None:
    tasks = {name: {"dataset": {"uri": "/data", "format": "image_folder"}} for name in ("a", "b", "c")}
    body["evaluation"] = {"kind": "clip", "tasks": tasks}
    assert (("evaluation", "tasks", "c"), "task_without_model") in refusals(body)
    body["evaluation"] = {"kind": "clip", "tasks": {"a": tasks["a"]}}
    assert (("models", 1), "model_without_task") in refusals(body)


def test_scores_without_gradients_are_refused(body: dict[str, Any]) -> None:
    body["evaluation"] = {"kind": "lm_eval", "tasks": {"gsm8k": {}, "humaneval": {}}}
    assert (("evaluation", "kind"), "no_gradients") in refusals(body)
