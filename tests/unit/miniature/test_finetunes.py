"""Which fine-tunes are drawn, and that each is made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from examples.miniature import finetunes
from examples.miniature.finetunes import LEARNING_RATES, RECORD, Training, Workshop, draw_trainings
from examples.miniature.tasks import TASKS
from taumerge import Client, FinetuneRequest, Job


class RecordingClient:
    """Makes every fine-tune at once and keeps what was asked."""

    def __init__(self) -> None:
        self.requests: list[FinetuneRequest] = []

    def finetune(self, request: dict[str, Any]) -> Job:
        self.requests.append(FinetuneRequest.model_validate(request))
        output = Path(self.requests[-1].output)
        output.mkdir()
        (output / RECORD).write_text("{}")
        return self.wait(f"finetune-{len(self.requests)}")

    def jobs(self, *, kind: str, limit: int) -> list[Job]:
        """Other people's: the service is shared, and they asked last."""
        return [self.job(f"{kind}-of-others-{number}") for number in range(limit)]

    def wait(self, identity: str) -> Job:
        return self.job(identity)

    def job(self, identity: str) -> Job:
        ended = {"id": identity, "kind": "finetune", "state": "succeeded", "request": {}}
        return Job.model_validate(ended | {"created_at": "2026-01-01T00:00:00Z"})


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setattr(finetunes, "POLL_SECONDS", 0)
    base = tmp_path / "base"
    base.mkdir()
    (base / "open_clip_model.safetensors").write_bytes(b"weights")
    return Workshop(cast(Client, RecordingClient()), base, tmp_path / "data", tmp_path / "finetunes")


def test_homogeneous_draws_differ_in_their_seeds_only() -> None:
    first, second = draw_trainings("same", 0), draw_trainings("same", 1)
    assert [one.task for one in first] == list(TASKS)
    assert {(one.learning_rate, one.steps) for one in first + second} == {(5e-4, 120)}
    assert len({one.seed for one in first + second}) == 2 * len(TASKS)


def test_heterogeneous_draws_span_what_they_are_drawn_from() -> None:
    draws = [one for draw in range(30) for one in draw_trainings("different", draw)]
    assert {one.learning_rate for one in draws} == set(LEARNING_RATES)
    assert 60 <= min(one.steps for one in draws) < 70
    assert 230 < max(one.steps for one in draws) <= 240
    assert draw_trainings("different", 3) == draw_trainings("different", 3)


def test_a_fine_tune_is_made_once(workshop: Workshop) -> None:
    trainings = [Training("signs", 1e-3, 10, seed=1), Training("land", 1e-3, 20, seed=2)]
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        workshop.fine_tune(trainings, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 30), (30, 30), (0, 0)]
    requests = cast(RecordingClient, workshop.client).requests
    assert [request.train.steps for request in requests] == [10, 20]
    assert requests[0].task.classes == list(TASKS["signs"].classes)
    assert [Path(request.output) for request in requests] == [workshop.path(one) for one in trainings]


def test_whatever_decides_a_fine_tune_is_in_its_name(workshop: Workshop) -> None:
    training = Training("signs", 1e-3, 10, seed=1)
    names = {workshop.path(training)}
    for changed in ({"learning_rate": 2e-3}, {"steps": 11}, {"seed": 2}, {"task": "land"}):
        names.add(workshop.path(Training(**{**vars(training), **changed})))
    (workshop.base / "open_clip_model.safetensors").write_bytes(b"others")
    names.add(workshop.path(training))
    assert len(names) == 6
