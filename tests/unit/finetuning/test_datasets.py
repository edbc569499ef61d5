"""The loaders, on small data in exactly the layouts of the eight data sets, image folders and Parquet files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from taumerge.errors import InvalidRequest
from taumerge.schemas import Dataset
from workers.finetuning.datasets import load_images, prompt_templates
from workers.finetuning.datasets.catalogue import CATALOGUE
from workers.finetuning.datasets.images import LabelledImages, check_images, decode, split_validation


def picture(shade: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (6, 5), (shade, 0, 0))


def save(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(shade).save(path)


def shade_of(data: LabelledImages, index: int) -> int:
    image = decode(data.images[index])
    assert image.mode == "RGB"
    red = image.getpixel((0, 0))
    assert isinstance(red, tuple)
    return int(red[0])


def load(name: str, root: Path, split: Any = "train") -> LabelledImages:
    return load_images(Dataset(name=name, root=str(root)), split, None)


def refusal(call: Callable[[], object]) -> tuple[tuple[str | int, ...], str, str]:
    with pytest.raises(InvalidRequest) as caught:
        call()
    [error] = caught.value.errors
    return error.loc, error.code, error.msg


# ------------------------------------------------------------------------------ the named data sets


def test_cars(tmp_path: Path) -> None:
    folder = tmp_path / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    dtype = [("fname", object), ("class", object)]
    train = np.array([("00001.jpg", 2), ("00002.jpg", 1)], dtype=dtype)
    test = np.array([("00001.jpg", 1), ("00002.jpg", 1)], dtype=dtype)
    scipy.io.savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": train})
    scipy.io.savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": test})
    names = np.array(["Acura RL Sedan 2012", "Audi TT RS Coupe 2012"], dtype=object)
    scipy.io.savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    for split, shades in (("cars_train", (200, 0)), ("cars_test", (100, 100))):
        for number, shade in enumerate(shades, start=1):
            save(folder / split / f"{number:05d}.jpg", shade)
    data = load("cars", tmp_path)
    assert data.classes == ("Acura RL Sedan 2012", "Audi TT RS Coupe 2012")
    assert data.labels == [1, 0]
    assert shade_of(data, 0) > 190
    assert load("cars", tmp_path, "test").labels == [0, 0]


def test_dtd_takes_train_and_val_for_training(tmp_path: Path) -> None:
    folder = tmp_path / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        names = [f"{name}/{name}_{split}.png" for name in ("banded", "polka-dotted")]
        (folder / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            save(folder / "images" / name, 9)
    data = load("dtd", tmp_path)
    assert data.classes == ("banded", "polka-dotted")
    assert data.labels == [0, 1, 0, 1]
    assert len(load("dtd", tmp_path, "test")) == 2


def test_eurosat_keeps_a_ninth_for_test(tmp_path: Path) -> None:
    folders = (
        "AnnualCrop Forest HerbaceousVegetation Highway Industrial Pasture PermanentCrop Residential River"
    )
    for label, name in enumerate([*folders.split(), "SeaLake"]):
        for index in range(9):
            save(tmp_path / "eurosat" / "2750" / name / f"{name}_{index}.png", 20 * label + index)
    train, test = load("eurosat", tmp_path), load("eurosat", tmp_path, "test")
    assert train.classes[5] == "pasture"
    assert (len(train), len(test)) == (80, 10)
    shades = [shade_of(data, index) for data in (train, test) for index in range(len(data))]
    assert len(set(shades)) == 90
    assert [shade // 20 for shade in shades] == [*train.labels, *test.labels]


def test_gtsrb(tmp_path: Path) -> None:
    folder = tmp_path / "gtsrb"
    for label in range(43):
        save(folder / "GTSRB" / "Training" / f"{label:05d}" / "00000_00000.ppm", label)
    save(folder / "GTSRB" / "Final_Test" / "Images" / "00000.ppm", 14)
    (folder / "GT-final_test.csv").write_text("Filename;Width;Height;ClassId\n00000.ppm;6;5;14\n")
    data = load("gtsrb", tmp_path)
    assert data.labels == list(range(43))
    assert (data.classes[14], shade_of(data, 14)) == ("stop", 14)
    test = load("gtsrb", tmp_path, "test")
    assert (test.classes[test.labels[0]], shade_of(test, 0)) == ("stop", 14)


def test_mnist(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28)
        header = b"".join(value.to_bytes(4, "big") for value in (0x803, count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = bytes(index % 10 for index in range(count))
        header = b"".join(value.to_bytes(4, "big") for value in (0x801, count))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)
    data = load("mnist", tmp_path)
    assert data.classes == tuple("0123456789")
    assert data.labels == [index % 10 for index in range(20)]
    assert (shade_of(data, 17), decode(data.images[17]).size) == (17, (28, 28))
    assert len(load("mnist", tmp_path, "test")) == 10


def test_resisc45(tmp_path: Path) -> None:
    folder = tmp_path / "resisc45"
    for name, shade in (
        ("airplane_001.jpg", 250),
        ("basketball_court_001.jpg", 0),
        ("airplane_002.jpg", 250),
    ):
        save(folder / "NWPU-RESISC45" / name.rpartition("_")[0] / name, shade)
    (folder / "resisc45-train.txt").write_text("basketball_court_001.jpg\nairplane_001.jpg\n")
    (folder / "resisc45-test.txt").write_text("airplane_002.jpg\n")
    data = load("resisc45", tmp_path)
    assert data.classes == ("airplane", "basketball court")
    assert data.labels == [1, 0]
    assert shade_of(data, 1) > 240
    assert load("resisc45", tmp_path, "test").labels == [0]


def test_sun397(tmp_path: Path) -> None:
    folder = tmp_path / "SUN397"
    folder.mkdir()
    (folder / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n")
    images = ["/a/apartment_building/outdoor/sun_b.jpg", "/a/abbey/sun_a.jpg", "/a/abbey/sun_c.jpg"]
    for image in images:
        save(folder / image[1:], 250 if "abbey" in image else 0)
    (folder / "Training_01.txt").write_text("\n".join(images[:2]) + "\n")
    (folder / "Testing_01.txt").write_text(images[2] + "\n")
    data = load("sun397", tmp_path)
    assert data.classes == ("abbey", "outdoor apartment building")
    assert data.labels == [1, 0]
    assert shade_of(data, 1) > 240
    assert load("sun397", tmp_path, "test").labels == [0]


def test_svhn_calls_ten_zero(tmp_path: Path) -> None:
    (tmp_path / "svhn").mkdir()
    pixels = np.zeros((32, 32, 3, 10), np.uint8)
    pixels[:, :, 0, :] = np.arange(10)
    for split in ("train", "test"):
        labels = np.arange(1, 11).reshape(-1, 1)
        scipy.io.savemat(tmp_path / "svhn" / f"{split}_32x32.mat", {"X": pixels, "y": labels})
    data = load("svhn", tmp_path)
    assert data.labels == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert (shade_of(data, 3), decode(data.images[3]).size) == (3, (32, 32))


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_named_data_set_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    loc, code, message = refusal(lambda: load(name, tmp_path))
    assert (loc, code) == (("task", "dataset", "root"), "unreadable_dataset")
    assert str(tmp_path) not in message
    assert "download" not in message


@pytest.mark.parametrize(("name", "classes"), [("eurosat", 10), ("gtsrb", 43), ("mnist", 10), ("svhn", 10)])
def test_class_names_are_all_different(name: str, classes: int) -> None:
    names = CATALOGUE[name].class_names
    assert names is not None
    assert len(set(names)) == classes


def test_templates_have_one_place_for_the_name() -> None:
    everything = [template for known in CATALOGUE.values() for template in known.templates]
    assert all(template.count("{}") == 1 for template in everything)
    assert prompt_templates(Dataset(uri="/data", format="parquet")) == ("a photo of a {}.",)


# ------------------------------------------------------------------------------------ image folders


def folder_of(root: Path) -> Dataset:
    return Dataset(uri=str(root), format="image_folder")


def test_an_image_folder_has_a_class_for_each_folder(tmp_path: Path) -> None:
    save(tmp_path / "sea_eagle" / "deep" / "b.JPG", 0)
    save(tmp_path / "albatross" / "a.png", 1)
    (tmp_path / "albatross" / "notes.txt").write_text("no image")
    data = load_images(folder_of(tmp_path), "train", None)
    assert data.classes == ("albatross", "sea eagle")
    assert data.labels == [0, 1]
    assert load_images(folder_of(tmp_path), "train", ["an albatross", "an eagle"]).classes[1] == "an eagle"


def test_folders_train_and_test_are_the_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for index in range(count):
            save(tmp_path / split / "gull" / f"{index}.png", 0)
            save(tmp_path / split / "tern" / f"{index}.png", 0)
    assert len(load_images(folder_of(tmp_path), "train", None)) == 6
    assert len(load_images(folder_of(tmp_path), "test", None)) == 2


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    loc, code, _ = refusal(lambda: load_images(folder_of(tmp_path), "train", None))
    assert (loc, code) == (("task", "dataset", "uri"), "no_images")


def test_another_number_of_names_than_folders_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "gull" / "a.png", 0)
    loc, code, _ = refusal(lambda: load_images(folder_of(tmp_path), "train", ["gull", "tern"]))
    assert (loc, code) == (("task", "classes"), "class_count")


def test_an_empty_class_is_refused_by_name(shades: Path, tmp_path: Path) -> None:
    save(tmp_path / "gull" / "a.png", 0)
    (tmp_path / "tern").mkdir()
    data = load_images(folder_of(tmp_path), "train", None)
    loc, code, message = refusal(lambda: check_images(data, skip_corrupt=False, threads=1, loc=("task",)))
    assert (loc, code) == (("task", "dataset"), "empty_class")
    assert "'tern'" in message


# ------------------------------------------------------------------------------------ Parquet files


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    picture(shade).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, images: Sequence[Any], labels: Sequence[Any], names: list[str] | None = None) -> None:
    table = pa.table({"img": images, "kind": labels})
    if names is not None:
        features = {"info": {"features": {"kind": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path)


def parquet(path: Path, **columns: str) -> Dataset:
    return Dataset(uri=str(path), format="parquet", columns={"image": "img", "label": "kind"} | columns)


def test_parquet_as_hugging_face_writes_it(tmp_path: Path) -> None:
    images = [{"bytes": png(7), "path": None}, {"bytes": png(8), "path": "x.png"}]
    write(tmp_path / "train-00000-of-00002.parquet", images, [1, 0], ["gull", "tern"])
    write(tmp_path / "train-00001-of-00002.parquet", images[:1], [1], ["gull", "tern"])
    write(tmp_path / "test-00000-of-00001.parquet", images[1:], [0], ["gull", "tern"])
    data = load_images(parquet(tmp_path), "train", None)
    assert data.classes == ("gull", "tern")
    assert data.labels == [1, 0, 1]
    assert [shade_of(data, index) for index in range(3)] == [7, 8, 7]
    assert len(load_images(parquet(tmp_path), "test", None)) == 1


def test_parquet_with_bare_bytes_and_names_for_labels(tmp_path: Path) -> None:
    write(tmp_path / "birds.parquet", [png(3), png(4)], ["tern", "gull"])
    data = load_images(parquet(tmp_path / "birds.parquet"), "train", None)
    assert (data.classes, data.labels) == (("gull", "tern"), [1, 0])
    loc, code, message = refusal(
        lambda: load_images(parquet(tmp_path / "birds.parquet"), "train", ["gull", "auk"])
    )
    assert (loc, code) == (("task", "classes"), "unknown_class")
    assert "'tern'" in message


def test_numbers_for_labels_need_names(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [png(3), png(4)], [0, 1])
    loc, code, _ = refusal(lambda: load_images(parquet(tmp_path / "b.parquet"), "train", None))
    assert (loc, code) == (("task", "classes"), "class_names_needed")
    assert load_images(parquet(tmp_path / "b.parquet"), "train", ["a", "b"]).classes == ("a", "b")


def test_a_label_out_of_range_is_refused_by_row(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [png(3)] * 4, [0, 1, 7, -1])
    _, code, message = refusal(lambda: load_images(parquet(tmp_path / "b.parquet"), "train", ["a", "b"]))
    assert code == "label_out_of_range"
    assert "row 2 has label 7" in message
    assert "2 such images" in message


def test_an_unknown_column_is_refused_with_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", [png(3)], [0])
    dataset = parquet(tmp_path / "b.parquet", label="species")
    loc, code, message = refusal(lambda: load_images(dataset, "train", None))
    assert (loc, code) == (("task", "dataset", "columns", "label"), "unknown_column")
    assert "it has img, kind" in message


@pytest.mark.parametrize("images", [[None], ["gull.png"], []])
def test_a_column_without_images_is_refused(tmp_path: Path, images: list[Any]) -> None:
    write(tmp_path / "b.parquet", images, ["gull"] * len(images))
    _, code, _ = refusal(lambda: load_images(parquet(tmp_path / "b.parquet"), "train", None))
    assert code == "no_images"


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    _, code, message = refusal(lambda: load_images(parquet(tmp_path), "train", None))
    assert code == "unreadable_dataset"
    assert "b.parquet" in message


# --------------------------------------------------------------------- corrupt images and the split


def test_corrupt_images_are_named_or_skipped_and_counted(tmp_path: Path) -> None:
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for name in ("good", "cut"):
        noise.save(tmp_path / f"{name}.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    images: list[Any] = [tmp_path / "good.jpg", tmp_path / "cut.jpg", b"no image", np.zeros((4, 4), np.uint8)]
    data = LabelledImages(("a", "b"), images, [0, 1, 0, 1])
    loc, code, message = refusal(lambda: check_images(data, skip_corrupt=False, threads=2, loc=("task",)))
    assert (loc, code) == (("task", "dataset"), "corrupt_image")
    assert message.startswith("cut.jpg, row 2 cannot be decoded")
    kept = check_images(data, skip_corrupt=True, threads=2, loc=("task",))
    assert (kept.skipped, kept.labels, kept.images[0]) == (2, [0, 1], tmp_path / "good.jpg")


def test_a_class_whose_every_image_is_corrupt_is_empty() -> None:
    data = LabelledImages(("a", "b"), [np.zeros((4, 4), np.uint8), b"no image"], [0, 1])
    _, code, _ = refusal(lambda: check_images(data, skip_corrupt=True, threads=1, loc=("task",)))
    assert code == "empty_class"


@pytest.mark.parametrize(
    ("count", "validation"), [(8144, 814), (3760, 376), (60000, 5000), (73257, 5000), (9, 0)]
)
def test_validation_is_a_tenth_and_at_most_5000(count: int, validation: int) -> None:
    pixel = np.zeros((1, 1), np.uint8)
    data = LabelledImages(("a",), [pixel] * count, list(range(count)))
    training, held_out = split_validation(data)
    assert len(held_out) == validation
    assert sorted([*training.labels, *held_out.labels]) == list(range(count))
    assert split_validation(data)[1].labels == held_out.labels
