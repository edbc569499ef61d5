"""What travels between the driver and the shard workers.

A merge is cut into *slices* (part of one tensor, at most ``SLICE`` elements, always at the same places) and
the slices into *units* (neighbouring slices of one output file). A unit says all that a worker needs, so a
call with it can be repeated on any worker: it reads inputs that do not change and writes the same bytes to
the same place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.files import FileRecord

SLICE = 1 << 22
"""Elements of a slice at most (``MergePlan.slice_elements``): part of the numerics, not a tuning knob."""

CHUNK = 1 << 17
"""Elements that a worker computes with at a time on a CPU: few enough for its cache, many enough to hide what a
torch call costs."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor, or a slice of one, lies in a checkpoint."""

    file: FileRecord
    offset: int
    dtype: str

    def part(self, start: int) -> Source:
        """The source from element ``start`` on."""
        return Source(self.file, self.offset + start * ITEMSIZE[self.dtype], self.dtype)


@dataclass(frozen=True, slots=True)
class LowRankSource:
    """Where the factors of one tensor's ΔW = scaling·B·A lie in an adapter."""

    a: Source
    """A, shape (rank, inputs)."""
    b: Source
    """B, shape (outputs, rank)."""
    rank: int
    inputs: int
    outputs: int
    scaling: float
    transposed: bool
    """The tensor holds ΔWᵀ."""

    @property
    def reads(self) -> list[tuple[Source, int]]:
        """Both factors, with the bytes of each."""
        a, b = self.inputs * ITEMSIZE[self.a.dtype], self.outputs * ITEMSIZE[self.b.dtype]
        return [(self.a, self.rank * a), (self.b, self.rank * b)]


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements ``[start, start + elements)`` of one tensor, of the base and of every model that takes part."""

    tensor: int
    start: int
    elements: int
    base: Source
    models: tuple[Source, ...]
    """The models to merge; for a copied tensor those whose bytes are compared with the base's. An adapter stands
    here as the base itself, or as what it replaces."""
    low_rank: tuple[LowRankSource | None, ...]
    """What adapters add to the models, one for each of a merged tensor; empty for a copied one."""
    merged: bool
    dtype: str
    """Element type of the output."""
    offset: int
    """Place of the slice in the output file."""

    @property
    def reads(self) -> list[tuple[Source, int]]:
        """What is read for this slice when nothing is resident, with the bytes of each."""
        files = (self.base, *(model for model in self.models if model != self.base))
        whole = [(source, self.elements * ITEMSIZE[source.dtype]) for source in files]
        return whole + [factor for one in self.low_rank if one for factor in one.reads]

    @property
    def input_bytes(self) -> int:
        """Bytes read for this slice when nothing is resident."""
        return sum(nbytes for _, nbytes in self.reads)

    @property
    def output_bytes(self) -> int:
        """Bytes written for this slice."""
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class Unit:
    """Neighbouring slices of one output file, given to one worker."""

    worker: int
    file: str
    """Name of the output file."""
    slices: tuple[Slice, ...]

    @property
    def input_bytes(self) -> int:
        """Bytes read for this unit when nothing is resident."""
        return sum(one.input_bytes for one in self.slices)

    @property
    def remote_bytes(self) -> int:
        """Bytes that are fetched from stores for this unit when nothing is resident."""
        return sum(nbytes for one in self.slices for source, nbytes in one.reads if source.file.state.version)

    @property
    def output_bytes(self) -> int:
        """Bytes written for this unit."""
        return sum(one.output_bytes for one in self.slices)


@dataclass(slots=True)
class SliceSums:
    """What the merged slice of a tensor adds to the sums over the tensor."""

    tensor: int
    gram: NDArray[np.float64]
    """⟨τ_s, τ_t⟩, shape (T, T); only the diagonal is set where norms were asked for."""
    merged_square: float = 0.0
    """‖V‖₂²."""


@dataclass(slots=True)
class Findings:
    """What working on a unit found out."""

    sums: list[SliceSums] = field(default_factory=list)
    """Of the merged slices, in order."""
    nonfinite: dict[tuple[int, int], int] = field(default_factory=dict)
    """(model, tensor) → number of NaN and inf elements; model −1 is the base."""
    overflowed: set[int] = field(default_factory=set)
    """Tensors with merged values outside the range of their output type."""
    differing: set[int] = field(default_factory=set)
    """Copied tensors whose bytes in some model differ from the base's."""
    agreement: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Merged tensor → number of coordinates by |Σ_t sign τ_t|, shape (T + 1,); of a survey only."""
    bytes_read: int = 0


@dataclass(frozen=True, slots=True)
class MergedSlice:
    """V of one merged slice of a unit."""

    values: NDArray[np.floating[Any]] | None
    """Flat, in the dtype that V is computed in; null where V is zero everywhere."""
    square: float
    """‖V‖₂²."""


@dataclass(frozen=True, slots=True)
class DirectionPart:
    """What the driver learns of V of a unit, whose values stay with the workers."""

    digest: bytes
    """SHA-256 over every bit of V."""
    bytes: int
    """Bytes of the values."""
    bytes_read: int
