"""Settings that ``python -m workers.merge`` and its kin cannot use are said in one line; no Ray is started for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from taumerge.schemas import MergeRequest
from workers import foreground
from workers.foreground import run_recipe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "TAUMERGE_CONFIG: there is no file"),
        ("workers = ", "TAUMERGE_CONFIG: Invalid value"),
        ("workers = 0", "workers: Input should be greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text: str | None,
    said: str,
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the settings come first")

    monkeypatch.setattr(foreground, "_connect", never)
    (tmp_path / "recipe.yaml").write_text("{base: /b, models: [/m], method: median, output: /o}")
    if text is not None:
        (tmp_path / "taumerge.toml").write_text(text)
    monkeypatch.setenv("TAUMERGE_CONFIG", str(tmp_path / "taumerge.toml"))
    monkeypatch.setattr(sys, "argv", ["merge", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as ended:
        run_recipe(MergeRequest, never)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")
