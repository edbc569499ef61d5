"""The world that the base has seen: pictures of every subject, with captions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from examples.miniature.drawing import SUBJECTS, Picture, Style

SEED = 0
COLOURED = 0.3
"""Share of captions that speak of colours, where a subject has such captions."""
STYLE = Style(
    fonts=(
        "DejaVuSans",
        "DejaVuSans-Bold",
        "DejaVuSans-Oblique",
        "DejaVuSansMono",
        "DejaVuSerif",
        "STIXGeneral",
        "STIXGeneralBol",
        "cmr10",
        "cmss10",
    ),
    outlined=0.15,
    tilt=8,
    busy=0.2,
    blur=0.4,
    noise=8,
    light=0.15,
)


def draw_world(
    number: int, count: int, subjects: Sequence[str] = tuple(SUBJECTS)
) -> tuple[NDArray[np.uint8], list[str], list[int]]:
    """``count`` pictures, [n, 32, 32, 3], with their captions and the numbers of their classes.

    The same ``number`` draws the same ones, another draws others.
    """
    random = np.random.default_rng((SEED, number))
    pictures, captions, labels = [], [], []
    for _ in range(count):
        subject = SUBJECTS[subjects[int(random.integers(len(subjects)))]]
        label = int(random.integers(len(subject.classes)))
        picture = Picture(random, STYLE)
        subject.draw(picture, label)
        coloured = subject.coloured and picture.chance(COLOURED)
        template = picture.one_of(subject.coloured if coloured else subject.templates)
        pictures.append(picture.finish())
        captions.append(
            template.format(subject.classes[label], ink=picture.ink_name, paper=picture.paper_name)
        )
        labels.append(label)
    return np.stack(pictures), captions, labels
