"""Fine-tunes through the SDK and the command."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from taumerge import FinetuneRequest, InvalidRequest
from taumerge._calls import FinetuneFields
from taumerge.cli import app

FIELDS = {
    "base": "open_clip://ViT-B-32/openai",
    "task": {"kind": "clip", "dataset": {"name": "mnist", "root": "/data"}},
    "train": {"steps": 100},
    "output": "/o",
}
RECIPE = "base: /b\ntask: {kind: clip, dataset: {name: dtd, root: /data}}\ngrid: paper\noutput: /o\n"


def trial(**fields):
    return {"output": "/o/lr1e-05-steps1000", "learning_rate": 1e-5, "steps": 1000} | fields


@pytest.fixture
def ended(make_job):
    good = trial(loss=0.25, validation={"accuracy": 0.9875})
    bad = trial(learning_rate=1e-4, error={"code": "training_diverged", "message": "at step 7"})
    result = {"output": "/o", "trials": [good, bad], "seconds": {"finetune": 3.0}, "warnings": ["short"]}
    return make_job("running") | {"kind": "finetune", "state": "succeeded", "result": result}


def test_a_grid_has_as_many_trials_as_anybody_waits_for(client, service):
    rates = [1e-5] * 40
    with pytest.raises(InvalidRequest, match=r"grid: .*these are 1040 trials, and a grid may have 1000"):
        client.finetune(**FIELDS, grid={"learning_rate": rates, "steps": [1] * 26})
    assert service.requests == []
    FinetuneRequest(**FIELDS, grid={"learning_rate": rates, "steps": [1] * 25})


def test_a_fine_tune_is_sent_as_the_contract_has_it(client, service, reply, ended):
    service.script("POST /finetune", reply(200, ended))
    job = client.finetune(**FIELDS, wait=5)
    client.finetune(FinetuneRequest(**FIELDS))
    client.finetune(FIELDS)
    assert [request.body for request in service.requests] == [FIELDS] * 3
    assert service.requests[0].headers["prefer"] == "wait=5"
    assert job.result.trials[0].validation == {"accuracy": 0.9875}
    assert job.result.trials[1].error.code == "training_diverged"


def test_finetune_fields_are_those_of_the_schema():
    assert set(FinetuneFields.__annotations__) == set(FinetuneRequest.model_fields)


def test_a_local_refusal_is_located_and_never_sent(client, service):
    with pytest.raises(InvalidRequest) as caught:
        client.finetune(**FIELDS | {"train": {"stepz": 1}})
    assert [error.loc for error in caught.value.errors] == [("train", "stepz")]
    assert service.requests == []


@pytest.fixture
def run(service, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)

    def run(*args: str):
        return CliRunner().invoke(app, ["finetune", str(recipe), *args], env={"TAUMERGE_URL": service.url})

    return run


def test_the_command_queues_a_recipe(run, service, reply, make_job):
    service.script("POST /finetune", reply(202, make_job() | {"id": "finetune-1", "kind": "finetune"}))
    done = run()
    assert done.exit_code == 0
    assert "finetune-1" in done.stdout
    assert service.requests[0].body["grid"] == "paper"


def test_the_command_waits_and_shows_every_trial(run, service, reply, make_job, ended):
    service.script("POST /finetune", reply(202, make_job() | {"kind": "finetune"}))
    service.script("GET /jobs/merge-1", reply(200, ended))
    done = run("--wait")
    assert done.exit_code == 0
    for part in ("1e-05", "1,000", "accuracy 0.9875", "at step 7 (training_diverged)", "short"):
        assert part in done.stdout
    done = run("--wait", "--json")
    assert json.loads(done.stdout)["result"]["trials"][0]["loss"] == 0.25
