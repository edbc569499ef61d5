from __future__ import annotations

import json

import numpy as np

from workers.merging.sums import Sums
from workers.merging.unit import Findings, SliceSums


def part(tensor: int, value: float) -> SliceSums:
    return SliceSums(tensor, np.full((2, 2), value), value / 3)


def test_slices_of_a_tensor_are_added_in_order() -> None:
    values = [0.1, 1e16, -1e16, 0.7]
    sums = Sums.of(
        [Findings(sums=[part(4, value) for value in values[:3]]), Findings(sums=[part(4, values[3])])]
    )
    total = 0.0
    for value in values:
        total += value
    assert sums.gram[4].tolist() == [[total, total], [total, total]]


def test_totals_go_by_tensor_whatever_order_the_files_came_in() -> None:
    files = [Sums.of([Findings(sums=[part(tensor, 10.0**-tensor / 3)])]) for tensor in range(6)]

    def totals(order: list[int]) -> tuple[list[list[float]], float]:
        sums = Sums()
        for index in order:
            sums.include(files[index])
        return sums.total_gram(2).tolist(), sums.merged_norm()

    assert totals([0, 1, 2, 3, 4, 5]) == totals([5, 3, 4, 0, 2, 1])


def test_a_record_of_a_file_keeps_every_bit() -> None:
    sums = Sums.of([Findings(sums=[part(7, 1 / 3), part(9, 2e-17)], differing={8})])
    again = Sums.from_json(json.loads(json.dumps(sums.to_json())))
    assert again.to_json() == sums.to_json()
    assert (again.gram[7] == sums.gram[7]).all()
    assert (again.merged_squares, again.differing) == (sums.merged_squares, {8})


def test_what_was_found_is_counted_over_units() -> None:
    units = [
        Findings(nonfinite={(0, 1): 2, (1, 1): 1}, bytes_read=5),
        Findings(nonfinite={(0, 1): 3}, overflowed={4}, bytes_read=6),
    ]
    sums = Sums.of(units)
    assert sums.nonfinite == {(0, 1): 5, (1, 1): 1}
    assert (sums.overflowed, sums.bytes_read, sums.sound) == ({4}, 11, False)
    assert Sums.of([Findings(bytes_read=1)]).sound
