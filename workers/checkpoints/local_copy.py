"""Copies on this machine of checkpoints that lie in stores, for libraries that open files by their paths."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from taumerge.errors import JobFailed
from workers.checkpoints.checkpoint import LARGEST_COMPANION, Checkpoint, companions, open_checkpoint
from workers.checkpoints.files import Location, read_small
from workers.checkpoints.remote import fetching
from workers.checkpoints.remote.reader import RemoteReader

__all__ = ["cache_directory", "on_disk"]


def on_disk(checkpoint: Checkpoint) -> tuple[Checkpoint, Path]:
    """``checkpoint`` and its directory, or where it lies in a store a copy of it in the user's cache directory.

    The copy holds weights, index, configuration, tokenizer and preprocessor files as they are now, and is made once for
    each state of them. Nothing removes it: as with the hub's own cache, that is up to the operator.

    Raises:
        CheckpointError: ``checkpoint_unreadable``.
        JobFailed: ``input_changed``, ``input_unreadable``.
    """
    if isinstance(checkpoint.directory, Path):
        return checkpoint, checkpoint.directory
    beside = companions(checkpoint)
    try:
        versions = fetching.names(checkpoint.directory)
        index = f"{checkpoint.stem}.safetensors.index.json"
        beside += [checkpoint.directory / index] if index in versions else []
        state = json.dumps([checkpoint.fingerprint, *((one.name, versions[one.name]) for one in beside)])
        copy = cache_directory() / "checkpoints" / hashlib.sha256(state.encode()).hexdigest()[:32]
        if not copy.exists():
            _fetch(checkpoint, beside, copy)
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise JobFailed(
            "input_unreadable", f"{checkpoint.uri} cannot be copied to this machine: {problem}."
        ) from error
    return replace(open_checkpoint(str(copy)), uri=checkpoint.uri), copy


def cache_directory() -> Path:
    """The user's cache directory of taumerge."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "taumerge"


def _fetch(checkpoint: Checkpoint, beside: Sequence[Location], directory: Path) -> None:
    temporary = directory.with_name(uuid.uuid4().hex)
    temporary.mkdir(parents=True)
    try:
        for file in checkpoint.files:
            with RemoteReader(file) as reader, (temporary / file.name).open("wb") as copy:
                reader.copy_to(copy)
        for path in beside:
            (temporary / path.name).write_bytes(read_small(path, LARGEST_COMPANION))
        if not directory.exists():  # else another process has made the same copy meanwhile
            temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
