"""The named data sets on disk, below a common root, as torchvision or their authors lay them out.

========  ==========================================================================================
cars      stanford_cars/{devkit, cars_train, cars_test, cars_test_annos_withlabels.mat}
dtd       dtd/dtd/{images, labels}; train1 + val1 are the training split, test1 is the test split
eurosat   eurosat/2750/CLASS/*.jpg; a ninth, drawn with seed 0, is the test split
gtsrb     gtsrb/GTSRB/{Training, Final_Test/Images} and gtsrb/GT-final_test.csv
mnist     MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte
resisc45  resisc45/NWPU-RESISC45/CLASS/*.jpg and resisc45/resisc45-{train,test}.txt
sun397    SUN397/{ClassName.txt, Training_01.txt, Testing_01.txt} and SUN397/a/abbey/*.jpg
svhn      svhn/{train,test}_32x32.mat
========  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torchvision import datasets as torchvision

from workers.finetuning.datasets.images import LabelledImages, fixed_order

Split = Literal["train", "test"]


def _cars(root: Path, split: Split) -> LabelledImages:
    cars = torchvision.StanfordCars(root, split)
    return _of_paths(cars.classes, cars._samples)


def _dtd(root: Path, split: Split) -> LabelledImages:
    parts = [torchvision.DTD(root, part) for part in (("train", "val") if split == "train" else ("test",))]
    samples = [sample for part in parts for sample in zip(part._image_files, part._labels, strict=True)]
    return _of_paths([name.replace("_", " ") for name in parts[0].classes], samples)


def _eurosat(root: Path, split: Split) -> LabelledImages:
    eurosat = torchvision.EuroSAT(root)
    everything = _of_paths(eurosat.classes, eurosat.samples)
    count = len(everything)
    order = fixed_order(count)
    return everything.subset(order[count // 9 :] if split == "train" else order[: count // 9])


def _gtsrb(root: Path, split: Split) -> LabelledImages:
    samples = torchvision.GTSRB(root, split)._samples
    classes = max(label for _, label in samples) + 1
    return _of_paths([str(number) for number in range(classes)], samples)


def _mnist(root: Path, split: Split) -> LabelledImages:
    mnist = torchvision.MNIST(root, train=split == "train")
    return LabelledImages(tuple(map(str, range(10))), list(mnist.data.numpy()), mnist.targets.tolist())


def _resisc45(root: Path, split: Split) -> LabelledImages:
    directory = root / "resisc45"
    names = (directory / f"resisc45-{split}.txt").read_text().split()
    # airport_001.jpg lies in airport, as does every image in the class that its name says
    folders = sorted(path.name for path in (directory / "NWPU-RESISC45").iterdir() if path.is_dir())
    classes = [name.rpartition("_")[0] for name in names]
    samples = [
        (directory / "NWPU-RESISC45" / folder / name, folders.index(folder))
        for folder, name in zip(classes, names, strict=True)
    ]
    return _of_paths([folder.replace("_", " ") for folder in folders], samples)


def _sun397(root: Path, split: Split) -> LabelledImages:
    directory = root / "SUN397"
    folders = (directory / "ClassName.txt").read_text().split()
    labels = {folder: label for label, folder in enumerate(folders)}
    names = (directory / f"{'Training' if split == 'train' else 'Testing'}_01.txt").read_text().split()
    samples = [(directory / name.lstrip("/"), labels[name.rpartition("/")[0]]) for name in names]
    # "/a/apartment_building/outdoor" is an outdoor apartment building
    spoken = [" ".join(reversed(folder[3:].split("/"))).replace("_", " ") for folder in folders]
    return _of_paths(spoken, samples)


def _svhn(root: Path, split: Split) -> LabelledImages:
    from scipy.io import loadmat

    file = loadmat(root / "svhn" / f"{split}_32x32.mat")
    labels = (file["y"].reshape(-1) % 10).tolist()  # the files call the digit 0 ten
    return LabelledImages(tuple(map(str, range(10))), list(file["X"].transpose(3, 0, 1, 2)), labels)


LAYOUTS: dict[str, Callable[[Path, Split], LabelledImages]] = {
    "cars": _cars,
    "dtd": _dtd,
    "eurosat": _eurosat,
    "gtsrb": _gtsrb,
    "mnist": _mnist,
    "resisc45": _resisc45,
    "sun397": _sun397,
    "svhn": _svhn,
}
"""Name → reader of a split. They raise OSError, RuntimeError, KeyError or ValueError for what is not there."""


def _of_paths(classes: Sequence[str], samples: Sequence[tuple[str | Path, int]]) -> LabelledImages:
    return LabelledImages(
        tuple(classes), [Path(path) for path, _ in samples], [int(label) for _, label in samples]
    )
