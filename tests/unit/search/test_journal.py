from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workers.search.journal import NAME, Journal, Record, evaluations_in

FIRST = Record("base", 1.0, "validation", {"digits": 0.1 + 0.2}, 0.5, 0.25, elapsed=3.5)
SECOND = Record("ab12", 0.3, "validation", {}, 0.5, 0.0, ["head.bias"], elapsed=7.25)


def test_records_come_back_to_the_last_digit(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(FIRST)
    journal.append(SECOND)
    assert journal.evaluating == 0.25
    journal.close()
    again = Journal(tmp_path)
    assert list(again.records.values()) == [FIRST, SECOND]
    assert (again.elapsed, again.evaluating, again.ended) == (7.25, 0.0, None)


def test_a_record_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(FIRST)
    assert list(Journal(tmp_path).records.values()) == [FIRST]


def test_a_torn_line_is_passed_over_wherever_it_was_torn(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(FIRST)
    whole = (tmp_path / NAME).read_bytes()
    journal.append(SECOND)
    both = (tmp_path / NAME).read_bytes()
    for end in range(len(whole) + 1, len(both) - 1):
        (tmp_path / NAME).write_bytes(both[:end])
        torn = Journal(tmp_path)
        assert list(torn.records.values()) == [FIRST]
        third = replace(SECOND, scaling=0.5)
        torn.append(third)
        assert list(Journal(tmp_path).records.values()) == [FIRST, third]


def test_a_line_that_only_lacks_its_end_counts(tmp_path: Path) -> None:
    Journal(tmp_path).append(FIRST)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    Journal(tmp_path).append(SECOND)
    assert list(Journal(tmp_path).records.values()) == [FIRST, SECOND]


def test_a_search_that_ran_out_of_time_stays_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(FIRST)
    journal.end("minutes")
    assert Journal(tmp_path).ended == "minutes"


def test_whether_there_is_a_journal_to_go_on_with(tmp_path: Path) -> None:
    assert not evaluations_in(tmp_path / "absent")
    journal = Journal(tmp_path)
    assert not evaluations_in(tmp_path)
    journal.append(FIRST)
    assert evaluations_in(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert evaluations_in(tmp_path / "circle"), "what cannot be looked into is not thrown away"
