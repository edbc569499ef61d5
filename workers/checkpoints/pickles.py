"""Pickled weights, where the operator allows them: read by another process, which can do little and not for long."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

from workers.checkpoints.checkpoint import Checkpoint, open_checkpoint
from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.files import FileRecord, locate, state_of
from workers.checkpoints.names import PICKLED, STEMS

__all__ = ["open_pickled", "pickled_files"]

NAMES = {"pytorch_model": "model", "open_clip_pytorch_model": "open_clip_model"}
"""What transformers and open_clip call pickled weights, and what they call the same as safetensors."""
SECONDS, SECONDS_PER_GB = 120, 20
NAMED = 5
"""Files that a message names at most."""
KEPT_SECONDS = 24 * 3600
"""How long a converted checkpoint is kept after it was last asked for."""


def pickled_files(uri: str) -> list[Path]:
    """The pickled weights that ``uri`` names on a disk; none where it names anything else.

    Raises:
        CheckpointError: ``unsupported_checkpoint``: several files that are not the shards of one model.
    """
    path = locate(uri)
    if not isinstance(path, Path):
        return []
    if path.is_file():
        return [path] if PICKLED.fullmatch(path.name) else []
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else set()
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return []
    found = [match for name in sorted(names - {"training_args.bin"}) if (match := PICKLED.fullmatch(name))]
    count = found[0]["count"] if found else None
    numbers = [int(match["number"] or 0) for match in found]
    several = len({(match["stem"], match["count"], match["suffix"]) for match in found}) > 1
    if several or (count and numbers != list(range(1, int(count) + 1))):
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{uri} holds pickled weights ({', '.join(match[0] for match in found[:NAMED])}) that are neither one file "
            "nor all shards of one model: name the file that is meant, or complete the shards.",
        )
    return [path / match[0] for match in found]


def open_pickled(uri: str, files: list[Path], work: Path) -> Checkpoint:
    """The checkpoint of pickled ``files``, converted to safetensors in ``work``.

    Raises:
        CheckpointError: ``unpickling_failed`` (it is no dictionary of tensors, takes too much memory or time, or wants
            to run code), or what ``open_checkpoint`` raises.
    """
    records = [_record(path) for path in files]
    print_ = hashlib.sha256(repr([(str(one.path), one.state) for one in records]).encode()).hexdigest()
    directory = work / print_[:32]
    name = PICKLED.fullmatch(files[0].name)
    stem = NAMES.get(name["stem"] if name else "", STEMS[0])
    converted = directory / f"{stem}.safetensors"
    _sweep(work, directory)
    if not converted.exists():
        _convert(files, converted)
    os.utime(directory)
    opened = open_checkpoint(str(directory))
    location = locate(uri)
    assert isinstance(location, Path)
    # The pickles are among the files, so that a merge notices when they change.
    return replace(
        opened,
        uri=uri,
        directory=location if location.is_dir() else location.parent,
        files=(*opened.files, *records),
    )


def _record(path: Path) -> FileRecord:
    try:
        state = state_of(path)
    except OSError as error:
        raise CheckpointError(
            "checkpoint_unreadable", f"{path.name}: cannot be read: {error.strerror}"
        ) from error
    return FileRecord(path.name, path, state, "")


def _convert(files: list[Path], target: Path) -> None:
    limit = SECONDS + SECONDS_PER_GB * sum(path.stat().st_size for path in files) / 1e9
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(uuid.uuid4().hex)
    command = [sys.executable, "-m", "workers.checkpoints.unpickle", str(temporary), *map(str, files)]
    root = Path(__file__).parents[2]
    # Nothing of this process's environment: no credential is there to be taken.
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(map(str, (root, root / "clients/python"))),
    }
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    try:
        answer, _ = process.communicate(timeout=limit)
        if process.returncode != 0:
            problem = answer.strip()[-300:] or f"its reader ended with status {process.returncode}"
            raise _failed(files[0], problem)
        temporary.replace(target)
    except subprocess.TimeoutExpired:
        raise _failed(files[0], f"it was not read within {limit:.0f} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        temporary.unlink(missing_ok=True)


def _sweep(work: Path, kept: Path) -> None:
    """Remove what nobody has asked for in a while."""
    oldest = time.time() - KEPT_SECONDS
    for directory in work.glob("*"):
        with contextlib.suppress(OSError):
            if directory != kept and directory.stat().st_mtime < oldest:
                shutil.rmtree(directory, ignore_errors=True)


def _failed(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        "unpickling_failed", f"{path.name}: {problem}. Convert it to safetensors where you trust it."
    )
