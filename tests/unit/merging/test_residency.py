from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from workers.checkpoints.files import FileRecord, FileState
from workers.merging.residency import Residency
from workers.merging.unit import Source


class Inputs:
    """Reads that are counted."""

    def __init__(self) -> None:
        self.reads = 0

    def source(self, offset: int, ctime_ns: int = 0) -> Source:
        state = FileState(99, ctime_ns=ctime_ns, inode=1)
        return Source(
            FileRecord("model.safetensors", Path("/m/model.safetensors"), state, "digest"), offset, "F32"
        )

    def read(self) -> Tensor:
        self.reads += 1
        return torch.full((4,), self.reads, dtype=torch.uint8)


def test_what_fits_is_read_once() -> None:
    inputs, residency = Inputs(), Residency(8)
    first = residency.get(inputs.source(0), 4, "a", inputs.read)
    assert residency.get(inputs.source(0), 4, "a", inputs.read) is first
    assert residency.get(inputs.source(4), 4, "a", inputs.read) is not first
    assert (inputs.reads, residency.used) == (2, 8)


def test_current_inputs_never_push_out_one_another() -> None:
    inputs, residency = Inputs(), Residency(8)
    for _ in range(3):
        kept = [residency.get(inputs.source(offset), 4, "a", inputs.read) for offset in (0, 4, 8)]
        assert [one is not None for one in kept] == [True, True, False]
    assert inputs.reads == 2


def test_former_inputs_make_room() -> None:
    inputs, residency = Inputs(), Residency(8)
    residency.get(inputs.source(0), 4, "a", inputs.read)
    residency.get(inputs.source(4), 4, "a", inputs.read)
    assert residency.get(inputs.source(8), 4, "b", inputs.read) is not None
    assert residency.used == 8
    assert residency.get(inputs.source(4), 4, "b", inputs.read) is not None
    assert inputs.reads == 3  # the oldest slice went, this one had stayed


def test_slices_that_both_inputs_share_stay() -> None:
    inputs, residency = Inputs(), Residency(8)
    residency.get(inputs.source(0), 4, "a", inputs.read)
    residency.get(inputs.source(4), 4, "a", inputs.read)
    residency.get(inputs.source(0), 4, "b", inputs.read)
    residency.get(inputs.source(8), 4, "b", inputs.read)
    residency.get(inputs.source(0), 4, "b", inputs.read)
    assert inputs.reads == 3


def test_a_changed_file_is_another_one() -> None:
    inputs, residency = Inputs(), Residency(8)
    residency.get(inputs.source(0), 4, "a", inputs.read)
    residency.get(inputs.source(0, ctime_ns=1), 4, "a", inputs.read)
    assert inputs.reads == 2


def test_nothing_is_kept_without_memory_for_it() -> None:
    inputs, residency = Inputs(), Residency(3)
    assert residency.get(inputs.source(0), 4, "a", inputs.read) is None
    assert (inputs.reads, residency.used) == (0, 0)
