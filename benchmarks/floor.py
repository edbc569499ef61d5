"""The floor of a merge: one process per core reads every input byte once and writes the output bytes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

CHUNK = 1 << 20


def floor_seconds(inputs: Sequence[Path], output_bytes: int, directory: Path) -> float:
    """Wall seconds of moving the bytes of a merge, and nothing else, with one process per core."""
    cores = os.cpu_count() or 1
    spawn = multiprocessing.get_context("spawn")
    begun_all = spawn.Barrier(cores + 1)
    ended_all = spawn.Barrier(cores + 1)
    directory.mkdir(parents=True, exist_ok=True)
    processes = [
        spawn.Process(
            target=_move,
            args=(
                list(inputs),
                core,
                cores,
                directory / f"floor-{core}",
                output_bytes // cores,
                begun_all,
                ended_all,
            ),
        )
        for core in range(cores)
    ]
    for process in processes:
        process.start()
    begun_all.wait()
    begun = time.perf_counter()
    ended_all.wait()
    seconds = time.perf_counter() - begun
    for process in processes:
        process.join()
    for core in range(cores):
        (directory / f"floor-{core}").unlink()
    return seconds


def _move(
    inputs: list[Path], core: int, cores: int, output: Path, output_bytes: int, begun: object, ended: object
) -> None:
    buffer = memoryview(bytearray(CHUNK))
    begun.wait()  # type: ignore[attr-defined]
    for path in inputs:
        size = path.stat().st_size
        start, stop = size * core // cores, size * (core + 1) // cores
        fd = os.open(path, os.O_RDONLY)
        for offset in range(start, stop, CHUNK):
            os.preadv(fd, [buffer[: min(CHUNK, stop - offset)]], offset)
        os.close(fd)
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(fd, 0, output_bytes)
    for offset in range(0, output_bytes, CHUNK):
        os.pwrite(fd, buffer[: min(CHUNK, output_bytes - offset)], offset)
    os.close(fd)
    ended.wait()  # type: ignore[attr-defined]
