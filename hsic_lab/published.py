"""The readers of the known data sets: official files, or what scikit-learn ships, as `ImageData`."""

from collections.abc import Callable
from pathlib import Path

import torch

from hsic_lab.digits import N_CLASSES, digit_images
from hsic_lab.downloads import SOURCES
from hsic_lab.folders import find_classes, read_classes
from hsic_lab.formats import read_cifar, read_idx_images, read_names, read_stl10
from hsic_lab.image_data import ImageData
from hsic_lab.images import Images
from hsic_lab.scenes import DigitScenes

DIGIT_NAMES = tuple(str(digit) for digit in range(N_CLASSES))
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _digits() -> ImageData:
    return ImageData("digits", digit_images("train"), digit_images("test"), DIGIT_NAMES)


def _digit_scenes(n_train: int = 8000, n_test: int = 2000, seed: int = 0) -> ImageData:
    scenes = DigitScenes("train")
    train = scenes.sample(n_train, 2 * seed)
    test = DigitScenes("test").sample(n_test, 2 * seed + 1)  # else the splits would share colours and places
    return ImageData("digit_scenes", train, test, DIGIT_NAMES, scenes=scenes)


def _cifar10(path: Path) -> ImageData:
    *train_files, test_file, names_file = SOURCES["cifar10"].files
    names = read_names(path / names_file, 10)
    parts = [read_cifar(path / name, 10) for name in train_files]
    if len(set(map(len, parts))) > 1:  # a file cut between two records is well formed
        held = {name: len(part) for name, part in zip(train_files, parts, strict=True)}
        raise ValueError(f"the training files in {path} must hold equally many records, got {held}")
    train = Images(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return ImageData("cifar10", train, read_cifar(path / test_file, 10), names)


def _cifar100(path: Path) -> ImageData:
    train = read_cifar(path / "train.bin", 100, label_bytes=2, records=50_000)
    test = read_cifar(path / "test.bin", 100, label_bytes=2)
    return ImageData("cifar100", train, test, read_names(path / "fine_label_names.txt", 100))


def _fashion_mnist(path: Path) -> ImageData:
    train_x, train_y, test_x, test_y = (path / name for name in SOURCES["fashion_mnist"].files)
    train, test = read_idx_images(train_x, train_y, 10), read_idx_images(test_x, test_y, 10)
    return ImageData("fashion_mnist", train, test, FASHION_NAMES)


def _stl10(path: Path) -> ImageData:
    train, test = (read_stl10(path / f"{split}_X.bin", path / f"{split}_y.bin") for split in ("train", "test"))
    names = read_names(path / "class_names.txt", 10)
    return ImageData("stl10", train, test, names, read_stl10(path / "unlabeled_X.bin", None))


def _tiny_imagenet(path: Path) -> ImageData:
    """Classes in the order of their WordNet ids, called by the first of their words."""
    annotations = path / "val" / "val_annotations.txt"
    val: dict[str, list[Path]] = {}
    if annotations.is_file():  # the official layout; lines of file name, id, bounding box
        for line in annotations.read_text(encoding="utf-8").splitlines():
            name, _, label = line.partition("\t")
            label = label.partition("\t")[0]
            if not label:
                raise ValueError(f"{annotations} has the line {line!r}, expected a file name, a tab and a class")
            val.setdefault(label, []).append(path / "val" / "images" / name)
        val = dict(sorted(val.items()))
    else:
        val = find_classes(path / "val")
    (train, test), _, ids = read_classes([find_classes(path / "train"), val], 64, path)
    lines = (path / "words.txt").read_text(encoding="utf-8").splitlines()
    words = {label: text for label, _, text in (line.partition("\t") for line in lines)}
    if unnamed := [label for label in ids if label not in words]:
        raise ValueError(f"{path / 'words.txt'} has no line for {unnamed[0]}")
    return ImageData("tiny_imagenet", train, test, tuple(words[label].split(",")[0] for label in ids))


LOADERS: dict[str, Callable[..., ImageData]] = {
    "digits": _digits, "digit_scenes": _digit_scenes, "cifar10": _cifar10, "cifar100": _cifar100,
    "fashion_mnist": _fashion_mnist, "stl10": _stl10, "tiny_imagenet": _tiny_imagenet,
}  # fmt: skip
