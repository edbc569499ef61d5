"""The parts of the demo: splits, the learning-rate schedule, the training loop and its record."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from examples.digits.data import CLASSES, Task, load_tasks, split_indices
from examples.digits.evaluation import accuracy
from examples.digits.model import TOWER, heads, logits
from examples.digits.train import Schedule, train


def linear_tower() -> nn.Module:
    """In the place of the transformer, whose package takes ten seconds to import."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, int(TOWER["output_dim"])))


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return load_tasks()


def test_splits_are_disjoint_and_cover_every_image() -> None:
    train_indices, validation, test = split_indices()
    assert sorted(torch.cat([train_indices, validation, test]).tolist()) == list(range(1797))
    assert len(test) == len(validation) == 359


@pytest.mark.parametrize("name", CLASSES)
def test_task_shapes_and_labels(tasks: dict[str, Task], name: str) -> None:
    for split in (tasks[name].train, tasks[name].validation, tasks[name].test):
        assert split.images.shape == (len(split), 3, 32, 32)
        assert split.images.min() == -1
        assert split.images.max() == 1
        assert set(split.labels.tolist()) == set(range(CLASSES[name]))


def test_rotation_shows_each_image_in_four_turns(tasks: dict[str, Task]) -> None:
    upright, rotation = tasks["digits"].test, tasks["rotation"].test
    turned = rotation.images[rotation.labels == 3]
    assert torch.equal(turned, torch.rot90(upright.images, 3, dims=(2, 3)))


def test_mirrored_exchanges_left_and_right(tasks: dict[str, Task]) -> None:
    upright, mirrored = tasks["digits"].test, tasks["mirrored"].test
    assert torch.equal(mirrored.images[mirrored.labels == 1], upright.images.flip(3))


def test_parity_is_of_the_digit(tasks: dict[str, Task]) -> None:
    assert torch.equal(tasks["parity"].train.labels, tasks["digits"].train.labels % 2)


def test_heads_are_orthonormal_over_all_tasks() -> None:
    directions = torch.cat(list(heads().values()))
    assert torch.allclose(directions @ directions.T, torch.eye(sum(CLASSES.values())), atol=1e-6)


@pytest.mark.parametrize("steps", [51, 200, 801])
def test_schedule_sums_to_its_closed_form(steps: int) -> None:
    schedule = Schedule(steps=steps, learning_rate=3e-4)
    rates = [schedule.learning_rate_at(step) for step in range(steps)]
    assert sum(rates) == pytest.approx(3e-4 * (steps / 2 + 1))
    assert max(rates) == rates[49] == 3e-4


def test_record_holds_the_learning_rates_that_the_optimiser_saw(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    step: Callable[..., object] = torch.optim.AdamW.step

    def recording_step(self: torch.optim.AdamW) -> None:
        seen.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording_step)
    schedule = Schedule(steps=4, learning_rate=1e-3, warmup_steps=2)
    record = train(linear_tower(), [tasks["digits"]], schedule)
    assert record["steps"] == len(seen) == 4
    assert record["lr_sum"] == sum(seen)
    assert record["lr_sum"] == pytest.approx(1e-3 * (4 / 2 + 1))
    assert len(record["validation_accuracy"]) == 1


def test_training_is_deterministic_and_changes_every_parameter(tasks: dict[str, Task]) -> None:
    schedule = Schedule(steps=3, learning_rate=1e-3, warmup_steps=1)
    first, second, untrained = linear_tower(), linear_tower(), linear_tower()
    before = torch.get_rng_state()
    records = [train(tower, [tasks["digits"], tasks["rotation"]], schedule) for tower in (first, second)]
    assert torch.equal(before, torch.get_rng_state())
    assert records[0] == records[1]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert not torch.equal(value, untrained.state_dict()[name]), name


def test_accuracy_counts_the_right_answers(tasks: dict[str, Task]) -> None:
    tower, head, split = linear_tower(), heads()["digits"], tasks["digits"].test
    with torch.inference_mode():
        predicted = logits(tower, head, split.images).argmax(-1)
    assert accuracy(tower, head, split) == pytest.approx((predicted == split.labels).float().mean().item())
