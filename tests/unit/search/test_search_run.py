"""What a search that cannot begin leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from perceptrons import search_body

from taumerge.errors import JobFailed
from taumerge.schemas import Progress, SearchRequest
from workers.checkpoints.writing import Staging
from workers.search import run as run_module
from workers.search.journal import NAME, Journal
from workers.search.run import run_search
from workers.settings import WorkerSettings


def ignore(progress: Progress) -> None:
    """A report that nobody listens to."""


def unwritable(directory: Path) -> Journal:
    """A journal on a disk that is full."""
    raise JobFailed("output_unwritable", "no space")


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_journal_that_cannot_be_opened_leaves_only_what_was_evaluated_before(
    evaluated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "Journal", unwritable)
    hidden: list[Path] = []

    def staged(staging: Staging) -> None:
        hidden.append(staging.path)
        if evaluated:
            staging.create(())
            (staging.journal / NAME).write_text("{}\n")

    request = SearchRequest.model_validate(search_body(tmp_path))
    with pytest.raises(JobFailed, match="no space"):
        run_search(request, WorkerSettings(workers=1), ignore, staged=staged)
    assert [path.exists() for path in hidden] == [evaluated]
