"""Zero-shot CLIP: the scores are those of a model that is merged to disk and loaded by open_clip itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import open_clip
import PIL.Image
import pytest
import torch
from clip_files import TINY_RESNET, write_tiny_clip
from merged_files import put, write_merged
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812

from taumerge.errors import InvalidRequest
from taumerge.schemas import EvaluationSpec
from workers.diagnostics.gradients import Gradients
from workers.evaluation import Evaluator, build_evaluator
from workers.evaluation.images import Preprocessing
from workers.finetuning.datasets.images import decode
from workers.finetuning.towers import load_clip
from workers.hardware import Hardware

TEMPLATES = ("a photo of something {}.", "a {} thing.")
BATCH = 7


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("base") / "tiny")


def spec_of(directory: Path, **task: Any) -> EvaluationSpec:
    dataset = {"uri": str(directory), "format": "image_folder", **task.pop("dataset", {})}
    one = {"dataset": dataset, "templates": list(TEMPLATES), **task}
    return EvaluationSpec.model_validate({"kind": "clip", "tasks": {"tints": one}, "batch_size": BATCH})


def build(base: Path, spec: EvaluationSpec, cpu: Hardware) -> Evaluator:
    return build_evaluator(str(base), spec, ["tints"], cpu)


def plain_accuracy(base: Path, directory: Path, files: list[Path]) -> float:
    """What somebody gets who knows nothing of this package: the directory in open_clip, the base's zero-shot head."""
    frozen, _ = open_clip.create_model_from_pretrained(f"local-dir:{base}")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    names = ("blue", "green", "red")
    correct = 0
    with torch.inference_mode():
        prompts = tokenizer([template.format(name) for name in names for template in TEMPLATES])
        texts = frozen.eval().encode_text(prompts, normalize=True)
        head = F.normalize(texts.view(3, len(TEMPLATES), -1).mean(dim=1), dim=-1) * frozen.logit_scale.exp()
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            images = torch.stack([preprocess(PIL.Image.open(file).convert("RGB")) for file in part])
            predicted = (model.eval().encode_image(images, normalize=True) @ head.T).argmax(dim=1)
            correct += sum(
                names[label] == file.parent.name for label, file in zip(predicted.tolist(), part, strict=True)
            )
    return correct / len(files)


def validation_files(directory: Path) -> list[Path]:
    """METHODS: a tenth of the training images, drawn with seed 0; the last ones of the order, as a fine-tune has it."""
    files = sorted((directory / "train").glob("*/*.png"))
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    return [files[index] for index in order[len(files) - len(files) // 10 :]]


def test_scores_are_those_of_the_merged_directory_loaded_by_open_clip(
    base: Path, tints: Path, cpu: Hardware, tmp_path: Path
) -> None:
    evaluator = build(base, spec_of(tints), cpu)
    test, validation = sorted((tints / "test").glob("*/*.png")), validation_files(tints)
    seen = set()
    for scaling in (0.0, 0.3, 0.6):
        merged = write_merged(base, tmp_path / str(scaling), scaling)
        put(evaluator, merged)
        found = evaluator.evaluate("tints", "validation"), evaluator.evaluate("tints", "test")
        assert found == (plain_accuracy(base, merged, validation), plain_accuracy(base, merged, test))
        assert (evaluator.evaluate("tints", "validation"), evaluator.evaluate("tints", "test")) == found
        seen.add(found)
    assert len(seen) == 3, "another model has another score"


def test_a_base_in_half_precision_is_evaluated_in_float32(
    base: Path, tints: Path, cpu: Hardware, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    file = half / "open_clip_model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    evaluator = build(half, spec_of(tints), cpu)
    assert {tensor.dtype for tensor in evaluator.parameters.values()} == {torch.float32}
    merged = write_merged(half, tmp_path / "merged", 0.4)
    put(evaluator, merged)
    assert evaluator.evaluate("tints", "test") == plain_accuracy(
        half, merged, sorted((tints / "test").glob("*/*.png"))
    )


def test_heads_stay_those_of_the_base_when_the_text_tower_moves(
    base: Path, tints: Path, cpu: Hardware
) -> None:
    evaluator = build(base, spec_of(tints), cpu)
    before = evaluator.evaluate("tints", "test")
    for name, tensor in evaluator.parameters.items():
        if not name.startswith("visual."):
            tensor.mul_(-2)
    assert evaluator.evaluate("tints", "test") == before
    evaluator.parameters["visual.proj"].neg_()
    assert evaluator.evaluate("tints", "test") != before


def test_preprocessing_in_two_steps_is_that_of_open_clip_to_the_bit(base: Path, tints: Path) -> None:
    clip = load_clip(str(base))
    preprocessing = Preprocessing(clip, torch.device("cpu"))
    for file in sorted((tints / "test").glob("*/*.png"))[::9]:
        whole = clip.evaluation_transform(decode(file))
        assert torch.equal(preprocessing.normalised(preprocessing.bytes_of(decode(file))[None])[0], whole)


def test_images_are_decoded_once_where_there_is_room(
    base: Path, tints: Path, cpu: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    monkeypatch.setattr(
        "workers.evaluation.images.decode", lambda source: decoded.append(source) or decode(source)
    )
    kept = build(base, spec_of(tints), cpu)
    scores = [kept.evaluate("tints", split) for split in ("validation", "test", "validation", "test")]
    assert len(decoded) == 30 + 90
    monkeypatch.setattr("workers.evaluation.clip.KEPT_BYTES", 30 * 3 * 32 * 32)
    decoded.clear()
    narrow = build(base, spec_of(tints), cpu)
    assert [narrow.evaluate("tints", split) for split in ("validation", "test") * 2] == scores
    assert len(decoded) == 30 + 2 * 90, "there is room for the split that decides"


def test_losses_are_cross_entropy_and_can_be_differentiated_by_the_image_tower(
    base: Path, tints: Path, cpu: Hardware
) -> None:
    evaluator = build(base, spec_of(tints), cpu)
    evaluator.evaluate("tints", "validation")  # what is kept from here must serve gradients too
    weight = evaluator.parameters["visual.proj"].requires_grad_()
    text = evaluator.parameters["text_projection"].requires_grad_()
    total, count, gradient = 0.0, 0, torch.zeros_like(weight)
    for loss, terms in evaluator.losses("tints", "validation"):
        found, none = torch.autograd.grad(loss, (weight, text), allow_unused=True)
        assert none is None
        total, count, gradient = total + loss.item() * terms, count + terms, gradient + found * terms
    assert count == 30
    step = 1e-2 / gradient.norm()
    with torch.no_grad():
        weight.sub_(step * gradient)
    after = sum(loss.item() * terms for loss, terms in evaluator.losses("tints", "validation"))
    assert after - total == pytest.approx(-float(step * gradient.square().sum()), rel=0.05)


def test_limit_keeps_images_of_every_class(base: Path, tints: Path, cpu: Hardware) -> None:
    evaluator = build(base, spec_of(tints, limit=10), cpu)
    splits = {"validation": validation_files(tints), "test": sorted((tints / "test").glob("*/*.png"))}
    for split, files in splits.items():
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
        kept = [files[index] for index in sorted(order[:10])]
        batches = evaluator._images["tints", split].batches(BATCH)  # type: ignore[attr-defined]
        labels = [label for _, part in batches for label in part.tolist()]
        assert labels == [("blue", "green", "red").index(file.parent.name) for file in kept]
        assert set(labels) == {0, 1, 2}
        assert evaluator.evaluate("tints", split) == plain_accuracy(base, base, kept)


def test_without_a_test_part_validation_stands_in(base: Path, tints: Path, cpu: Hardware) -> None:
    evaluator = build(base, spec_of(tints / "train"), cpu)
    assert evaluator.evaluate("tints", "test") == evaluator.evaluate("tints", "validation")


def refusal(base: Path, spec: EvaluationSpec, cpu: Hardware) -> tuple[tuple[str | int, ...], str, str]:
    with pytest.raises(InvalidRequest) as refused:
        build(base, spec, cpu)
    (item,) = refused.value.errors
    return item.loc, item.code, item.msg


def test_bad_data_is_refused_before_the_first_evaluation(
    base: Path, tints: Path, shades: Path, cpu: Hardware, tmp_path: Path
) -> None:
    at = ("evaluation", "tasks", "tints")
    few = tmp_path / "few"
    for name in ("a", "b"):
        (few / name).mkdir(parents=True)
        shutil.copy(tints / "train" / "red" / "000.png", few / name)
    assert refusal(base, spec_of(few), cpu)[:2] == ((*at, "dataset"), "no_evaluation_data")

    assert refusal(base, spec_of(tints / "train", classes=["x", "y"]), cpu)[:2] == (
        (*at, "classes"),
        "class_count",
    )

    other = tmp_path / "other"
    shutil.copytree(tints / "train", other / "train")
    shutil.copytree(shades, other / "test")
    place, code, message = refusal(base, spec_of(other), cpu)
    assert (place, code) == ((*at, "dataset"), "class_mismatch")
    assert "'dark'" in message

    broken = tmp_path / "broken"
    shutil.copytree(tints, broken)
    (broken / "test" / "red" / "007.png").write_bytes(b"no image")
    place, code, message = refusal(base, spec_of(broken), cpu)
    assert (place, code) == ((*at, "dataset"), "corrupt_image")
    assert "007.png" in message
    spared = build(base, spec_of(broken, dataset={"skip_corrupt": True}), cpu)
    files = sorted((tints / "test").glob("*/*.png"))
    assert spared.evaluate("tints", "test") == plain_accuracy(
        base, base, [file for file in files if (file.parent.name, file.name) != ("red", "007.png")]
    )


def test_gradients_of_a_resnet_are_taken_beside_its_running_statistics(
    tints: Path, cpu: Hardware, tmp_path: Path
) -> None:
    evaluator = build(write_tiny_clip(tmp_path / "resnet", TINY_RESNET), spec_of(tints), cpu)
    tensors = [name for name in evaluator.parameters if name.startswith("visual.")]
    assert any(name.endswith("running_mean") for name in tensors)
    assert Gradients(evaluator, tensors).add("tints", "validation") > 0
