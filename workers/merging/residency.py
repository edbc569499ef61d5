"""Tensor bytes that a shard worker keeps between merges.

The raw bytes of θ₀ and θ_t are kept, not τ_t in float32: they are exact, half the size for 16-bit models, and
serve every rule, λ and dtype. The key names the file by its fingerprint, so a changed file is never mistaken
for the one that was read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

from workers.merging.unit import Source

Key = tuple[Source, int]


class Residency:
    """A store of tensor slices of at most ``capacity`` bytes.

    What the current inputs do not use makes room first. Slices of the current inputs never push out one another:
    a merge walks its slices in a cycle, and there least-recently-used eviction would never hit.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._slices: OrderedDict[Key, tuple[Tensor, str]] = OrderedDict()

    def get(self, source: Source, nbytes: int, inputs: str, read: Callable[[], Tensor]) -> Tensor | None:
        """The ``nbytes`` bytes at ``source``: kept ones, else those of ``read()`` if there is room, else None.

        ``inputs`` names the set of checkpoints that is being worked on.
        """
        key = (source, nbytes)
        if key in self._slices:
            kept, _ = self._slices[key]
            self._slices[key] = (kept, inputs)
            self._slices.move_to_end(key)
            return kept
        if not self._make_room(nbytes, inputs):
            return None
        data = read()
        self._slices[key] = (data, inputs)
        self.used += nbytes
        return data

    def holds(self, source: Source, nbytes: int) -> bool:
        """Whether ``get`` would read nothing."""
        return (source, nbytes) in self._slices

    def _make_room(self, nbytes: int, inputs: str) -> bool:
        if nbytes > self.capacity:
            return False
        for key in list(self._slices):
            if self.used + nbytes <= self.capacity:
                break
            if self._slices[key][1] != inputs:
                del self._slices[key]
                self.used -= key[1]
        return self.used + nbytes <= self.capacity
