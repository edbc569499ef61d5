"""Google Cloud Storage: what the store promises, and a merge from it to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gs_server import gs_server

from taumerge.schemas import MergeResult
from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.files import RECEIPT
from workers.checkpoints.remote.path import RemotePath
from workers.checkpoints.remote.store import ChangedObject, WritableStore, store_of

BUCKET = "models"


@pytest.fixture(scope="module")
def store(gs_port: int) -> Iterator[WritableStore]:
    with gs_server(gs_port, BUCKET):
        found = store_of("gs")
        assert isinstance(found, WritableStore)
        yield found


def at(key: str) -> RemotePath:
    return RemotePath("gs", BUCKET, key)


def put(store: WritableStore, directory: Path | str, prefix: str) -> str:
    for path in sorted(Path(directory).iterdir()):
        store.upload(path, at(f"{prefix}/{path.name}"))
    return f"gs://{BUCKET}/{prefix}"


def read(store: WritableStore, key: str) -> bytes:
    found = store.stat(at(key))
    return store.read(at(key), found.version, 0, found.size)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")  # gcsfs sends bytes as they are
def test_a_large_object_is_uploaded_in_parts(store: WritableStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * (40 * 2**12)  # 40 MiB
    (tmp_path / "large").write_bytes(content)
    store.upload(tmp_path / "large", at("parts/large"))
    found = store.stat(at("parts/large"))
    assert found.size == len(content)
    assert (
        store.read(at("parts/large"), found.version, 2**24 - 3, 2**24 + 3) == content[2**24 - 3 : 2**24 + 3]
    )
    assert read(store, "parts/large") == content


def test_what_is_created_is_created_once(store: WritableStore) -> None:
    store.create(at("once/mark"), b"mine")
    with pytest.raises(FileExistsError):
        store.create(at("once/mark"), b"yours")
    assert read(store, "once/mark") == b"mine"


def test_a_replaced_object_is_not_read(store: WritableStore) -> None:
    store.create(at("pinned/file"), b"before")
    pinned = store.stat(at("pinned/file")).version
    store.remove(at("pinned/file"))
    store.create(at("pinned/file"), b"after")
    with pytest.raises(ChangedObject):
        store.read(at("pinned/file"), pinned, 0, 5)


def test_names_are_those_of_the_directory_itself(store: WritableStore) -> None:
    for name in ("a", "b", "below/c"):
        store.create(at(f"named/{name}"), b"x")
    assert sorted(store.names(at("named"))) == ["a", "b"]
    assert store.names(at("nothing")) == {}
    store.remove(at("named/a"))
    store.remove(at("named/a"))  # gone already
    assert sorted(store.names(at("named"))) == ["b"]
    with pytest.raises(FileNotFoundError):
        store.stat(at("named/a"))


def test_a_merge_gives_the_files_of_a_local_one(
    merge: Callable[..., MergeResult], store: WritableStore, golden_body: dict[str, Any]
) -> None:
    base, *models = [
        put(store, uri, f"in/{Path(uri).name}") for uri in (golden_body["base"], *golden_body["models"])
    ]
    local = merge(golden_body)
    remote = merge(golden_body | {"base": base, "models": models, "output": f"gs://{BUCKET}/out"})
    assert remote.files == local.files
    directory = Path(golden_body["output"])
    names = sorted(path.name for path in directory.iterdir())
    assert sorted(store.names(at("out"))) == names
    for name in names:
        if name != RECEIPT:
            assert read(store, f"out/{name}") == (directory / name).read_bytes()
    assert open_checkpoint(f"gs://{BUCKET}/out").tensors == open_checkpoint(golden_body["output"]).tensors
