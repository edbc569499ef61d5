"""From a URI to the files of a checkpoint and the headers in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from taumerge.schemas import Training
from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.files import (
    UNFINISHED,
    FileRecord,
    Location,
    each,
    is_directory,
    local_path,
    locate,
    names_in,
    pinned,
    read_small,
    state_of,
)
from workers.checkpoints.header import MAX_HEADER_BYTES, Header, TensorInfo, read_header
from workers.checkpoints.names import ADAPTER, ADAPTER_CONFIG, COMPANIONS, PICKLED, RECORD, STEMS
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.strict_json import parse_object

__all__ = [
    "LARGEST_COMPANION",
    "Checkpoint",
    "CheckpointError",
    "FileRecord",
    "StoredTensor",
    "companions",
    "local_path",
    "open_checkpoint",
    "read_record",
    "read_training",
]

LARGEST_COMPANION = 100_000_000
_LARGEST_RECORD = 1_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor and the file that holds it."""

    info: TensorInfo
    file: int
    """Index into ``Checkpoint.files``."""


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a checkpoint: everything but its numbers."""

    uri: str
    directory: Location
    """Where it was found; of a repository on the hub, at the commit that was found."""
    files: tuple[FileRecord, ...]
    """By name, which for shards is their order."""
    tensors: dict[str, StoredTensor]
    """By name, file after file, in the order of each file."""
    metadata: dict[str, str]
    """Of the first file."""
    stem: str
    """Name of the weights without ``.safetensors``: ``model``, ``open_clip_model``, or the single file's."""
    adapter: Mapping[str, Any] | None = None
    """``adapter_config.json`` where this is an adapter; ``tensors`` are then the adapter's own."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex that changes when a file is replaced, touched, or has another header."""
        records = [(file.name, *astuple(file.state), file.header_sha256) for file in self.files]
        return hashlib.sha256(json.dumps(records).encode()).hexdigest()

    @cached_property
    def _dropped(self) -> dict[str, list[str]]:
        """By each name that metadata keeps, those that it drops for it."""
        dropped: dict[str, list[str]] = {}
        for name, kept in self.metadata.items():
            dropped.setdefault(kept, []).append(name)
        return dropped

    def find(self, name: str) -> StoredTensor | None:
        """The tensor called ``name``, under whichever of its tied names it is stored.

        ``safetensors.torch.save_model`` keeps one name of tensors that share storage and writes
        ``metadata[dropped] = kept`` for the others. All names that metadata ties together are the same
        tensor, and two checkpoints of one model may have kept different ones.
        """
        if name in self.tensors:
            return self.tensors[name]
        kept = self.metadata.get(name, name)
        tied = (kept, *self._dropped.get(kept, ()))
        return next((self.tensors[other] for other in tied if other in self.tensors), None)


def open_checkpoint(uri: str) -> Checkpoint:
    """Read the headers of the checkpoint at ``uri``: a directory, or one ``.safetensors`` file.

    A directory holds ``model.safetensors``, or an index ``model.safetensors.index.json`` with its
    shards, or the same under open_clip's name, or an adapter as peft saves it. Where a single file and
    an index are both there the single file counts, as it does in transformers.

    Raises:
        CheckpointError: ``unsupported_uri``, ``checkpoint_not_found``, ``checkpoint_unreadable``,
            ``unsupported_checkpoint`` (pickled weights, unknown names, half an adapter, a model and an adapter),
            ``unfinished_checkpoint``, ``extra_missing``, ``malformed_adapter``, ``malformed_index``,
            ``index_missing_file``, ``index_missing_tensor``, ``index_unlisted_tensor``, or what ``read_header`` raises.
    """
    path = locate(uri)
    try:
        path = pinned(path)
        if is_directory(path):
            return _open_directory(uri, path)
        if isinstance(path, Path):
            path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError("checkpoint_not_found", f"There is nothing at {uri}.") from error
    except OSError as error:
        raise CheckpointError("checkpoint_unreadable", f"{uri} cannot be read: {error.strerror}.") from error
    if path.suffix != ".safetensors":
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{path.name} is not a .safetensors file. Convert the weights to safetensors, or name the "
            "directory that holds them.",
        )
    return _open_files(uri, path.parent, {path.name: None}, stem=path.stem)


def read_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """``training.json`` beside the weights, as it stands there; empty without the file.

    Empty, too, for a checkpoint that was named as a single file where other weights lie beside it: whose it is shows
    nowhere. A web server does not tell what lies there.

    Raises:
        CheckpointError: ``malformed_training_record``.
    """
    try:
        if not _is_whole(checkpoint) and _has_neighbours(checkpoint):
            return {}
        return _read_object(checkpoint.directory / RECORD, _LARGEST_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError as error:
        problem = str(error)
    raise _malformed_record(problem)


def read_training(checkpoint: Checkpoint) -> Training:
    """What ``training.json`` beside the weights says about ``steps`` and ``lr_sum``; nothing without the file.

    Raises:
        CheckpointError: ``malformed_training_record``.
    """
    record = read_record(checkpoint)
    try:
        return Training.model_validate({key: record[key] for key in Training.model_fields if key in record})
    except ValidationError as error:
        first = error.errors()[0]
        raise _malformed_record(f"{first['loc'][0]}: {first['msg']}") from error


def companions(checkpoint: Checkpoint) -> list[Location]:
    """Configuration, tokenizer and preprocessor files that belong to the weights, by name.

    Regular files up to 100 MB under names that transformers and open_clip use: never weights, code or
    the training record. None for a checkpoint that was named as a single file.

    Raises:
        CheckpointError: ``checkpoint_unreadable``.
    """
    if not _is_whole(checkpoint):
        return []
    try:
        found = [checkpoint.directory / name for name in sorted(names_in(checkpoint.directory))]
        named = [path for path in found if any(path.match(pattern) for pattern in COMPANIONS)]
        small = each(_is_companion, named, checkpoint.directory)
    except OSError as error:
        raise CheckpointError(
            "checkpoint_unreadable",
            f"the files beside the weights of {checkpoint.uri} cannot be read: {error.strerror}.",
        ) from error
    return [path for path, fits in zip(named, small, strict=True) if fits]


def _is_whole(checkpoint: Checkpoint) -> bool:
    """Whether the URI names the directory, not one file in it."""
    location = locate(checkpoint.uri)
    return location == checkpoint.directory if isinstance(location, Path) else is_directory(location)


def _has_neighbours(checkpoint: Checkpoint) -> bool:
    """Whether the directory of a single file may hold other weights; raises ``OSError``."""
    if isinstance(checkpoint.directory, RemotePath) and not checkpoint.directory.listed:
        return True
    others = names_in(checkpoint.directory) - {locate(checkpoint.uri).name}
    return any(name.endswith(".safetensors") or PICKLED.fullmatch(name) for name in others)


def _is_companion(path: Location) -> bool:
    try:
        return state_of(path).size <= LARGEST_COMPANION
    except FileNotFoundError:  # a link to nothing
        return False
    except OSError as error:
        if error.errno:
            raise
        return False  # no regular file


def _malformed_record(problem: str) -> CheckpointError:
    return CheckpointError(
        "malformed_training_record",
        f"training.json: {problem}. It should be an object with steps (a whole number from 1) and lr_sum "
        "(above 0); correct it, or give training in the request and remove the file.",
    )


def _open_directory(uri: str, directory: Location) -> Checkpoint:
    names = names_in(directory)
    if UNFINISHED in names and not isinstance(directory, Path):
        raise CheckpointError(
            "unfinished_checkpoint",
            f"A merge that writes {uri} has not finished. Wait for it; if it is dead, merge there again "
            "with overwrite.",
        )
    whole = names & {f"{stem}.safetensors{index}" for stem in STEMS for index in ("", ".index.json")}
    if whole and names & {f"{ADAPTER}.safetensors", f"{ADAPTER}.bin"}:
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{uri} holds a whole model ({min(whole)}) and an adapter, and either may be meant: move one of them to a "
            "directory of its own, or name the model's .safetensors file itself.",
        )
    for stem in STEMS:
        if f"{stem}.safetensors" in names:
            return _open_files(uri, directory, {f"{stem}.safetensors": None}, stem=stem)
        if (index := f"{stem}.safetensors.index.json") in names:
            return _open_files(uri, directory, _read_index(directory / index, names), stem=stem)
    if names & {f"{ADAPTER}.safetensors", ADAPTER_CONFIG}:
        return _open_adapter(uri, directory, names)
    other = sorted(name for name in names if name.endswith(".safetensors"))
    if other:
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{uri} has no model.safetensors and no index for it. It holds {other[0]!a}{_and_more(other)}: "
            "name the file itself.",
        )
    pickled = sorted(filter(PICKLED.fullmatch, names))
    if pickled:
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{uri} holds pickled weights ({pickled[0]!a}), which are not read: convert them to safetensors, or ask "
            "the operator of this service for TAUMERGE_ALLOW_PICKLE.",
        )
    raise CheckpointError(
        "checkpoint_not_found",
        f"{uri} holds no weights: model.safetensors, model.safetensors.index.json or "
        "open_clip_model.safetensors is expected.",
    )


def _open_adapter(uri: str, directory: Location, names: set[str]) -> Checkpoint:
    weights = f"{ADAPTER}.safetensors"
    if absent := {weights, ADAPTER_CONFIG} - names:
        raise CheckpointError(
            "unsupported_checkpoint",
            f"{uri} holds an adapter without {absent.pop()}: save it with peft's save_pretrained, as safetensors.",
        )
    opened = _open_files(uri, directory, {weights: None}, stem=ADAPTER)
    path = directory / ADAPTER_CONFIG
    try:
        state = state_of(path)
        raw = read_small(path, _LARGEST_RECORD)
        config = parse_object(raw)
    except OSError as error:
        raise CheckpointError(
            "checkpoint_unreadable", f"{path.name}: cannot be read: {error.strerror}"
        ) from error
    except ValueError as error:
        raise CheckpointError("malformed_adapter", f"{path.name} {error}; save the adapter anew.") from error
    # The configuration decides the numbers as much as the weights do, so it is one of the files.
    digest = hashlib.sha256(raw).hexdigest()
    record = FileRecord(path.name, path, state, digest)
    return replace(opened, files=(*opened.files, record), adapter=config)


def _open_files(
    uri: str, directory: Location, listed: Mapping[str, set[str] | None], *, stem: str
) -> Checkpoint:
    """Read the headers of the files in ``listed``, which maps them to the tensors that the index says."""
    files: list[FileRecord] = []
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    names = sorted(listed)
    opened = each(_open_file, [directory / name for name in names], directory)
    for name, (record, header) in zip(names, opened, strict=True):
        expected = listed[name]
        if expected is not None:
            _check_listed(expected, header, name)
        metadata = metadata if files else header.metadata
        tensors |= {key: StoredTensor(info, len(files)) for key, info in header.tensors.items()}
        files.append(record)
    return Checkpoint(uri, directory, tuple(files), tensors, metadata, stem)


def _open_file(path: Location) -> tuple[FileRecord, Header]:
    try:
        # before the header: a file replaced in between differs from its record, and reading finds out
        state = state_of(path)
    except FileNotFoundError as error:
        raise CheckpointError("checkpoint_not_found", f"{path.name}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(
            "checkpoint_unreadable", f"{path.name}: cannot be read: {error.strerror}"
        ) from error
    header = read_header(path, state)
    return FileRecord(path.name, path, state, header.digest), header


def _read_object(path: Location, largest: int) -> dict[str, Any]:
    return parse_object(read_small(path, largest))


def _read_index(path: Location, present: set[str]) -> dict[str, set[str]]:
    """The tensors that the index lists, by file."""
    try:
        weight_map = _read_object(path, MAX_HEADER_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("has no weight_map that maps tensors to files")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"has the entry {str(name)[:200]!a}, no .safetensors file beside the index")
    except ValueError as error:
        raise CheckpointError(
            "malformed_index", f"{path.name} {error}. Copy the file again or save the checkpoint anew."
        ) from error
    listed: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        listed.setdefault(name, set()).add(key)
    if absent := sorted(listed.keys() - present):
        raise CheckpointError(
            "index_missing_file",
            f"{path.name} names {absent[0]!a}{_and_more(absent)}, which is not there: copy or download "
            "the whole checkpoint.",
        )
    return listed


def _check_listed(expected: set[str], header: Header, name: str) -> None:
    if absent := sorted(expected - header.tensors.keys()):
        raise CheckpointError(
            "index_missing_tensor",
            f"{name} does not hold {absent[0]!a}{_and_more(absent)}, which the index places there: the "
            "index belongs to other shards, or the shards to another index.",
        )
    if unlisted := sorted(header.tensors.keys() - expected):
        raise CheckpointError(
            "index_unlisted_tensor",
            f"{name} holds {unlisted[0]!a}{_and_more(unlisted)}, which the index does not place there: the "
            "index belongs to other shards, or the shards to another index.",
        )


def _and_more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
