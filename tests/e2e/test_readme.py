"""What the README shows runs as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.local import local_service
from workers.aggregation import registered_rules

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds what the examples read."""
    directory = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "tests" / "golden", directory / "tests" / "golden")
    return directory


def test_the_examples_merge_through_the_service(checkout: Path) -> None:
    assert [language for language, _ in EXAMPLES] == ["python", "sh"]
    with local_service(checkout) as url:
        address = url()
        for language, code in EXAMPLES:
            code = code.replace("http://127.0.0.1:8000", address)
            command = [sys.executable, "-c", code] if language == "python" else ["sh", "-ec", code]
            subprocess.run(command, cwd=checkout, check=True, capture_output=True, timeout=120)
    for name in ("merged", "merged-by-curl"):
        assert (checkout / ".taumerge" / name / "model.safetensors").exists()


def test_every_rule_stands_in_the_table() -> None:
    for name, rule in registered_rules().items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        default = rule.model_fields["scale"].default
        assert f"| {default} |" in row
        assert all(f"`{parameter}`" in row for parameter in rule.model_fields if parameter != "scale")


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert f"\n{target}:" in makefile, target
