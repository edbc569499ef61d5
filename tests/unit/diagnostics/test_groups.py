"""How tensors are grouped by layer."""

from __future__ import annotations

import pytest

from workers.diagnostics.groups import MOST, OTHERS, layer_groups


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("visual.transformer.resblocks.3.attn.in_proj_weight", "visual.transformer.resblocks.3"),
        ("model.layers.17.mlp.experts.4.up_proj.weight", "model.layers.17"),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", "encoder.block.2"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("0.weight", "0"),
        ("model.embed_tokens.weight", "model.embed_tokens"),
        ("bert.embeddings.word_embeddings.weight", "bert.embeddings"),
        ("lm_head.weight", "lm_head"),
        ("visual.class_embedding", "visual"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_group_of_a_tensor(name: str, group: str) -> None:
    assert layer_groups([name]) == {group: [0]}


def test_layers_come_in_the_order_of_their_numbers() -> None:
    names = [f"layers.{layer}.w" for layer in (10, 9, 1, 0)] + ["layers.9.b"]
    assert layer_groups(names) == {"layers.0": [3], "layers.1": [2], "layers.9": [1, 4], "layers.10": [0]}


def test_deep_models_have_their_neighbouring_layers_together() -> None:
    names = [f"model.layers.{layer}.w" for layer in range(80)] + ["model.norm.weight", "lm_head.weight"]
    groups = layer_groups(names)
    assert len(groups) == 42
    assert groups["model.layers.78-79"] == [78, 79]
    assert sorted(index for group in groups.values() for index in group) == list(range(82))


@pytest.mark.parametrize("count", [MOST, MOST + 1, 500])
def test_never_more_groups_than_can_be_shown(count: int) -> None:
    names = [f"part{index}.w" for index in range(count)] + ["part0.b"]
    groups = layer_groups(names)
    assert len(groups) == MOST
    assert sorted(index for group in groups.values() for index in group) == list(range(count + 1))
    assert (OTHERS in groups) == (count > MOST)
    assert groups["part0"] == [0, count]
