"""Pickled weights: refused by default, and where they are allowed no file of them runs code or fills the memory."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import save

from taumerge.errors import InvalidRequest
from taumerge.schemas import MergeRequest
from workers.checkpoints import pickles
from workers.checkpoints.checkpoint import CheckpointError, companions, open_checkpoint
from workers.checkpoints.pickles import open_pickled, pickled_files
from workers.checkpoints.reading import unchanged
from workers.merging.preflight import plan_merge

TENSORS = {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3, dtype=torch.bfloat16)}


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "pickled"
    directory.mkdir()
    return directory


def convert(directory: Path, tmp_path: Path) -> Any:
    files = pickled_files(str(directory))
    assert files
    return open_pickled(str(directory), files, tmp_path / "work")


def test_refused_unless_allowed(directory: Path, tmp_path: Path) -> None:
    torch.save(TENSORS, directory / "pytorch_model.bin")
    base = save(tmp_path / "base", TENSORS)
    body = {"base": base, "models": [str(directory)], "method": "median", "output": str(tmp_path / "out")}
    request = MergeRequest.model_validate(body)
    with pytest.raises(InvalidRequest) as refused:
        plan_merge(request, workers=1, worker_memory=0)
    assert [(item.loc, item.code) for item in refused.value.errors] == [
        (("models", 0, "uri"), "unsupported_checkpoint")
    ]
    plan = plan_merge(request, workers=1, worker_memory=0, pickle_dir=tmp_path / "work")
    assert sorted(plan.comparison.merged) == ["b", "w"]


def test_tensors_and_what_lies_beside_them(directory: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": TENSORS | {"tied": TENSORS["w"]}}, directory / "open_clip_pytorch_model.bin")
    (directory / "config.json").write_text("{}")
    opened = convert(directory, tmp_path)
    assert opened.stem == "open_clip_model"
    assert {name: stored.info.shape for name, stored in opened.tensors.items()} == {
        "w": (3, 4),
        "b": (3,),
        "tied": (3, 4),
    }
    assert [path.name for path in companions(opened)] == ["config.json"]
    assert all(unchanged(file) for file in opened.files)
    assert convert(directory, tmp_path).fingerprint == opened.fingerprint
    os.utime(directory / "open_clip_pytorch_model.bin", (1, 1))
    assert not all(unchanged(file) for file in opened.files)


def test_shards(directory: Path, tmp_path: Path) -> None:
    torch.save({"w": TENSORS["w"]}, directory / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": TENSORS["b"]}, directory / "pytorch_model-00002-of-00002.bin")
    assert convert(directory, tmp_path).tensors.keys() == {"w", "b"}


def test_shards_that_hold_a_tensor_twice(directory: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        torch.save(TENSORS, directory / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(CheckpointError, match="tensor b is in two of the files") as refused:
        convert(directory, tmp_path)
    assert refused.value.code == "unpickling_failed"


@pytest.mark.parametrize(
    "names",
    [
        ["epoch-01.pt", "epoch-02.pt"],
        ["pytorch_model.bin", "optimizer.pt"],
        ["pytorch_model-00001-of-00002.bin"],
        ["pytorch_model-00001-of-00003.bin", "pytorch_model-00003-of-00003.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00003.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.pt"],
        ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin"],
    ],
)
def test_files_that_are_not_one_model(names: list[str], directory: Path) -> None:
    for name in [*names, "training_args.bin"]:
        torch.save(TENSORS, directory / name)
    with pytest.raises(CheckpointError, match="name the file that is meant") as refused:
        pickled_files(str(directory))
    assert refused.value.code == "unsupported_checkpoint"
    assert names[0] in refused.value.message
    assert pickled_files(str(directory / names[0])) == [directory / names[0]]


def evil(path: Path, marker: Path) -> None:
    torch.save({"w": Evil(marker)}, path)


def evil_without_torch(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(marker)))


def evil_legacy(path: Path, marker: Path) -> None:
    torch.save({"w": Evil(marker)}, path, _use_new_zipfile_serialization=False)


def bomb(path: Path, marker: Path) -> None:
    """An archive of a few MB, of which one tensor unpacks to 1.6 GB."""
    small = io.BytesIO()
    torch.save({"w": torch.zeros(1, dtype=torch.uint8).expand(1)}, small)
    with (
        zipfile.ZipFile(small) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.namelist():
            with target.open(entry, "w", force_zip64=True) as file:
                if entry.endswith("data/0"):
                    for _ in range(800):
                        file.write(bytes(2 << 20))
                else:
                    content = source.read(entry)
                    file.write(content)


def huge_numbers(path: Path, marker: Path) -> None:
    """A whole number of a million digits, and a stack that is left."""
    path.write_bytes(b"\x80\x02" + b"N" * 10_000 + b"I" + b"9" * 1_000_000 + b"\n.")


def no_tensors(path: Path, marker: Path) -> None:
    torch.save([1, 2, 3], path)


def garbage(path: Path, marker: Path) -> None:
    path.write_bytes(os.urandom(5000))


@pytest.mark.parametrize(
    "make",
    [evil, evil_without_torch, evil_legacy, bomb, huge_numbers, no_tensors, garbage],
    ids=lambda one: one.__name__,
)
def test_what_is_no_dictionary_of_tensors(
    directory: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    marker = tmp_path / "executed"
    make(directory / "pytorch_model.bin", marker)
    with pytest.raises(CheckpointError) as refused:
        convert(directory, tmp_path)
    assert refused.value.code == "unpickling_failed"
    assert not marker.exists()
    assert not list((tmp_path / "work").glob("*/*"))


def test_a_reader_that_does_not_end_is_stopped(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "SECONDS", 0)
    torch.save(TENSORS, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="within 0 s"):
        convert(directory, tmp_path)


def test_safetensors_win(directory: Path) -> None:
    torch.save(TENSORS, directory / "pytorch_model.bin")
    (directory / "model.safetensors").write_bytes(b"")
    assert pickled_files(str(directory)) == []
    assert pickled_files("s3://models/pytorch_model.bin") == []


def test_one_file(directory: Path, tmp_path: Path) -> None:
    torch.save(TENSORS, directory / "any.pt")
    with pytest.raises(CheckpointError):
        open_checkpoint(str(directory / "any.pt"))
    uri = str(directory / "any.pt")
    assert open_pickled(uri, pickled_files(uri), tmp_path / "work").tensors.keys() == {"w", "b"}
