"""Sums over tensors and models, added in one fixed order so that they do not depend on who computed what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.merging.unit import Findings


@dataclass(slots=True)
class Sums:
    """What a pass over some files, or over all of them, found out. Tensors are named by their index."""

    gram: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    """⟨τ_s, τ_t⟩ of each merged tensor, shape (T, T)."""
    merged_squares: dict[int, float] = field(default_factory=dict)
    """‖V‖₂² of each merged tensor."""
    nonfinite: dict[tuple[int, int], int] = field(default_factory=dict)
    overflowed: set[int] = field(default_factory=set)
    differing: set[int] = field(default_factory=set)
    agreement: dict[int, NDArray[np.int64]] = field(default_factory=dict)
    """Number of coordinates of each merged tensor by |Σ_t sign τ_t|, shape (T + 1,); of a survey only."""
    bytes_read: int = 0

    @classmethod
    def of(cls, findings: Iterable[Findings]) -> Sums:
        """The sums over units that are given in order."""
        sums = cls()
        for one in findings:
            for part in one.sums:
                if part.tensor in sums.gram:
                    sums.gram[part.tensor] = sums.gram[part.tensor] + part.gram
                    sums.merged_squares[part.tensor] += part.merged_square
                else:
                    sums.gram[part.tensor] = part.gram
                    sums.merged_squares[part.tensor] = part.merged_square
            for place, count in one.nonfinite.items():
                sums.nonfinite[place] = sums.nonfinite.get(place, 0) + count
            sums.overflowed |= one.overflowed
            for tensor, counts in one.agreement.items():
                sums.agreement[tensor] = sums.agreement.get(tensor, 0) + counts
            sums.differing |= one.differing
            sums.bytes_read += one.bytes_read
        return sums

    def include(self, other: Sums) -> None:
        """Take over the tensors of another file."""
        self.gram |= other.gram
        self.merged_squares |= other.merged_squares
        self.nonfinite |= other.nonfinite
        self.overflowed |= other.overflowed
        self.differing |= other.differing
        self.bytes_read += other.bytes_read

    @property
    def sound(self) -> bool:
        """Whether nothing was found that must not be written."""
        return not self.nonfinite and not self.overflowed

    def total_gram(self, models: int) -> NDArray[np.float64]:
        """⟨τ_s, τ_t⟩ over all merged tensors, shape (T, T)."""
        total = np.zeros((models, models))
        for tensor in sorted(self.gram):
            total = total + self.gram[tensor]
        return total

    def merged_norm(self) -> float:
        """‖V‖₂ over all merged tensors."""
        total = 0.0
        for tensor in sorted(self.merged_squares):
            total += self.merged_squares[tensor]
        return float(np.sqrt(total))

    def to_json(self) -> dict[str, Any]:
        """The sums of a file that is sound, exactly: JSON keeps float64."""
        return {
            "tensors": {
                str(tensor): [gram.tolist(), self.merged_squares[tensor]]
                for tensor, gram in self.gram.items()
            },
            "differing": sorted(self.differing),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Sums:
        """The inverse of ``to_json``."""
        return cls(
            gram={int(tensor): np.array(gram) for tensor, (gram, _) in record["tensors"].items()},
            merged_squares={int(tensor): square for tensor, (_, square) in record["tensors"].items()},
            differing=set(record["differing"]),
        )
