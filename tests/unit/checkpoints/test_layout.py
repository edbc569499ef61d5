import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from workers.checkpoints.checkpoint import open_checkpoint
from workers.checkpoints.dtypes import ITEMSIZE
from workers.checkpoints.header import read_header
from workers.checkpoints.layout import index_json, lay_out

Tensors = Sequence[tuple[str, str, tuple[int, ...]]]
TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}

tensor_lists = st.lists(
    st.tuples(
        st.integers(0, 99).map("layers.{}.weight".format),
        st.sampled_from(sorted(TORCH)),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
    ),
    max_size=12,
    unique_by=lambda tensor: tensor[0],
)


@given(tensors=tensor_lists.filter(bool), limit=st.integers(1, 400))
def test_tensors_go_to_the_files_that_huggingface_hub_chooses(tensors: Tensors, limit: int) -> None:
    split = split_state_dict_into_shards_factory(
        {name: math.prod(shape) * ITEMSIZE[dtype] for name, dtype, shape in tensors},
        get_storage_size=lambda nbytes: nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    files = lay_out(tensors, stem="model", max_shard_bytes=limit, metadata={})
    assert [file.name for file in files] == list(split.filename_to_tensors)
    assert json.loads(index_json(files)) == {
        "metadata": split.metadata,
        "weight_map": split.tensor_to_filename,
    }


@settings(deadline=None)
@given(tensors=tensor_lists, limit=st.integers(1, 400))
def test_offsets_are_those_of_the_header(
    tmp_path_factory: pytest.TempPathFactory, tensors: Tensors, limit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "layout.safetensors"
    found = {}
    for file in lay_out(tensors, stem="model", max_shard_bytes=limit, metadata={"format": "pt"}):
        path.write_bytes(file.header.ljust(file.size, b"\0"))
        header = read_header(path)
        assert header.size == file.size
        assert header.metadata == {"format": "pt"}
        assert {name: (info.offset, info.nbytes) for name, info in header.tensors.items()} == file.tensors
        assert list(header.tensors.values()) == sorted(header.tensors.values(), key=lambda info: info.offset)
        for info in header.tensors.values():
            assert info.offset % ITEMSIZE[info.dtype] == 0
            found[info.name] = (info.name, info.dtype, info.shape)
    assert found == {tensor[0]: tensor for tensor in tensors}


def test_one_file_when_all_fit_exactly() -> None:
    tensors = [("a", "F32", (2,)), ("b", "F32", (2,))]
    assert [file.name for file in lay_out(tensors, stem="model", max_shard_bytes=16, metadata={})] == [
        "model.safetensors"
    ]
    assert [file.name for file in lay_out(tensors, stem="model", max_shard_bytes=15, metadata={})] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


def test_a_tensor_above_the_limit_has_its_own_file() -> None:
    tensors = [("a", "U8", (3,)), ("big", "U8", (50,)), ("b", "U8", (3,)), ("c", "U8", (9,))]
    files = lay_out(tensors, stem="x", max_shard_bytes=10, metadata={})
    assert [list(file.tensors) for file in files] == [["big"], ["a", "b"], ["c"]]
    assert [file.name for file in files] == [f"x-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def test_no_tensors_make_one_file() -> None:
    (file,) = lay_out([], stem="model", max_shard_bytes=10, metadata={})
    assert (file.name, file.tensors, file.size) == ("model.safetensors", {}, len(file.header))


def test_a_layout_filled_with_numbers_is_a_checkpoint(tmp_path: Path) -> None:
    tensors: Tensors = [
        ("flag", "BOOL", (3,)),
        ("embed", "BF16", (5, 3)),
        ("step", "I64", ()),
        ("head", "F32", (3, 7)),
    ]
    files = lay_out(tensors, stem="model", max_shard_bytes=64, metadata={"format": "pt"})
    assert len(files) > 1
    state = {
        name: torch.arange(math.prod(shape)).reshape(shape).to(TORCH[dtype]) for name, dtype, shape in tensors
    }
    for file in files:
        content = bytearray(file.header.ljust(file.size, b"\0"))
        for name, (offset, nbytes) in file.tensors.items():
            content[offset : offset + nbytes] = bytes(state[name].reshape(-1).view(torch.uint8))
        (tmp_path / file.name).write_bytes(content)
    (tmp_path / "model.safetensors.index.json").write_text(index_json(files))
    assert open_checkpoint(str(tmp_path)).tensors.keys() == state.keys()
    loaded = {name: tensor for file in files for name, tensor in load_file(tmp_path / file.name).items()}
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype
