"""``python -m examples.miniature.sheet docs/miniature-tasks.png``: what the base has seen, and what the tasks show."""

from __future__ import annotations

import sys
from itertools import islice

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from examples.miniature.drawing import SIZE
from examples.miniature.tasks import TASKS, draw, handwriting
from examples.miniature.world import draw_world

COLUMNS, LARGER = 12, 2
GAP = 6
"""White pixels between the world on the left and the tasks on the right."""


def contact_sheet() -> PIL.Image.Image:
    """A row for each task: pictures of its subject as the base saw it, and then those of the task."""
    rows = []
    for name, task in TASKS.items():
        world, _, _ = draw_world(1, COLUMNS, [task.subject])
        examples = handwriting("test") if task.style is None else draw(name, "test", COLUMNS)
        shown = [pixels for pixels, _ in islice(examples, COLUMNS)]
        gap: NDArray[np.uint8] = np.full((SIZE, GAP, 3), 255, np.uint8)
        rows.append(np.concatenate([*world, gap, *shown], axis=1))
    sheet = PIL.Image.fromarray(np.concatenate(rows))
    return sheet.resize((sheet.width * LARGER, sheet.height * LARGER), PIL.Image.Resampling.NEAREST)


if __name__ == "__main__":
    contact_sheet().quantize(256).save(sys.argv[1], optimize=True)
