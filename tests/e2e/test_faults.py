"""A short fault campaign; the long one is ``python -m tests.faults --runs 100``."""

from __future__ import annotations

from pathlib import Path

from faults.campaign import campaign
from faults.machine import KINDS


def test_killed_processes_change_nothing_about_the_outcome(tmp_path: Path) -> None:
    outcomes = list(campaign(tmp_path, runs=len(KINDS) - 1, seed=1))
    assert [outcome.wrong for outcome in outcomes] == [[]] * len(outcomes), outcomes
    assert {outcome.kind for outcome in outcomes} == set(KINDS) - {"machine"}
