"""The tasks lie on disk as fine-tunes and evaluations read them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from examples.miniature.captions import END, START, vocabulary
from examples.miniature.tasks import HANDWRITTEN_TEST, TASKS, recipe, write_split
from taumerge.schemas import FinetuneTask
from workers.finetuning.datasets import load_images

COUNT = 60


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    for name in TASKS:
        for split in ("train", "test"):
            write_split(directory, name, split, COUNT)
    return directory


def contents(directory: Path, name: str, split: str) -> list[bytes]:
    task = FinetuneTask.model_validate({"kind": "clip", **recipe(directory, name)})
    data = load_images(task.dataset, "train" if split == "train" else "test", task.classes)
    assert data.classes == TASKS[name].classes
    assert set(data.labels) == set(range(len(data.classes)))
    return [image for image in data.images if isinstance(image, bytes)]


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_read_by_their_recipe_and_share_no_picture(written: Path, name: str) -> None:
    train, test = contents(written, name, "train"), contents(written, name, "test")
    sizes = (1797 - HANDWRITTEN_TEST, HANDWRITTEN_TEST) if TASKS[name].style is None else (COUNT, COUNT)
    assert (len(train), len(test)) == sizes
    assert not set(train) & set(test)
    assert len(set(train)) == len(train)
    for image in train[:5]:
        assert np.asarray(PIL.Image.open(io.BytesIO(image))).shape == (32, 32, 3)


def test_the_same_pictures_are_drawn_at_every_call(written: Path, tmp_path: Path) -> None:
    write_split(tmp_path, "signs", "test", COUNT)
    assert contents(tmp_path, "signs", "test") == contents(written, "signs", "test")


def test_tasks_differ_from_each_other(written: Path) -> None:
    """Also where two tasks show the same subject."""
    everything = [image for name in TASKS for image in contents(written, name, "test")]
    assert len(set(everything)) == len(everything)


def test_every_word_of_a_prompt_is_in_the_vocabulary() -> None:
    words = set(vocabulary())
    for task in TASKS.values():
        for template in task.templates:
            for name in task.classes:
                assert set(template.format(name).split()) <= words


def test_a_text_ends_with_the_largest_token() -> None:
    """That is where open_clip's text tower looks."""
    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens)
    assert tokens[-1] == END
    assert START in tokens
