"""The tables of the demo show what the service answered."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from miniature_results import diagnosis_of, search_of
from rich.console import Console
from rich.table import Table

from examples.miniature.experiment import Outcome
from examples.miniature.finetunes import Kind
from examples.miniature.report import write_report
from examples.miniature.table import compare, comparison_table, results_table
from taumerge import DiagnoseResult, MergeResult, SearchResult


def outcome(kind: Kind, draw: int, **rules: float) -> Outcome:
    """A search whose best of each rule has this normalised test accuracy."""
    merge = {
        "output": "/merged",
        "files": [],
        "tensors": {"merged": 1, "copied": 0, "dropped": 0},
        "models": [],
        "scaling": 0.25,
        "seconds": {},
        "bytes_read": 0,
        "bytes_written": 0,
    }
    return Outcome(
        kind,
        draw,
        [],
        DiagnoseResult.model_validate(diagnosis_of()),
        SearchResult.model_validate(search_of(**rules)),
        MergeResult.model_validate(merge),
    )


def printed(table: Table) -> list[list[str]]:
    text = io.StringIO()
    Console(file=text, width=120).print(table)
    return [line.split() for line in text.getvalue().splitlines()]


def test_results_stand_between_the_base_and_the_fine_tuned_models() -> None:
    lines = printed(results_table(outcome("different", 0, task_arithmetic=0.625, median=0.75)))
    assert lines[0] == ["different", "training,", "χ²", "=", "3.25"]
    assert ["signs", "50.0", "75.0", "62.5", "62.5"] in lines
    assert ["land", "12.5", "87.5", "37.5", "37.5"] in lines
    assert ["average", "31.2", "81.2", "50.0", "50.0"] in lines
    assert ["normalised", "40.0", "100.0", "62.5", "75.0"] in lines
    assert ["λ", "0.25", "0.25"] in lines


def test_the_report_has_every_draw_in_one_page_that_asks_for_nothing(tmp_path: Path) -> None:
    draws = [outcome("different", number, task_arithmetic=0.5, median=0.75) for number in range(2)]
    draws += [outcome("same", number, task_arithmetic=0.5, median=0.25) for number in range(2)]
    write_report(draws, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "All rules over 2 draws" in html
    assert "+0.250 ± 0.000" in html
    assert "-0.250 ± 0.000" in html
    assert html.count("zero-shot") == 2, "the first draw of each kind"
    assert "http" not in html.replace("http-equiv", "")


def test_differences_are_paired() -> None:
    draws = [
        outcome("different", 0, task_arithmetic=0.50, median=0.75),
        outcome("different", 1, task_arithmetic=0.25, median=0.75),
        outcome("same", 0, task_arithmetic=0.50, median=0.25),
    ]
    assert compare(draws, "different") == [
        ("task_arithmetic", [0.50, 0.25], [0.0, 0.0]),
        ("median", [0.75, 0.75], [0.25, 0.5]),
    ]
    lines = printed(comparison_table(draws))
    assert [
        "median",
        "0.750",
        "±",
        "0.000",
        "+0.375",
        "±",
        "0.177",
        "+0.250",
        "+0.500",
        "2",
        "of",
        "2",
    ] in lines
    assert ["median", "0.250", "-0.250", "-0.250", "-0.250", "0", "of", "1"] in lines


def test_a_rule_that_was_not_found_in_a_draw_is_an_error() -> None:
    draws = [
        outcome("same", 0, task_arithmetic=0.5, median=0.5),
        outcome("same", 1, task_arithmetic=0.5),
    ]
    with pytest.raises(KeyError):
        compare(draws, "same")
