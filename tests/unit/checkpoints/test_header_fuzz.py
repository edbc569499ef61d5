"""Whatever we accept, safetensors accepts and understands in the same way; nothing else than CheckpointError.

More of it: ``pytest tests/unit/checkpoints/test_header_fuzz.py --hypothesis-profile thorough -s``, which ends with
how many malformed headers were refused.
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.header import build_header, read_header

DEADLINE = timedelta(seconds=10)
"""A header that takes longer to refuse counts as a hang."""

Tensors = list[tuple[str, str, tuple[int, ...]]]

names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda name: name != "__metadata__")
tensor_lists = st.lists(
    st.tuples(
        names,
        st.sampled_from(sorted(ITEMSIZE)),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
    ),
    max_size=5,
    unique_by=lambda tensor: tensor[0],
)
metadata = st.dictionaries(names, st.text(st.characters(codec="utf-8"), max_size=8), max_size=3)
sizes = st.integers(-1, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30])
values = st.recursive(
    st.none() | st.booleans() | sizes | st.floats() | st.text(max_size=4) | st.sampled_from(sorted(ITEMSIZE)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


verdicts: Counter[str] = Counter()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    print(f"\n{verdicts['malformed']} malformed headers refused, {verdicts['sound']} sound ones accepted")


def check(path: Path, content: bytes) -> bool:
    """Whether we accept ``content``; if so, safetensors must agree on all of it."""
    path.write_bytes(content)
    try:
        ours = read_header(path)
    except CheckpointError as error:
        error.message.encode()
        verdicts["malformed"] += 1
        return False
    verdicts["sound"] += 1
    with safe_open(path, "np") as file:
        theirs = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in theirs.items()} == {
            name: (info.dtype, info.shape) for name, info in ours.tensors.items()
        }
        assert (file.metadata() or {}) == ours.metadata
    end = len(content) - sum(info.nbytes for info in ours.tensors.values())
    for info in ours.tensors.values():
        assert info.offset == end
        end += info.nbytes
    assert end == ours.size == len(content)
    return True


def valid_file(tensors: Tensors, extra: dict[str, str]) -> tuple[dict[str, Any], bytes]:
    header = build_header(tensors, extra)
    entries = json.loads(header[8:])
    data = max((entries[name]["data_offsets"][1] for name, _, _ in tensors), default=0)
    return entries, bytes(data)


def encode(entries: object, data: bytes) -> bytes:
    raw = json.dumps(entries).encode()
    return struct.pack("<Q", len(raw)) + raw + data


@settings(deadline=DEADLINE)
@given(tensors=tensor_lists, extra=metadata)
def test_every_valid_file_is_accepted(path: Path, tensors: Tensors, extra: dict[str, str]) -> None:
    assert check(path, encode(*valid_file(tensors, extra)))


@settings(deadline=DEADLINE)
@given(tensors=tensor_lists, extra=metadata, data=st.data())
def test_fields_changed_at_random(
    path: Path, tensors: Tensors, extra: dict[str, str], data: st.DataObject
) -> None:
    entries, body = valid_file(tensors, extra)
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(st.sampled_from([change_field, change_number, change_entry, drop_field, swap]))(
            entries, data
        )
    length = max(0, len(body) + data.draw(st.sampled_from([0, 0, 0, -1, 1, 4, 8])))
    check(path, encode(entries, bytes(length)))


def a_tensor(entries: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    tensors = [entry for entry in entries.values() if isinstance(entry, dict)]
    return data.draw(st.sampled_from(tensors)) if tensors else {}


def change_field(entries: dict[str, Any], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "stride"]))
    a_tensor(entries, data)[field] = data.draw(values)


def change_number(entries: dict[str, Any], data: st.DataObject) -> None:
    numbers = a_tensor(entries, data).get(data.draw(st.sampled_from(["shape", "data_offsets"])))
    if isinstance(numbers, list) and numbers:
        numbers[data.draw(st.integers(0, len(numbers) - 1))] = data.draw(sizes)


def change_entry(entries: dict[str, Any], data: st.DataObject) -> None:
    entries[data.draw(st.sampled_from(["__metadata__", *entries]) | names)] = data.draw(values)


def drop_field(entries: dict[str, Any], data: st.DataObject) -> None:
    a_tensor(entries, data).pop(data.draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)


def swap(entries: dict[str, Any], data: st.DataObject) -> None:
    one, other = a_tensor(entries, data), a_tensor(entries, data)
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    if field in one and field in other:
        one[field], other[field] = other[field], one[field]


def replace(content: bytearray, place: int, byte: int) -> None:
    content[place] = byte


def insert(content: bytearray, place: int, byte: int) -> None:
    content.insert(place, byte)


def delete(content: bytearray, place: int, byte: int) -> None:
    del content[place]


def truncate(content: bytearray, place: int, byte: int) -> None:
    del content[place:]


@settings(deadline=DEADLINE)
@given(
    tensors=tensor_lists,
    extra=metadata,
    edits=st.lists(
        st.tuples(
            st.sampled_from([replace, replace, insert, delete, truncate]),
            st.integers(0, 2**16),
            st.sampled_from(sorted(b'{}[]":,\\-0123456789eE. truenl\x00\xff')) | st.integers(0, 255),
        ),
        min_size=1,
        max_size=4,
    ),
    fix_length=st.booleans(),
)
def test_bytes_changed_at_random(
    path: Path,
    tensors: Tensors,
    extra: dict[str, str],
    edits: list[tuple[Callable[[bytearray, int, int], None], int, int]],
    fix_length: bool,
) -> None:
    entries, body = valid_file(tensors, extra)
    raw = bytearray(encode(entries, b""))
    for edit, place, byte in edits:
        if raw:
            edit(raw, place % len(raw), byte)
    if fix_length and len(raw) >= 8:
        raw[:8] = struct.pack("<Q", len(raw) - 8)
    check(path, bytes(raw) + body)


@settings(deadline=DEADLINE)
@given(content=st.binary(max_size=200), framed=st.booleans())
def test_random_bytes(path: Path, content: bytes, framed: bool) -> None:
    check(path, struct.pack("<Q", len(content)) + content if framed else content)
