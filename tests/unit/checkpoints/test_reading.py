import os
import time
from pathlib import Path

import pytest

from taumerge.errors import JobFailed
from workers.checkpoints.files import FileRecord, FileState
from workers.checkpoints.reading import FileReader, unchanged

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


def record_of(path: Path) -> FileRecord:
    return FileRecord(path.name, path, FileState.of(path.stat()), "")


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace(path: Path) -> None:
    status = path.stat()
    twin = path.with_name("twin")
    twin.write_bytes(CONTENT)
    os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
    twin.replace(path)


def write_into(path: Path) -> None:
    status = path.stat()
    time.sleep(0.02)  # the clock of a file system has steps of a few milliseconds
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def shorten(path: Path) -> None:
    status = path.stat()
    os.truncate(path, 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (17, 1000), (0, len(CONTENT)), (len(CONTENT), 0)])
def test_reads_exactly_the_range(path: Path, offset: int, length: int) -> None:
    buffer = bytearray(b"\xee" * length)
    with FileReader(record_of(path)) as reader:
        reader.read_into(memoryview(buffer), offset)
    assert buffer == CONTENT[offset : offset + length]


def test_fills_buffers_of_any_element_type_and_shape(path: Path) -> None:
    buffer = memoryview(bytearray(96)).cast("B").cast("f", (2, 3, 4))
    with FileReader(record_of(path)) as reader:
        reader.read_into(buffer, 5)
    assert buffer.tobytes() == CONTENT[5:101]


def test_goes_on_after_a_short_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv
    calls = []

    def at_most_seven(fd: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return preadv(fd, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", at_most_seven)
    buffer = bytearray(20)
    with FileReader(record_of(path)) as reader:
        reader.read_into(memoryview(buffer), 3)
    assert buffer == CONTENT[3:23]
    assert calls == [3, 10, 17]


@pytest.mark.parametrize("change", [touch, replace, write_into, shorten, Path.unlink])
def test_a_file_changed_before_opening(path: Path, change: object) -> None:
    record = record_of(path)
    assert unchanged(record)
    assert callable(change)
    change(path)
    assert not unchanged(record)
    with pytest.raises(JobFailed, match="was changed or removed") as caught:
        FileReader(record)
    assert caught.value.code == "input_changed"
    assert caught.value.details == {"file": str(path)}


def test_a_file_cut_short_while_it_is_open(path: Path) -> None:
    with FileReader(record_of(path)) as reader:
        reader.read_into(memoryview(bytearray(10)), 200)
        shorten(path)
        with pytest.raises(JobFailed) as caught:
            reader.read_into(memoryview(bytearray(10)), 95)
    assert caught.value.code == "input_changed"


@pytest.mark.parametrize("change", [touch, replace, write_into])
def test_a_change_while_the_file_is_open_is_seen_afterwards(path: Path, change: object) -> None:
    record = record_of(path)
    with FileReader(record) as reader:
        assert callable(change)
        change(path)
        reader.read_into(memoryview(bytearray(10)), 0)
    assert not unchanged(record)


def test_a_read_that_the_system_refuses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> int:
        raise OSError(5, "Input/output error")

    with FileReader(record_of(path)) as reader:
        monkeypatch.setattr(os, "preadv", broken)
        with pytest.raises(JobFailed, match="Input/output error") as caught:
            reader.read_into(memoryview(bytearray(1)), 0)
    assert caught.value.code == "input_unreadable"


def test_a_file_that_cannot_be_opened(path: Path) -> None:
    record = record_of(path)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(JobFailed) as caught:
        FileReader(record)
    assert caught.value.code == "input_unreadable"


def test_closing_gives_the_descriptor_back(path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = FileReader(record_of(path))
    reader.close()
    reader.close()
    record = record_of(path)
    touch(path)
    with pytest.raises(JobFailed):
        FileReader(record)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
