import json
import math
import pickle
import struct
from pathlib import Path

import pytest
from safetensors import safe_open

from workers.checkpoints.dtypes import FLOATS, FROM_NAME, ITEMSIZE
from workers.checkpoints.errors import CheckpointError
from workers.checkpoints.header import MAX_HEADER_BYTES, build_header, read_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def store(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(**fields: object) -> dict[str, object]:
    return {"a": F32 | fields}


def test_reads_what_stands_in_a_header(tmp_path: Path) -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "second": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
        "first": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "empty": {"dtype": "F32", "shape": [0, 7], "data_offsets": [12, 12]},
    }
    path = store(tmp_path / "x.safetensors", entries, bytes(20))
    header = read_header(path)
    start = 8 + len(json.dumps(entries))
    assert list(header.tensors) == ["first", "empty", "second"]
    first, empty, second = header.tensors.values()
    assert (first.dtype, first.shape, first.offset, first.nbytes, first.elements) == (
        "BF16", (2, 3), start, 12, 6,
    )  # fmt: skip
    assert (empty.shape, empty.offset, empty.nbytes, empty.elements) == ((0, 7), start + 12, 0, 0)
    assert (second.shape, second.offset, second.nbytes, second.elements) == ((), start + 12, 8, 1)
    assert header.metadata == {"format": "pt"}
    assert header.size == path.stat().st_size


def test_a_file_without_tensors_is_valid(tmp_path: Path) -> None:
    header = read_header(store(tmp_path / "x.safetensors", {}, b""))
    assert header.tensors == {}
    assert header.metadata == {}


def test_the_digest_follows_the_header_and_not_the_data(tmp_path: Path) -> None:
    digests = [
        read_header(store(tmp_path / f"{number}.safetensors", header, data)).digest
        for number, (header, data) in enumerate(
            [(tensor(), bytes(8)), (tensor(), bytes(range(8))), (tensor(shape=[2, 1]), bytes(8))]
        )
    ]
    assert digests[0] == digests[1] != digests[2]


OVERLAPPING = {"a": F32, "b": F32 | {"data_offsets": [4, 12]}}
GAP = {"a": F32, "b": F32 | {"data_offsets": [12, 20]}}
MALFORMED = {
    "bad UTF-8": b'{"a\xff": 1}',
    "bad JSON": b'{"a": ',
    "empty header": b"",
    "a list": [],
    "a number": b"1",
    "byte order mark": b"\xef\xbb\xbf{}",
    "tensor twice": b'{"a": %(t)b, "a": %(t)b}' % {b"t": json.dumps(F32).encode()},
    "field twice": b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "metadata twice": b'{"__metadata__": {}, "__metadata__": {}}',
    "half a surrogate pair in a name": b'{"\\ud800": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}',
    "half a surrogate pair in metadata": b'{"__metadata__": {"a": "\\udc00"}}',
    "entry is no object": {"a": [0, 8]},
    "dtype missing": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "shape missing": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "offsets missing": {"a": {"dtype": "F32", "shape": [2]}},
    "unknown field": tensor(stride=[1]),
    "shape is a number": tensor(shape=2),
    "shape is null": tensor(shape=None),
    "negative size": tensor(shape=[-2]),
    "minus zero": b'{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}',
    "fractional size": tensor(shape=[2.0]),
    "boolean size": tensor(shape=[True, 2]),
    "size as text": tensor(shape=["2"]),
    "size over 64 bits": tensor(shape=[2**64 + 2]),
    "size of 5000 digits": b'{"a": {"dtype": "F32", "shape": [%b], "data_offsets": [0, 8]}}' % (b"9" * 5000),
    "product over 64 bits": tensor(shape=[2**32, 2**32]),
    "product over 64 bits beside a zero": tensor(shape=[2**40, 2**40, 0], data_offsets=[0, 0]),
    "product over 64 bits after a zero": tensor(shape=[0, 2**40, 2**40], data_offsets=[0, 0]),
    "product of 100,000 sizes": tensor(shape=[2**62] * 100_000),
    "offsets are one number": tensor(data_offsets=8),
    "three offsets": tensor(data_offsets=[0, 4, 8]),
    "negative offset": tensor(data_offsets=[-8, 0]),
    "boolean offset": tensor(data_offsets=[False, 8]),
    "fractional offset": tensor(data_offsets=[0, 8.0]),
    "begin after end": tensor(data_offsets=[8, 0]),
    "more bytes than the shape": tensor(shape=[1]),
    "fewer bytes than the shape": tensor(shape=[3]),
    "more bytes than the dtype": tensor(dtype="F16"),
    "overlap": OVERLAPPING,
    "the same bytes twice": {"a": F32, "b": F32},
    "gap": GAP,
    "gap before the first": tensor(data_offsets=[4, 12]),
    "metadata is null": {"__metadata__": None, "a": F32},
    "metadata is a list": {"__metadata__": ["pt"]},
    "metadata holds a number": {"__metadata__": {"format": 1}},
    "metadata holds an object": {"__metadata__": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
    "deep nesting": b'{"a": ' + b"[" * 200_000,
    "deep nesting, closed": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a": ' * 100_000,
}
DATA_BYTES = {  # so that nothing else is wrong with the file; 8 where it is not said
    "metadata twice": 0,
    "half a surrogate pair in metadata": 0,
    "minus zero": 0,
    "product over 64 bits beside a zero": 0,
    "product over 64 bits after a zero": 0,
    "overlap": 12,
    "gap": 20,
    "gap before the first": 12,
    "metadata is a list": 0,
    "metadata holds a number": 0,
    "metadata holds an object": 0,
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_refused(case: str, tmp_path: Path) -> None:
    path = store(tmp_path / "weights.safetensors", MALFORMED[case], bytes(DATA_BYTES.get(case, 8)))
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.code == "malformed_header"
    assert caught.value.message.startswith("weights.safetensors: ")
    assert len(caught.value.message) < 1000
    caught.value.message.encode()


def test_trailing_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="1 bytes after the last tensor") as caught:
        read_header(store(tmp_path / "x.safetensors", tensor(), bytes(9)))
    assert caught.value.code == "malformed_header"


def test_a_length_above_the_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="100000001 bytes long") as caught:
        read_header(store(tmp_path / "x.safetensors", tensor(), length=MAX_HEADER_BYTES + 1))
    assert caught.value.code == "malformed_header"


@pytest.mark.parametrize("content", [b"", bytes(7), struct.pack("<Q", 9) + b"{}", struct.pack("<Q", 1)])
def test_a_file_that_ends_in_its_header_is_truncated(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cut short") as caught:
        read_header(path)
    assert caught.value.code == "truncated_file"


def test_a_file_that_ends_in_its_data_is_truncated(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cut short") as caught:
        read_header(store(tmp_path / "x.safetensors", tensor(), bytes(7)))
    assert caught.value.code == "truncated_file"


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "f32", "", None, 32, ["F32"]])
def test_an_unknown_dtype_is_refused(dtype: object, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^x\.safetensors: tensor 'a' .*known are BOOL") as caught:
        read_header(store(tmp_path / "x.safetensors", tensor(dtype=dtype)))
    assert caught.value.code == "unknown_dtype"


def test_a_missing_file_and_a_directory_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as missing:
        read_header(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError) as directory:
        read_header(tmp_path)
    assert (missing.value.code, directory.value.code) == ("checkpoint_not_found", "checkpoint_unreadable")


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CheckpointError("malformed_header", "x: is not JSON")))
    assert (error.code, error.message, str(error)) == ("malformed_header", "x: is not JSON", "x: is not JSON")


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_every_dtype_has_the_size_that_safetensors_gives_it(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(build_header([("a", dtype, (3, 5))], {}) + bytes(15 * ITEMSIZE[dtype]))
    with safe_open(path, "np") as file:
        assert file.get_slice("a").get_dtype() == dtype
        assert file.get_slice("a").get_shape() == [3, 5]


def test_floats_and_names_are_known_dtypes() -> None:
    assert ITEMSIZE.keys() >= FLOATS
    assert set(FROM_NAME.values()) <= FLOATS


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "größe": "θ₀ \u0000 \U0001f600"}])
def test_built_headers_are_read_by_safetensors_and_by_us(metadata: dict[str, str], tmp_path: Path) -> None:
    tensors = [
        ("b.weight", "F32", (2, 3)),
        ("a", "BF16", ()),
        ('quote " and \\', "U8", (5,)),
        ("leer", "F16", (0, 4)),
        ("θ", "F64", (1, 1, 1)),
    ]
    header = build_header(tensors, metadata)
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(sum(ITEMSIZE[dtype] * math.prod(shape) for _, dtype, shape in tensors)))
    ours = read_header(path)
    assert [(info.name, info.dtype, info.shape) for info in ours.tensors.values()] == tensors
    assert ours.metadata == metadata
    assert next(iter(ours.tensors.values())).offset == len(header)
    with safe_open(path, "np") as file:
        assert (file.metadata() or {}) == metadata
        theirs = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in theirs.items()} == {
            name: (dtype, shape) for name, dtype, shape in tensors
        }
