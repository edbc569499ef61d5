"""Eight classification tasks in the image of the paper's eight data sets, as Parquet files that fine-tunes read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from examples.miniature.drawing import SIZE, SUBJECTS, Picture, Style

TRAIN, TEST = 2000, 500
"""Pictures of each split. A fine-tune sets a tenth of the first aside for validation."""
HANDWRITTEN_TEST = 397
"""There are 1797 handwritten digits."""
MARGIN = 4
"""Pixels around a handwritten digit, as MNIST has them."""
SEEDS = {"train": 1, "test": 2}

FONTS = (
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneralBolIta",
    "STIXGeneralItalic",
    "cmtt10",
    "cmb10",
)
"""The base has not seen them."""


@dataclass(frozen=True)
class Task:
    """A subject in a style that the base has not seen."""

    subject: str
    style: Style | None
    """Null: real pictures instead of drawn ones."""
    templates: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return SUBJECTS[self.subject].classes


TASKS: dict[str, Task] = {
    "handwriting": Task("digits", None, ("the digit {}", "a picture of the digit {}")),
    "house_numbers": Task(
        "house_numbers",
        Style(fonts=FONTS, tilt=12, reversed=0.7, faint=0.5, busy=0.6, blur=1.0, noise=20, light=0.3),
        ("the house number {}", "the number {} on a house"),
    ),
    "shapes": Task(
        "shapes",
        Style(fonts=FONTS, outlined=1.0, tilt=20, reversed=0.5, faint=0.3, busy=0.5, blur=0.4, noise=15),
        ("a {}", "a picture of a {}"),
    ),
    "counting": Task(
        "counting",
        Style(fonts=FONTS, outlined=0.5, tilt=45, reversed=0.7, faint=0.3, busy=0.5, blur=0.4, noise=15),
        ("{} things", "a picture of {} things"),
    ),
    "arrows": Task(
        "arrows",
        Style(fonts=FONTS, outlined=0.9, tilt=14, reversed=0.5, faint=0.4, busy=0.6, blur=0.8, noise=20),
        ("an arrow pointing {}", "a picture of an arrow pointing {}"),
    ),
    "textures": Task(
        "textures",
        Style(fonts=FONTS, tilt=45, faint=0.4, busy=0.3, blur=0.8, noise=20, light=0.3),
        ("a {} texture", "a {} surface"),
    ),
    "signs": Task(
        "signs",
        Style(fonts=FONTS, tilt=40, busy=0.8, blur=1.0, noise=30, light=0.6),
        ("a {} sign", "the traffic sign {}"),
    ),
    "land": Task(
        "land",
        Style(fonts=FONTS, blur=1.2, noise=45, light=0.6),
        ("{} from above", "an aerial picture of {}"),
    ),
}


def draw(name: str, split: str, count: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """``count`` pictures of a drawn task, [32, 32, 3], and their labels; the same ones at every call."""
    task = TASKS[name]
    assert task.style is not None, "handwriting is not drawn"
    random = np.random.default_rng((SEEDS[split], list(TASKS).index(name)))
    for _ in range(count):
        label = int(random.integers(len(task.classes)))
        picture = Picture(random, task.style)
        SUBJECTS[task.subject].draw(picture, label)
        yield picture.finish(), label


def handwriting(split: str) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Scikit-learn's handwritten digits as pictures of the same size, and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:HANDWRITTEN_TEST] if split == "test" else order[HANDWRITTEN_TEST:]
    for index in chosen:
        pixels = 255 - np.minimum(digits.images[index] * 16, 255).astype(np.uint8)
        digit = PIL.Image.fromarray(pixels).resize((SIZE - 2 * MARGIN,) * 2, PIL.Image.Resampling.BICUBIC)
        image = PIL.Image.new("RGB", (SIZE, SIZE), "white")
        image.paste(digit, (MARGIN, MARGIN))
        yield np.asarray(image), int(digits.target[index])


def write_split(directory: Path, name: str, split: str, count: int) -> None:
    """Write ``directory/NAME/SPLIT.parquet`` with encoded images and the numbers of their classes."""
    examples = handwriting(split) if TASKS[name].style is None else draw(name, split, count)
    write_pictures(directory / name / f"{split}.parquet", examples)


def write_pictures(path: Path, examples: Iterable[tuple[NDArray[np.uint8], int]]) -> None:
    """Write pictures, [32, 32, 3] each, and their labels as a Parquet file that fine-tunes read."""
    images, labels = zip(*((_png(pixels), label) for pixels, label in examples), strict=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int64())})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_tasks(directory: Path, train: int = TRAIN, test: int = TEST) -> None:
    """Write both splits of every task below ``directory``, on every CPU."""
    with ProcessPoolExecutor() as pool:
        sizes = {"train": train, "test": test}
        done = [
            pool.submit(write_split, directory, name, split, count)
            for split, count in sizes.items()
            for name in TASKS
        ]
        for future in done:
            future.result()


def pictures_version(*sources: str) -> str:
    """A name for all that decides how pictures look: what is here, in ``drawing`` and in ``sources``, by file name."""
    here = Path(__file__)
    files = [here, *map(Path, sources), *sorted((here.parent / "drawing").glob("*.py"))]
    decides = [path.read_bytes() for path in files]
    decides += [version(name).encode() for name in ("pillow", "numpy", "matplotlib")]
    return hashlib.sha256(b" ".join(decides)).hexdigest()[:12]


def recipe(directory: Path, name: str) -> dict[str, Any]:
    """The task as a fine-tune or an evaluation asks for it, read from what ``write_tasks`` wrote."""
    task = TASKS[name]
    return {
        "dataset": {"uri": str(directory / name), "format": "parquet"},
        "classes": list(task.classes),
        "templates": list(task.templates),
    }


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
