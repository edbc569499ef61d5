"""Bases in a store for what opens files by their paths: fine-tunes and evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from clip_files import write_tiny_clip
from language_files import byte_tokenizer, llama
from s3_server import Fault, S3Server

from taumerge.errors import InvalidRequest, JobFailed
from taumerge.schemas import FinetuneRequest
from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.local_copy import on_disk
from workers.finetuning.language_models import load_pretrained, open_base
from workers.finetuning.preflight import check_finetune
from workers.finetuning.towers import load_clip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "taumerge" / "checkpoints"


@pytest.fixture
def llama_directory(tmp_path: Path) -> Path:
    """A language model in several shards, and its tokenizer."""
    directory = tmp_path / "llama"
    llama().save_pretrained(directory, max_shard_size="50KB")
    byte_tokenizer().save_pretrained(directory)
    return directory


def test_a_language_model_is_copied_once_and_loads_as_from_a_disk(
    s3: S3Server, llama_directory: Path, cache: Path
) -> None:
    uri = s3.put(llama_directory, "models", llama_directory.name)
    copied = load_pretrained(open_base(uri), classifier=False)[0].state_dict()
    local = load_pretrained(open_base(str(llama_directory)), classifier=False)[0].state_dict()
    assert copied.keys() == local.keys()
    assert all(torch.equal(copied[name], local[name]) for name in local)
    s3.requests.clear()
    checkpoint, directory = on_disk(open_checkpoint(uri))
    assert [directory] == list(cache.iterdir())
    assert {path.name for path in directory.iterdir()} == {path.name for path in llama_directory.iterdir()}
    assert (checkpoint.uri, checkpoint.tensors) == (uri, open_checkpoint(uri).tensors)
    weights = [one.path for one in s3.requests if one.method == "GET" and one.path.endswith(".safetensors")]
    assert len(weights) <= 2 * len(checkpoint.files)  # headers, of two openings


def test_fine_tunes_of_it_are_checked_before_they_are_queued(
    s3: S3Server, llama_directory: Path, tmp_path: Path
) -> None:
    uri = s3.put(llama_directory, "models", llama_directory.name)
    (tmp_path / "data").mkdir()
    request = FinetuneRequest.model_validate(
        {
            "base": uri,
            "task": {"kind": "causal_lm", "dataset": {"uri": str(tmp_path / "data"), "format": "jsonl"}},
            "output": str(tmp_path / "out"),
        }
    )
    assert check_finetune(request) == tmp_path / "out"
    with pytest.raises(InvalidRequest) as caught:
        check_finetune(request.model_copy(update={"base": f"{uri}-absent"}))
    assert [(one.loc, one.code) for one in caught.value.errors] == [(("base",), "checkpoint_not_found")]
    with pytest.raises(InvalidRequest, match="config") as caught:
        check_finetune(request.model_copy(update={"base": f"{uri}/model-00001-of-00003.safetensors"}))


def test_another_configuration_is_another_copy(s3: S3Server, tmp_path: Path) -> None:
    base = write_tiny_clip(tmp_path / "clip")
    uri = s3.put(base, "models", "clip")
    assert load_clip(uri).config["model_cfg"].get("quick_gelu") is None
    config = json.loads((base / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (base / "open_clip_config.json").write_text(json.dumps(config))
    s3.put(base, "models", "clip")
    assert load_clip(uri).config["model_cfg"]["quick_gelu"] is True


def test_a_copy_that_fails_leaves_nothing(s3: S3Server, llama_directory: Path, cache: Path) -> None:
    opened = open_checkpoint(s3.put(llama_directory, "models", llama_directory.name))
    s3.faults = lambda request: Fault("status", 403) if "-00002-of" in request.path else None
    with pytest.raises(JobFailed) as caught:
        on_disk(opened)
    assert caught.value.code == "input_unreadable"
    assert list(cache.iterdir()) == []
