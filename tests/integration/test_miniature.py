"""The base of the demo that is committed, and the script that trains it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from examples.miniature import pretrain
from examples.miniature.drawing import SUBJECTS
from examples.miniature.experiment import BASE
from examples.miniature.tasks import TASKS, recipe, write_split
from examples.miniature.world import draw_world
from taumerge.schemas import EvaluationSpec
from workers.evaluation.evaluator import build_evaluator
from workers.finetuning.heads import zero_shot_head
from workers.finetuning.towers import load_clip
from workers.hardware import choose_hardware

FEW = 100
NEVER_DRAWN_BEFORE = 10**6
"""The base was trained on pictures of smaller numbers."""


@pytest.fixture(autouse=True)
def _one_thread_and_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_base_knows_the_world_that_it_has_seen() -> None:
    clip = load_clip(str(BASE))
    assert sum(parameter.numel() for parameter in clip.model.visual.parameters()) == 474_048
    for name, subject in SUBJECTS.items():
        pictures, _, labels = draw_world(NEVER_DRAWN_BEFORE, FEW, [name])
        head = zero_shot_head(clip, subject.classes, subject.templates, torch.device("cpu"))
        pixels = (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - 0.5) / 0.3
        with torch.inference_mode():
            predicted = (F.normalize(clip.model.visual(pixels), dim=-1) @ head).argmax(dim=-1)
        accuracy = np.mean(predicted.numpy() == labels)
        assert accuracy > 4 / len(subject.classes), name  # four times chance


def test_the_base_knows_the_tasks_a_little(tmp_path: Path) -> None:
    for name in TASKS:
        for split in ("train", "test"):
            write_split(tmp_path, name, split, FEW)
    spec = EvaluationSpec.model_validate(
        {"kind": "clip", "tasks": {name: recipe(tmp_path, name) for name in TASKS}}
    )
    evaluator = build_evaluator(str(BASE), spec, list(TASKS), choose_hardware("float32"))
    accuracies = {name: evaluator.evaluate(name, "test") for name in TASKS}
    chance = np.mean([1 / len(task.classes) for task in TASKS.values()])
    assert 2 * chance < np.mean(list(accuracies.values())) < 0.9


def test_the_script_writes_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "CHUNK", 30)
    monkeypatch.setattr(pretrain, "BATCH_SIZE", 20)
    pretrain.pretrain(tmp_path / "base", steps=3, pictures=60)
    made, committed = load_clip(str(tmp_path / "base")), load_clip(str(BASE))
    assert made.config == committed.config
    texts = ["a red circle on white", "the digit 3", "no such words"]
    assert torch.equal(made.tokenizer(texts), committed.tokenizer(texts))
    shapes = {name: tensor.shape for name, tensor in made.model.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in committed.model.state_dict().items()}
