"""One subject among four clients, whose pictures differ by a dial: which classes they hold, or how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from examples.miniature.drawing import SUBJECTS, Picture, Style
from examples.miniature.tasks import FONTS, pictures_version, write_pictures

CLIENTS = 4
SUBJECT = "arrows"
TEMPLATES = ("an arrow pointing {}", "a picture of an arrow pointing {}")
CLASSES = SUBJECTS[SUBJECT].classes
"""Eight directions, two for each client where each holds its own."""
STYLES = (
    Style(fonts=FONTS, blur=1.4, noise=45),
    Style(fonts=FONTS, reversed=1.0, tilt=14),
    Style(fonts=FONTS, outlined=1.0, noise=15),
    Style(fonts=FONTS, faint=0.6, busy=0.9, light=0.5),
)
"""Grainy, dark, outlined and faded; one for each client where each has its own."""
Kind = Literal["label", "style"]
Split = Literal["train", "test"]
SIZES: dict[Split, int] = {"train": 1000, "test": 250}
"""Pictures of each client. The test pictures of all clients are drawn alike."""

Example = tuple[NDArray[np.uint8], int]


@dataclass(frozen=True)
class Skew:
    """How the pictures of the clients differ."""

    kind: Kind
    share: float
    """Part of a client's pictures that are of its own classes, or in its own style; the others are like everybody's."""
    seed: int

    @property
    def name(self) -> str:
        """For a directory. Without skew both kinds are the same pictures."""
        return f"{self.kind}-{self.share:g}-{self.seed}" if self.share else f"none-{self.seed}"


def draw_examples(skew: Skew, client: int, split: Split, count: int) -> Iterator[Example]:
    """``count`` pictures, [32, 32, 3], of a client and their labels; test pictures are not skewed."""
    share = skew.share if split == "train" else 0.0
    random = np.random.default_rng((skew.seed, client, split == "test"))
    own = np.random.default_rng(skew.seed).permutation(len(CLASSES)).reshape(CLIENTS, -1)[client]
    for _ in range(count):
        mine = random.random() < share
        label = int(random.choice(own) if mine and skew.kind == "label" else random.integers(len(CLASSES)))
        style = client if mine and skew.kind == "style" else int(random.integers(len(STYLES)))
        picture = Picture(random, STYLES[style])
        SUBJECTS[SUBJECT].draw(picture, label)
        yield picture.finish(), label


def write_clients(directory: Path, skews: set[Skew]) -> None:
    """Write the pictures of all clients below ``directory``, where they are not there yet, on every CPU."""
    with ProcessPoolExecutor() as pool:
        wanted = {skew.name: skew for skew in skews}.values()
        missing = [skew for skew in wanted if not (directory / skew.name).exists()]
        for future in [pool.submit(_write, directory, skew) for skew in missing]:
            future.result()


def client_recipes(directory: Path, skew: Skew) -> dict[str, dict[str, Any]]:
    """Client → its data, as fine-tunes and evaluations ask for it."""
    return {
        f"client-{client}": {
            "dataset": {"uri": str(directory / skew.name / str(client)), "format": "parquet"},
            "classes": list(CLASSES),
            "templates": list(TEMPLATES),
        }
        for client in range(CLIENTS)
    }


def clients_version() -> str:
    """A name for all that decides how pictures look, but for the skew."""
    return pictures_version(__file__)


def _write(directory: Path, skew: Skew) -> None:
    growing = directory / f"{skew.name}.growing"
    for client in range(CLIENTS):
        for split, count in SIZES.items():
            write_pictures(
                growing / str(client) / f"{split}.parquet", draw_examples(skew, client, split, count)
            )
    growing.rename(directory / skew.name)
