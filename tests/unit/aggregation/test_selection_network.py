from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from workers.aggregation.rules.median import selection_network


def run(count: int, wanted: Iterable[int], values: Sequence[int]) -> dict[int, int]:
    """What the network leaves on the wanted wires."""
    wires = list(values)
    for low, high, keep_low, keep_high in selection_network(count, frozenset(wanted)):
        first, second = wires[low], wires[high]
        if keep_low:
            wires[low] = min(first, second)
        if keep_high:
            wires[high] = max(first, second)
    return {wire: wires[wire] for wire in wanted}


@pytest.mark.parametrize("count", range(1, 13))
def test_middle_of_all_sequences_of_zeros_and_ones(count: int) -> None:
    """A network that is right for all of them is right for all numbers (the 0-1 principle)."""
    middle = {(count - 1) // 2, count // 2}
    for bits in range(1 << count):
        values = [bits >> wire & 1 for wire in range(count)]
        ordered = sorted(values)
        assert run(count, middle, values) == {wire: ordered[wire] for wire in middle}


@pytest.mark.parametrize("count", range(13, 34))
def test_middle_and_single_order_statistics_of_larger_counts(count: int) -> None:
    generator = random.Random(count)
    for wanted in ({(count - 1) // 2, count // 2}, {0}, {count - 1}, {count // 3}):
        for _ in range(50):
            values = generator.choices(range(count), k=count)
            ordered = sorted(values)
            assert run(count, wanted, values) == {wire: ordered[wire] for wire in wanted}


def test_five_values_need_fewer_comparators_than_sorting() -> None:
    kept = [keep for *_, low, high in selection_network(5, frozenset({2})) for keep in (low, high)]
    assert sum(kept) < 2 * 9  # sorting five takes nine comparators of two outputs
