"""What Ray Tune's callbacks must bear, and runs that begin together."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.exceptions import ActorDiedError, RayTaskError

from taumerge.errors import JobFailed
from taumerge.schemas import FinetuneRequest, Progress
from workers.finetuning import grid
from workers.finetuning.run import staging_of
from workers.search.tuning import _SearchWatch
from workers.settings import WorkerSettings
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


def test_grids_with_the_same_output_do_not_share_the_files_of_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratches: list[Path] = []

    class Tuner:
        def __init__(self, trainable: Any, *, run_config: tune.RunConfig, **others: Any) -> None:
            assert run_config.storage_path
            scratches.append(Path(run_config.storage_path))

        def fit(self) -> None:
            """No trial ends, as after Ctrl-C."""

    monkeypatch.setattr(tune, "Tuner", Tuner)
    monkeypatch.setattr(grid, "worker_options", lambda request, settings: {"num_cpus": 1})
    monkeypatch.setattr(grid, "_slots", lambda bundle: 1)
    monkeypatch.setattr(tune, "with_parameters", lambda trainable, **parameters: trainable)
    for rates in ([1e-4], [1e-5], [1e-5]):
        request = FinetuneRequest.model_validate(
            {
                "base": "/base",
                "task": {"kind": "clip", "dataset": {"uri": "/images", "format": "image_folder"}},
                "grid": {"learning_rate": rates},
                "output": str(tmp_path / "out"),
            }
        )
        with pytest.raises(KeyboardInterrupt):
            grid.run_grid(
                request,
                tmp_path / "out",
                WorkerSettings(),
                lambda progress: None,
                lambda run, path: staging_of(run, path, "job"),
            )
    assert scratches[0] != scratches[1] == scratches[2]
    assert {path.parent for path in scratches} == {tmp_path}
    assert all(path.name.startswith(".out.") for path in scratches)


@pytest.mark.parametrize(
    ("error", "stopped_by"),
    [(RayTaskError("step", "", KeyError("fault")), RayTaskError), (ActorDiedError(), JobFailed)],
)
def test_only_a_process_that_died_is_lost(error: Exception, stopped_by: type[Exception]) -> None:
    stand_in: Any = SimpleNamespace(directions=(), records={}, evaluators=SimpleNamespace(kill=lambda: None))
    watch = _SearchWatch(stand_in, stand_in, lambda: 0.0, {}, lambda progress: None, stand_in)
    watch.on_trial_error(0, [], SimpleNamespace(get_pickled_error=lambda: error))
    assert isinstance(watch.stopped_by, stopped_by)
