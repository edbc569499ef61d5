"""The pictures show what their labels say, and the same seed draws the same ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from examples.miniature.drawing import SUBJECTS, Picture, Style
from examples.miniature.tasks import FONTS, TASKS
from examples.miniature.world import STYLE, draw_world

PLAIN = Style(fonts=("DejaVuSans",), outlined=0, tilt=0, noise=0, light=0)


def drawn(subject: str, label: int, style: Style, seed: int) -> NDArray[np.uint8]:
    picture = Picture(np.random.default_rng(seed), style)
    SUBJECTS[subject].draw(picture, label)
    return picture.finish()


def ink(subject: str, label: int, seed: int) -> NDArray[np.float64]:
    """How much of each pixel is figure, from 0 to 1: the picture on plain paper, without a gradient of light."""
    picture = Picture(np.random.default_rng(seed), PLAIN)
    picture.paper, picture.ink = (255, 255, 255), (0, 0, 0)
    picture.draw.rectangle((0, 0, picture.image.width, picture.image.height), fill=picture.paper)
    SUBJECTS[subject].draw(picture, label)
    return 1 - picture.finish().mean(axis=2) / 255


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_class_is_drawn_and_depends_on_the_seed_alone(subject: str) -> None:
    for label in range(len(SUBJECTS[subject].classes)):
        pixels = drawn(subject, label, STYLE, seed=3)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5
        assert np.array_equal(pixels, drawn(subject, label, STYLE, seed=3))
        assert not np.array_equal(pixels, drawn(subject, label, STYLE, seed=4))


def test_there_are_as_many_things_as_the_class_says() -> None:
    for label in range(len(SUBJECTS["counting"].classes)):
        for seed in range(20):
            _, count = ndimage.label(ink("counting", label, seed) > 0.5, structure=np.ones((3, 3)))
            assert count == label + 1


def test_arrows_point_where_the_class_says() -> None:
    for label in range(len(SUBJECTS["arrows"].classes)):
        angle = math.radians(45 * label)
        for seed in range(20):
            y, x = np.nonzero(ink("arrows", label, seed) > 0.5)
            along = x * math.cos(angle) + y * math.sin(angle)
            across = y * math.cos(angle) - x * math.sin(angle)
            across = np.abs(across - (across.min() + across.max()) / 2)
            along = (2 * along - along.max() - along.min()) / (along.max() - along.min())
            head, tail = across[along > 0.3].max(), across[along < -0.3].max()
            assert head > tail


def test_tasks_are_drawn_in_fonts_that_the_base_has_not_seen() -> None:
    assert not set(FONTS) & set(STYLE.fonts)
    for task in TASKS.values():
        assert task.style is None or set(task.style.fonts) <= set(FONTS)


def test_captions_name_the_class() -> None:
    subject = SUBJECTS["arrows"]
    pictures, captions, labels = draw_world(7, 40, ["arrows"])
    assert len(pictures) == len(captions) == 40
    for caption, label in zip(captions, labels, strict=True):
        assert f"pointing {subject.classes[label]}" in caption
    again, other = draw_world(7, 40, ["arrows"]), draw_world(8, 40, ["arrows"])
    assert np.array_equal(pictures, again[0])
    assert captions == again[1]
    assert not np.array_equal(pictures, other[0])
