"""The same merge by mergekit, in a virtual environment of its own: it pins other versions than we do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.1.5"


def mergekit_seconds(directory: Path, base: Path, models: Sequence[Path]) -> float:
    """Wall seconds of ``mergekit-yaml`` for task arithmetic, start-up included."""
    command = _installed(directory / "mergekit")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": {"weight": 0.3}} for model in models],
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
    }
    config = directory / "mergekit.yaml"
    config.write_text(json.dumps(recipe))  # JSON is YAML
    begun = time.perf_counter()
    output = directory / "output-mergekit"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [command, config, output, "--out-shard-size", "500M", "--no-copy-tokenizer"],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begun


def _installed(place: Path) -> Path:
    command = place / "bin" / "mergekit-yaml"
    if not command.exists():
        uv = Path(sys.executable).parent / "uv"
        subprocess.run([uv, "venv", "--quiet", "--clear", place], check=True)
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", place / "bin" / "python", f"mergekit=={VERSION}"],
            check=True,
        )
    return command
