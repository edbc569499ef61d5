"""What a search leaves behind, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from reading_html import Page, read_page

from taumerge.schemas import SearchRequest, SearchResult
from workers.search.report import describe, evaluation_table, write_report


@pytest.fixture
def report(tmp_path: Path, result: SearchResult, asked: SearchRequest) -> Page:
    names = write_report(tmp_path, result, asked, len(result.evaluations))
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert set(names) == {"search.json", "search.parquet", "score.png", "tasks.png", "report.html"}
    return read_page((tmp_path / "report.html").read_text())


def test_search_json_is_the_result(report: Page, tmp_path: Path, result: SearchResult) -> None:
    written = json.loads((tmp_path / "search.json").read_text())
    assert SearchResult.model_validate(written) == result
    first = written["evaluations"][0]
    assert first["method"] == {"name": "median", "scale": "mean", "even": "midpoint"}
    assert {"method", "scaling", "score", "tasks", "seconds"} <= set(first)
    assert written["best"]["test"]["score"] == result.best.test.score  # type: ignore[union-attr]
    assert set(written) >= {"best_by_method", "individual", "zero_shot"}


def test_the_parquet_file_has_a_row_for_each_evaluation(
    report: Page, tmp_path: Path, result: SearchResult
) -> None:
    rows = pq.read_table(tmp_path / "search.parquet").to_pylist()
    assert len(rows) == len(result.evaluations) == 8
    assert rows[0] == {
        "method.name": "median",
        "method.scale": "mean",
        "method.even": "midpoint",
        "method.iterations": None,
        "method.norm_scope": None,
        "method.rho": None,
        "scaling": 0.1,
        "score": result.evaluations[0].score,
        "average": result.evaluations[0].average,
        "tasks.digits": result.evaluations[0].tasks["digits"],
        "tasks.a <b> & $x$": 0.5,
        "seconds": 0.5,
    }
    assert [row["method.rho"] for row in rows[3:]] == [1.5, 1.5, 1.5, 2.5, 2.5]


def test_parameters_of_one_name_and_different_types_share_a_column(result: SearchResult) -> None:
    result.evaluations[0].method["rho"] = "large"
    column = evaluation_table(result).column("method.rho").to_pylist()
    assert column[0] == '"large"'
    assert column[3] == "1.5"


def test_the_pictures_are_large_enough_to_be_read_and_those_of_the_page(report: Page, tmp_path: Path) -> None:
    for name in ("score.png", "tasks.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 300
        assert (tmp_path / name).read_bytes() in report.images


def test_the_page_fetches_nothing_and_runs_only_its_own_script(report: Page) -> None:
    report.check_self_contained()
    assert len(report.images) == 2
    assert all(report.alternatives), "an image without words"
    assert "λ 0.25" in report.alternatives[0]


def test_what_stands_in_the_request_is_text(report: Page) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    assert f"{hostile} is odd" in report.text
    assert f"/models/{hostile}, weight 0.5" in report.text
    assert "a <b> & $x$" in report.text


def test_the_best_of_each_rule_stand_between_the_references(report: Page, result: SearchResult) -> None:
    ranking = report.tables[0]
    assert [row[0] for row in ranking] == ["rule", "zero-shot", "cclip", "median", "individual"]
    best = result.best
    assert ranking[2][1:] == [
        "ρ 2.5, scale sum",
        "0.25",
        f"{best.score:.4f}",
        f"{best.average:.4f}",
        *([f"{best.test.score:.4f}", f"{best.test.average:.4f}"] if best.test else []),
    ]
    assert ranking[4][3] == "1.0000"
    assert report.marked == [ranking[2], report.tables[1][8]]


def test_every_evaluation_is_in_the_sortable_table(report: Page) -> None:
    heading, *rows = report.tables[1]
    assert heading == [
        "rule",
        "ρ",
        "parameters",
        "λ",
        "score",
        "average",
        *["digits", "a <b> & $x$"],
        "seconds",
    ]
    assert len(rows) == 8
    assert rows[0][:4] == ["median", "–", "scale mean", "0.10"]
    assert rows[7][:4] == ["cclip", "2.5", "scale sum", "0.25"]


def test_the_settings_say_how_it_was_searched(report: Page) -> None:
    for part in ("8 evaluations, 1.5 minutes", "ended by the budget", "search 4.2, evaluate 4.0", '"rho": ['):
        assert part in report.text


def test_merges_that_share_an_evaluation_are_no_evaluations(
    tmp_path: Path, result: SearchResult, asked: SearchRequest
) -> None:
    write_report(tmp_path, result, asked, 7)
    text = read_page((tmp_path / "report.html").read_text()).text
    assert "8ended by the budget; 7 evaluations, as equal merges share one" in text


def test_a_search_without_a_report_split(tmp_path: Path, result: SearchResult, asked: SearchRequest) -> None:
    asked.evaluation.report_on = None
    for best in (result.best, *result.best_by_method.values()):
        best.test = None
    for references in (result.individual, result.zero_shot):
        del references["test"]
    write_report(tmp_path, result, asked, 8)
    page = read_page((tmp_path / "report.html").read_text())
    assert page.tables[0][0] == ["rule", "parameters", "λ", "validation: score", "validation: average"]
    assert "Scores on validation" in page.text


def test_a_single_evaluation_of_one_task(tmp_path: Path, result: SearchResult, asked: SearchRequest) -> None:
    only = result.best.model_copy(update={"tasks": {"digits": 0.5}})
    reference = {"test": only.test, "validation": only.test}
    for scores in (only.test, result.individual["test"], result.zero_shot["test"]):
        assert scores is not None
        scores.tasks = {"digits": 0.5}
    single = result.model_copy(
        update={
            "evaluations": [only],
            "best": only,
            "best_by_method": {"cclip": only},
            "individual": reference,
            "zero_shot": reference,
            "warnings": [],
        }
    )
    write_report(tmp_path, single, asked, 1)
    page = read_page((tmp_path / "report.html").read_text())
    assert len(page.tables[1]) == 2
    assert "Warnings" not in page.text


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ({"name": "median", "scale": "mean", "even": "midpoint"}, "scale mean"),
        ({"name": "median", "scale": "sum", "even": "lower"}, "scale sum, even lower"),
        (
            {"name": "cclip", "scale": "sum", "iterations": 3, "norm_scope": "model", "rho": 1.23456},
            "ρ 1.235, scale sum, iterations 3",
        ),
        ({"name": "no longer registered", "scale": "sum", "volume": 2}, "scale sum, volume 2"),
    ],
)
def test_parameters_in_words(method: dict[str, object], told: str) -> None:
    assert describe(method) == told
