"""The one public face of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

import taumerge
from taumerge.cli import app

README = Path(taumerge.__file__).parents[1] / "README.md"


def test_exported_names():
    assert set(taumerge.__all__) == {
        "ApiError",
        "AsyncClient",
        "BestEvaluation",
        "Client",
        "Conflict",
        "DiagnoseRequest",
        "DiagnoseResult",
        "ErrorItem",
        "Evaluation",
        "EvaluationSpec",
        "EvaluationTask",
        "Event",
        "FinetuneRequest",
        "FinetuneResult",
        "InvalidRequest",
        "Job",
        "JobCancelled",
        "JobError",
        "JobFailed",
        "LogEvent",
        "MergeRequest",
        "MergeResult",
        "MethodInfo",
        "MethodSpec",
        "ModelRef",
        "ModelReport",
        "NotFound",
        "Plan",
        "Progress",
        "ProgressEvent",
        "Scores",
        "SearchRequest",
        "SearchResult",
        "ServiceUnreachable",
        "StateEvent",
        "TaskModel",
        "TaumergeError",
        "Training",
        "TrialResult",
        "Unauthorized",
        "Unavailable",
        "WaitTimeout",
        "__version__",
        "load_recipe",
    }
    assert all(hasattr(taumerge, name) for name in taumerge.__all__)
    assert taumerge.__version__ == version("taumerge")


def test_every_error_is_exported():
    assert set(taumerge.errors.__all__) <= set(taumerge.__all__)


def test_the_package_needs_neither_torch_nor_ray():
    code = (
        "import sys, taumerge, taumerge.cli; "
        "print(*sorted({'torch', 'ray', 'fastapi', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found
    return found


def scripted(service, reply, make_job) -> None:
    service.script("POST /merge", reply(202, make_job()))
    service.script("GET /jobs/merge-1", reply(200, make_job("succeeded")))
    service.script("GET /jobs", reply(200, {"jobs": [make_job()]}))
    service.script(
        "GET /jobs/merge-1/events",
        reply(
            200,
            b'id: 1\nevent: state\ndata: {"state": "succeeded"}\n\n',
            {"Content-Type": "text/event-stream"},
        ),
    )


@pytest.mark.parametrize("code", blocks("python"))
def test_readme_python_runs(code, service, reply, make_job, capsys):
    scripted(service, reply, make_job)
    exec(compile(code.replace("http://127.0.0.1:8000", service.url), str(README), "exec"), {})
    assert capsys.readouterr().out
    assert service.requests


def test_readme_commands_run(service, reply, make_job, tmp_path, monkeypatch):
    scripted(service, reply, make_job)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(blocks("yaml")[0])
    commands = [line.split("#")[0].split() for line in blocks("bash")[0].splitlines()]
    for command in commands:
        done = CliRunner().invoke(app, command[1:], env={"TAUMERGE_URL": service.url})
        assert (command[0], done.exit_code) == ("taumerge", 0), done.output
    assert len(commands) >= 3
