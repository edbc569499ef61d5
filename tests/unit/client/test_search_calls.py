"""Searches and diagnoses through the SDK and the command."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from taumerge import DiagnoseRequest, InvalidRequest, Progress, SearchRequest
from taumerge._calls import DiagnoseFields, SearchFields
from taumerge._progress import ProgressBar
from taumerge.cli import app

SEARCH = {
    "base": "/b",
    "models": [{"uri": "/a", "task": "mnist"}],
    "methods": [{"name": "cclip", "rho": [1.0, 2.0]}],
    "scaling": {"from": 0.1, "to": 0.3, "step": 0.1},
    "evaluation": {"kind": "clip", "tasks": {"mnist": {"dataset": {"name": "mnist", "root": "/data"}}}},
    "output": "/o",
}
DIAGNOSE = {"base": "/b", "models": ["/m0", "/m1"]}

SCORES = {"score": 0.9, "average": 0.8, "tasks": {"mnist": 0.8}}
BEST = SCORES | {
    "method": {"name": "cclip", "scale": "sum", "rho": 1.5},
    "scaling": 0.2,
    "seconds": 1.0,
    "test": SCORES | {"score": 0.875},
}
SEARCHED = {
    "output": "/o",
    "evaluations": [{name: value for name, value in BEST.items() if name != "test"}],
    "best": BEST,
    "best_by_method": {"cclip": BEST},
    "individual": {"validation": SCORES | {"score": 1.0}},
    "zero_shot": {"validation": SCORES | {"score": 0.4321}},
    "complete": False,
    "files": [],
    "seconds": {"search": 3.0},
    "warnings": ["validation is test"],
}
DIAGNOSED = {
    "models": [
        {"uri": "/m0", "norm": 3.25, "weight": 0.5, "effective_weight": 0.75, "share": 0.6},
        {"uri": "/m1", "norm": 1.0, "weight": 0.5, "effective_weight": 0.25, "share": 0.4},
    ],
    "cosine": [[1.0, 0.125], [0.125, 1.0]],
    "merged_norm": 1.75,
    "agreement": [0.5, 0.25, 0.25],
    "chi_square": 0.3333,
    "groups": [],
    "verdict": ["training is heterogeneous"],
    "seconds": {"survey": 1.0},
}


def ended(job: dict, kind: str, result: dict) -> dict:
    return job | {"kind": kind, "state": "succeeded", "result": result}


@pytest.mark.parametrize(
    ("kind", "fields", "schema", "result"),
    [
        ("search", SEARCH, SearchRequest, SEARCHED),
        ("diagnose", DIAGNOSE, DiagnoseRequest, DIAGNOSED),
    ],
)
def test_a_request_is_sent_as_the_contract_has_it(
    client, service, reply, make_job, kind, fields, schema, result
):
    service.script(f"POST /{kind}", reply(200, ended(make_job("running"), kind, result)))
    job = getattr(client, kind)(**fields, wait=5)
    getattr(client, kind)(schema(**fields))
    sent = [request.body for request in service.requests]
    assert sent[0] == sent[1]
    assert schema(**sent[0]) == schema(**fields)
    assert service.requests[0].headers["prefer"] == "wait=5"
    assert job.result.model_dump(exclude_unset=True) == result


@pytest.mark.parametrize(
    ("fields", "schema"), [(SearchFields, SearchRequest), (DiagnoseFields, DiagnoseRequest)]
)
def test_the_fields_are_those_of_the_schema(fields, schema):
    assert set(fields.__annotations__) == set(schema.model_fields)


@pytest.mark.parametrize(
    ("change", "loc"),
    [
        ({"scaling": {"from": 1.0, "to": 0.5, "step": 0.1}}, ("scaling",)),
        ({"scaling": []}, ("scaling",)),
        ({"scaling": [0.1, 0.1]}, ("scaling",)),
        ({"scaling": {"step": 1e-9}}, ("scaling",)),
        ({"methods": []}, ("methods",)),
        ({"algorithm": "random"}, ()),
        ({"budget": {"evaluations": 0}}, ("budget", "evaluations")),
        ({"models": [{"uri": "/a"}]}, ("models", 0, "task")),
        ({"evaluation": {"kind": "clip", "tasks": {}}}, ("evaluation", "tasks")),
    ],
)
def test_an_unusable_search_is_refused_before_it_is_sent(client, service, change, loc):
    with pytest.raises(InvalidRequest) as caught:
        client.search(**SEARCH | change)
    assert [error.loc[: len(loc)] for error in caught.value.errors] == [loc] * len(caught.value.errors)
    assert service.requests == []


def test_the_papers_grid_is_the_default_and_exact():
    request = SearchRequest(**{name: value for name, value in SEARCH.items() if name != "scaling"})
    assert request.scalings == [float(f"{number / 100:.2f}") for number in range(5, 201, 5)]


@pytest.fixture
def run(service, tmp_path):
    def run(kind: str, fields: dict, *args: str):
        recipe = tmp_path / "recipe.json"
        recipe.write_text(json.dumps(fields))
        return CliRunner().invoke(app, [kind, str(recipe), *args], env={"TAUMERGE_URL": service.url})

    return run


def test_the_command_shows_the_best_of_each_rule_between_its_references(run, service, reply, make_job):
    service.script("POST /search", reply(202, make_job() | {"kind": "search"}))
    service.script("GET /jobs/merge-1", reply(200, ended(make_job(), "search", SEARCHED)))
    done = run("search", SEARCH, "--wait")
    assert done.exit_code == 0
    for part in (
        "cclip, scale sum, rho 1.5",
        "0.8750",
        "0.4321",
        "individual",
        "ended by the budget",
        "is test",
    ):
        assert part in done.stdout


def test_the_command_shows_a_diagnosis(run, service, reply, make_job):
    service.script("POST /diagnose", reply(202, make_job() | {"kind": "diagnose"}))
    service.script("GET /jobs/merge-1", reply(200, ended(make_job(), "diagnose", DIAGNOSED)))
    done = run("diagnose", DIAGNOSE, "--wait")
    assert done.exit_code == 0
    for part in ("training is heterogeneous", "0.3333", "0.125", "3.25", "0.75"):
        assert part in done.stdout


def test_the_live_table_ranks_the_rules(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(
        "taumerge._progress.Console", lambda **options: Console(file=screen, force_terminal=True, width=100)
    )
    metrics = {"evaluators": 2.0, "best:median": 0.71, "best:cclip": 0.82}
    with ProgressBar() as bar:
        bar.show("running", Progress(phase="evaluate", done=3, total=40, unit="evaluations", metrics=metrics))
    drawn = screen.getvalue()
    assert "3 evaluations of 40 evaluations" in drawn
    assert "evaluators 2" in drawn
    assert drawn.index("cclip") < drawn.index("median")


@pytest.mark.parametrize("algorithm", ["adaptive", "random", "optuna"])
def test_patience_is_refused_where_it_would_do_nothing(algorithm):
    fields = SEARCH | {"budget": {"evaluations": 2}, "patience": 3}
    assert SearchRequest(**fields, algorithm="grid").patience == 3
    with pytest.raises(ValueError, match=f"{algorithm} knows no patience"):
        SearchRequest(**fields, algorithm=algorithm)
