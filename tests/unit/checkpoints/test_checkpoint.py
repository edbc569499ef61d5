import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model

from taumerge.schemas import Training
from workers.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    companions,
    local_path,
    open_checkpoint,
    read_training,
)
from workers.checkpoints.files import FileState

INDEX = "model.safetensors.index.json"


def save(path: Path, *names: str, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.arange(4.0) for name in names}, path, metadata)
    return path


def write_index(directory: Path, weight_map: object, name: str = INDEX) -> None:
    (directory / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def sharded(directory: Path) -> Path:
    save(directory / "model-00001-of-00002.safetensors", "a", "b", metadata={"format": "pt"})
    save(directory / "model-00002-of-00002.safetensors", "c", metadata={"format": "np"})
    write_index(
        directory,
        {name: f"model-0000{1 + (name == 'c')}-of-00002.safetensors" for name in "cba"},
    )
    return directory


def refusal(uri: str | Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(str(uri))
    return caught.value


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("/models/base", "/models/base"),
        ("file:///models/base", "/models/base"),
        ("file://localhost/models/base", "/models/base"),
        ("file:///with%20space/%C3%BC%23%3f", "/with space/ü#?"),
        ("/with space/100%25/#1?", "/with space/100%25/#1?"),
        ("//models//base/", "/models/base"),
    ],
)
def test_local_paths(uri: str, path: str) -> None:
    assert local_path(uri) == Path(path)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "models/base",
        "./base",
        "~/base",
        "s3://bucket/base",
        "hf://owner/repo@main",
        "file:base",
        "file:/models/base",
        "file://otherhost/models/base",
        "file://localhostx/base",
        "file://",
        "file:///base?revision=1",
        "file:///base#part",
        "file:///base%00",
        "file:///base%ff",
        "/base\0",
        "/base\ud800",
        "simplecache::file:///etc/hostname",
        "file:///base::s3://bucket",
        "/base::zip://x",
        " /base",
    ],
)
def test_other_locations_are_refused(uri: str) -> None:
    with pytest.raises(CheckpointError, match="file:///absolute/path") as caught:
        local_path(uri)
    assert caught.value.code == "unsupported_uri"


@pytest.mark.parametrize("stem", ["model", "open_clip_model"])
def test_a_directory_with_one_file(stem: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"{stem}.safetensors", "b", "a", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path.as_uri())
    assert checkpoint.uri == tmp_path.as_uri()
    assert checkpoint.directory == tmp_path
    assert checkpoint.stem == stem
    assert checkpoint.metadata == {"format": "pt"}
    assert list(checkpoint.tensors) == ["a", "b"]
    (record,) = checkpoint.files
    assert (record.name, record.path, record.state) == (path.name, path, FileState.of(path.stat()))
    stored = checkpoint.tensors["b"]
    content = path.read_bytes()[stored.info.offset :][: stored.info.nbytes]
    assert content == torch.arange(4.0).numpy().tobytes()


@pytest.mark.parametrize("stem", ["model", "open_clip_model"])
def test_a_directory_with_shards(stem: str, tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).rename(tmp_path / f"{stem}.safetensors.index.json")
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.stem == stem
    assert [record.name for record in checkpoint.files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert {name: stored.file for name, stored in checkpoint.tensors.items()} == {"a": 0, "b": 0, "c": 1}
    assert list(checkpoint.tensors) == ["a", "b", "c"]
    assert checkpoint.metadata == {"format": "pt"}


def test_the_single_file_counts_where_an_index_is_there_too(tmp_path: Path) -> None:
    sharded(tmp_path)
    save(tmp_path / "model.safetensors", "single")
    checkpoint = open_checkpoint(str(tmp_path))
    assert list(checkpoint.tensors) == ["single"]


def test_a_single_file_named_directly(tmp_path: Path) -> None:
    path = save(tmp_path / "my weights.v2.safetensors", "a")
    save(tmp_path / "model.safetensors", "other")
    checkpoint = open_checkpoint(path.as_uri())
    assert list(checkpoint.tensors) == ["a"]
    assert (checkpoint.directory, checkpoint.stem) == (tmp_path, "my weights.v2")


def test_links_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    blob = save(tmp_path / "blobs" / "0123abcd", "a")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "config.json").symlink_to(save(tmp_path / "blobs" / "4567", "b"))
    checkpoint = open_checkpoint(str(snapshot))
    assert list(checkpoint.tensors) == ["a"]
    assert companions(checkpoint) == [snapshot / "config.json"]


@pytest.mark.parametrize("missing", ["none", "none/model.safetensors", "model.safetensors/deeper"])
def test_a_missing_path(missing: str, tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    assert refusal(tmp_path / missing).code == "checkpoint_not_found"


def test_an_empty_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path).code == "checkpoint_not_found"


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    error = refusal(tmp_path)
    assert error.code == "unsupported_checkpoint"
    assert "without adapter_" in error.message


@pytest.mark.parametrize("adapter", ["adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("shards", [True, False])
def test_a_model_and_an_adapter_in_one_directory(shards: bool, adapter: str, tmp_path: Path) -> None:
    whole = save(tmp_path / "model.safetensors", "a")
    if shards:
        whole.unlink()
        sharded(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert open_checkpoint(str(tmp_path)).adapter is None  # what another adapter has left
    (tmp_path / adapter).touch()
    error = refusal(tmp_path)
    assert error.code == "unsupported_checkpoint"
    assert "a whole model (model.safetensors" in error.message
    if not shards:
        assert open_checkpoint(str(whole)).tensors.keys() == {"a"}


@pytest.mark.parametrize("config", ["", "[]", '{"r": 1, "r": 2}'])
def test_an_adapter_whose_configuration_is_no_object(config: str, tmp_path: Path) -> None:
    save(tmp_path / "adapter_model.safetensors", "a")
    (tmp_path / "adapter_config.json").write_text(config)
    assert refusal(tmp_path).code == "malformed_adapter"


def test_the_configuration_of_an_adapter_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    save(tmp_path / "adapter_model.safetensors", "a")
    config = tmp_path / "adapter_config.json"
    config.write_text('{"lora_alpha": 8}')
    before = open_checkpoint(str(tmp_path))
    config.write_text('{"lora_alpha": 9}')
    after = open_checkpoint(str(tmp_path))
    assert after.adapter == {"lora_alpha": 9}
    assert [file.name for file in after.files] == ["adapter_model.safetensors", "adapter_config.json"]
    assert before.fingerprint != after.fingerprint


def test_a_directory_with_another_name_is_told_to_name_the_file(tmp_path: Path) -> None:
    save(tmp_path / "diffusion_pytorch_model.safetensors", "a")
    error = refusal(tmp_path)
    assert error.code == "unsupported_checkpoint"
    assert "'diffusion_pytorch_model.safetensors': name the file itself" in error.message


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "open_clip_pytorch_model.bin", "x.ckpt"])
@pytest.mark.parametrize("direct", [True, False])
def test_pickled_weights_are_refused(name: str, direct: bool, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / name)
    error = refusal(tmp_path / name if direct else tmp_path)
    assert error.code == "unsupported_checkpoint"
    assert name in error.message
    assert "to safetensors" in error.message


def test_names_that_are_no_text_do_not_break_the_message(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.safetensors")).touch()
    refusal(tmp_path).message.encode()


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert refusal(tmp_path).code == "checkpoint_unreadable"
    assert refusal(tmp_path / "model.safetensors").code == "checkpoint_unreadable"


def test_a_directory_in_the_place_of_the_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert refusal(tmp_path).code == "checkpoint_unreadable"


def test_a_dangling_link_and_a_loop(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    assert refusal(tmp_path).code == "checkpoint_not_found"
    loop = tmp_path / "loop.safetensors"
    loop.symlink_to(loop)
    assert refusal(loop).code == "checkpoint_unreadable"


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model.safetensors", "a")

    def denied(*args: object, **kwargs: object) -> None:  # root may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    error = refusal(path)
    assert error.code == "checkpoint_unreadable"
    assert "Permission denied" in error.message
    monkeypatch.setattr(os, "scandir", denied)
    assert refusal(tmp_path).code == "checkpoint_unreadable"


def test_a_name_too_long_for_the_disk(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300)).code == "checkpoint_unreadable"


def test_a_malformed_header_keeps_its_code(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(tmp_path).code == "malformed_header"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "x.safetensors"}}',
        "[" * 200_000,
    ],
)
def test_a_malformed_index(text: str, tmp_path: Path) -> None:
    (sharded(tmp_path) / INDEX).write_text(text)
    error = refusal(tmp_path)
    assert error.code == "malformed_index"
    assert error.message.startswith(INDEX)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x.safetensors", "sub/x.safetensors", "/x.safetensors", "x.bin", "x\0.safetensors/"],
)
def test_an_index_reaches_only_weights_beside_it(name: str, tmp_path: Path) -> None:
    save(tmp_path / "x.safetensors", "a")
    directory = tmp_path / "model"
    save(directory / "sub" / "x.safetensors", "a")
    (directory / "x.bin").touch()
    write_index(directory, {"a": name})
    assert refusal(directory).code == "malformed_index"


def test_an_index_that_names_an_absent_file(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    error = refusal(tmp_path)
    assert error.code == "index_missing_file"
    assert "model-00002-of-00002.safetensors" in error.message


def test_an_index_that_names_absent_tensors(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "model-00001-of-00002.safetensors", "a")
    error = refusal(tmp_path)
    assert error.code == "index_missing_tensor"
    assert "'b'" in error.message


def test_a_shard_with_tensors_that_the_index_does_not_list(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "model-00002-of-00002.safetensors", "c", "d", "e")
    error = refusal(tmp_path)
    assert error.code == "index_unlisted_tensor"
    assert "'d' and 1 more" in error.message


def test_a_tensor_that_stands_in_two_shards(tmp_path: Path) -> None:
    save(sharded(tmp_path) / "model-00002-of-00002.safetensors", "c", "a")
    assert refusal(tmp_path).code == "index_unlisted_tensor"


def test_the_fingerprint_follows_every_file(tmp_path: Path) -> None:
    sharded(tmp_path)
    first = open_checkpoint(str(tmp_path)).fingerprint
    assert open_checkpoint(tmp_path.as_uri()).fingerprint == first
    path = tmp_path / "model-00002-of-00002.safetensors"
    status = path.stat()

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    touched = open_checkpoint(str(tmp_path)).fingerprint

    twin = tmp_path / "twin"
    shutil.copy(path, twin)
    os.utime(twin, ns=(status.st_atime_ns, status.st_mtime_ns))
    twin.replace(path)
    replaced = open_checkpoint(str(tmp_path)).fingerprint

    content = path.read_bytes()
    path.write_bytes(content.replace(b'"np"', b'"xx"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    rewritten = open_checkpoint(str(tmp_path)).fingerprint
    assert len({first, touched, replaced, rewritten}) == 4


def test_the_fingerprint_follows_a_fine_tune_unpacked_over_another(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", "a")
    status = path.stat()
    first = open_checkpoint(str(tmp_path)).fingerprint
    time.sleep(0.02)  # the clock of a file system has steps of a few milliseconds

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:  # keeps the inode, as a file system does that gives it away again
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert path.stat().st_ino == status.st_ino
    assert open_checkpoint(str(tmp_path)).fingerprint != first


class Tied(torch.nn.Module):
    """``embed``, ``lm_head`` and, with three, ``decoder`` share one weight."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.ones(3))
        weight = torch.nn.Parameter(torch.zeros(4, 3))
        for name in names:
            self.register_parameter(name, weight)


def save_tied(path: Path, *names: str, keep: str) -> Checkpoint:
    """As ``save_model`` writes it, with ``keep`` made the name that sorts first while it chooses."""
    model = Tied(*(name if name == keep else f"z_{name}" for name in names))
    save_model(model, str(path))
    header, offset = _raw_header(path)
    text = header.replace(b'"z_', b'"')
    path.write_bytes(path.read_bytes()[:8] + text.ljust(len(header)) + path.read_bytes()[offset:])
    return open_checkpoint(str(path))


def _raw_header(path: Path) -> tuple[bytes, int]:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return content[8:end], end


def test_a_tied_name_that_save_model_dropped_is_found(tmp_path: Path) -> None:
    save_model(Tied("embed", "lm_head"), str(tmp_path / "model.safetensors"))
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.tensors.keys() == {"embed", "norm"}
    assert checkpoint.find("embed") == checkpoint.find("lm_head") == checkpoint.tensors["embed"]
    assert checkpoint.find("norm") == checkpoint.tensors["norm"]
    assert checkpoint.find("other") is None
    assert checkpoint.find("format") is None


def test_two_checkpoints_that_kept_different_tied_names(tmp_path: Path) -> None:
    base = save_tied(tmp_path / "base.safetensors", "embed", "lm_head", keep="embed")
    tuned = save_tied(tmp_path / "tuned.safetensors", "embed", "lm_head", keep="lm_head")
    assert base.tensors.keys() == {"embed", "norm"}
    assert tuned.tensors.keys() == {"lm_head", "norm"}
    assert base.metadata["lm_head"] == "embed"
    assert tuned.metadata["embed"] == "lm_head"
    assert tuned.find("embed") == tuned.tensors["lm_head"]
    assert base.find("lm_head") == base.tensors["embed"]


def test_three_tied_names_resolve_from_each(tmp_path: Path) -> None:
    names = ("embed", "lm_head", "decoder")
    for keep in names:
        checkpoint = save_tied(tmp_path / f"{keep}.safetensors", *names, keep=keep)
        assert [checkpoint.find(name) for name in names] == [checkpoint.tensors[keep]] * 3


def test_metadata_that_names_the_stored_tensor_as_the_dropped_one(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "lm_head", metadata={"lm_head": "embed", "decoder": "embed"})
    checkpoint = open_checkpoint(str(tmp_path))
    stored = checkpoint.tensors["lm_head"]
    assert [checkpoint.find(name) for name in ("embed", "decoder", "lm_head")] == [stored] * 3


def test_metadata_that_is_no_tie_resolves_nothing(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a", metadata={"format": "pt", "b": "c", "d": "d"})
    checkpoint = open_checkpoint(str(tmp_path))
    assert [checkpoint.find(name) for name in ("b", "c", "d", "format", "pt")] == [None] * 5


def training_of(directory: Path, text: str) -> Training:
    save(directory / "model.safetensors", "a")
    (directory / "training.json").write_text(text)
    return read_training(open_checkpoint(str(directory)))


def test_no_training_record(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    assert read_training(open_checkpoint(str(tmp_path))) == Training()


@pytest.mark.parametrize(
    ("record", "training"),
    [
        (
            {"steps": 2000, "lr_sum": 0.0101, "seed": -1, "loss": [1e-3]},
            Training(steps=2000, lr_sum=0.0101),
        ),
        ({"steps": 7}, Training(steps=7)),
        ({"seed": 1}, Training()),
    ],
)
def test_a_training_record(record: dict[str, Any], training: Training, tmp_path: Path) -> None:
    assert training_of(tmp_path, json.dumps(record)) == training


def test_a_training_record_beside_a_single_file(tmp_path: Path) -> None:
    path = save(tmp_path / "weights.safetensors", "a")
    (tmp_path / "training.json").write_text('{"steps": 3}')
    assert read_training(open_checkpoint(str(path))) == Training(steps=3)


@pytest.mark.parametrize("other", ["model.safetensors", "model-00001-of-00002.safetensors", "epoch-02.pt"])
def test_a_training_record_beside_several_files_is_of_none(other: str, tmp_path: Path) -> None:
    path = save(tmp_path / "weights.safetensors", "a")
    save(tmp_path / other, "b")
    (tmp_path / "training.json").write_text('{"steps": 3}')
    assert read_training(open_checkpoint(str(path))) == Training()
    if other == "model.safetensors":  # the directory means this one
        assert read_training(open_checkpoint(str(tmp_path))) == Training(steps=3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"steps": 0}',
        '{"steps": "many"}',
        '{"lr_sum": NaN}',
        '{"lr_sum": 1e999}',
        '{"lr_sum": -1.0}',
        '{"steps": 1, "steps": 2}',
        '{"steps": ' + "9" * 5000 + "}",
        '{"a": ' + "[" * 100_000,
        '{"a": "' + "x" * 2_000_000 + '"}',
    ],
)
def test_a_malformed_training_record(text: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^training\.json: ") as caught:
        training_of(tmp_path, text)
    assert caught.value.code == "malformed_training_record"
    assert len(caught.value.message) < 1000


def test_a_companion_that_cannot_be_looked_at_is_not_left_out(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="symbolic links") as caught:
        companions(open_checkpoint(str(tmp_path)))
    assert caught.value.code == "checkpoint_unreadable"
    (tmp_path / "config.json").unlink()
    assert companions(open_checkpoint(str(tmp_path))) == []


def test_companions_are_configuration_and_tokenizer_only(tmp_path: Path) -> None:
    wanted = {
        "config.json", "generation_config.json", "open_clip_config.json", "tokenizer.json",
        "tokenizer_config.json", "tokenizer.model", "spiece.model", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
        "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    }  # fmt: skip
    unwanted = {
        "training.json", "taumerge.json", "tokenizer.py", "tokenizer.pt", "tokenizer.safetensors",
        "modeling_custom.py", "pytorch_model.bin", "README.md", "optimizer.pt", "adapter_config.json",
        ".config.json", INDEX,
    }  # fmt: skip
    for name in wanted | unwanted:
        (tmp_path / name).touch()
    save(tmp_path / "model.safetensors", "a")
    assert [path.name for path in companions(open_checkpoint(str(tmp_path)))] == sorted(wanted)
    assert companions(open_checkpoint(str(tmp_path / "model.safetensors"))) == []


def test_companions_are_small_regular_files(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", "a")
    (tmp_path / "config.json").mkdir()
    os.mkfifo(tmp_path / "vocab.txt")
    (tmp_path / "merges.txt").symlink_to("nowhere")
    (tmp_path / "weights.model").touch()
    os.truncate(tmp_path / "weights.model", 10**9)
    assert companions(open_checkpoint(str(tmp_path))) == []


def test_the_package_loads_without_torch_numpy_and_ray() -> None:
    code = (
        "import sys, workers.checkpoints.checkpoint, workers.checkpoints.reading, workers.checkpoints.writing;"
        "print(sorted({'torch', 'numpy', 'ray'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
