"""The candidates and the λ of a search."""

from __future__ import annotations

from typing import Any

import pytest

from taumerge.errors import InvalidRequest
from taumerge.schemas import SearchRequest
from workers.search.points import Candidate, draw, expand, line


def a_request(**fields: Any) -> SearchRequest:
    body = {
        "base": "/base",
        "models": [{"uri": "/a", "task": "a"}],
        "evaluation": {"kind": "clip", "tasks": {"a": {}}},
        "output": "/out",
        **fields,
    }
    return SearchRequest.model_validate(body)


def methods(*given: Any, norms: list[float] | None = None) -> list[dict[str, Any]]:
    return [candidate.method for candidate in expand(a_request(methods=list(given)), norms)]


def test_the_papers_grid() -> None:
    found = [candidate.method for candidate in expand(a_request(), [2.0, 7.0, 4.0])]
    assert [method["name"] for method in found] == [
        "task_arithmetic",
        "fednova",
        *["fedgma"] * 9,
        "median",
        *["cclip"] * 5,
    ]
    assert [method["rho"] for method in found[2:11]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [method["rho"] for method in found[12:]] == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert found[1] == {"name": "fednova", "scale": "mean", "normalize_by": "steps"}
    assert len(line(a_request())) * len(found) == 680


@pytest.mark.parametrize(
    ("norms", "radii"),
    [
        ([3.0, 3.0], [3.0]),
        ([0.0, 5.0], [1.0, 2.0, 3.0, 4.0]),  # a radius of 0 would clip all to nothing
        ([0.0, 0.0], [1.0]),
        (None, [1.0]),
    ],
)
def test_radii_where_the_range_of_the_norms_is_no_range(
    norms: list[float] | None, radii: list[float]
) -> None:
    assert [method["rho"] for method in methods("cclip", norms=norms)] == radii


def test_lists_are_multiplied_in_the_order_given_and_what_is_left_out_is_the_papers() -> None:
    found = methods(
        {"name": "cclip", "scale": ["sum", "mean"], "rho": [2, 1.5]},
        {"name": "fedgma", "scale": "mean"},
        "median",
    )
    assert [(method["name"], method["scale"], method.get("rho")) for method in found] == [
        ("cclip", "sum", 2.0),
        ("cclip", "sum", 1.5),
        ("cclip", "mean", 2.0),
        ("cclip", "mean", 1.5),
        *(("fedgma", "mean", number / 10) for number in range(1, 10)),
        ("median", "mean", None),
    ]


def test_a_rule_is_tried_once_however_it_is_written() -> None:
    found = methods(
        "median",
        {"name": "median", "even": "midpoint"},
        {"name": "median", "even": ["lower", "midpoint"], "scale": "mean"},
        {"name": "cclip", "rho": [1, 1.0]},
    )
    assert [method.get("even") for method in found] == ["midpoint", "lower", None]


@pytest.mark.parametrize(
    ("method", "places"),
    [
        ("ties", [("methods", 1, "name")]),
        ({"name": "fedgma", "rho": 2}, [("methods", 1, "rho")]),
        ({"name": "fedgma", "rho": [0.5, 2, -1]}, [("methods", 1, "rho", 1), ("methods", 1, "rho", 2)]),
        ({"name": "cclip", "rho": [0, 1], "iterations": [1, 0]}, None),
        ({"name": "cclip", "rho": []}, [("methods", 1, "rho")]),
        ({"name": "median", "rho": [1, 2]}, [("methods", 1, "rho", 0), ("methods", 1, "rho", 1)]),
        ({"name": "cclip", "norm_scope": "tensor"}, [("methods", 1, "rho")]),
        ({"name": "cclip", "rho": list(range(1, 102)), "iterations": list(range(1, 101))}, [("methods", 1)]),
    ],
)
def test_a_bad_method_is_located_before_anything_is_measured(method: Any, places: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        methods("median", method)
    both = [("methods", 1, "rho", 0), ("methods", 1, "iterations", 1)]
    assert sorted(item.loc for item in caught.value.errors) == sorted(places or both)


def test_the_errors_of_all_methods_come_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        methods("slerp", "median", {"name": "cclip", "rho": -1})
    assert [item.loc for item in caught.value.errors] == [("methods", 0, "name"), ("methods", 2, "rho")]


def test_the_line_is_ascending() -> None:
    assert line(a_request(scaling=[0.5, 0.1, 0.3])) == [0.1, 0.3, 0.5]


def random_points(evaluations: int, seed: int = 0) -> list[tuple[int, float]]:
    request = a_request(
        methods=["median", {"name": "fedgma", "rho": [0.5, 1.0]}],
        scaling=[0.1, 0.2, 0.3],
        algorithm="random",
        budget={"evaluations": evaluations},
        seed=seed,
    )
    candidates: list[Candidate] = expand(request, None)
    assert len(candidates) == 3
    return draw(request, candidates)


def test_random_draws_without_repetition_and_by_the_seed() -> None:
    drawn = random_points(5)
    assert len(set(drawn)) == len(drawn) == 5
    assert drawn == random_points(5)
    assert drawn != random_points(5, seed=1)


def test_a_budget_larger_than_the_grid_draws_the_grid() -> None:
    everything = {(index, scaling) for index in range(3) for scaling in (0.1, 0.2, 0.3)}
    drawn = random_points(1000)
    assert len(drawn) == 9
    assert set(drawn) == everything
