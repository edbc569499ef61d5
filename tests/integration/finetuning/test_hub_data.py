"""``hf://datasets/…``: data sets by Hugging Face's own library, from a hub that this machine plays."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import language_files
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Features, Value
from fake_hub import fake_hub

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset, FinetuneRequest, FinetuneTask
from workers.finetuning.datasets import load_images
from workers.finetuning.datasets.images import LabelledImages, check_images, decode
from workers.finetuning.text import read_instructions, read_labelled_texts
from workers.finetuning.worker import finetune

IMAGES = Features({"image": datasets.Image(), "label": ClassLabel(names=["dark", "light"])})


@pytest.fixture
def repositories(tmp_path: Path) -> Path:
    """The data sets of the hub: a directory for each, OWNER/NAME/REVISION."""
    path = tmp_path / "repositories"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def hub(repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the hub that the libraries ask, with an empty cache. (They read the environment at import.)"""
    with fake_hub(repositories) as address:
        cache = tmp_path / "cache"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", cache / "downloads")
        yield address


def write(repositories: Path, files: str, columns: dict[str, list[Any]], features: Features) -> None:
    """Write OWNER/NAME/REVISION/FILE.parquet as the library does."""
    path = repositories / files
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(path)


def png(shade: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_images(
    repositories: Path,
    name: str = "gulls/shades/v1",
    split: str = "train",
    shades: Sequence[int] = (0, 200, 10),
) -> None:
    images = [{"bytes": png(shade), "path": None} for shade in shades]
    labels = [int(shade > 99) for shade in shades]
    write(
        repositories,
        f"{name}/data/{split}-00000-of-00001.parquet",
        {"image": images, "label": labels},
        IMAGES,
    )


def at(uri: str = "hf://datasets/gulls/shades", **fields: Any) -> Dataset:
    return Dataset(uri=uri, **fields)


def shades_of(data: LabelledImages) -> list[int]:
    return [decode(image).getpixel((0, 0))[0] for image in data.images]  # type: ignore[index]


def refusal(call: Any, *args: Any) -> tuple[str, str, str]:
    with pytest.raises(InvalidRequest) as caught:
        call(*args)
    [error] = caught.value.errors
    return ".".join(map(str, error.loc)), error.code, error.msg


# ------------------------------------------------------------------------------------------ images


def test_images_come_with_the_names_of_their_classes(repositories: Path) -> None:
    write_images(repositories)
    write_images(repositories, split="test", shades=[180])
    data = load_images(at(), "train", None)
    assert (data.classes, data.labels) == (("dark", "light"), [0, 1, 0])
    assert shades_of(data) == [0, 200, 10]
    assert load_images(at(), "test", ["night", "day"]).classes == ("night", "day")
    assert shades_of(load_images(at(), "test", None)) == [180]


def test_a_revision_is_pinned(repositories: Path) -> None:
    write_images(repositories, "gulls/shades/v1", shades=[1, 200])
    write_images(repositories, "gulls/shades/v2", shades=[2, 200])
    found = [
        shades_of(load_images(at(f"hf://datasets/gulls/shades{revision}"), "train", None))[0]
        for revision in ("@v1", "@v2", "")
    ]
    assert found == [1, 2, 2]


def test_an_image_folder_on_the_hub(repositories: Path) -> None:
    for name, shade in (("dark", 0), ("light", 200)):
        folder = repositories / "gulls/folders/v1" / "train" / name
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(shade))
    data = load_images(at("hf://datasets/gulls/folders"), "train", None)
    assert data.classes == ("dark", "light")
    assert sorted(zip(shades_of(data), data.labels, strict=True)) == [(0, 0), (200, 1)]


def test_a_named_data_set_has_its_own_prompts_and_names_where_the_hub_has_numbers(
    repositories: Path,
) -> None:
    columns = {
        "picture": [{"bytes": png(9), "path": None}] * 10,
        "label": list(range(10)),
    }
    for name, names in (
        ("numbers", list(map(str, range(10)))),
        ("words", list("abcdefghij")),
    ):
        features = Features({"picture": datasets.Image(), "label": ClassLabel(names=names)})
        write(repositories, f"gulls/{name}/v1/train.parquet", columns, features)
    for name, first in (("numbers", "land with annual crops"), ("words", "a")):
        dataset = Dataset(
            name="eurosat",
            root=f"hf://datasets/gulls/{name}",
            columns={"image": "picture"},
        )
        data = load_images(dataset, "train", None)
        assert data.classes[0] == first
        assert data.labels == list(range(10))


def test_corrupt_images_are_found_as_everywhere(repositories: Path) -> None:
    images = [{"bytes": content, "path": None} for content in (png(0), b"cut", png(200))]
    write(
        repositories,
        "gulls/shades/v1/train.parquet",
        {"image": images, "label": [0, 1, 1]},
        IMAGES,
    )
    data = load_images(at(), "train", None)

    def check(skip: bool) -> LabelledImages:
        return check_images(data, skip_corrupt=skip, threads=2, loc=("task",))

    assert refusal(check, False) == (
        "task.dataset",
        "corrupt_image",
        "row 1 cannot be decoded; repair or remove them, or set skip_corrupt",
    )
    assert shades_of(check(True)) == [0, 200]


def test_a_row_cannot_name_a_file_of_this_machine(repositories: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(77))
    path = repositories / "gulls/shades/v1/train.parquet"
    path.parent.mkdir(parents=True)
    images = [
        {"bytes": None, "path": str(tmp_path / "secret.png")},
        {"bytes": png(200), "path": None},
    ]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), path)
    info = {
        "features": [
            {"name": "image", "dtype": "image"},
            {"name": "label", "dtype": "int64"},
        ]
    }
    (path.parent / "README.md").write_text(f"---\ndataset_info: {json.dumps(info)}\n---\n")
    data = load_images(at(), "train", ["dark", "light"])
    with pytest.raises(OSError, match=r"secret\.png is no file of the data set"):
        decode(data.images[0])
    assert decode(data.images[1]).getpixel((0, 0)) == (200, 0, 0)


@pytest.mark.parametrize("foreign", ["/etc/passwd", "https://127.0.0.1/x.txt"])
def test_a_repository_cannot_name_files_outside(repositories: Path, foreign: str) -> None:
    commit = repositories / "gulls/thief/v1"
    commit.mkdir(parents=True)
    config = [
        {
            "config_name": "default",
            "data_files": [{"split": "train", "path": [foreign]}],
        }
    ]
    (commit / "README.md").write_text(f"---\nconfigs: {json.dumps(config)}\n---\n")
    (commit / "mine.txt").write_text("mine")
    loc, code, message = refusal(load_images, at("hf://datasets/gulls/thief"), "train", None)
    assert (loc, code) == ("task.dataset.uri", "unreadable_dataset")
    assert "root:" not in message


def test_code_of_a_data_set_is_not_run(repositories: Path, tmp_path: Path) -> None:
    commit = repositories / "gulls/scripted/v1"
    commit.mkdir(parents=True)
    (commit / "scripted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    loc, code, _ = refusal(load_images, at("hf://datasets/gulls/scripted"), "train", None)
    assert (loc, code) == ("task.dataset.uri", "unreadable_dataset")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------- texts


def test_instructions_and_subsets(repositories: Path) -> None:
    features = Features({"question": Value("string"), "answer": Value("string")})
    configs = []
    for subset in ("easy", "hard"):
        columns = {"question": [f"{subset}?"], "answer": ["yes"]}
        write(
            repositories,
            f"gulls/questions/v1/{subset}/train.parquet",
            columns,
            features,
        )
        configs.append({"config_name": subset, "data_files": f"{subset}/*.parquet"})
    readme = repositories / "gulls/questions/v1/README.md"
    readme.write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    uri, columns = (
        "hf://datasets/gulls/questions",
        {"prompt": "question", "response": "answer"},
    )
    data = read_instructions(at(uri, subset="hard", columns=columns), "train")
    assert (data.prompts, data.responses) == (["hard?"], ["yes"])
    loc, code, message = refusal(read_instructions, at(uri, columns=columns), "train")
    assert (loc, code) == ("task.dataset.uri", "unreadable_dataset")
    assert "easy" in message
    assert "hard" in message


@pytest.mark.parametrize(
    ("listed", "known", "classes", "labels"),
    [
        (None, None, ("good", "bad"), [0, 1]),
        (["fine", "poor"], None, ("fine", "poor"), [0, 1]),
        (
            None,
            ["bad", "good"],
            ("bad", "good"),
            [1, 0],
        ),  # the base numbers the same names otherwise
        (None, ["left", "right"], ("left", "right"), [0, 1]),
    ],
)
def test_classes_of_texts(
    repositories: Path,
    listed: list[str] | None,
    known: list[str] | None,
    classes: tuple[str, ...],
    labels: list[int],
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad"])})
    write(
        repositories,
        "gulls/reviews/v1/train.parquet",
        {"text": ["a", "b"], "label": [0, 1]},
        features,
    )
    task = FinetuneTask(kind="classification", dataset=at("hf://datasets/gulls/reviews"), classes=listed)
    data = read_labelled_texts(task, "train", known)
    assert (data.classes, data.labels) == (classes, labels)


# ---------------------------------------------------------------------------------------- refusals


def test_what_is_not_there(repositories: Path) -> None:
    write_images(repositories, split="validation")
    assert load_images(at(), "test", None).labels == [
        0,
        1,
        0,
    ]  # where there is no test split
    cases: list[tuple[Dataset, str, str, str]] = [
        (at("hf://datasets/gulls/none"), "uri", "unknown_dataset", "gulls/none"),
        (at("hf://datasets/gulls/shades@v9"), "uri", "unknown_dataset", "v9"),
        (at(subset="blue"), "uri", "unreadable_dataset", "blue"),
        (at(), "uri", "unknown_split", "it has validation"),
        (
            Dataset(name="mnist", root="hf://datasets/gulls/none"),
            "root",
            "unknown_dataset",
            "gulls/none",
        ),
    ]
    for dataset, field, code, part in cases:
        loc, found, message = refusal(load_images, dataset, "train", None)
        assert (loc, found) == (f"task.dataset.{field}", code)
        assert part in message
    write_images(repositories, "gulls/shades/v2")
    loc, code, message = refusal(load_images, at(columns={"label": "digit"}), "train", None)
    assert (loc, code) == ("task.dataset.columns.label", "unknown_column")
    assert "image, label" in message


def test_a_column_that_holds_no_images(repositories: Path) -> None:
    features = Features({"image": Value("string"), "label": Value("int64")})
    write(
        repositories,
        "gulls/shades/v1/train.parquet",
        {"image": ["a"], "label": [0]},
        features,
    )
    assert refusal(load_images, at(), "train", None)[:2] == (
        "task.dataset.columns.image",
        "no_images",
    )


def test_numbers_without_names(repositories: Path) -> None:
    features = Features({"image": datasets.Image(), "label": Value("int64")})
    columns = {"image": [{"bytes": png(0), "path": None}] * 2, "label": [0, 7]}
    write(repositories, "gulls/shades/v1/train.parquet", columns, features)
    assert refusal(load_images, at(), "train", None)[:2] == (
        "task.classes",
        "class_names_needed",
    )
    loc, code, message = refusal(load_images, at(), "train", ["dark", "light"])
    assert (loc, code) == ("task.dataset", "label_out_of_range")
    assert "row 1 has label 7" in message


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", nobody)
    loc, code, message = refusal(load_images, at(), "train", None)
    assert (loc, code) == ("task.dataset.uri", "hub_unavailable")
    assert "cannot be reached, and it is not in the worker's cache" in message


def test_offline_the_cache_is_read(repositories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(repositories)
    assert refusal(load_images, at("hf://datasets/gulls/none"), "train", None)[1] == "unknown_dataset"
    load_images(at(), "train", None)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert shades_of(load_images(at(), "train", None)) == [0, 200, 10]
    assert refusal(load_images, at("hf://datasets/gulls/none"), "train", None)[1] == "hub_unavailable"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    loc, code, message = refusal(load_images, at(), "train", None)
    assert (loc, code) == ("task.dataset.uri", "hub_unavailable")
    assert "taumerge-server[datasets]" in message


# ------------------------------------------------------------------------------------- a fine-tune


def test_a_fine_tune_on_instructions_of_the_hub(repositories: Path, tmp_path: Path) -> None:
    features = Features({"prompt": Value("string"), "response": Value("string")})
    columns = {"prompt": [f"{row}?" for row in range(20)], "response": ["yes"] * 20}
    write(repositories, "gulls/questions/v1/train.parquet", columns, features)
    torch.manual_seed(0)
    base = language_files.save(language_files.llama(), tmp_path / "base")
    out = tmp_path / "out"
    out.mkdir()
    uri = "hf://datasets/gulls/questions@v1"
    request = FinetuneRequest.model_validate(
        {
            "base": str(base),
            "task": {"kind": "causal_lm", "dataset": {"uri": uri}},
            "train": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
            "output": str(out),
        }
    )
    finetune(request, out, lambda progress: None, threads=1)
    record = json.loads((out / "training.json").read_text())
    assert record["dataset"] == {"uri": uri}
    assert (record["training_size"], record["validation_size"]) == (18, 2)
    assert (out / "model.safetensors").is_file()
