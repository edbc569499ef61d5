"""What Ray Tune's callbacks must bear, and runs that begin together."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from taumerge.schemas import Progress
from workers.tuning import Watch, run_trials


class Idle(Watch):
    def progress(self) -> Progress:
        return Progress(phase="train")


def test_a_watch_whose_report_cannot_be_pickled_can() -> None:
    lock = threading.Lock()

    def report(progress: Progress) -> None:
        lock.acquire()

    pickle.dumps(Idle(report))


def test_no_two_runs_have_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By Tune's own names, those that begin together share files and trials.
    names: list[str] = []

    class Tuner:
        def __init__(self, trainable: Any, *, run_config: tune.RunConfig, **others: Any) -> None:
            assert run_config.name
            names.extend([run_config.name, trainable.__name__])

        def fit(self) -> None:
            """Nothing is run."""

    monkeypatch.setattr(tune, "Tuner", Tuner)
    for _ in range(2):
        trainable = type("Trainable", (tune.Trainable,), {})
        run_trials(trainable, {"CPU": 1}, {}, Idle(lambda progress: None), tmp_path, config=tune.TuneConfig())
    assert len(set(names)) == len(names) == 4
