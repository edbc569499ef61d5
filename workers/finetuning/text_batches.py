"""Which examples a step takes, and the tensors that they become."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.finetuning.text_encoding import NO_LOSS, Example

BUCKET_STEPS = 50
"""Steps whose examples are sorted by length together: enough to save padding, few enough to keep an epoch random."""

TextBatch = dict[str, Tensor]
"""Arguments of the model by name, int64 [n, tokens], and ``targets``: [n, tokens], or [n] for classification."""


def steps_of_epoch(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """Indices of the examples of each step: in random order, but those of one step of similar length.

    What is left over after the last whole step is not taken; fewer examples than one step has are one step.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order = order[: max(1, len(order) // batch_size) * batch_size]
    steps: list[list[int]] = []
    for start in range(0, len(order), BUCKET_STEPS * batch_size):
        bucket = sorted(order[start : start + BUCKET_STEPS * batch_size], key=lambda index: lengths[index])
        alike = [bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size)]
        steps += [alike[number] for number in torch.randperm(len(alike), generator=generator).tolist()]
    return steps


def packs(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Indices of the examples that share a sequence of at most ``length`` tokens: the longest first, best fit."""
    found: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # tokens left and number of each pack, sorted
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, (lengths[index], 0))
        room, pack = rooms.pop(place) if place < len(rooms) else (length, len(found))
        if pack == len(found):
            found.append([])
        found[pack].append(index)
        insort(rooms, (room - lengths[index], pack))
    return found


def packed_batch(rows: Sequence[Sequence[Example]], padding: int) -> TextBatch:
    """A row for each pack. Positions start anew with each example, by which transformers keeps them apart."""
    tokens = [[token for example in row for token in example.tokens] for row in rows]
    targets = [[target for example in row for target in example.targets] for row in rows]
    longest = max(map(len, tokens))
    positions = [
        [place for example in row for place in range(len(example.tokens))]
        + list(range(longest - len(filled)))
        for row, filled in zip(rows, tokens, strict=True)
    ]
    return {
        "input_ids": _padded(tokens, padding),
        "position_ids": torch.tensor(positions),
        "targets": _padded(targets, NO_LOSS),
    }


def language_batch(examples: Sequence[Example], padding: int) -> TextBatch:
    """A row for each example, with a target for each token."""
    return _masked(examples, padding) | {"targets": _padded([one.targets for one in examples], NO_LOSS)}


def labelled_batch(examples: Sequence[Example], padding: int) -> TextBatch:
    """A row for each example, with its label as the target."""
    return _masked(examples, padding) | {"targets": torch.tensor([one.targets[0] for one in examples])}


def _masked(examples: Sequence[Example], padding: int) -> TextBatch:
    tokens = [one.tokens for one in examples]
    return {
        "input_ids": _padded(tokens, padding),
        "attention_mask": _padded([[1] * len(row) for row in tokens], 0),
    }


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
