"""The header of a safetensors file, read and built.

A file is: 8 bytes, the length N of the header as a little-endian unsigned integer; N bytes of JSON,
padded with spaces; then the tensors, row-major and little-endian, without gaps. The JSON maps each
tensor's name to ``{"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}``, offsets counted
from the end of the header, and ``__metadata__`` to free strings.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from reprlib import Repr
from typing import Any, BinaryIO

from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.files import FileState, Location, state_of
from workers.checkpoints.remote.fetching import read_part
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.strict_json import parse_object

__all__ = ["MAX_HEADER_BYTES", "Header", "TensorInfo", "build_header", "read_header"]

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""

FIRST_READ_BYTES = 1 << 16
"""Read of a remote file at first: most headers are shorter, so that one request is enough."""

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_LARGEST = 2**63 - 1
"""Sizes and offsets are signed 64-bit numbers wherever they are used."""


_short = Repr()
_short.maxstring = 200
_shown = _short.repr
"""``repr`` for error messages, cut to a length that fits one."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in its file."""

    name: str
    dtype: str
    """safetensors name, a key of ``ITEMSIZE``."""
    shape: tuple[int, ...]
    """() for a scalar."""
    offset: int
    """First byte, counted from the start of the file."""
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself."""

    tensors: dict[str, TensorInfo]
    """By name, in the order of the file."""
    metadata: dict[str, str]
    size: int
    """Bytes of the whole file."""
    digest: str
    """SHA-256 of the JSON bytes, in hex."""


def read_header(path: Location, state: FileState | None = None) -> Header:
    """Read and check the header of ``path``; no tensor data is read.

    Args:
        state: of a remote file, whose header is read in that version; the present one by default.

    Raises:
        CheckpointError: ``checkpoint_not_found``, ``checkpoint_unreadable``, ``truncated_file`` (shorter
            than it says), ``unknown_dtype``, or ``malformed_header``. A file that is accepted is covered
            exactly by its tensors: no overlap, no gap, no trailing bytes.
    """
    try:
        if isinstance(path, RemotePath):
            size, raw = _remote_header(path, state or state_of(path))
        else:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                raw = _header_bytes(file, size, path.name)
    except FileNotFoundError as error:
        raise CheckpointError("checkpoint_not_found", f"{path.name}: there is no such file") from error
    except OSError as error:
        raise CheckpointError(
            "checkpoint_unreadable", f"{path.name}: cannot be read: {error.strerror}"
        ) from error
    try:
        entries = parse_object(raw, parse_int=_unsigned)
        metadata = _metadata(entries.pop(_METADATA, {}))
        tensors = [_tensor(name, entry, 8 + len(raw), path.name) for name, entry in entries.items()]
    except ValueError as error:
        raise _malformed(path.name, str(error)) from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = _covered(tensors, start=8 + len(raw), name=path.name)
    if end > size:
        raise _truncated(path.name, f"its header describes {end} bytes, the file has {size}")
    if end < size:
        raise _malformed(path.name, f"has {size - end} bytes after the last tensor")
    return Header(
        tensors={tensor.name: tensor for tensor in tensors},
        metadata=metadata,
        size=size,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """All bytes before the tensor data: the 8-byte length and the JSON, together a multiple of 8 bytes.

    ``tensors`` are (name, dtype, shape); the data follows in the same order, without gaps.
    """
    entries: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * ITEMSIZE[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _malformed(name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        "malformed_header",
        f"{name}: the safetensors header {problem}. The file is damaged or was written wrongly: "
        "copy it again or save it anew.",
    )


def _truncated(name: str, problem: str) -> CheckpointError:
    return CheckpointError(
        "truncated_file", f"{name}: the file is cut short: {problem}. Copy or download it again."
    )


def _remote_header(path: RemotePath, state: FileState) -> tuple[int, bytes]:
    """Size of the file and the JSON, in one read or two."""
    start = read_part(path, state.version, 0, min(FIRST_READ_BYTES, state.size))
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 + length <= min(state.size, 8 + MAX_HEADER_BYTES):
        start += read_part(path, state.version, len(start), 8 + length)
    return state.size, _header_bytes(io.BytesIO(start), state.size, path.name)


def _header_bytes(file: BinaryIO, size: int, name: str) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise _truncated(name, f"a safetensors file has at least 8 bytes, this one has {size}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise _malformed(name, f"would be {length} bytes long, more than the {MAX_HEADER_BYTES} allowed")
    raw = file.read(length)
    if len(raw) < length:
        raise _truncated(name, f"its header should have {length} bytes, {len(raw)} are there")
    return raw


def _unsigned(text: str) -> int:
    if text.startswith("-") or len(text) > len(str(_LARGEST)):
        raise ValueError(f"has the number {_shown(text)}, which is no size")
    return int(text)


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"has a {_METADATA} that does not map strings to strings")
    try:
        "".join(value.values()).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a {_METADATA} that is not valid Unicode") from error
    return value


def _tensor(name: str, entry: object, start: int, file: str) -> TensorInfo:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ValueError(f"does not give tensor {_shown(name)} exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise CheckpointError(
            "unknown_dtype",
            f"{file}: tensor {_shown(name)} has the element type {_shown(dtype)}; known are "
            f"{', '.join(ITEMSIZE)}. Save the checkpoint in one of them.",
        )
    if not _is_sizes(shape) or _overflows(shape):
        raise ValueError(f"gives tensor {_shown(name)} a shape that is no list of sizes below 2^63")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"gives tensor {_shown(name)} data_offsets that are no pair of offsets")
    begin, end = offsets
    nbytes = math.prod(shape) * ITEMSIZE[dtype]
    if end - begin != nbytes:
        raise ValueError(
            f"gives tensor {_shown(name)} {end - begin} bytes; {dtype} of shape {_shown(shape)} "
            f"takes {nbytes}"
        )
    return TensorInfo(name, dtype, tuple(shape), start + begin, nbytes)


def _is_sizes(value: object) -> bool:
    # type(), because True is an int
    return isinstance(value, list) and all(type(size) is int and size <= _LARGEST for size in value)


def _overflows(shape: list[int]) -> bool:
    elements = 1
    for length in shape:
        elements *= max(length, 1)
        if elements > _LARGEST:  # before it grows to a number that takes seconds to multiply
            return True
    return False


def _covered(tensors: list[TensorInfo], start: int, name: str) -> int:
    """Where the last tensor ends; refuses overlaps and gaps."""
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the one before it" if tensor.offset < end else "leaves a gap before it"
            raise _malformed(name, f"places tensor {_shown(tensor.name)} so that it {problem}")
        end += tensor.nbytes
    return end
