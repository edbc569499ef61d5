"""The API plans merges and lists the rules in a process that must stay light."""

from __future__ import annotations

import subprocess
import sys


def test_planning_and_rules_need_no_torch() -> None:
    script = (
        "import sys\n"
        "from taumerge.schemas import MethodSpec\n"
        "import workers.merging.preflight\n"
        "from workers.aggregation import build_rule, describe_rules\n"
        "assert len(describe_rules()) == 5\n"
        "build_rule(MethodSpec(name='fedgma', rho=0.5))\n"
        "print('torch' in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120
    )
    assert found.stdout.strip() == "False"
