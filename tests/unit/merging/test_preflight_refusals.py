"""Every request that is refused before tensor data is read, with its place and code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save
from pydantic import ValidationError

from taumerge.errors import ErrorItem, InvalidRequest
from taumerge.schemas import MergeRequest
from workers.checkpoints.writing import Staging
from workers.merging import preflight
from workers.merging.plan import MergePlan
from workers.merging.preflight import plan_merge

Body = dict[str, Any]
TENSORS = {"weight": torch.ones(4, 3), "bias": torch.zeros(3), "steps": torch.tensor([1])}


@pytest.fixture
def body(tmp_path: Path) -> Body:
    """A request that is fine: a base and two models of it."""
    return {
        "base": save(tmp_path / "base", TENSORS),
        "models": [
            {"uri": save(tmp_path / name, TENSORS | {"bias": torch.full((3,), value)})}
            for name, value in (("a", 1.0), ("b", 2.0))
        ],
        "method": {"name": "task_arithmetic"},
        "output": str(tmp_path / "out"),
    }


def plan(body: Body) -> MergePlan:
    return plan_merge(MergeRequest.model_validate(body), workers=2, worker_memory=0)


def checked_plan(body: Body) -> MergePlan:
    """``plan``, where what the schema refuses is a refusal too."""
    try:
        return plan(body)
    except ValidationError as error:
        raise InvalidRequest.from_validation(error) from None


def errors(body: Body) -> list[ErrorItem]:
    with pytest.raises(InvalidRequest) as caught:
        checked_plan(body)
    assert all(item.msg for item in caught.value.errors)
    return caught.value.errors


def refusals(body: Body) -> list[tuple[tuple[str | int, ...], str]]:
    return [(item.loc, item.code) for item in errors(body)]


def model(body: Body, index: int) -> Path:
    return Path(body["models"][index]["uri"])


def replace(body: Body, index: int, tensors: dict[str, torch.Tensor]) -> None:
    """Another checkpoint in the place of a model."""
    body["models"][index]["uri"] = save(model(body, index).with_name(f"other-{index}"), tensors)


def test_the_request_without_faults_is_planned(body: Body) -> None:
    assert sorted(plan(body).comparison.merged) == ["bias", "weight"]
    assert plan(body).comparison.copied == ["steps"]


# -------------------------------------------------------------------------------------- checkpoints


def test_missing_checkpoints_are_all_named(body: Body, tmp_path: Path) -> None:
    body["base"] = str(tmp_path / "nowhere")
    body["models"][1]["uri"] = str(tmp_path / "nowhere either")
    assert refusals(body) == [
        (("base",), "checkpoint_not_found"),
        (("models", 1, "uri"), "checkpoint_not_found"),
    ]


def test_unreadable_checkpoint(body: Body) -> None:
    weights = model(body, 0) / "model.safetensors"
    weights.unlink()
    weights.mkdir()
    assert refusals(body) == [(("models", 0, "uri"), "checkpoint_unreadable")]


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda raw: b"\xff" * 7 + b"\x00" + raw[8:], "malformed_header"),
        (lambda raw: raw[:8] + b"?" + raw[9:], "malformed_header"),
        (lambda raw: raw + b"tail", "malformed_header"),
        (lambda raw: raw[:-1], "truncated_file"),
        (lambda raw: raw[:5], "truncated_file"),
        (lambda raw: raw.replace(b'"F32"', b'"F33"', 1), "unknown_dtype"),
    ],
)
def test_malformed_header(body: Body, damage: Callable[[bytes], bytes], code: str) -> None:
    path = model(body, 1) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert refusals(body) == [(("models", 1, "uri"), code)]


def test_index_that_names_an_absent_shard(body: Body) -> None:
    path = model(body, 1)
    (path / "model.safetensors").unlink()
    index = {"weight_map": {"weight": "model-00001-of-00002.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusals(body) == [(("models", 1, "uri"), "index_missing_file")]


def test_location_that_is_no_local_path(body: Body) -> None:
    body["models"][0]["uri"] = "relative/path"
    assert refusals(body) == [(("models", 0, "uri"), "unsupported_uri")]


# ------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize(
    ("tensors", "code", "said"),
    [
        ({"weight": torch.ones(4, 3), "steps": torch.tensor([1])}, "missing_tensor", "bias"),
        (TENSORS | {"head": torch.ones(2)}, "unexpected_tensor", "head"),
        (TENSORS | {"weight": torch.ones(3, 4)}, "shape_mismatch", "[3, 4], in the base [4, 3]"),
        (TENSORS | {"weight": torch.ones(4, 3).half()}, "dtype_mismatch", "F16, in the base F32"),
    ],
)
def test_tensors_that_do_not_fit_the_base(
    body: Body, tensors: dict[str, torch.Tensor], code: str, said: str
) -> None:
    replace(body, 1, tensors)
    (item,) = errors(body)
    assert (item.loc, item.code) == (("models", 1, "uri"), code)
    assert said in item.msg


def test_first_twenty_of_each_problem_are_listed_with_the_total(body: Body, tmp_path: Path) -> None:
    many = {f"layer.{index:02d}": torch.ones(2) for index in range(25)}
    body["base"] = save(tmp_path / "large", many)
    replace(body, 0, {name: torch.ones(3) for name in many})
    replace(body, 1, {name: torch.ones(2) for name in list(many)[:20]} | {"extra": torch.ones(1)})
    found = errors(body)
    first = [item for item in found if item.loc[1] == 0]
    assert [item.code for item in first] == ["shape_mismatch"] * 21
    assert [name in item.msg for name, item in zip(many, first[:20], strict=False)] == [True] * 20
    assert first[20].msg.startswith("25 tensors in all")
    second = [item.code for item in found if item.loc[1] == 1]
    assert second == ["missing_tensor"] * 5 + ["unexpected_tensor"]


def test_twenty_problems_are_listed_without_a_total(body: Body, tmp_path: Path) -> None:
    many = {f"layer.{index:02d}": torch.ones(2) for index in range(20)}
    body["base"] = save(tmp_path / "large", many)
    body["models"] = [save(tmp_path / "other", {name: torch.ones(3) for name in many})]
    assert len(errors(body)) == 20


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_cannot_be_averaged(body: Body, dtype: torch.dtype) -> None:
    replace(body, 0, TENSORS | {"scaled": torch.ones(4).to(dtype)})
    assert (("models", 0, "uri"), "unsupported_dtype") in refusals(body)


def test_models_of_another_base(body: Body, tmp_path: Path) -> None:
    body["keys"] = "intersection"
    body["models"] = [save(tmp_path / "other", {"elsewhere": torch.ones(2)})]
    assert refusals(body) == [(("models",), "nothing_to_merge")]


# --------------------------------------------------------------------------- methods, weights, numbers


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"method": "ties"}, [(("method", "name"), "unknown_method")]),
        ({"method": {"name": "median", "odd": 1}}, [(("method", "odd"), "extra_forbidden")]),
        ({"method": {"name": "fedgma", "rho": 1.5}}, [(("method", "rho"), "less_than_equal")]),
        ({"method": {"name": "cclip", "rho": -1}}, [(("method", "rho"), "greater_than")]),
        ({"method": {"name": "cclip", "rho": float("nan")}}, [(("method", "rho"), "finite_number")]),
        ({"method": {"name": "cclip"}}, [(("method", "rho"), "missing")]),
        ({"scaling": -0.5}, [(("scaling",), "greater_than_equal")]),
        ({"scaling": 1e31}, [(("scaling",), "less_than_equal")]),
        ({"scaling": float("inf")}, [(("scaling",), "finite_number")]),
        ({"scaling": float("nan")}, [(("scaling",), "finite_number")]),
        ({"models": []}, [(("models",), "too_short")]),
        ({"dtype": "int8"}, [(("dtype",), "literal_error")]),
        ({"max_shard_size": "huge"}, [(("max_shard_size",), "byte_size")]),
        ({"lambda": 0.3}, [(("lambda",), "extra_forbidden")]),
    ],
)
def test_numbers_and_names_out_of_range(
    body: Body, change: Body, expected: list[tuple[tuple[str, ...], str]]
) -> None:
    assert refusals(body | change) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([-1.0, 1.0], [(("models", 0, "weight"), "greater_than_equal")]),
        ([float("nan"), 1.0], [(("models", 0, "weight"), "finite_number")]),
        ([1.0, float("inf")], [(("models", 1, "weight"), "finite_number")]),
        ([0.0, 0.0], [(("models", 0, "weight"), "zero_weights")]),
        ([0.0, 1e308], [(("models", 1, "weight"), "less_than_equal")]),
    ],
)
def test_weights(
    body: Body, weights: list[float | None], expected: list[tuple[tuple[str | int, ...], str]]
) -> None:
    for one, weight in zip(body["models"], weights, strict=True):
        one["weight"] = weight
    assert refusals(body) == expected


def test_median_takes_no_weights(body: Body) -> None:
    body["method"] = "median"
    for one in body["models"]:
        one["weight"] = 1.0
    assert refusals(body) == [(("models", 0, "weight"), "weights_not_allowed")]


def test_coefficients_belong_to_task_arithmetic_alone(body: Body) -> None:
    for one in body["models"]:
        one["coefficient"] = -1.0
    assert plan(body).contributions([0, 1])[0].coefficient == -1.0
    assert refusals(body | {"method": "median"}) == [
        (("models", 0, "coefficient"), "coefficients_not_allowed")
    ]


def test_an_absent_weight_is_one(body: Body) -> None:
    body["models"][0]["weight"] = 3.0
    assert [one.weight for one in plan(body).contributions([0, 1])] == [0.75, 0.25]


def test_coefficients_replace_weights_and_scale(body: Body) -> None:
    body["method"] = {"name": "task_arithmetic", "scale": "mean"}
    for one in body["models"]:
        one |= {"coefficient": -0.5, "weight": 0.0}
    planned = plan(body)
    assert planned.rule.coefficients(planned.contributions([0, 1])) == [-0.5, -0.5]


def test_true_is_no_number(body: Body) -> None:
    body["models"][0]["training"] = {"steps": True}
    assert refusals(body | {"scaling": True}) == [
        (("models", 0, "training", "steps"), "bool_type"),
        (("scaling",), "bool_type"),
    ]
    del body["models"][0]["training"]
    assert refusals(body | {"method": {"name": "cclip", "rho": True}}) == [(("method", "rho"), "bool_type")]


def test_coefficients_are_given_to_all_models(body: Body) -> None:
    body["models"][0]["coefficient"] = 1.0
    assert refusals(body) == [(("models", 1, "coefficient"), "missing_coefficient")]
    body["models"][1]["coefficient"] = float("inf")
    assert refusals(body) == [(("models", 1, "coefficient"), "finite_number")]


def test_fednova_names_every_model_without_a_record(body: Body, tmp_path: Path) -> None:
    body["method"] = "fednova"
    assert refusals(body) == [
        (("models", 0, "training", "steps"), "missing_training"),
        (("models", 1, "training", "steps"), "missing_training"),
    ]
    body["models"][0]["training"] = {"steps": 5}
    (model(body, 1) / "training.json").write_text('{"lr_sum": 0.5, "dataset": "digits"}')
    assert refusals(body) == [(("models", 1, "training", "steps"), "missing_training")]
    (model(body, 1) / "training.json").write_text('{"steps": 7, "lr_sum": 0.5}')
    assert [one.steps for one in plan(body).training] == [5, 7]
    body["method"] = {"name": "fednova", "normalize_by": "lr_sum"}
    assert refusals(body) == [(("models", 0, "training", "lr_sum"), "missing_training")]


@pytest.mark.parametrize("text", ["{", '{"steps": 0}', '{"steps": "many"}', "[]"])
def test_fednova_refuses_a_malformed_record(body: Body, text: str) -> None:
    body["method"] = "fednova"
    body["models"][1]["training"] = {"steps": 5}
    (model(body, 0) / "training.json").write_text(text)
    assert refusals(body) == [(("models", 0, "training", "steps"), "malformed_training_record")]


def test_what_the_request_says_wins_over_the_record(body: Body) -> None:
    body["method"] = "fednova"
    for index, one in enumerate(body["models"]):
        (model(body, index) / "training.json").write_text('{"steps": 7, "lr_sum": 0.5}')
        one["training"] = {"steps": 100 + index}
    assert [one.steps for one in plan(body).training] == [100, 101]


# ------------------------------------------------------------------------------------------- output


def test_output_that_exists(body: Body) -> None:
    Path(body["output"]).mkdir()
    assert refusals(body) == [(("output",), "output_exists")]
    assert plan(body | {"overwrite": True}).output == Path(body["output"])


def test_output_that_is_a_dangling_link_exists(body: Body) -> None:
    Path(body["output"]).symlink_to("nowhere")
    assert refusals(body) == [(("output",), "output_exists")]


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_and_inputs_may_not_overlap(body: Body, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    body["overwrite"] = overwrite
    for place in (
        body["base"],
        f"{body['base']}/merged",
        body["models"][1]["uri"],
        str(tmp_path),
        str(tmp_path / "b/../a/deep/er"),
        str(tmp_path / "link/merged"),
    ):
        assert refusals(body | {"output": place}) == [(("output",), "output_inside_input")]


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("merged", "unsupported_uri"),
        ("https://host.example/merged", "unsupported_uri"),
        ("/", "output_inside_input"),
    ],
)
def test_output_that_cannot_be_written(body: Body, output: str, code: str) -> None:
    assert refusals(body | {"output": output}) == [(("output",), code)]


def test_output_below_a_file_and_output_named_as_a_file(body: Body, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusals(body | {"output": str(tmp_path / "file/out")}) == [(("output",), "output_not_writable")]
    single = str(tmp_path / "merged.safetensors")
    assert refusals(body | {"output": single}) == [(("output",), "output_not_directory")]


def test_as_many_steps_as_a_float_counts(body: Body, tmp_path: Path) -> None:
    body["method"] = {"name": "fednova"}
    for model in body["models"]:
        model["training"] = {"steps": 2**53, "lr_sum": 1.0}
    assert plan(body).training[0].steps == 2**53
    body["models"][1]["training"]["steps"] = 10**400
    assert [loc for loc, _ in refusals(body)] == [("models", 1, "training", "steps")]
    body["models"][1]["training"] = None
    (tmp_path / "b" / "training.json").write_text(f'{{"steps": {10**400}}}')
    assert refusals(body) == [(("models", 1, "training", "steps"), "malformed_training_record")]


def test_a_name_leaves_room_for_that_of_the_hidden_directory(body: Body, tmp_path: Path) -> None:
    for unit in ("a", "\N{SNOWMAN}"):  # bytes count, not characters
        fits = unit * (221 // len(unit.encode()))
        output = plan(body | {"output": str(tmp_path / fits)}).output
        assert isinstance(output, Path)
        staging = Staging(output, "0" * 64)
        staging.create(())
        staging.discard()
        assert list(tmp_path.glob(".*")) == []
        for name in (fits + unit, f"{unit * 256}/out", "/".join(["d" * 200] * 19)):
            [item] = errors(body | {"output": str(tmp_path / name)})
            assert (item.loc, item.code) == (("output",), "output_not_writable")
            assert "too long" in item.msg


def test_too_little_disk(body: Body, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = sum(file.size for file in plan(body).files)
    monkeypatch.setattr(preflight, "free_bytes", lambda path: needed - 1)
    (item,) = errors(body)
    assert (item.loc, item.code) == (("output",), "insufficient_space")
    assert str(needed) in item.msg
    monkeypatch.setattr(preflight, "free_bytes", lambda path: needed)
    assert plan(body)


def test_problems_of_all_kinds_come_at_once(body: Body, tmp_path: Path) -> None:
    body["method"] = {"name": "fedgma"}
    body["models"][1]["uri"] = str(tmp_path / "nowhere")
    Path(body["output"]).mkdir()
    assert {loc for loc, _ in refusals(body)} == {
        ("method", "rho"),
        ("models", 1, "uri"),
        ("output",),
    }
