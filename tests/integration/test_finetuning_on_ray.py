"""Fine-tunes on a real Ray: killed workers, absent accelerators, cancellation, grids that go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

from taumerge.errors import InvalidRequest, JobCancelled, JobFailed
from taumerge.schemas import FinetuneRequest, FinetuneResult, Progress
from workers.finetuning import run_finetune
from workers.settings import WorkerSettings

WEIGHTS = "open_clip_model.safetensors"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ON_CPU = WorkerSettings()


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, a small CLIP model, and ``data``, a folder of dark and one of light images."""
    directory = tmp_path_factory.mktemp("inputs")
    base = directory / "base"
    base.mkdir()
    config = {"model_cfg": ARCHITECTURE, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (base / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{base}", load_weights=False)
    save_file(model.state_dict(), base / WEIGHTS, metadata={"format": "pt"})
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


class KillOnce:
    """A report that kills the training's process when it has passed a step."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.killed_at: int | None = None
        self.seen: list[int] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress.done)
        if self.killed_at is None and progress.phase == "train" and progress.done >= self._step:
            [process] = training_processes()
            os.kill(process, signal.SIGKILL)
            self.killed_at = progress.done


def training_processes() -> list[int]:
    """Process ids of the training actors of this machine."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                title = (directory / "cmdline").read_bytes()
            except OSError:
                continue
            if b"TrainingActor" in title:
                found.append(int(directory.name))
    return found


def test_a_killed_worker_is_replaced_and_ends_with_the_same_bits(
    request_for: Callable[..., FinetuneRequest], tmp_path: Path
) -> None:
    steps = {"steps": 150}
    run_finetune(request_for(steps, "undisturbed"), ON_CPU, ignore)
    report = KillOnce(step=20)
    result = run_finetune(request_for(steps, "killed"), ON_CPU, report)
    assert report.killed_at is not None
    assert report.killed_at < 150
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert (killed / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    first, second = (json.loads((path / "training.json").read_text()) for path in (undisturbed, killed))
    assert first["lr_sum"] == second["lr_sum"] == result.trials[0].lr_sum
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "undisturbed"]


def test_progress_tells_step_loss_rate_and_throughput(request_for: Callable[..., FinetuneRequest]) -> None:
    reports: list[Progress] = []
    run_finetune(request_for({"steps": 200}), ON_CPU, reports.append)
    under_way = [report for report in reports if report.phase == "train"]
    assert under_way
    assert all(report.total == 200 and report.unit == "steps" for report in under_way)
    assert under_way[-1].metrics.keys() == {"loss", "learning_rate", "images_per_second"}
    assert under_way[-1].eta_seconds is not None
    assert (reports[-1].phase, reports[-1].done) == ("save", 200)


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
