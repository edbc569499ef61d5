"""``make bench``: merges of a 0.85 B model through the warm service, against the floor of moving their bytes.

The generated checkpoints (8.5 GB) stay in ``.taumerge/bench`` for the next run. With ``MERGEKIT=1`` mergekit is
installed into a virtual environment of its own there, and its row stands in the same table.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import generate, parameters
from benchmarks.floor import floor_seconds
from benchmarks.memory import peak_growth
from benchmarks.mergekit import mergekit_seconds
from service.local import local_service
from taumerge import Client, MergeRequest, MergeResult

MODELS = 4
RUNS = 3
SMALL_RUNS = 50
METHODS: list[dict[str, object]] = [
    {"name": "task_arithmetic"},
    {"name": "fednova"},
    {"name": "fedgma", "rho": 0.5},
    {"name": "median"},
    {"name": "cclip", "rho": 10.0},
]
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


@dataclass
class Row:
    """One line of the table."""

    what: str
    seconds: float
    bytes_read: int | None = None
    growth: int | None = None


def main() -> None:
    """Run everything and print the tables."""
    console = Console()
    directory = Path(".taumerge/bench").resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with console.status("generating checkpoints"):
        base, models = generate(directory / "checkpoints", MODELS)
    inputs = [file for place in (base, *models) for file in sorted(place.glob("*.safetensors"))]
    output_bytes = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    output = directory / "output"

    console.print(f"{parameters() / 1e9:.2f} B parameters, {MODELS} models, bfloat16, {os.cpu_count()} cores")
    floors = [floor_seconds(inputs, output_bytes, directory / "floor") for _ in range(RUNS + 1)][1:]
    request = {
        "base": str(base),
        "models": [str(model) for model in models],
        "scaling": 0.3,
        "output": str(output),
    }
    rows = []
    with local_service(directory, worker_memory=0) as url, Client(url()) as client:
        for method in METHODS:
            rows.append(_timed(client, request, method, output, "nothing resident"))
    holding = sum(file.stat().st_size for file in inputs)
    with local_service(directory, worker_memory=holding) as url, Client(url()) as client:
        _merge(client, request, METHODS[0], output)
        for method in METHODS:
            rows.append(_timed(client, request, method, output, "resident"))
        latency = _small_merges(client, directory)
    floors += [floor_seconds(inputs, output_bytes, directory / "floor") for _ in range(RUNS)]
    if os.environ.get("MERGEKIT"):
        rows.append(
            Row("mergekit, task_arithmetic, whole command", mergekit_seconds(directory, base, models))
        )
    console.print(_table(rows, statistics.median(floors)))
    console.print(
        f"POST /merge with Prefer: wait, 116,160 parameters, {SMALL_RUNS} times: median {latency[0] * 1e3:.0f} ms, "
        f"95th percentile {latency[1] * 1e3:.0f} ms"
    )


def _merge(
    client: Client, request: dict[str, object], method: dict[str, object], output: Path
) -> tuple[float, int]:
    shutil.rmtree(output, ignore_errors=True)
    begun = time.perf_counter()
    job = client.merge(
        MergeRequest.model_validate(request | {"method": method, "max_shard_size": "500MB"}), wait=60
    )
    job = client.wait(job.id)
    seconds = time.perf_counter() - begun
    assert isinstance(job.result, MergeResult)
    return seconds, job.result.bytes_read


def _timed(
    client: Client, request: dict[str, object], method: dict[str, object], output: Path, label: str
) -> Row:
    with peak_growth() as growth:
        runs = [_merge(client, request, method, output) for _ in range(RUNS)]
    seconds = statistics.median(seconds for seconds, _ in runs)
    return Row(f"{method['name']}, {label}", seconds, runs[-1][1], max(growth))


def _small_merges(client: Client, directory: Path) -> tuple[float, float]:
    """Median and 95th percentile of the seconds of one small merge, from request to answer."""
    golden = directory / "golden"
    shutil.copytree(GOLDEN, golden, dirs_exist_ok=True)
    models = sorted(str(path) for path in golden.glob("ft-*"))
    output = golden / "merged"
    seconds = []
    for _ in range(SMALL_RUNS):
        shutil.rmtree(output, ignore_errors=True)
        begun = time.perf_counter()
        job = client.merge(
            base=str(golden / "base"),
            models=models,
            method="task_arithmetic",
            scaling=0.3,
            output=str(output),
            wait=60,
        )
        seconds.append(time.perf_counter() - begun)
        assert job.state == "succeeded", job.error
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


def _table(rows: Sequence[Row], floor: float) -> Table:
    table = Table(title=f"Floor (read every input byte once, write the output): {floor:.2f} s")
    for heading in ("merge", "seconds", "x floor", "read", "worker grew by"):
        table.add_column(heading, justify="left" if heading == "merge" else "right")
    for row in rows:
        read = "" if row.bytes_read is None else f"{row.bytes_read / 1e9:.1f} GB"
        grown = "" if row.growth is None else f"{row.growth / 2**20:.0f} MiB"
        table.add_row(row.what, f"{row.seconds:.2f}", f"{row.seconds / floor:.2f}", read, grown)
    return table


if __name__ == "__main__":
    main()
