from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taumerge.errors import InvalidRequest
from taumerge.schemas import MethodSpec
from workers.aggregation import build_rule, describe_rules, registered_rules, rules

NEW_RULE = '''
from typing import ClassVar

from pydantic import Field

from workers.aggregation.rule import Rule


class Loudest(Rule):
    """The first of them.

    V = 2τ_1.
    """

    name: ClassVar[str] = "loudest"
    source: ClassVar[str] = "nowhere"
    volume: int = Field(ge=1)
'''


@pytest.fixture
def new_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A second folder of rules, with one file in it."""
    (tmp_path / "loudest.py").write_text(NEW_RULE)
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    registered_rules.cache_clear()
    yield
    sys.modules.pop("workers.aggregation.rules.loudest", None)
    monkeypatch.undo()
    registered_rules.cache_clear()


@pytest.mark.usefixtures("new_rule")
def test_a_new_file_is_a_new_rule() -> None:
    assert "loudest" in registered_rules()
    assert build_rule(MethodSpec(name="loudest", volume=3)).model_dump() == {"scale": "sum", "volume": 3}
    described = {one.name: one for one in describe_rules()}["loudest"]
    assert (described.summary, described.description) == ("The first of them.", "V = 2τ_1.")
    assert described.defaults == {"scale": "sum"}
    assert described.parameters["required"] == ["volume"]


def test_the_rules_of_the_paper_are_registered() -> None:
    assert list(registered_rules()) == ["cclip", "fedgma", "fednova", "median", "task_arithmetic"]


def test_every_rule_is_described() -> None:
    described = {one.name: one for one in describe_rules()}
    assert {name: one.defaults for name, one in described.items()} == {
        "cclip": {"scale": "sum", "iterations": 1, "norm_scope": "model"},
        "fedgma": {"scale": "sum"},
        "fednova": {"scale": "mean", "normalize_by": "steps"},
        "median": {"scale": "mean", "even": "midpoint"},
        "task_arithmetic": {"scale": "sum"},
    }
    for name, one in described.items():
        assert "arXiv" in one.source
        assert "V" in one.description
        assert one.summary.endswith(".")
        assert "description" not in one.parameters
        assert set(one.parameters["properties"]) == set(registered_rules()[name].model_fields)
        assert all(field.get("description") for field in one.parameters["properties"].values())


@pytest.mark.parametrize(
    ("method", "loc"),
    [
        ({"name": "ties"}, ("method", "name")),
        ({"name": "FedGMA", "rho": 0.5}, ("method", "name")),
        ({"name": "task_arithmetic", "rho": 0.5}, ("method", "rho")),
        ({"name": "task_arithmetic", "scale": "both"}, ("method", "scale")),
        ({"name": "fednova", "normalize_by": "epochs"}, ("method", "normalize_by")),
        ({"name": "fedgma"}, ("method", "rho")),
        ({"name": "fedgma", "rho": -0.1}, ("method", "rho")),
        ({"name": "fedgma", "rho": 1.1}, ("method", "rho")),
        ({"name": "fedgma", "rho": float("nan")}, ("method", "rho")),
        ({"name": "fedgma", "rho": "much"}, ("method", "rho")),
        ({"name": "median", "even": "upper"}, ("method", "even")),
        ({"name": "cclip"}, ("method", "rho")),
        ({"name": "cclip", "rho": 0}, ("method", "rho")),
        ({"name": "cclip", "rho": float("inf")}, ("method", "rho")),
        ({"name": "cclip", "rho": 1.0, "iterations": 0}, ("method", "iterations")),
        ({"name": "cclip", "rho": 1.0, "iterations": 1.5}, ("method", "iterations")),
        ({"name": "cclip", "rho": 1.0, "norm_scope": "layer"}, ("method", "norm_scope")),
    ],
)
def test_a_bad_parameter_is_located(method: dict[str, Any], loc: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_rule(MethodSpec(**method))
    assert [item.loc for item in caught.value.errors] == [loc]


def test_all_bad_parameters_are_found_at_once() -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_rule(MethodSpec(name="cclip", rho=-1, iterations=0, radius=3))
    assert {item.loc[1] for item in caught.value.errors} == {"rho", "iterations", "radius"}


def test_an_unknown_rule_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"cclip, fedgma, fednova, median, task_arithmetic"):
        build_rule(MethodSpec(name="slerp"))


@pytest.mark.parametrize(
    ("method", "needs", "per_tensor", "training_field"),
    [
        ({"name": "task_arithmetic"}, "nothing", False, None),
        ({"name": "median"}, "nothing", False, None),
        ({"name": "fedgma", "rho": 0.5}, "nothing", False, None),
        ({"name": "fednova"}, "nothing", False, "steps"),
        ({"name": "fednova", "normalize_by": "lr_sum"}, "nothing", False, "lr_sum"),
        ({"name": "cclip", "rho": 1.0}, "norms", False, None),
        ({"name": "cclip", "rho": 1.0, "iterations": 2}, "gram", False, None),
        ({"name": "cclip", "rho": 1.0, "norm_scope": "tensor"}, "norms", True, None),
    ],
)
def test_a_rule_says_what_it_needs(
    method: dict[str, Any], needs: str, per_tensor: bool, training_field: str | None
) -> None:
    rule = build_rule(MethodSpec(**method))
    assert (rule.needs, rule.per_tensor, rule.training_field) == (needs, per_tensor, training_field)
