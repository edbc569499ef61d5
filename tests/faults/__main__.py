"""``python -m tests.faults --runs 100``: the campaign, a line for each run, and the counts."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from .campaign import campaign


def main() -> int:
    """Run the campaign; exit status 0 if every job ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    runs: Counter[str] = Counter()
    right: Counter[str] = Counter()
    again: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="taumerge-faults-") as directory:
        for outcome in campaign(Path(directory), arguments.runs, arguments.seed):
            print(outcome.line(), flush=True)
            runs[outcome.kind] += 1
            right[outcome.kind] += not outcome.wrong
            again[outcome.kind] += outcome.attempt > 1
    print(f"\n{'killed':14}{'runs':>6}{'right':>7}{'second attempts':>17}")
    for kind, count in sorted(runs.items()):
        print(f"{kind:14}{count:>6}{right[kind]:>7}{again[kind]:>17}")
    print(f"{'all':14}{runs.total():>6}{right.total():>7}{again.total():>17}")
    return 0 if right == runs else 1


if __name__ == "__main__":
    sys.exit(main())
