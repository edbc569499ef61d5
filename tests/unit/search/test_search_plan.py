"""What is refused before a search is queued, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from perceptrons import search_body

from taumerge.errors import InvalidRequest
from taumerge.schemas import MergeRequest, SearchRequest
from workers.merging.preflight import plan_merge
from workers.search.plan import SearchPlan, check_search
from workers.search.points import expand

Body = dict[str, Any]


@pytest.fixture
def body(tmp_path: Path) -> Body:
    return search_body(tmp_path)


def check(body: Body) -> SearchPlan:
    return check_search(SearchRequest.model_validate(body), code_allowed=False)


def problems(body: Body) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(InvalidRequest) as refused:
        check(body)
    return [(item.loc, item.code) for item in refused.value.errors]


def test_a_candidate_is_planned_as_the_merge_that_it_stands_for(body: Body) -> None:
    plan = check(body)
    for candidate in expand(plan.request, [1.0, 2.0, 3.0]):
        ours = plan.merge_of(candidate.rule, 0.3)
        request = {
            "base": body["base"],
            "models": [model["uri"] for model in body["models"]],
            "method": candidate.method,
            "scaling": 0.3,
            "output": body["output"],
        }
        theirs = plan_merge(MergeRequest.model_validate(request), workers=1, worker_memory=0)
        assert ours == theirs


def test_the_identity_changes_with_the_request_and_with_the_models(body: Body) -> None:
    first = check(body).identity
    assert check(body).identity == first
    assert check(body | {"seed": 1}).identity != first
    model = Path(body["models"][0]["uri"]) / "model.safetensors"
    model.write_bytes(model.read_bytes())
    assert check(body).identity != first


def test_the_identity_changes_with_the_training_records_that_fednova_reads(body: Body) -> None:
    first = check(body).identity
    record = Path(body["models"][0]["uri"]) / "training.json"
    record.write_text(record.read_text().replace("100", "150"))
    assert check(body).identity != first


def test_the_identity_changes_with_what_the_evaluation_reads(body: Body, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tasks = body["evaluation"]["tasks"]
    tasks["digits"]["dataset"] = {"uri": str(tmp_path / "images"), "format": "image_folder"}
    first = check(body).identity
    (Path(body["base"]) / "tokenizer.json").write_text("{}")
    second = check(body).identity
    assert second != first
    (tmp_path / "images" / "new.png").touch()
    assert check(body).identity not in (first, second)


def test_tasks_and_models_are_one_to_one(body: Body) -> None:
    shapes, digits, signs = body["models"]
    assert problems(body | {"models": [shapes, digits | {"task": "digit"}, signs | {"task": "shapes"}]}) == [
        (("models", 1, "task"), "unknown_task"),
        (("models", 2, "task"), "task_twice"),
        (("evaluation", "tasks", "digits"), "task_without_model"),
        (("evaluation", "tasks", "signs"), "task_without_model"),
    ]


def test_every_problem_is_told_at_once_and_each_once(body: Body) -> None:
    uri = save(Path(body["output"]).parent / "narrow", {"body.weight": torch.ones(3, 3)})
    body["models"][1]["uri"] = uri
    body |= {"methods": ["median", "cclip", {"name": "fedgma", "rho": [0.5, 1.5]}, "tias"]}
    body["evaluation"]["kind"] = "stand-in"
    body["output"] = body["base"]
    found = problems(body)
    assert len(found) == len(set(found)) or {code for _, code in found} >= {"missing_tensor"}
    assert {
        (("evaluation", "kind"), "unknown_evaluator"),
        (("methods", 2, "rho", 1), "less_than_equal"),
        (("methods", 3, "name"), "unknown_method"),
        (("models", 1, "uri"), "shape_mismatch"),
        (("output",), "output_inside_input"),
    } <= set(found)


def test_a_missing_training_record_is_told_where_fednova_is_searched(body: Body) -> None:
    (Path(body["models"][1]["uri"]) / "training.json").unlink()
    assert problems(body) == [(("models", 1, "training", "steps"), "missing_training")]
    both = {"methods": [{"name": "fednova", "normalize_by": ["steps", "lr_sum"]}]}
    body["models"][1]["training"] = {"steps": 5}
    assert problems(body | both) == [(("models", 1, "training", "lr_sum"), "missing_training")]
    check(body | {"methods": ["median", "cclip"]})


def test_weights_where_a_rule_takes_none(body: Body) -> None:
    for model in body["models"]:
        model["weight"] = 1.0
    assert problems(body) == [(("models", 0, "weight"), "weights_not_allowed")]
    check(body | {"methods": ["task_arithmetic", "cclip"]})


def test_an_existing_output(body: Body) -> None:
    Path(body["output"]).mkdir()
    assert problems(body) == [(("output",), "output_exists")]
    check(body | {"overwrite": True})
