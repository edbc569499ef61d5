"""The training loop: its schedule, its gradients, its checkpoints, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import JobFailed
from taumerge.schemas import Progress, TrainSpec
from workers.finetuning.loop import train
from workers.finetuning.schedule import learning_rate_at
from workers.hardware import Hardware

CPU = Hardware(torch.device("cpu"), torch.float32)
EXAMPLES = 20


class Regression:
    """A task with dropout, so that the random numbers of a step matter: y = sum of x, twenty examples."""

    unit = "images"

    def __init__(self, spec: TrainSpec) -> None:
        torch.manual_seed(7)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 1)
        )
        self._spec = spec
        self._x = torch.randn(EXAMPLES, 4)
        self.poisoned_from = math.inf
        self._steps = 0

    @property
    def steps_per_epoch(self) -> int:
        return EXAMPLES // self._spec.batch_size

    def train_batches(self, epoch: int, first: int, rank: int, world: int) -> Iterator[Sequence[Tensor]]:
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        for step in range(first, self.steps_per_epoch):
            chosen = order[step * self._spec.batch_size : (step + 1) * self._spec.batch_size]
            yield list(self._x[chosen].split(self._spec.micro_batch_size or len(chosen)))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        self._steps += 1
        loss = F.mse_loss(model(batch)[:, 0], batch.sum(dim=1))
        return loss * math.nan if self._steps > self.poisoned_from else loss

    def count(self, batch: Tensor) -> int:
        return len(batch)

    def validate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        with torch.no_grad():
            return {"accuracy": 0.5, "loss": float(self.loss(model, self._x))}

    def save(self, directory: Path, weights: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def record(self) -> dict[str, Any]:
        raise NotImplementedError


def spec(**fields: Any) -> TrainSpec:
    return TrainSpec(
        **{"steps": 11, "learning_rate": 0.01, "batch_size": 6, "warmup_steps": 3, "checkpoint_every": 4}
        | fields
    )


def ignore(progress: Progress) -> None:
    pass


@pytest.mark.parametrize(("steps", "warmup"), [(2000, 500), (4000, 500), (501, 500), (7, 3)])
def test_the_learning_rates_sum_to_the_closed_form(steps: int, warmup: int) -> None:
    schedule = spec(steps=steps, learning_rate=1e-5, warmup_steps=warmup)
    total = math.fsum(learning_rate_at(schedule, step) for step in range(steps))
    assert total == pytest.approx(1e-5 * (steps / 2 + 1), rel=1e-12)


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero() -> None:
    schedule = spec(steps=100, learning_rate=1.0, warmup_steps=10)
    rates = [learning_rate_at(schedule, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3


def test_without_warm_up_the_first_step_has_the_peak() -> None:
    assert learning_rate_at(spec(warmup_steps=0), 0) == 0.01


def test_the_run_records_what_was_trained(tmp_path: Path) -> None:
    reports: list[Progress] = []
    run = train(Regression(spec()), spec(), CPU, tmp_path / "c.pt", reports.append)
    assert run.step == len(run.losses) == 11
    assert run.lr_sum == sum(learning_rate_at(spec(), step) for step in range(11))
    assert [one["step"] for one in run.validations] == [3, 6, 9, 11]
    assert [(report.done, report.total, report.unit) for report in reports] == [
        (step + 1, 11, "steps") for step in range(11)
    ]
    assert reports[-1].metrics["loss"] == run.losses[-1]


def test_the_loop_does_what_a_plain_loop_does(tmp_path: Path) -> None:
    """AdamW with decay 0.1, clipping at 1, and the schedule, written out once more."""
    task = Regression(spec())
    plain = Regression(spec())
    task.model[1] = plain.model[1] = nn.Identity()  # type: ignore[index, operator]
    run = train(task, spec(), CPU, tmp_path / "c.pt", ignore)
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for step in range(11):
        [batch] = next(iter(plain.train_batches(step // 3, step % 3, 0, 1)))
        optimizer.param_groups[0]["lr"] = learning_rate_at(spec(), step)
        optimizer.zero_grad()
        plain.model.train()
        loss = plain.loss(plain.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert run.losses == losses
    assert_same_weights(task.model, plain.model)


@pytest.mark.parametrize(("killed_after", "goes_on_with"), [(4, 1), (6, 5), (9, 9)])
def test_a_killed_training_goes_on_to_the_same_bits(
    tmp_path: Path, killed_after: int, goes_on_with: int
) -> None:
    whole = Regression(spec())
    undisturbed = train(whole, spec(), CPU, tmp_path / "whole.pt", ignore)

    def kill(progress: Progress) -> None:
        if progress.done == killed_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Regression(spec()), spec(), CPU, tmp_path / "c.pt", kill)
    torch.manual_seed(99)  # another process has another state
    resumed = Regression(spec())
    steps: list[int] = []
    run = train(resumed, spec(), CPU, tmp_path / "c.pt", lambda progress: steps.append(progress.done))

    assert steps[0] == goes_on_with  # the checkpoint of a step is written after its report
    assert_same_weights(resumed.model, whole.model)
    assert (run.losses, run.lr_sum, run.validations) == (
        undisturbed.losses,
        undisturbed.lr_sum,
        undisturbed.validations,
    )


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = Regression(spec())
    train(first, spec(), CPU, tmp_path / "c.pt", ignore)
    again = Regression(spec())
    reports: list[Progress] = []
    run = train(again, spec(), CPU, tmp_path / "c.pt", reports.append)
    assert run.step == 11
    assert reports == []
    assert_same_weights(again.model, first.model)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """With micro-batches of 4 and 2 examples: the mean goes over the six, not over the two means."""
    whole, parts = Regression(spec()), Regression(spec(micro_batch_size=4))
    for task in (whole, parts):
        task.model[1] = task.model[2] = nn.Identity()  # type: ignore[index, operator]
    one = train(whole, spec(), CPU, tmp_path / "a.pt", ignore)
    other = train(parts, spec(micro_batch_size=4), CPU, tmp_path / "b.pt", ignore)
    assert other.losses == pytest.approx(one.losses, rel=1e-5)


def test_nan_stops_the_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    task = Regression(spec(steps=30, batch_size=20))
    task.poisoned_from = 12  # losses: one a step and one a validation, which comes after every step here
    with pytest.raises(JobFailed, match="at step 7; the checkpoint before it stays") as caught:
        train(task, spec(steps=30, batch_size=20), CPU, tmp_path / "c.pt", ignore)
    assert caught.value.code == "training_diverged"
    assert caught.value.details == {"step": 7, "checkpoint": str(tmp_path / "c.pt")}
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    assert saved["run"]["step"] == 4
    assert all(torch.isfinite(weight).all() for weight in saved["weights"].values())


def test_out_of_memory_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Regression(spec(micro_batch_size=3))

    def exhaust(model: nn.Module, batch: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(task, "loss", exhaust)
    with pytest.raises(JobFailed, match=r"3 examples.*lower train\.micro_batch_size") as caught:
        train(task, spec(micro_batch_size=3), CPU, tmp_path / "c.pt", ignore)
    assert caught.value.code == "out_of_memory"


def test_an_error_in_the_task_is_not_mistaken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Regression(spec())

    def break_down(model: nn.Module, batch: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(task, "loss", break_down)
    with pytest.raises(RuntimeError, match="mat1"):
        train(task, spec(), CPU, tmp_path / "c.pt", ignore)


HALF = Hardware(torch.device("cpu"), torch.float16)


def test_a_step_that_overflows_float16_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Regression(spec())
    plain, calls = task.loss, 0

    def spike(model: nn.Module, batch: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(model, batch) * (1e36 if calls == 2 else 1e-4)  # finite, but not when it is scaled

    monkeypatch.setattr(task, "loss", spike)
    run = train(task, spec(), HALF, tmp_path / "c.pt", ignore)
    assert (run.step, run.skipped_steps) == (11, 1)
    assert run.lr_sum == pytest.approx(sum(learning_rate_at(spec(), step) for step in range(11) if step != 1))
    assert all(torch.isfinite(parameter).all() for parameter in task.model.parameters())


def test_gradients_that_overflow_at_every_scale_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Regression(spec())
    plain, weight = task.loss, next(task.model.parameters())

    def steep(model: nn.Module, batch: Tensor) -> Tensor:
        return plain(model, batch) + (0 * weight).abs().sum().sqrt()  # 0, with an infinite slope

    monkeypatch.setattr(task, "loss", steep)
    with pytest.raises(JobFailed, match="at every loss scale at step 17") as caught:
        train(task, spec(steps=30), HALF, tmp_path / "c.pt", ignore)
    assert caught.value.code == "training_diverged"


def test_the_log_is_told_everything_once_also_after_an_interruption(tmp_path: Path) -> None:
    def kill(progress: Progress) -> None:
        if progress.done == 6:
            raise KeyboardInterrupt

    whole: list[tuple[int, Mapping[str, float]]] = []
    train(
        Regression(spec()),
        spec(),
        CPU,
        tmp_path / "whole.pt",
        ignore,
        log=lambda *entry: whole.append(entry),
    )
    with pytest.raises(KeyboardInterrupt):
        train(Regression(spec()), spec(), CPU, tmp_path / "c.pt", kill)
    resumed: list[tuple[int, Mapping[str, float]]] = []
    train(
        Regression(spec()),
        spec(),
        CPU,
        tmp_path / "c.pt",
        ignore,
        log=lambda *entry: resumed.append(entry),
    )
    steps = [(step, numbers) for step, numbers in whole if "train/loss" in numbers]
    assert [step for step, _ in steps] == list(range(1, 12))
    assert [step for step, numbers in whole if "validation/accuracy" in numbers] == [3, 6, 9, 11]
    assert sorted(whole, key=str) == sorted(resumed, key=str)


def test_frozen_parameters_are_neither_trained_nor_saved(tmp_path: Path) -> None:
    task = Regression(spec())
    frozen = task.model[0]  # type: ignore[index]
    frozen.requires_grad_(False)
    before = frozen.weight.clone()
    train(task, spec(), CPU, tmp_path / "c.pt", ignore)
    assert torch.equal(frozen.weight, before)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)["weights"]
    assert "0.weight" not in saved
    assert {"3.weight", "2.running_mean"} <= saved.keys()


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (name, tensor), same in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, same), name
