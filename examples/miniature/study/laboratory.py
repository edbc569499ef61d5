"""Jobs of the service whose results are kept: a study that is run again does only what is not there yet."""

from __future__ import annotations

import hashlib
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from examples.miniature.experiment import SCALING
from examples.miniature.study.draws import Draw
from taumerge import Client, DiagnoseResult, FinetuneResult, SearchResult

Request = dict[str, Any]
Result = TypeVar("Result", FinetuneResult, SearchResult, DiagnoseResult)
JobName = Literal["finetune", "search", "diagnose"]


@dataclass(frozen=True)
class Finding:
    """What came of one set of fine-tunes."""

    draw: Draw
    diagnosis: DiagnoseResult
    search: SearchResult


@dataclass(frozen=True)
class Laboratory:
    """A service, and the directory below which its outputs and results are kept."""

    client: Client
    directory: Path
    console: Console

    def find(self, draws: Sequence[Draw], methods: Sequence[Request]) -> list[Finding]:
        """Fine-tune, diagnose and search all ``draws``; ``methods`` are the rules."""
        requests = [_fine_tune(draw, task) for draw in draws for task in draw.models]
        made = iter(self._results("finetune", requests, FinetuneResult))
        models = [{task: next(made).output for task in draw.models} for draw in draws]
        diagnoses = self.diagnose(draws, models)
        adapted = [_with_median_rho(methods, diagnosis) for diagnosis in diagnoses]
        searches = self.search(draws, models, adapted)
        return [Finding(*found) for found in zip(draws, diagnoses, searches, strict=True)]

    def diagnose(self, draws: Sequence[Draw], models: Sequence[Mapping[str, str]]) -> list[DiagnoseResult]:
        """The diagnosis of the ``models`` of each draw, task → URI."""
        requests = [
            {"base": str(draw.base), "models": list(uris.values())}
            for draw, uris in zip(draws, models, strict=True)
        ]
        return self._results("diagnose", requests, DiagnoseResult)

    def search(
        self,
        draws: Sequence[Draw],
        models: Sequence[Mapping[str, str]],
        methods: Sequence[Sequence[Request]],
        weights: Sequence[Sequence[float | None]] | None = None,
    ) -> list[SearchResult]:
        """The search over the ``methods`` of each draw; ``weights`` are those of its models, null: all alike."""
        weights = weights or [[None] * len(uris) for uris in models]
        requests = [
            {
                "base": str(draw.base),
                "models": [
                    {"uri": uri, "task": task, "weight": weight}
                    for (task, uri), weight in zip(uris.items(), shares, strict=True)
                ],
                "methods": list(rules),
                "scaling": SCALING,
                "evaluation": {"kind": "clip", "tasks": {task: draw.recipes[task] for task in uris}},
                "algorithm": "adaptive",
            }
            for draw, uris, rules, shares in zip(draws, models, methods, weights, strict=True)
        ]
        return self._results("search", requests, SearchResult)

    def _results(self, kind: JobName, requests: Sequence[Request], form: type[Result]) -> list[Result]:
        """The results of jobs; those that are not there yet are carried out, all queued at once."""
        places = [self.directory / kind / _key(request) for request in requests]
        missing = {
            place: request for place, request in zip(places, requests, strict=True) if not _kept(place)
        }
        jobs = {}
        for place, request in missing.items():
            shutil.rmtree(place, ignore_errors=True)  # of a run that was stopped
            place.parent.mkdir(parents=True, exist_ok=True)
            output = {} if kind == "diagnose" else {"output": str(place)}
            jobs[place] = getattr(self.client, kind)({**request, **output}).id
        for number, (place, identity) in enumerate(jobs.items(), 1):
            result = self.client.wait(identity).result
            assert isinstance(result, form), "wait raises unless the job succeeded"
            _result_file(place).write_text(result.model_dump_json())
            self.console.print(f"{kind} {number} of {len(jobs)}")
        return [form.model_validate_json(_result_file(place).read_text()) for place in places]


def _with_median_rho(methods: Sequence[Request], diagnosis: DiagnoseResult) -> list[Request]:
    """``methods``, of which centred clipping gets the median norm of the task vectors as its ρ, as diagnoses advise."""
    rho = statistics.median(model.norm for model in diagnosis.models)
    return [method | {"rho": rho} if method["name"] == "cclip" else method for method in methods]


def _fine_tune(draw: Draw, task: str) -> Request:
    """What ``POST /finetune`` is asked for, but for the output."""
    training = draw.models[task]
    return {
        "base": str(draw.base),
        "task": {"kind": "clip", **draw.recipes[task]},
        "train": training.spec(),
        "adapter": training.adapter,
        "resources": {"gpus": 0},  # the models are too small for one
    }


def _key(request: Request) -> str:
    """A name for all that decides a result: the request, and the weights of its base."""
    weights = (Path(request["base"]) / "open_clip_model.safetensors").read_bytes()
    decides = [request, hashlib.sha256(weights).hexdigest()]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _result_file(place: Path) -> Path:
    return place.with_suffix(".json")


def _kept(place: Path) -> bool:
    return _result_file(place).exists()
