"""The files of a merged checkpoint, known to the byte before any tensor is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.header import build_header

__all__ = ["FileLayout", "index_json", "lay_out"]


@dataclass(frozen=True, slots=True)
class FileLayout:
    """One output file, known to the byte before any tensor is computed."""

    name: str
    header: bytes
    """The first bytes of the file."""
    tensors: dict[str, tuple[int, int]]
    """Name to (offset from the start of the file, bytes), in the order of the file."""
    size: int


def lay_out(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    *,
    stem: str,
    max_shard_bytes: int,
    metadata: Mapping[str, str],
) -> tuple[FileLayout, ...]:
    """Distribute ``tensors`` (name, dtype, shape) over files as huggingface_hub does.

    ``{stem}.safetensors`` when all fit into ``max_shard_bytes`` of tensor data, else
    ``{stem}-00001-of-0000N.safetensors`` …, filled in the given order; a tensor above the limit has a
    file of its own. Within a file wider element types stand first, so that every tensor is aligned.
    """
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = []
    current: list[tuple[str, str, tuple[int, ...]]] = []
    filled = 0
    for tensor in tensors:
        nbytes = _nbytes(*tensor[1:])
        if nbytes > max_shard_bytes:
            shards.append([tensor])
            continue
        if filled + nbytes > max_shard_bytes:
            shards.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += nbytes
    if current or not shards:
        shards.append(current)
    return tuple(
        _lay_out_file(_file_name(stem, number, len(shards)), shard, metadata)
        for number, shard in enumerate(shards, start=1)
    )


def index_json(files: Sequence[FileLayout]) -> str:
    """Text of ``{stem}.safetensors.index.json`` for several ``files``."""
    sizes = [nbytes for file in files for _, nbytes in file.tensors.values()]
    weight_map = {tensor: file.name for file in files for tensor in file.tensors}
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    nbytes = ITEMSIZE[dtype]
    for length in shape:
        nbytes *= length
    return nbytes


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _lay_out_file(
    name: str, tensors: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> FileLayout:
    ordered = sorted(tensors, key=lambda tensor: -ITEMSIZE[tensor[1]])
    header = build_header(ordered, metadata)
    places: dict[str, tuple[int, int]] = {}
    end = len(header)
    for tensor, dtype, shape in ordered:
        places[tensor] = (end, _nbytes(dtype, shape))
        end += places[tensor][1]
    return FileLayout(name, header, places, end)
