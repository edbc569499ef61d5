"""Labelled images of a data set, as they lie on disk; decoded one by one."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from taumerge.errors import InvalidRequest
from workers.finetuning.datasets.hub import HubImage

ImageSource = Path | bytes | NDArray[np.uint8] | HubImage
"""An image file, its contents, pixels [height, width] or [height, width, 3], or where its contents can be fetched."""

SPLIT_SEED = 0
LARGEST_VALIDATION = 5000
NAMED = 10
"""So many corrupt images are named."""
STEPS_AHEAD = 2
"""Steps whose images are decoded while the model computes."""
_UNDECODABLE = (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError)
"""What Pillow raises for files that are cut off or no images."""


@dataclass(frozen=True)
class LabelledImages:
    """One split of a data set."""

    classes: tuple[str, ...]
    """Names of the classes, by label."""
    images: Sequence[ImageSource]
    labels: Sequence[int]
    skipped: int = 0
    """Corrupt images that were left out."""

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> LabelledImages:
        """The images at ``indices``, in that order."""
        images, labels = [self.images[i] for i in indices], [self.labels[i] for i in indices]
        return replace(self, images=images, labels=labels)


def decode(source: ImageSource) -> PIL.Image.Image:
    """The image in RGB."""
    if isinstance(source, np.ndarray):
        return PIL.Image.fromarray(source).convert("RGB")
    with PIL.Image.open(_file(source)) as image:
        return image.convert("RGB")


def split_validation(data: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation part: random with seed 0; validation is a tenth, at most 5000 images."""
    training, validation = split_indices(len(data))
    return data.subset(training), data.subset(validation)


def split_indices(count: int) -> tuple[list[int], list[int]]:
    """The examples of ``split_validation`` out of ``count``."""
    size = min(count // 10, LARGEST_VALIDATION)
    order = fixed_order(count)
    return order[: count - size], order[count - size :]


def fixed_order(count: int) -> list[int]:
    """0 … ``count`` − 1 in an order that is random and always the same."""
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return order


def ahead(
    pool: ThreadPoolExecutor, example: Callable[[int], Tensor], steps: Iterable[Sequence[int]]
) -> Iterator[tuple[Sequence[int], list[Tensor]]]:
    """The examples of every step, in order, with those of the next steps under way."""
    waiting: deque[tuple[Sequence[int], list[Future[Tensor]]]] = deque()
    try:
        for indices in steps:
            waiting.append((indices, [pool.submit(example, index) for index in indices]))
            if len(waiting) > STEPS_AHEAD:
                done, futures = waiting.popleft()
                yield done, [future.result() for future in futures]
        while waiting:
            done, futures = waiting.popleft()
            yield done, [future.result() for future in futures]
    finally:
        for _, futures in waiting:
            for future in futures:
                future.cancel()


def check_images(
    data: LabelledImages, *, skip_corrupt: bool, threads: int, loc: Sequence[str | int]
) -> LabelledImages:
    """``sound_images``, with an image for each class; raises InvalidRequest with ``empty_class`` too."""
    data = sound_images(data, skip_corrupt=skip_corrupt, threads=threads, loc=loc)
    check_classes(data.classes, data.labels, "image", loc)
    return data


def sound_images(
    data: LabelledImages, *, skip_corrupt: bool, threads: int, loc: Sequence[str | int]
) -> LabelledImages:
    """``data`` with every image decoded once, and without the corrupt ones where ``skip_corrupt`` is set.

    Raises:
        InvalidRequest: ``corrupt_image`` at ``loc``, with the first of them by name.
    """
    with ThreadPoolExecutor(threads) as pool:
        sound = list(pool.map(_is_sound, data.images))
    corrupt = [index for index, is_sound in enumerate(sound) if not is_sound]
    if corrupt and not skip_corrupt:
        names = ", ".join(_name(data.images[index], index) for index in corrupt[:NAMED])
        more = f" and {len(corrupt) - NAMED} more" if len(corrupt) > NAMED else ""
        message = f"{names}{more} cannot be decoded; repair or remove them, or set skip_corrupt"
        raise InvalidRequest.at((*loc, "dataset"), "corrupt_image", message)
    if corrupt:
        kept = data.subset([index for index, is_sound in enumerate(sound) if is_sound])
        data = replace(kept, skipped=len(corrupt))
    return data


def check_labels(data: LabelledImages, loc: Sequence[str | int]) -> None:
    """Check that every label has a class; raises InvalidRequest with ``label_out_of_range``."""
    outside = [index for index, label in enumerate(data.labels) if not 0 <= label < len(data.classes)]
    if outside:
        first = outside[0]
        message = (
            f"{_name(data.images[first], first)} has label {data.labels[first]} and there are {len(data.classes)} "
            f"classes, from 0 on ({len(outside)} such images); give all class names in task.classes"
        )
        raise InvalidRequest.at((*loc, "dataset"), "label_out_of_range", message)


def check_classes(
    classes: Sequence[str], labels: Sequence[int], example: str, loc: Sequence[str | int]
) -> None:
    """Check that every class has an ``example``; raises InvalidRequest with ``empty_class``."""
    empty = sorted(set(range(len(classes))) - set(labels))
    if empty:
        message = (
            f"class {classes[empty[0]]!r} has no {example} ({len(empty)} of {len(classes)} classes have none); "
            "add some, or leave the class out"
        )
        raise InvalidRequest.at((*loc, "dataset"), "empty_class", message)


def _is_sound(source: ImageSource) -> bool:
    if isinstance(source, np.ndarray):
        return True
    try:
        with PIL.Image.open(_file(source)) as image:
            image.draft("RGB", (1, 1))  # a JPEG is read whole and decoded at an eighth of its size
            image.load()
    except _UNDECODABLE:
        return False
    return True


def _file(source: Path | bytes | HubImage) -> Path | io.BytesIO:
    if isinstance(source, Path):
        return source
    return io.BytesIO(source.read() if isinstance(source, HubImage) else source)


def _name(source: ImageSource, index: int) -> str:
    return source.name if isinstance(source, Path) else f"row {index}"
