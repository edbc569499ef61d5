"""``python -m benchmarks.load``: many merges posted at once over 64 connections, none lost and none run twice."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import save_file

from service.local import local_service
from taumerge import Client

CONNECTIONS = 64
MODELS = ("base", "a", "b")


def main() -> None:
    """Two floods: one that the queue takes whole, and one that its limit cuts off."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--posts", type=int, default=1000)
    posts = parser.parse_args().posts
    print(
        f"{'limit':>6} {'posts':>6} {'202':>6} {'429':>6} {'p50 s':>7} {'p99 s':>7} {'max s':>7}  afterwards"
    )
    for limit in (posts, max(1, posts // 10)):
        with tempfile.TemporaryDirectory(prefix="taumerge-load-") as name:
            print(flood(Path(name), posts, limit), flush=True)


def flood(directory: Path, posts: int, limit: int) -> str:
    """Post ``posts`` merges to a service whose queue takes ``limit``; a row of the table."""
    for number, model in enumerate(MODELS):
        (directory / model).mkdir()
        save_file({"weight": np.full((8, 8), number, np.float32)}, directory / model / "model.safetensors")
    with local_service(directory, max_queued_jobs=limit, workers=2) as url:
        address = url()
        answers = asyncio.run(_post_all(address, directory, posts))
        accepted = {job for status, _, job in answers if status == 202}
        with Client(address) as client:
            ended = [client.wait(job, check=False) for job in sorted(accepted)]
            known = {job.id for job in client.jobs()}
    lost = len(accepted ^ known) + sum(job.state != "succeeded" for job in ended)
    twice = sum(job.attempt != 1 for job in ended) + len(accepted) - len(_receipts(directory) & accepted)
    statuses = Counter(status for status, _, _ in answers)
    seconds = [taken for _, taken, _ in answers]
    centiles = statistics.quantiles(seconds, n=100)
    other = {status: count for status, count in statuses.items() if status not in (202, 429)}
    return (
        f"{limit:>6} {posts:>6} {statuses[202]:>6} {statuses[429]:>6} {centiles[49]:>7.3f} {centiles[98]:>7.3f} "
        f"{max(seconds):>7.3f}  {lost} lost, {twice} run twice" + (f", others: {other}" if other else "")
    )


async def _post_all(address: str, directory: Path, posts: int) -> list[tuple[int, float, str]]:
    """All of them at once, over the connections; status, seconds on its connection, and job of each."""
    turn = asyncio.Semaphore(CONNECTIONS)
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as http:

        async def post(number: int) -> tuple[int, float, str]:
            async with turn:
                headers = {"Idempotency-Key": f"post-{number}"}
                begun = time.perf_counter()
                while True:
                    try:
                        answer = await http.post("/merge", json=_body(directory, number), headers=headers)
                        break
                    except httpx.TransportError:  # a connection that was closed for being idle
                        continue
                return answer.status_code, time.perf_counter() - begun, answer.json().get("id", "")

        return await asyncio.gather(*(post(number) for number in range(posts)))


def _body(directory: Path, number: int) -> dict[str, Any]:
    base, *models = (str(directory / name) for name in MODELS)
    output = str(directory / "out" / str(number))
    return {"base": base, "models": models, "method": "task_arithmetic", "output": output}


def _receipts(directory: Path) -> set[str]:
    """The jobs that wrote the outputs."""
    return {json.loads(path.read_text())["job"] for path in (directory / "out").glob("*/taumerge.json")}


if __name__ == "__main__":
    main()
