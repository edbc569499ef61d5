"""What the service must not import."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import service.__main__, service.app, service.deployment, service.runner
print(*sorted({"torch", "transformers", "open_clip"} & set(sys.modules)))
"""


def test_the_service_does_not_import_torch() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.split() == []
