"""CLIP end to end in one process: request in, open_clip's layout out, with record, events and plot."""

from __future__ import annotations

import json
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL.Image
import pytest
import torch
from clip_files import TINY
from safetensors.torch import load_file, save_file
from tensorboardX.proto.event_pb2 import Event
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import InvalidRequest
from taumerge.schemas import FinetuneRequest, Progress, Training
from workers.checkpoints.checkpoint import open_checkpoint, read_training
from workers.finetuning import curves
from workers.finetuning.clip import random_crop
from workers.finetuning.heads import zero_shot_head
from workers.finetuning.towers import load_clip
from workers.finetuning.worker import finetune as finetune_with

RequestFor = Callable[..., FinetuneRequest]
finetune = partial(
    finetune_with, threads=1
)  # several wait for one another at every operation, on a busy machine


def ignore(progress: Progress) -> None:
    pass


def test_a_fine_tune_writes_what_open_clip_loads(
    request_for: RequestFor, tiny_clip: Path, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    result = finetune(request_for(steps=60), tmp_path, reports.append)

    base = load_file(tiny_clip / "open_clip_model.safetensors")
    tuned = load_file(tmp_path / "open_clip_model.safetensors")
    assert list(tuned) == list(base)
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert changed == {name for name in base if name.startswith("visual.")}
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in model.state_dict().items())

    assert result.validation["accuracy"] == 1.0
    assert result.loss is not None
    assert result.loss < 0.7
    steps = [report.metrics for report in reports if report.phase == "train"]
    assert len(steps) == 60
    assert steps[0].keys() == {"loss", "learning_rate", "images_per_second"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tensorboard",
        "training.json",
        "training.png",
    }


def test_the_record_says_what_the_rules_and_people_need(request_for: RequestFor, tmp_path: Path) -> None:
    request = request_for()
    result = finetune(request, tmp_path, ignore)
    record = json.loads((tmp_path / "training.json").read_text())
    expected = {
        "base": request.base,
        "split_seed": 0,
        "training_size": 54,
        "validation_size": 6,
        "steps": 12,
        "lr_sum": result.lr_sum,
        "batch_size": 9,
        "learning_rate": 1e-3,
        "schedule": "warmup_cosine",
        "warmup_steps": 4,
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "precision": "float32",
        "method": "full",
        "seed": 0,
        "device": "cpu",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["lr_sum"] == pytest.approx(1e-3 * (12 / 2 + 1), rel=1e-12)
    assert len(record["validation_accuracy"]) == 2  # 54 images, 9 a step: an epoch has 6 steps
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]
    # and a merge finds it by itself
    assert read_training(open_checkpoint(str(tmp_path))) == Training(steps=12, lr_sum=result.lr_sum)


def events_in(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every number in the one file of TensorBoard events, by name."""
    [file] = directory.iterdir()
    content, found = memoryview(file.read_bytes()), defaultdict(list)
    while content:  # a record is its length, a checksum, the event, a checksum
        [length] = struct.unpack("<Q", content[:8])
        event = Event.FromString(bytes(content[12 : 12 + length]))
        for value in event.summary.value:
            found[value.tag].append((event.step, value.simple_value))
        content = content[16 + length :]
    return dict(found)


def test_events_hold_every_step(request_for: RequestFor, tmp_path: Path) -> None:
    finetune(request_for(), tmp_path, ignore)
    events = events_in(tmp_path / "tensorboard")
    record = json.loads((tmp_path / "training.json").read_text())
    steps = list(range(1, 13))
    assert {name: [step for step, _ in found] for name, found in events.items()} == {
        "train/loss": steps,
        "train/learning_rate": steps,
        "validation/accuracy": [6, 12],
        "validation/loss": [6, 12],
    }
    rates = [value for _, value in events["train/learning_rate"]]
    assert sum(rates) == pytest.approx(record["lr_sum"], rel=1e-6)
    assert events["validation/accuracy"][-1][1] == pytest.approx(record["validation_accuracy"][-1])
    with PIL.Image.open(tmp_path / "training.png") as plot:
        assert plot.size == (960, 540)


def test_events_can_be_watched_while_it_trains(
    request_for: RequestFor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "FLUSH_SECONDS", 0.0)
    seen: list[int] = []

    def look(progress: Progress) -> None:
        if progress.phase == "train":
            seen.append(len(events_in(tmp_path / "tensorboard")["train/loss"]))

    finetune(request_for(), tmp_path, look)
    assert seen == list(range(1, 13))


def test_a_killed_fine_tune_ends_with_the_same_bits(request_for: RequestFor, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finetune(request_for(), whole, ignore)

    def kill(progress: Progress) -> None:
        if progress.done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(request_for(), killed, kill)
    assert {path.name for path in killed.iterdir()} == {".checkpoint.pt", "tensorboard"}
    assert [step for step, _ in events_in(killed / "tensorboard")["train/loss"]] == list(range(1, 9))
    reports: list[Progress] = []
    finetune(request_for(), killed, reports.append)
    assert next(report.done for report in reports if report.phase == "train") == 6
    name = "open_clip_model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert events_in(killed / "tensorboard") == events_in(whole / "tensorboard")  # no step twice, none lost


def test_another_seed_gives_another_model(request_for: RequestFor, tmp_path: Path) -> None:
    models = []
    for seed in (0, 1):
        directory = tmp_path / str(seed)
        directory.mkdir()
        finetune(request_for(seed=seed, steps=2), directory, ignore)
        models.append((directory / "open_clip_model.safetensors").read_bytes())
    assert models[0] != models[1]


def test_the_output_keeps_the_element_types_of_the_base(
    request_for: RequestFor, tiny_clip: Path, tmp_path: Path
) -> None:
    base, out = tmp_path / "half", tmp_path / "out"
    base.mkdir()
    out.mkdir()
    weights = load_file(tiny_clip / "open_clip_model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(half, base / "open_clip_model.safetensors")
    (base / "open_clip_config.json").write_text((tiny_clip / "open_clip_config.json").read_text())
    finetune(request_for(steps=2).model_copy(update={"base": str(base)}), out, ignore)
    tuned = load_file(out / "open_clip_model.safetensors")
    assert {tensor.dtype for tensor in tuned.values()} == {torch.float16}
    assert torch.equal(tuned["token_embedding.weight"], half["token_embedding.weight"])


def test_skipped_images_are_counted_in_the_record(
    request_for: RequestFor, shades: Path, tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    for path in shades.rglob("*.png"):
        copy = data / path.relative_to(shades)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes() if path.stem != "07" else b"cut")
    request = request_for(steps=2)
    request.task.dataset.uri = str(data)
    with pytest.raises(InvalidRequest, match=r"07\.png, 07\.png, 07\.png cannot be decoded"):
        finetune(request, out, ignore)
    request.task.dataset.skip_corrupt = True
    finetune(request, out, ignore)
    record = json.loads((out / "training.json").read_text())
    assert (record["skipped_images"], record["training_size"], record["validation_size"]) == (3, 52, 5)


# ------------------------------------------------------------------------------------------- heads


def test_the_head_is_the_mean_of_normalised_prompts(tiny_clip: Path, cache: Path) -> None:
    clip = load_clip(str(tiny_clip))
    classes, templates = ["gull", "tern"], ["a photo of a {}.", "a {} in the sky."]
    head = zero_shot_head(clip, classes, templates, torch.device("cpu"))
    assert head.shape == (16, 2)
    with torch.no_grad():
        for column, name in enumerate(classes):
            tokens = clip.tokenizer([template.format(name) for template in templates])
            mean = F.normalize(clip.model.encode_text(tokens), dim=-1).mean(dim=0)
            expected = mean / mean.norm() * clip.model.logit_scale.exp()
            torch.testing.assert_close(head[:, column], expected)
    assert len(list(cache.rglob("*.safetensors"))) == 1


def test_a_cached_head_is_not_built_again(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, cpu = load_clip(str(tiny_clip)), torch.device("cpu")
    head = zero_shot_head(clip, ["gull"], ["a {}"], cpu)

    def no_text(*_: Any, **__: Any) -> None:
        raise AssertionError("the text tower was asked again")

    monkeypatch.setattr(clip.model, "encode_text", no_text)
    assert torch.equal(zero_shot_head(clip, ["gull"], ["a {}"], cpu), head)
    with pytest.raises(AssertionError):
        zero_shot_head(clip, ["gull"], ["the {}"], cpu)
    with torch.no_grad():
        clip.model.logit_scale += 1  # another text tower
    with pytest.raises(AssertionError):
        zero_shot_head(clip, ["gull"], ["a {}"], cpu)


def test_another_activation_number_of_heads_or_tokenizer_is_another_head(
    tiny_clip: Path, tmp_path: Path
) -> None:
    clip = load_clip(str(tiny_clip))
    others = [replace(clip, tokenizer=lambda prompts: clip.tokenizer([one.upper() + "s" for one in prompts]))]
    for number, change in enumerate(({"quick_gelu": True}, {"text_cfg": {**TINY["text_cfg"], "heads": 4}})):
        other = tmp_path / str(number)
        shutil.copytree(tiny_clip, other)
        config = json.loads((other / "open_clip_config.json").read_text())
        config["model_cfg"] |= change
        (other / "open_clip_config.json").write_text(json.dumps(config))
        others.append(load_clip(str(other)))
    heads = [
        zero_shot_head(one, ["gull"], ["a {}"], torch.device("cpu")).flatten().tolist()
        for one in (clip, *others)
    ]
    assert all(heads[first] != heads[second] for first in range(4) for second in range(first))


def test_other_braces_in_a_template_are_text(tiny_clip: Path) -> None:
    clip, cpu = load_clip(str(tiny_clip)), torch.device("cpu")
    written = zero_shot_head(clip, ["gull"], ["a {} in {place} {"], cpu)
    assert torch.equal(written, zero_shot_head(clip, ["a gull in {place} {"], ["{}"], cpu))


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    ("base", "code", "part"),
    [
        ("open_clip://ViT-Z-99/openai", "unknown_model", "'ViT-Z-99'"),
        ("open_clip://ViT-B-32/nobody", "unknown_model", "there are: openai"),
        ("/no/such/model", "checkpoint_not_found", "nothing"),
    ],
)
def test_an_unknown_model_is_refused(base: str, code: str, part: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load_clip(base)
    [error] = caught.value.errors
    assert (error.loc, error.code) == (("base",), code)
    assert part in error.msg


def test_weights_that_do_not_fit_the_config_are_refused(tiny_clip: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 48
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").write_bytes(
        (tiny_clip / "open_clip_model.safetensors").read_bytes()
    )
    with pytest.raises(InvalidRequest, match="do not fit") as caught:
        load_clip(str(tmp_path))
    assert caught.value.errors[0].code == "not_open_clip"


def test_a_configuration_runs_no_code_that_lies_beside_it(tiny_clip: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_clip, tmp_path / "base")
    config = json.loads((base / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "any",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    (base / "open_clip_config.json").write_text(json.dumps(config))
    (base / "config.json").write_text('{"model_type": "bert"}')
    (base / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["code.Tokenizer", null]}}')
    (base / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(InvalidRequest, match="trust_remote_code") as caught:
        load_clip(str(base))
    assert caught.value.errors[0].code == "not_open_clip"
    assert not (tmp_path / "ran").exists()


def test_a_model_by_name_is_open_clips_own_with_its_activation(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model and its weights take the place of a download; OpenAI's weights want QuickGELU."""
    (tmp_path / "Tiny.json").write_text(
        json.dumps(json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"])
    )
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [tmp_path])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.add_model_config(tmp_path / "Tiny.json")
    tag = {"url": "", "mean": [0.4] * 3, "std": [0.2] * 3, "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"openai": tag})
    weights = tiny_clip / "open_clip_model.safetensors"
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(weights))
    clip = load_clip("open_clip://Tiny/openai")
    assert type(clip.model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert torch.equal(clip.model.state_dict()["visual.proj"], load_file(weights)["visual.proj"])
    assert clip.config["model_cfg"]["quick_gelu"] is True
    assert clip.config["preprocess_cfg"]["mean"] == [0.4] * 3


# ------------------------------------------------------------------------------------------- crops


def test_crops_are_random_by_seed_and_nearly_the_whole_image() -> None:
    rows, columns = np.mgrid[:150, :200].astype(np.uint8)
    image = PIL.Image.fromarray(np.stack([columns, rows, rows], axis=-1))
    crops = [np.asarray(random_crop(image, (32, 48), seed)) for seed in range(50)]
    assert all(crop.shape == (32, 48, 3) for crop in crops)
    assert np.array_equal(crops[3], random_crop(image, (32, 48), 3))
    assert (
        len({crop.tobytes() for crop in crops}) > 25
    )  # where none fits in ten draws: the middle, as torchvision
    # A crop of nine tenths at a ratio of 3/4 to 4/3 spans at least √(0.9 · 3/4 · 200 · 150) columns of the ramp.
    assert all(int(np.ptp(crop[:, :, 0])) >= 135 for crop in crops)


def test_a_very_long_image_is_cropped_in_the_middle() -> None:
    image = PIL.Image.fromarray(np.tile(np.arange(240, dtype=np.uint8)[None, :, None], (10, 1, 3)))
    crop = np.asarray(random_crop(image, (8, 8), 0))
    assert abs(int(crop.mean()) - 119) <= 1
