"""The published data sets and the built-in ones: names, downloads, file formats."""

import gzip
import os
import shutil
import struct
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from hsic_lab._checks import check_type, near
from hsic_lab._io import sole_process
from hsic_lab.datasets._folders import find_classes, from_folder, read_classes
from hsic_lab.datasets._images import UNKNOWN, ImageData, Images
from hsic_lab.datasets.digit_scenes import DigitScenes, digit_index

DIGIT_NAMES = tuple("0123456789")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
FASHION_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}


@dataclass(frozen=True)
class Source:
    """A published set: its folder, needed files, and the URL and MD5 of each archive of the folder or file in it."""

    title: str
    folder: str
    files: tuple[str, ...]
    downloads: dict[str, str]

    def missing(self, data_folder: Path) -> list[str]:
        """Return the needed files that are not there."""
        return [name for name in self.files if not (data_folder / self.folder / name).exists()]


# Every MD5 was found in at least two independent places. CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html. STL-10 and
# Fashion-MNIST: torchvision. Tiny ImageNet: its authors publish none; several independent loaders agree on this one.
SOURCES = {
    "cifar10": Source("CIFAR-10", "cifar-10-batches-bin",
        (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
        {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}),
    "cifar100": Source("CIFAR-100", "cifar-100-binary", ("train.bin", "test.bin", "fine_label_names.txt"),
        {"https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}),
    "fashion_mnist": Source("Fashion-MNIST", "fashion-mnist", tuple(FASHION_MD5),
        {f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{f}": md5 for f, md5 in FASHION_MD5.items()}),
    "stl10": Source("STL-10", "stl10_binary",
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt"),
        {"http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"}),
    "tiny_imagenet": Source("Tiny ImageNet", "tiny-imagenet-200", ("train", "val", "words.txt"),
        {"http://cs231n.stanford.edu/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}),
}  # fmt: skip


def unpack(archive: Path, target: Path, missing: list[str], work: Path) -> None:
    """Write an archive's folder `target.name` to `target`: all of it, or what is `missing`, when all is in `work`."""
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        options: Any = {} if archive.suffix == ".zip" else {"filter": "data"}  # no member outside of the folder
        try:
            shutil.unpack_archive(archive, temporary, **options)
        except (shutil.ReadError, tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}. Delete it and get it again") from error
        except OSError as error:
            raise OSError(f"{archive} cannot be unpacked in {work.parent}: {error}") from error
        folder = Path(temporary, target.name)
        if not folder.is_dir():
            raise ValueError(f"{archive} holds no folder {target.name}")
        if not target.exists():
            folder.rename(target)
        for name in missing:  # files that are there already stay
            if (folder / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).rename(target / name)


def _records(path: Path, size: int) -> Tensor:
    """Return a file of records as a mapped tensor `(n, size)` of its bytes."""
    n, rest = divmod(path.stat().st_size, size)
    if n == 0 or rest:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected a positive multiple of {size}")
    return torch.from_numpy(np.memmap(path, np.uint8, "c", shape=(n, size)))  # writing does not change the file


def _read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the bytes of a gzipped idx file: 0, 0, type 8, number of axes, each as big-endian uint32, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error})") from error
    magic, begin = bytes([0, 0, 8, dimensions]), 4 + 4 * dimensions
    if not content.startswith(magic):
        raise ValueError(f"{path} begins with {content[:4].hex(' ')}, expected {magic.hex(' ')}")
    if len(content) < begin:
        raise ValueError(f"{path} ends inside its header, after {len(content)} of {begin} bytes")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - begin != np.prod(shape, dtype=np.int64) or 0 in shape:
        raise ValueError(f"{path} holds {len(content) - begin} values, its header says {' x '.join(map(str, shape))}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=begin).copy()).view(shape)


def _read_names(path: Path, expected: int) -> tuple[str, ...]:
    """Return the class names in a file, one a line."""
    names = tuple(line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip())
    if len(names) != expected:
        raise ValueError(f"{path} holds {len(names)} class names, expected {expected}")
    return names


def _checked_labels(path: Path, labels: Tensor, low: int, high: int, n: int) -> Tensor:
    """Return the labels of `n` images; ValueError if one is not between `low` and `high`."""
    if len(labels) != n:
        raise ValueError(f"{path} holds {len(labels)} labels for {n} images")
    if len(wrong := ((labels < low) | (labels > high)).nonzero()[:1]):
        raise ValueError(f"{path}: record {int(wrong)} has the label {int(labels[wrong])}, expected {low}..{high}")
    return labels.long()


def _digits() -> ImageData:
    """Return scikit-learn's digits as uint8 images (n, 1, 8, 8); their value v in 0..16 becomes round(v * 255 / 16)."""
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None])
    whole = Images(images, torch.from_numpy(bunch.target.astype(np.int64)))
    return ImageData("digits", whole.subset(digit_index("train")), whole.subset(digit_index("test")), DIGIT_NAMES)


def _digit_scenes(n_train: int = 8000, n_test: int = 2000, seed: int = 0, n_validation: int | None = None) -> ImageData:
    splits, n = (("train", "test"), n_test) if n_validation is None else (("fit", "validation"), n_validation)
    scenes, other = map(DigitScenes, splits)
    # The seeds of the splits differ: one seed would give both the same colors.
    train, test = scenes.sample(n_train, 2 * seed), other.sample(n, 2 * seed + 1)
    return ImageData("digit_scenes", train, test, DIGIT_NAMES, scenes=scenes)


def _cifar(path: Path, n_classes: int) -> ImageData:
    """Return CIFAR from records of one label byte, or of a coarse and a fine one, and a 3 x 32 x 32 image."""
    *train_files, test_file, names_file = SOURCES[f"cifar{n_classes}"].files
    label_bytes = 1 if n_classes == 10 else 2

    def read(name: str) -> Images:
        rows = _records(path / name, label_bytes + 3 * 32 * 32)
        labels = _checked_labels(path / name, rows[:, label_bytes - 1], 0, n_classes - 1, len(rows))
        return Images(rows[:, label_bytes:].reshape(-1, 3, 32, 32), labels)

    parts = [read(name) for name in train_files]
    held = dict(zip(train_files, map(len, parts), strict=True))
    if len(set(held.values())) > 1:  # a file that was cut between two records is well formed
        raise ValueError(f"the training files in {path} must hold equally many records, got {held}")
    train = Images(torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts]))
    return ImageData(f"cifar{n_classes}", train, read(test_file), _read_names(path / names_file, n_classes))


def _fashion_mnist(path: Path) -> ImageData:
    splits = []
    for prefix in ("train", "t10k"):
        images, file = _read_idx(path / f"{prefix}-images-idx3-ubyte.gz", 3), path / f"{prefix}-labels-idx1-ubyte.gz"
        splits.append(Images(images[:, None], _checked_labels(file, _read_idx(file, 1), 0, 9, len(images))))
    return ImageData("fashion_mnist", splits[0], splits[1], CLOTHES)


def _stl10(path: Path) -> ImageData:
    """Return STL-10 as mapped images; their channels are stored column after column."""

    def read(split: str) -> Images:
        images = _records(path / f"{split}_X.bin", 3 * 96 * 96).view(-1, 3, 96, 96).transpose(2, 3)
        if split == "unlabeled":
            return Images(images, torch.full((len(images),), UNKNOWN))
        labels = torch.from_numpy(np.fromfile(path / f"{split}_y.bin", np.uint8))
        return Images(images, _checked_labels(path / f"{split}_y.bin", labels, 1, 10, len(images)) - 1)

    return ImageData("stl10", read("train"), read("test"), _read_names(path / "class_names.txt", 10), read("unlabeled"))


def _tiny_imagenet(path: Path) -> ImageData:
    """Return Tiny ImageNet with classes in the order of their WordNet ids, each called by the first of its words."""
    annotations = path / "val" / "val_annotations.txt"
    val: dict[str, list[Path]] = {} if annotations.is_file() else find_classes(path / "val")
    if annotations.is_file():  # the official layout: lines of file name, id, bounding box
        for line in annotations.read_text(encoding="utf-8").splitlines():
            name, label = [*line.split("\t"), ""][:2]
            if not label:
                raise ValueError(f"{annotations} has the line {line!r}, expected a file name, a tab and a class")
            val.setdefault(label, []).append(path / "val" / "images" / name)
    (train, test), _, ids = read_classes([find_classes(path / "train"), dict(sorted(val.items()))], 64, path)
    lines = (path / "words.txt").read_text(encoding="utf-8").splitlines()
    words = {label: text for label, _, text in (line.partition("\t") for line in lines)}
    if unnamed := [label for label in ids if label not in words]:
        raise ValueError(f"{path / 'words.txt'} has no line for {unnamed[0]}")
    return ImageData("tiny_imagenet", train, test, tuple(words[label].split(",")[0] for label in ids))


LOADERS: dict[str, Callable[..., ImageData]] = {
    "digits": _digits, "digit_scenes": _digit_scenes,
    "cifar10": lambda path: _cifar(path, 10), "cifar100": lambda path: _cifar(path, 100),
    "fashion_mnist": _fashion_mnist, "stl10": _stl10, "tiny_imagenet": _tiny_imagenet,
}  # fmt: skip


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """Return the folder of the data sets: ``folder``, else the environment's HSIC_LAB_DATA, else ``data``."""
    return Path(folder or os.environ.get("HSIC_LAB_DATA") or "data").expanduser()


def load(name: str, folder: str | os.PathLike | None = None, **options: Any) -> ImageData:
    """Return the :class:`ImageData` of this name; FileNotFoundError if its files are missing.

    Parameters
    ----------
    name : str
        Path of a folder of images, see :func:`from_folder`, or one of the following (training + test images):

        * "digits": scikit-learn's handwritten digits, 1352 + 445, (1, 8, 8)
        * "digit_scenes": :class:`DigitScenes` with known factors of variation, 8000 + 2000, (3, 32, 32)
        * "cifar10", "cifar100": Krizhevsky (2009), 10 or 100 (fine) classes, 50 000 + 10 000, (3, 32, 32)
        * "fashion_mnist": Xiao et al. (2017), 60 000 + 10 000, (1, 28, 28)
        * "stl10": Coates et al. (2011), 5000 + 8000 and 100 000 unlabeled, (3, 96, 96), mapped into memory
        * "tiny_imagenet": CS231n's 200 classes, 100 000 + 10 000 (its "val"), (3, 64, 64)
    folder : path or None
        Folder that holds the published sets, see :func:`data_folder`; :func:`download` puts them there.
    **options
        ``n_train``, ``n_test`` and ``seed`` of "digit_scenes", and ``n_validation``, which takes a quarter of the
        training digits as its test split; arguments of :func:`from_folder`.

    Examples
    --------
    >>> from hsic_lab.datasets import load
    >>> load("digit_scenes", n_train=16, n_test=8).train.images.shape
    torch.Size([16, 3, 32, 32])
    """
    check_name(name)
    if name not in LOADERS:
        return from_folder(name, **options)
    if unknown := sorted(options.keys() - (() if name in SOURCES else signature(LOADERS[name]).parameters.keys())):
        raise TypeError(f"{name} has no option {unknown[0]!r}")
    if name not in SOURCES:
        data = LOADERS[name](**options)  # checks the options
        return replace(data, source={key: None if value is None else int(value) for key, value in options.items()})
    path, source = data_folder(folder) / SOURCES[name].folder, SOURCES[name]
    if missing := source.missing(path.parent):
        found = f"There is no {', '.join(missing)} in {path.absolute()}"
        by_hand = f"unpack {' '.join(source.downloads)} into {path.parent.absolute()}"
        remedy = f"Or {by_hand}, or set HSIC_LAB_DATA to the folder that holds {source.folder}."
        raise FileNotFoundError(f"{found}. {status(name, folder)}. {remedy}")
    try:
        place = {} if folder is None else {"folder": os.path.abspath(path.parent)}
        return replace(LOADERS[name](path), source=place)
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        remedy = f"delete {path.absolute()}; then `hsic-lab data get {name}` downloads it anew"
        raise kind(f"{error}. The set is damaged: {remedy}.") from error


def check_name(name: str) -> None:
    """Raise ValueError, listing the accepted names, for a name that :func:`load` does not know."""
    name = os.fspath(check_type("the data set", name, str, os.PathLike))
    if name not in LOADERS and not (name and Path(name).expanduser().is_dir()):
        others = ", ".join(sorted(LOADERS)) + near(name, LOADERS)
        raise ValueError(f"unknown data set {name!r}: there is no such folder, and data sets are {others}")


def full_name(name: str) -> str:
    """Return the ``name`` of the data set that :func:`load` gives: itself, or the absolute path of a folder."""
    return name if name in LOADERS else os.path.abspath(Path(name).expanduser())


def download(name: str, folder: str | os.PathLike | None = None) -> Path:
    """Download a published set, check its MD5 sum, unpack it and return its folder; complete it if a part is there.

    A failed download is tried again twice. An interrupted one starts again from its first byte. OSError is raised if
    the server cannot be reached or a file cannot be written.

    Parameters
    ----------
    name, folder : str, path or None
        As in :func:`load`.
    """
    if check_type("name", name, str) not in SOURCES:
        raise ValueError(f"no set {name!r} can be downloaded; there are {sorted(SOURCES)}{near(name, SOURCES)}")
    source, root = SOURCES[name], data_folder(folder)
    target = root / source.folder
    work, lock = root / f".{source.folder}.part", root / f".{source.folder}.lock"
    if not source.missing(root):
        with suppress(OSError):  # another process works, or the folder is read-only
            if work.exists() or lock.exists():  # of a process that was killed at the end
                with sole_process(lock, remove=True):
                    shutil.rmtree(work, ignore_errors=True)
        return target
    import pooch

    plain = next(iter(source.downloads)).rpartition("/")[2] in source.files  # not an archive
    files = {url.rpartition("/")[2]: url for url in source.downloads}
    registry = {file: f"md5:{source.downloads[url]}" for file, url in files.items()}
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 20)  # 1 KiB would be slow
    root.mkdir(parents=True, exist_ok=True)
    with sole_process(lock, wait=True, remove=True):
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        store = pooch.create(work, "", registry=registry, urls=files, retry_if_failed=2)
        for file, url in files.items() if source.missing(root) else ():  # another process may have done the work
            place = target / file if plain else root / file
            place.parent.mkdir(exist_ok=True)
            md5 = source.downloads[url]
            if not place.is_file() or pooch.file_hash(place, "md5") != md5:
                try:
                    Path(store.fetch(file, downloader=downloader)).replace(place)
                except OSError as error:
                    remedy = f"Try again; or save it, with the MD5 sum {md5}, as {place}, then run this again"
                    raise OSError(f"{url} cannot be downloaded: {error}. {remedy}") from error
            if not plain:
                unpack(place, target, source.missing(root), work)
                place.unlink()
        shutil.rmtree(work)
    if missing := source.missing(root):
        raise ValueError(f"{' '.join(source.downloads)} did not hold {', '.join(missing)}, which {source.title} needs")
    return target


def status(name: str, folder: str | os.PathLike | None = None) -> str:
    """Return "ready" if the files of a data set are there, else a sentence that says how to get them; see `load`."""
    check_name(name)
    if name not in SOURCES or not SOURCES[name].missing(data_folder(folder)):
        return "ready"
    return f"{SOURCES[name].title} is incomplete or absent; `hsic-lab data get {name}` downloads it"
