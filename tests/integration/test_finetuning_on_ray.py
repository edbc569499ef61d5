"""Fine-tunes on a real Ray: killed workers, absent accelerators, cancellation, grids that go on."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import ray
import reference
import torch
from clip_files import write_tiny_clip
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from taumerge.errors import InvalidRequest, JobCancelled, JobFailed
from taumerge.schemas import FinetuneRequest, FinetuneResult, MergeResult, Progress, TrialResult
from workers.finetuning import run_finetune
from workers.finetuning.actor import TrainingActor
from workers.settings import WorkerSettings

WEIGHTS = "open_clip_model.safetensors"
ON_CPU = WorkerSettings()


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, a small CLIP model, and ``data``, a folder of dark and one of light images."""
    directory = tmp_path_factory.mktemp("inputs")
    write_tiny_clip(directory / "base")
    random = np.random.default_rng(0)
    for name, mean in (("dark", 60), ("light", 180)):
        (directory / "data" / name).mkdir(parents=True)
        for index in range(20):
            pixels = np.clip(random.normal(mean, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(directory / "data" / name / f"{index}.png")
    return directory


@pytest.fixture
def request_for(inputs: Path, tmp_path: Path, ray_session: str) -> Callable[..., FinetuneRequest]:
    """Makes a fine-tune of the small model on CPUs; other fields by name."""

    def make(train: dict[str, Any] | None = None, output: str = "out", **fields: Any) -> FinetuneRequest:
        spec = {"steps": 40, "learning_rate": 1e-3, "batch_size": 8, "warmup_steps": 4, "checkpoint_every": 5}
        body = {
            "base": str(inputs / "base"),
            "task": {"kind": "clip", "dataset": {"uri": str(inputs / "data"), "format": "image_folder"}},
            "train": spec | (train or {}),
            "resources": {"gpus": 0},
            "output": str(tmp_path / output),
        }
        return FinetuneRequest.model_validate(body | fields)

    return make


class DyingActor(TrainingActor):
    """Dies at a step of its first attempt, as when the kernel runs out of memory."""

    step = 0
    died = Path()

    def _note(self, progress: Progress) -> None:
        super()._note(progress)
        if progress.phase == "train" and progress.done == self.step and not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedActor(TrainingActor):
    """Waits at a step until somebody has asked how far it is."""

    step = 0

    def __init__(self) -> None:
        super().__init__()
        self._asked = threading.Event()

    def progress(self) -> Progress:
        if self._progress.done == self.step:
            self._asked.set()
        return self._progress

    def _note(self, progress: Progress) -> None:
        super()._note(progress)
        if progress.phase == "train" and progress.done == self.step:
            assert self._asked.wait(60)


class NotedActor(TrainingActor):
    """Notes which process makes which output."""

    notes = Path()

    def finetune(self, request: FinetuneRequest, directory: Path) -> TrialResult:
        (self.notes / Path(request.output).name).write_text(str(os.getpid()))
        return super().finetune(request, directory)


@pytest.fixture
def train_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Lets a class of this file train in the place of ``TrainingActor``, with other attributes by name."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # no process of Ray could import it

    def replace(actor: type[TrainingActor], **attributes: Any) -> None:
        monkeypatch.setattr("workers.finetuning.actor.TrainingActor", type("Actor", (actor,), attributes))

    yield replace
    ray.cloudpickle.unregister_pickle_by_value(module)


def test_a_killed_worker_is_replaced_and_ends_with_the_same_bits(
    request_for: Callable[..., FinetuneRequest], train_on: Callable[..., None], tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    run_finetune(request_for(output="outputs/undisturbed"), ON_CPU, ignore)
    train_on(DyingActor, step=17, died=tmp_path / "died")
    result = run_finetune(request_for(output="outputs/killed"), ON_CPU, ignore)
    assert (tmp_path / "died").exists()
    undisturbed, killed = outputs / "undisturbed", outputs / "killed"
    assert (killed / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    first, second = (json.loads((path / "training.json").read_text()) for path in (undisturbed, killed))
    assert first["lr_sum"] == second["lr_sum"] == result.trials[0].lr_sum
    assert first["validations"] == second["validations"]
    assert len(list((killed / "tensorboard").iterdir())) == 1
    assert sorted(path.name for path in outputs.iterdir()) == ["killed", "undisturbed"]


def test_progress_tells_step_loss_rate_and_throughput(
    request_for: Callable[..., FinetuneRequest], train_on: Callable[..., None]
) -> None:
    train_on(WatchedActor, step=30)
    reports: list[Progress] = []
    run_finetune(request_for(), ON_CPU, reports.append)
    report = next(report for report in reports if report.phase == "train" and report.done == 30)
    assert (report.total, report.unit) == (40, "steps")
    assert report.metrics.keys() == {"loss", "learning_rate", "images_per_second"}
    assert report.eta_seconds is not None
    assert (reports[-1].phase, reports[-1].done) == ("save", 40)


def test_the_next_training_takes_the_process_of_the_last_and_writes_the_same_bits(
    request_for: Callable[..., FinetuneRequest],
    train_on: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_on(NotedActor, notes=tmp_path)
    monkeypatch.setattr("workers.spare.IDLE_SECONDS", 0.5)
    trainings = {"first": 0, "other": 1, "again": 0}
    for name, seed in trainings.items():
        run_finetune(request_for({"seed": seed}, output=f"outputs/{name}"), ON_CPU, ignore)
    weights = {name: (tmp_path / "outputs" / name / WEIGHTS).read_bytes() for name in trainings}
    assert weights["again"] == weights["first"] != weights["other"]
    (process,) = {(tmp_path / name).read_text() for name in trainings}
    deadline = time.monotonic() + 30
    while Path("/proc", process).exists():
        assert time.monotonic() < deadline, "nobody took it, and it did not end"
        time.sleep(0.1)


def test_an_attempt_after_the_commit_returns_what_is_in_place(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    request = request_for({"steps": 5})
    first = run_finetune(request, ON_CPU, ignore, job_id="job-1")
    record, notes = tmp_path / "out/training.json", tmp_path / "out/.taumerge-journal"
    written = record.stat().st_mtime_ns
    notes.mkdir()  # it died over them
    again = run_finetune(request, ON_CPU, ignore, job_id="job-1")
    assert again.trials == first.trials
    assert record.stat().st_mtime_ns == written
    assert not notes.exists()
    with pytest.raises(InvalidRequest, match="exists"):
        run_finetune(request_for({"steps": 5, "seed": 1}), ON_CPU, ignore, job_id="job-2")


def test_a_cancelled_fine_tune_leaves_nothing(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    def cancel(progress: Progress) -> None:
        if progress.phase == "train":
            raise JobCancelled("cancelled")

    with pytest.raises(JobCancelled):
        run_finetune(request_for({"steps": 100_000}), ON_CPU, cancel)
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_data_shows_is_refused_with_its_place(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    request = request_for()
    request.task.classes = ["one", "two", "three"]
    with pytest.raises(InvalidRequest) as caught:
        run_finetune(request, ON_CPU, ignore)
    assert caught.value.errors[0].loc == ("task", "classes")
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_training_keeps_its_last_checkpoint(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    with pytest.raises(JobFailed) as caught:
        run_finetune(request_for({"learning_rate": 1e12, "checkpoint_every": 1}), ON_CPU, ignore)
    assert caught.value.code == "training_diverged"
    assert Path(caught.value.details["checkpoint"]).is_file()
    assert not (tmp_path / "out").exists()


def test_an_absent_accelerator_fails_at_once(request_for: Callable[..., FinetuneRequest]) -> None:
    with pytest.raises(
        JobFailed, match="no node of this Ray cluster has an accelerator of type P100"
    ) as caught:
        run_finetune(request_for(resources={"accelerator_type": "P100"}), ON_CPU, ignore)
    assert caught.value.code == "capacity_unavailable"
    with pytest.raises(JobFailed, match="5 workers with 1 GPUs each") as caught:
        run_finetune(request_for(resources={"gpus": 1, "workers": 5}), ON_CPU, ignore)
    assert caught.value.code == "capacity_unavailable"


def test_a_worker_is_pinned_to_its_accelerator(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    """The fake V100 of the session has no CUDA, so that the training computes on the CPU."""
    run_finetune(request_for(resources={"accelerator_type": "V100"}), ON_CPU, ignore)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["device"] == "cpu"


def test_an_interrupted_grid_goes_on_with_the_trials_that_are_left(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    """Twelve points, one of them hopeless; stopped after five trials, then started again."""
    grid = {"learning_rate": [1e-3, 1e-4, 1e30], "steps": [10, 20, 30, 40]}
    request = request_for(grid=grid)

    def stop_after_five(progress: Progress) -> None:
        if progress.metrics.get("trials_ended", 0) >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_finetune(request, ON_CPU, stop_after_five)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("lr*")}
    assert 5 <= len(finished) < 12

    result = run_finetune(request, ON_CPU, ignore)
    assert {path: (tmp_path / "out" / path).stat().st_mtime_ns for path in finished} == finished
    assert [(trial.learning_rate, trial.steps) for trial in result.trials] == [
        (rate, steps) for rate in grid["learning_rate"] for steps in grid["steps"]
    ]
    failed = [trial for trial in result.trials if trial.error is not None]
    assert {trial.learning_rate for trial in failed} == {1e30}
    assert {trial.error.code for trial in failed if trial.error} == {"training_diverged"}
    assert_complete(result)


def assert_complete(result: FinetuneResult) -> None:
    """Every trial that succeeded has its directory, with a record of its own length."""
    succeeded = [trial for trial in result.trials if trial.error is None]
    assert len(succeeded) == 8
    for trial in succeeded:
        record = json.loads((Path(trial.output) / "training.json").read_text())
        assert (record["steps"], record["learning_rate"]) == (trial.steps, trial.learning_rate)
        assert record["lr_sum"] == trial.lr_sum
        assert (Path(trial.output) / WEIGHTS).is_file()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_workers_train_what_one_trains(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path, strategy: str
) -> None:
    """The same steps over the same batches: only the order of float32 sums differs."""
    train = {"steps": 12, "micro_batch_size": 2}
    alone = run_finetune(request_for(train, "alone"), ON_CPU, ignore).trials[0]
    resources = {"gpus": 0, "workers": 2, "strategy": strategy}
    shared = run_finetune(request_for(train, "shared", resources=resources), ON_CPU, ignore).trials[0]
    assert shared.lr_sum == alone.lr_sum
    assert shared.loss == pytest.approx(alone.loss, rel=1e-4)
    one, two = (load_file(tmp_path / name / WEIGHTS) for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-4, msg=name)
    assert json.loads((tmp_path / "shared" / "training.json").read_text())["workers"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "shared"]


def test_fednova_weighs_runs_by_their_records_without_being_told(
    request_for: Callable[..., FinetuneRequest],
    merge: Callable[..., MergeResult],
    inputs: Path,
    tmp_path: Path,
) -> None:
    """K = 10, 20, 50: coefficients λ·mean(K)/K_t/T, and the model that they give."""
    steps = [10, 20, 50]
    run_finetune(request_for(grid={"steps": steps}, output="grid"), ON_CPU, ignore)
    models = [tmp_path / "grid" / f"lr0.001-steps{count}" for count in steps]
    merged = tmp_path / "merged"
    result = merge(
        {
            "base": str(inputs / "base"),
            "models": [str(model) for model in models],
            "method": {"name": "fednova"},
            "scaling": 0.5,
            "output": str(merged),
        }
    )
    mean = sum(steps) / 3
    expected_coefficients = [0.5 * mean / count / 3 for count in steps]
    assert [one.coefficient for one in result.models] == pytest.approx(expected_coefficients)
    base, *tuned = (load_numpy(path / WEIGHTS) for path in (inputs / "base", *models))
    expected = reference.merge(base, tuned, {"name": "fednova"}, scaling=0.5, amounts=steps)
    found = load_numpy(merged / WEIGHTS)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)
    assert any(not np.array_equal(found[name], base[name]) for name in base)
