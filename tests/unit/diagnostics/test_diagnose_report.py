"""What a diagnosis leaves to read, for ordinary models and for those that have little to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reading_html import Page, read_page

from taumerge.schemas import DiagnoseRequest, DiagnoseResult
from workers.diagnostics.report import write_report


def diagnosis(count: int, **changes: Any) -> DiagnoseResult:
    norms = [float(index) for index in range(count)]  # the first is equal to the base
    group = {"norms": norms, "shares": norms, "mean_cosine": None, "agreement": [0.5] + [0.0] * count}
    fields: dict[str, Any] = {
        "models": [
            {"uri": f"/models/<b>${index}_", "norm": norm, "weight": 1 / count, "share": norm}
            for index, norm in enumerate(norms)
        ],
        "cosine": [[0.1 if row and column else None for row in range(count)] for column in range(count)],
        "merged_norm": 1.0,
        "agreement": [1.0] + [0.0] * count,
        "groups": [{"name": "layers.0", "parameters": 7, **group}, {"name": "<i>", "parameters": 1, **group}],
        "verdict": ["5 < 6 & so on"],
        "seconds": {"survey": 0.1},
        "warnings": ["a warning"],
    }
    return DiagnoseResult.model_validate(fields | changes)


def written(result: DiagnoseResult, directory: Path) -> tuple[list[str], Page]:
    directory.mkdir()
    models = [model.uri for model in result.models]
    names = write_report(
        directory, result, DiagnoseRequest.model_validate({"base": "/models/base", "models": models})
    )
    assert sorted(names) == sorted(path.name for path in directory.iterdir())
    return names, read_page((directory / "report.html").read_text())


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    gradients = {"zeta_square": 2.5, "diversity": 0.7, "norms": [1.0, 2.0, 1.5]}
    names, page = written(diagnosis(3, gradients=gradients, chi_square=0.82), tmp_path / "out")
    assert names == [
        "cosine.png",
        "norms.png",
        "weights.png",
        "agreement.png",
        "layers.png",
        "gradients.png",
        "report.html",
    ]
    page.check_self_contained()
    pictures = [path.read_bytes() for path in (tmp_path / "out").glob("*.png")]
    assert sorted(page.images) == sorted(pictures)
    assert all(page.alternatives)
    for text in ("5 < 6 & so on", "a warning", "<b>$0_", "0.82", "2.5", "0.7", "<i>"):
        assert text in page.text


def test_what_is_unknown_is_said_to_be(tmp_path: Path) -> None:
    names, page = written(diagnosis(2), tmp_path / "out")
    assert "gradients.png" not in names
    assert "unknown" in page.text
    assert "Lₜ" not in page.text


@pytest.mark.parametrize("count", [1, 30, 256])
def test_few_and_many_models(count: int, tmp_path: Path) -> None:
    names, page = written(diagnosis(count), tmp_path / "out")
    assert ("cosine.png" in names) == (count > 1)
    assert f"${count - 1}_" in page.text
