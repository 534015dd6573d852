"""The data sets by name, and those of the user's own: every one as `ImageData`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hsic_lab.digits import N_CLASSES, digit_images
from hsic_lab.downloads import SOURCES, fetch
from hsic_lab.folders import find_classes, find_pictures, read_classes
from hsic_lab.formats import read_cifar, read_idx_images, read_names, read_stl10
from hsic_lab.images import Images
from hsic_lab.scenes import DigitScenes

__all__ = ["ImageData", "Images", "data_folder", "default", "from_arrays", "from_folder", "get", "load", "state"]

DIGIT_NAMES = tuple(str(digit) for digit in range(N_CLASSES))
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
UNKNOWN = -1  # the label of an unlabelled picture


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: labelled splits, the names of the classes, and more where a set has more.

    unlabelled: pictures to train on without labels, beside ``train``; their labels are -1
    scenes: a renderer of endless training pairs, when the set is synthetic
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    unlabelled: Images | None = None
    scenes: DigitScenes | None = None

    @property
    def trained_on(self) -> tuple[Tensor, ...]:
        """The pictures that training without labels sees, the parts of an `ImageSource`: train, then unlabelled."""
        return (self.train.images,) if self.unlabelled is None else (self.train.images, self.unlabelled.images)


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """Where data sets are looked for: ``folder``, else HSIC_LAB_DATA in the environment, else ./data."""
    return Path(folder or os.environ.get("HSIC_LAB_DATA") or "data").expanduser()


def load(name: str, folder: str | os.PathLike | None = None, **options: int) -> ImageData:
    """The data set called ``name``.

    "digits"         scikit-learn's 1797 handwritten digits, (1, 8, 8); see :func:`hsic_lab.digits.digit_index`
    "digit_scenes"   8000 + 2000 rendered scenes with known causes, (3, 32, 32); options n_train, n_test, seed
    "cifar10", "cifar100"  Krizhevsky 2009, 50 000 + 10 000, (3, 32, 32); cifar100 with its 100 fine classes
    "fashion_mnist"  Xiao, Rasul & Vollgraf 2017, 60 000 + 10 000, (1, 28, 28)
    "stl10"          Coates, Ng & Lee 2011, 5000 + 8000 and 100 000 unlabelled, (3, 96, 96)
    "tiny_imagenet"  CS231n's 200 classes, 100 000 + 10 000 (its val), (3, 64, 64); the official layout or one folder
                     of pictures a class; decoded once, see :func:`hsic_lab.folders.decode_all`
    a folder's path  :func:`from_folder` with ``options``

    The published sets are read from their official files under :func:`data_folder` (``folder``), where
    :func:`get` puts them. Raises ValueError for another name, TypeError for an option that the set does not
    have, FileNotFoundError or ValueError with the remedy for missing or damaged files.
    """
    check_name(name)
    if name not in LOADERS:
        return from_folder(name, **options)
    if name not in SOURCES:
        return LOADERS[name](**options)
    path, source = data_folder(folder) / SOURCES[name].folder, SOURCES[name]
    if missing := source.missing(path.parent):
        raise FileNotFoundError(
            f"{source.title} is incomplete or absent: no {', '.join(missing)} in {path.absolute()}. "
            f"`hsic-lab data get {name}` downloads it. Or unpack {source.urls} into {path.parent.absolute()}, "
            f"or set HSIC_LAB_DATA to the folder that holds {source.folder}."
        )
    try:
        return LOADERS[name](path, **options)
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"{error}. The file is damaged: delete {source.folder} and unpack {source.urls} again, "
            f"or let `hsic-lab data get {name}` do it."
        ) from error


def check_name(name: str) -> None:
    """Raise ValueError for what :func:`load` does not know."""
    if name not in LOADERS and not Path(name).is_dir():
        raise ValueError(f"unknown data set {name!r}; accepted are {sorted(LOADERS)} and the path of a folder")


def get(name: str, folder: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Download a published set into :func:`data_folder`, see :func:`hsic_lab.downloads.fetch`; returns its folder.

    Raises ValueError for a set that is not downloaded.
    """
    if name not in SOURCES:
        raise ValueError(f"{name!r} is not downloaded; the sets that are: {sorted(SOURCES)}")
    return fetch(SOURCES[name], data_folder(folder), progress)


def state(name: str, folder: str | os.PathLike | None = None) -> str:
    """ "ready", or what is missing of the set, without reading it."""
    missing = SOURCES[name].missing(data_folder(folder)) if name in SOURCES else []
    if not missing:
        return "ready"
    return f"{SOURCES[name].title} is incomplete or absent; `hsic-lab data get {name}` downloads it"


def default(folder: str | os.PathLike | None = None) -> ImageData:
    """CIFAR-10 if it is under :func:`data_folder`, else digit_scenes, which need no download; prints which.

    It prints rather than logs because a notebook hides log lines unless it is told otherwise, and a figure
    measured on the scenes must not pass for one on CIFAR-10. A damaged CIFAR-10 raises as in :func:`load`.
    """
    path = data_folder(folder) / SOURCES["cifar10"].folder
    if path.is_dir():
        print(f"Data: CIFAR-10 from {path}")
        return load("cifar10", folder)
    print(f"Data: digit_scenes, rendered from pictures that scikit-learn ships (no CIFAR-10 at {path})")
    return load("digit_scenes")


def from_folder(
    path: str | os.PathLike, size: int | None = None, test_fraction: float = 0.2, seed: int = 0
) -> ImageData:
    """Pictures in folders: ``path/train/CLASS/...`` with ``path/test`` or ``path/val`` alike, or ``path/CLASS/...``.

    Pictures become RGB. With ``size`` the shorter side is resized to it and the central square cut out, see
    :func:`hsic_lab.folders.decode`; without, all must have one size. ``path/unlabelled`` may hold pictures
    without classes. Where there is no test split, ``test_fraction`` of each class (rounded down) is held out
    by a shuffle with ``seed``. The set's name is the folder's absolute path, so that :func:`load` finds it again.
    Raises FileNotFoundError if there is no such folder, ValueError for a layout or picture that cannot be read.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: expected one with a sub-folder of pictures a class")
    unlabelled = find_pictures(path / "unlabelled")
    if not (path / "train").is_dir():
        classes = find_classes(path)
        if unlabelled:
            del classes["unlabelled"]
        (whole,), rest, names = read_classes([classes], size, path, unlabelled)
        train, test = _hold_out(whole, test_fraction, seed)
    else:
        held_out = next((path / name for name in ("test", "val") if (path / name).is_dir()), None)
        if held_out is None:
            raise ValueError(f"{path} has a folder train but neither test nor val")
        splits = [find_classes(path / "train"), find_classes(held_out)]
        (train, test), rest, names = read_classes(splits, size, path, unlabelled)
    return ImageData(str(path), train, test, names, _without_labels(rest))


def from_arrays(
    images: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    test_images: ArrayLike | Tensor | None = None,
    test_labels: ArrayLike | Tensor | None = None,
    unlabelled: ArrayLike | Tensor | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "arrays",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> ImageData:
    """A set from arrays: pictures (n, h, w), (n, h, w, c) or (n, c, h, w) with c = 1 or 3, and n labels.

    Pictures are uint8, or floats in [0, 1], which are rounded to 1/255. Labels are integers or strings; the classes
    are the sorted distinct training labels, called ``class_names`` or by themselves. Without test arrays,
    ``test_fraction`` of each class is held out as in :func:`from_folder`. Raises TypeError and ValueError for what
    does not fit, and for pictures whose channel axis is not clear.
    """
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels go together: one is given without the other")
    values = np.asarray(labels)
    known = np.unique(values)
    if class_names is not None and len(class_names) != len(known):
        raise ValueError(f"class_names must name the {len(known)} classes of labels, got {len(class_names)}")
    names = tuple(str(label) for label in (known if class_names is None else class_names))
    train = Images(_as_images("images", images), _as_labels(values, known))
    if test_images is None:
        train, test = _hold_out(train, test_fraction, seed)
    else:
        test = Images(_as_images("test_images", test_images), _as_labels(np.asarray(test_labels), known))
    rest = train.images[:0] if unlabelled is None else _as_images("unlabelled", unlabelled)
    return ImageData(name, train, test, names, _without_labels(rest))


def _as_images(name: str, images: ArrayLike | Tensor) -> Tensor:
    pixels = torch.as_tensor(np.asarray(images) if not isinstance(images, Tensor) else images)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(f"{name} must be (n, h, w), (n, h, w, c) or (n, c, h, w), got {tuple(pixels.shape)}")
    first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if first == last:
        raise ValueError(f"{name} must have 1 or 3 channels on axis 1 or on axis 3, not on both: {tuple(pixels.shape)}")
    if last:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} of floats must be in [0, 1], got values from {low:g} to {high:g}")
        pixels = pixels.mul(255).round().to(torch.uint8)
    return pixels.contiguous()


def _as_labels(labels: np.ndarray, known: np.ndarray) -> Tensor:
    if labels.ndim != 1 or labels.dtype.kind not in "iubU":
        raise ValueError(f"labels must be a vector of integers or strings, got {labels.dtype} {labels.shape}")
    if strange := sorted(set(labels.tolist()) - set(known.tolist())):
        raise ValueError(f"test_labels holds {strange[0]!r}, which labels does not")
    return torch.from_numpy(np.searchsorted(known, labels).astype(np.int64))


def _hold_out(whole: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """A stratified split into train and test: `fraction` of each class, rounded down, both in the set's order."""
    if not 0 < fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {fraction!r}")
    shuffle = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(len(whole), dtype=torch.bool)
    for label in whole.labels.unique():
        members = shuffle[whole.labels[shuffle] == label]
        held_out[members[: int(fraction * len(members))]] = True
    if not held_out.any():
        raise ValueError(f"test_fraction {fraction} of every class is less than one picture: hold out more")
    return whole.subset(~held_out), whole.subset(held_out)


def _without_labels(pictures: Tensor) -> Images | None:
    return Images(pictures, torch.full((len(pictures),), UNKNOWN)) if len(pictures) else None


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
