"""What a diagnosis leaves to read, for ordinary models and for those that have little to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reading_html import Page, read_page

from taumerge.schemas import DiagnoseRequest, DiagnoseResult
from workers.diagnostics import pictures
from workers.diagnostics.pictures import labels
from workers.diagnostics.report import write_report
from workers.drawing import quiet_axes


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


def test_short_names_stand_as_they_are() -> None:
    assert labels(["digits", "handwriting-0123456789ab"]) == ["digits", "handwriting-0123456789ab"]


def test_of_long_names_stands_what_differs() -> None:
    names = [f"ft-clip-vit-b-32-laion2b-{task}-lr1e-05-steps4000" for task in ("digits", "dtd")]
    assert labels(names) == ["digits", "dtd"]


def test_names_that_are_alike_when_shortened_get_a_number() -> None:
    names = [f"a{'x' * 30}{middle}{'y' * 30}" for middle in "bc"]
    short = labels(names)
    assert short[0].startswith("1: ax")
    assert short[1].startswith("2: ax")
    assert max(map(len, short)) < 30


def test_long_names_leave_room_for_the_picture() -> None:
    """The heat map of eight models is at least a third of its picture's width."""
    uris = [f"/models/ft-{index}-{'of-a-very-long-series-' * 3}{index}" for index in range(8)]
    models = [{"uri": uri, "norm": 1.0, "weight": 1 / 8, "share": 1 / 8} for uri in uris]
    with quiet_axes():
        figure = pictures._cosines(diagnosis(8, models=models), labels(uris))
        figure.draw_without_rendering()
    assert figure.axes[0].get_position().width > 1 / 3


def test_the_dots_are_those_of_the_models_that_moved() -> None:
    with quiet_axes():
        [dots] = pictures._agreement(diagnosis(3)).axes[0].lines
    assert list(zip(*dots.get_data(), strict=True)) == [(0, 0.5), (2, 0.5)]


def test_a_log_axis_has_plain_numbers() -> None:
    alike = {"parameters": 1, "shares": [1.0], "mean_cosine": None, "agreement": [0.0, 1.0]}
    groups = [{"name": f"layers.{norm}", "norms": [norm], **alike} for norm in (0.02, 3.0)]
    with quiet_axes():
        figure = pictures._layers(diagnosis(1, groups=groups), ["digits"])
        figure.draw_without_rendering()
    shown = [tick.get_text() for tick in figure.axes[0].get_yticklabels(which="both") if tick.get_text()]
    assert {"0.1", "1"} < set(shown)
    assert all(float(text) > 0 for text in shown)
