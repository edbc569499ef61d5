"""The miniature: what it draws, the base that is committed, and what a demo asks of the service."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from examples.miniature.experiment import (
    BASE,
    FEWEST_STEPS,
    MOST_STEPS,
    RATES,
    different_training,
    same_training,
)
from examples.miniature.pretrain import draw_pictures
from examples.miniature.tasks import TASKS, draw, recipe, write_split
from taumerge.schemas import EvaluationSpec, FinetuneRequest
from workers.evaluation.evaluator import build_evaluator
from workers.hardware import choose_hardware

FEW = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        for split in ("train", "test"):
            write_split(directory, name, split, FEW)
    return directory


def test_pictures_are_drawn_from_their_seed() -> None:
    (first, captions), (again, same_captions), (other, _) = (
        draw_pictures(0),
        draw_pictures(0),
        draw_pictures(1),
    )
    assert np.array_equal(first, again)
    assert captions == same_captions
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.style is not None])
def test_no_test_picture_is_a_training_picture(name: str) -> None:
    training = {pixels.tobytes() for pixels, _ in draw(name, "train", FEW)}
    assert not training & {pixels.tobytes() for pixels, _ in draw(name, "test", FEW)}


def test_every_class_of_a_task_is_drawn(data: Path) -> None:
    for name, task in TASKS.items():
        labels = pq.read_table(data / name / "train.parquet")["label"].to_pylist()
        assert set(labels) <= set(range(len(task.classes)))
        assert len(set(labels)) > len(task.classes) // 2


def test_the_base_knows_more_than_chance_of_every_task_and_not_all(data: Path) -> None:
    torch.set_num_threads(1)
    spec = EvaluationSpec.model_validate(
        {"kind": "clip", "tasks": {name: recipe(data, name) for name in TASKS}}
    )
    evaluator = build_evaluator(str(BASE), spec, list(TASKS), choose_hardware("float32"))
    relative = [
        evaluator.evaluate(name, "test") * len(task.classes) for name, task in TASKS.items()
    ]  # 1 is chance
    assert np.mean(relative) > 2
    assert np.mean([evaluator.evaluate(name, "test") for name in TASKS]) < 0.9


def test_draws_differ_in_rate_and_length_and_come_from_their_seed() -> None:
    draw_of_zero = different_training(0)
    assert draw_of_zero == different_training(0) != different_training(1)
    assert {one.learning_rate for one in draw_of_zero.values()} <= set(RATES)
    assert all(FEWEST_STEPS <= one.steps <= MOST_STEPS for one in draw_of_zero.values())
    assert len(set(same_training().values())) == 1


def test_a_task_is_a_few_lines_of_a_recipe(data: Path) -> None:
    for name in TASKS:
        FinetuneRequest.model_validate(
            {"base": str(BASE), "task": {"kind": "clip", **recipe(data, name)}, "output": "/o"}
        )
