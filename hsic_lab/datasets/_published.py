"""The published binary formats, each read by one function from a file to tensors: no pickle, nothing executed.

What the bytes cannot be is a ValueError that names the file and what was expected; a missing file is
FileNotFoundError. Which files make a set, and what to do about a bad one, is the business of `datasets`.
"""

import gzip
import http.client
import os
import struct
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pooch
import torch
from torch import Tensor
from tqdm.auto import tqdm

from hsic_lab._io import map_file
from hsic_lab.datasets._folders import find_classes, from_folder, read_classes
from hsic_lab.datasets._images import ImageData, Images
from hsic_lab.datasets.digit_scenes import N_CLASSES, DigitScenes, digit_images

CIFAR_PIXELS = 3 * 32 * 32  # the red, green and blue planes, row after row
STL10_SHAPE = (3, 96, 96)
IDX_UINT8 = 8  # the type code of unsigned bytes; the only one these sets use


def read_cifar(path: Path, n_classes: int, label_bytes: int = 1, records: int = 10_000) -> Images:
    """A CIFAR binary file: uint8 (n, 3, 32, 32) and the last of `label_bytes` label bytes a record.

    CIFAR-10 has one label byte; CIFAR-100 two, the coarse and the fine label, of which the fine one is read
    (https://www.cs.toronto.edu/~kriz/cifar.html). Any whole number of records is accepted; `records` is how many
    the official file has, for the error.
    """
    record = label_bytes + CIFAR_PIXELS
    size = path.stat().st_size
    if size == 0 or size % record:
        raise ValueError(
            f"{path} has {size} bytes, expected {records * record} ({records} records) "
            f"or another positive multiple of {record}"
        )
    rows = torch.from_numpy(np.fromfile(path, np.uint8)).view(-1, record)
    labels = rows[:, label_bytes - 1].long()
    _check_labels(path, labels, 0, n_classes - 1)
    return Images(rows[:, label_bytes:].reshape(-1, 3, 32, 32), labels)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """A gzipped idx file of unsigned bytes, as uint8 with `dimensions` axes (http://yann.lecun.com/exdb/mnist/).

    Big-endian: two zero bytes, the type code, the number of axes, every axis as uint32, then the values.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error})") from error
    magic = bytes([0, 0, IDX_UINT8, dimensions])
    if content[:4] != magic:
        raise ValueError(f"{path} begins with {content[:4].hex(' ')}, expected {magic.hex(' ')}")
    begin = 4 + 4 * dimensions
    if len(content) < begin:
        raise ValueError(f"{path} ends inside its header, after {len(content)} of {begin} bytes")
    shape = struct.unpack(f">{dimensions}I", content[4:begin])
    if len(content) - begin != np.prod(shape, dtype=np.int64) or 0 in shape:
        raise ValueError(f"{path} holds {len(content) - begin} values, its header says {' x '.join(map(str, shape))}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=begin).copy()).view(shape)


def read_idx_images(images: Path, labels: Path, n_classes: int) -> Images:
    """A pair of idx files, (n, h, w) and (n,), as one-channel images (n, 1, h, w)."""
    pixels, numbers = read_idx(images, 3)[:, None], read_idx(labels, 1).long()
    if len(pixels) != len(numbers):
        raise ValueError(f"{images} holds {len(pixels)} images, {labels} {len(numbers)} labels")
    _check_labels(labels, numbers, 0, n_classes - 1)
    return Images(pixels, numbers)


def read_stl10(images: Path, labels: Path | None) -> Images:
    """STL-10's binary files: uint8 (n, 3, 96, 96), memory-mapped, and labels 0..9 (-1 everywhere without a file).

    The file has every channel column after column (https://cs.stanford.edu/~acoates/stl10/): the tensor is the
    transposed view of it, so that 100 000 unlabelled images take no memory before they are looked at.
    """
    n, rest = divmod(images.stat().st_size, int(np.prod(STL10_SHAPE)))
    if n == 0 or rest:
        raise ValueError(
            f"{images} has {images.stat().st_size} bytes, expected a positive multiple of {np.prod(STL10_SHAPE)}"
        )
    pixels = map_file(images).view(n, *STL10_SHAPE).transpose(2, 3)
    if labels is None:
        return Images(pixels, torch.full((n,), -1))
    numbers = torch.from_numpy(np.fromfile(labels, np.uint8)).long()
    if len(numbers) != n:
        raise ValueError(f"{labels} holds {len(numbers)} labels, {images} {n} images")
    _check_labels(labels, numbers, 1, 10)
    return Images(pixels, numbers - 1)


def read_names(path: Path, expected: int) -> tuple[str, ...]:
    """The class names of a text file, one a line; blank lines at the end do not count."""
    names = tuple(line.strip() for line in path.read_text(encoding="ascii").splitlines() if line.strip())
    if len(names) != expected:
        raise ValueError(f"{path} holds {len(names)} class names, expected {expected}")
    return names


def _check_labels(path: Path, labels: Tensor, low: int, high: int) -> None:
    wrong = (labels < low) | (labels > high)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{path}: record {row} has the label {int(labels[row])}, expected {low}..{high}")


CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without an answer
FASHION_MNIST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


@dataclass(frozen=True)
class Source:
    """A published set: its title, its folder under the data folder, the files it needs, where they come from.

    downloads: URL -> MD5. An archive (.tar.gz, .zip) must contain `folder`; other files go into `folder` as they are.
    """

    title: str
    folder: str
    files: tuple[str, ...]
    downloads: dict[str, str]

    def missing(self, data_folder: Path) -> list[str]:
        """The needed files that are not there."""
        return [name for name in self.files if not (data_folder / self.folder / name).exists()]

    @property
    def urls(self) -> str:
        return " ".join(self.downloads)


# Every MD5 was found in at least two independent places. CIFAR: the authors' own page
# (https://www.cs.toronto.edu/~kriz/cifar.html). STL-10: torchvision.datasets.STL10. Fashion-MNIST: the README of
# zalandoresearch/fashion-mnist and torchvision.datasets.FashionMNIST. Tiny ImageNet: its authors publish none;
# avalanche's and several other independent loaders agree on this one.
SOURCES = {
    "cifar10": Source(
        "CIFAR-10", "cifar-10-batches-bin",
        (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", "batches.meta.txt"),
        {"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar100": Source(
        "CIFAR-100", "cifar-100-binary", ("train.bin", "test.bin", "fine_label_names.txt"),
        {"https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
    "fashion_mnist": Source(
        "Fashion-MNIST", "fashion-mnist",
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
         "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
        {
            FASHION_MNIST + "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            FASHION_MNIST + "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            FASHION_MNIST + "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            FASHION_MNIST + "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "stl10": Source(
        "STL-10", "stl10_binary",
        ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt"),
        {"http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz": "91f7769df0f17e558f3565bffb0c7dfb"},
    ),
    "tiny_imagenet": Source(
        "Tiny ImageNet", "tiny-imagenet-200", ("train", "val", "words.txt"),
        {"http://cs231n.stanford.edu/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"},
    ),
}  # fmt: skip


def fetch(source: Source, data_folder: Path, progress: bool = True) -> Path:
    """Download, check and unpack a set; returns its folder. Does nothing if its files are there already.

    An interrupted download leaves `ARCHIVE.part` and the next call continues it. A file whose MD5 is wrong is
    deleted (ValueError); one that ends early is kept for continuing (OSError). An archive is unpacked beside its
    place and renamed once it is whole, then deleted. Members that would leave the folder are refused (ValueError).
    """
    target = data_folder / source.folder
    missing = source.missing(data_folder)
    if not missing:
        return target
    data_folder.mkdir(parents=True, exist_ok=True)
    archives = [url for url in source.downloads if url.endswith((".tar.gz", ".zip"))]
    if archives and target.exists():
        raise FileExistsError(f"{target} is there without {', '.join(missing)}: delete or move it, then get it again")
    for url, md5 in source.downloads.items():
        where = data_folder if url in archives else target
        path = _download(url, md5, where, progress)
        if url in archives:
            unpack(path, target)
            path.unlink()
    if still := source.missing(data_folder):
        raise ValueError(f"{source.urls} did not hold {', '.join(still)}, which {source.title} needs")
    return target


def _download(url: str, md5: str, folder: Path, progress: bool) -> Path:
    def downloader(address: str, output: str, _: object) -> None:
        resume(address, Path(output), folder / f"{PurePosixPath(address).name}.part", progress)

    name = PurePosixPath(url).name
    return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=folder, downloader=downloader))


def resume(url: str, output: Path, part: Path, progress: bool = True) -> None:
    """Fetch `url` into `output` by way of `part`, from where an earlier attempt left `part` if the server can.

    pooch checks the sum and moves the file into place, but always starts at the first byte; these archives are
    hundreds of megabytes. A server that ignores the range sends the whole file and `part` starts afresh.
    Raises OSError, keeping `part`, when the connection fails or ends early.
    """
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "hsic-lab"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing lies beyond `part`: it is whole, or its sum will show that it is not
            raise OSError(f"{url}: {error}. Try again later, or unpack the file by hand") from error
        part.replace(output)
        return
    except urllib.error.URLError as error:
        raise OSError(f"{url} cannot be reached ({error.reason}). Get it on another machine and unpack it") from error
    with answer:
        done = done if answer.status == 206 else 0
        rest = answer.headers.get("Content-Length")
        total = None if rest is None else done + int(rest)
        bar = tqdm(total=total, initial=done, desc=part.stem, unit="B", unit_scale=True, disable=not progress)
        reason = "the connection closed"
        with bar, part.open("ab" if done else "wb") as file:
            try:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
                reason, total = repr(error), total or float("inf")
    size = part.stat().st_size
    if total is not None and size < total:
        raise OSError(f"{url} ended after {size} of {total} bytes ({reason}): run it again to continue from {part}")
    part.replace(output)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the folder `target.name` of a .tar.gz or .zip archive to `target`, all of it or nothing.

    Raises ValueError for a member that would land outside, for an archive without the folder, and for a damaged one,
    OSError on a Python before 3.11.4, whose tarfile cannot refuse such members.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OSError(f"this Python cannot unpack {archive} safely: use 3.11.4 or later, or unpack it by hand")
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        try:
            if archive.suffix == ".zip":
                _unzip(archive, temporary)
            else:
                with tarfile.open(archive) as file:
                    file.extractall(temporary, filter="data")
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} cannot be unpacked: {error}. Delete it and get it again") from error
        folder = Path(temporary) / target.name
        if not folder.is_dir():
            raise ValueError(f"{archive} holds no folder {target.name}")
        folder.rename(target)


def _unzip(archive: Path, folder: str) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            paths = PurePosixPath(name), PureWindowsPath(name)
            if any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
                raise ValueError(f"{archive}: the member {name!r} would be written outside the folder")
        file.extractall(folder)


DIGIT_NAMES = tuple(str(digit) for digit in range(N_CLASSES))
FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def _digits() -> ImageData:
    return ImageData("digits", digit_images("train"), digit_images("test"), DIGIT_NAMES)


def _digit_scenes(n_train: int = 8000, n_test: int = 2000, seed: int = 0) -> ImageData:
    scenes = DigitScenes("train")
    train = scenes.sample(n_train, 2 * seed)
    test = DigitScenes("test").sample(n_test, 2 * seed + 1)  # else the splits would share colors and places
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


def data_folder(folder: str | os.PathLike | None = None) -> Path:
    """Where data sets are looked for: ``folder``, else HSIC_LAB_DATA in the environment, else ./data."""
    return Path(folder or os.environ.get("HSIC_LAB_DATA") or "data").expanduser()


def load(name: str, folder: str | os.PathLike | None = None, **options: int) -> ImageData:
    """The data set called ``name``.

    "digits"         scikit-learn's 1797 handwritten digits, (1, 8, 8); see :func:`hsic_lab.datasets.digit_scenes.digit_index`
    "digit_scenes"   8000 + 2000 rendered scenes with known causes, (3, 32, 32); options n_train, n_test, seed
    "cifar10", "cifar100"  Krizhevsky 2009, 50 000 + 10 000, (3, 32, 32); cifar100 with its 100 fine classes
    "fashion_mnist"  Xiao, Rasul & Vollgraf 2017, 60 000 + 10 000, (1, 28, 28)
    "stl10"          Coates, Ng & Lee 2011, 5000 + 8000 and 100 000 unlabelled, (3, 96, 96)
    "tiny_imagenet"  CS231n's 200 classes, 100 000 + 10 000 (its val), (3, 64, 64); the official layout or one folder
                     of images a class; decoded once, see :func:`hsic_lab.datasets._folders.decode_all`
    a folder's path  :func:`from_folder` with ``options``

    The published sets are read from their official files under :func:`data_folder` (``folder``), where
    :func:`download` puts them. Raises ValueError for another name, TypeError for an option that the set does not
    have, FileNotFoundError or ValueError with the remedy for missing or damaged files.
    """
    check_name(name)
    if name not in LOADERS:
        return from_folder(name, **options)
    if strange := sorted(options.keys() - signature(LOADERS[name]).parameters.keys()):
        raise TypeError(f"{name} has no option {strange[0]!r}")
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
            f"{error}. The set is damaged: delete {path.absolute()}; then `hsic-lab data get {name}` downloads it anew."
        ) from error


def check_name(name: str) -> None:
    """Raise ValueError for what :func:`load` does not know."""
    if name not in LOADERS and not Path(name).expanduser().is_dir():
        raise ValueError(f"unknown data set {name!r}; accepted are {sorted(LOADERS)} and the path of a folder")


def full_name(name: str) -> str:
    """The name that :func:`load` gives the set called ``name``: a folder's is its absolute path."""
    return name if name in LOADERS else os.path.abspath(Path(name).expanduser())


def download(name: str, folder: str | os.PathLike | None = None, progress: bool = True) -> Path:
    """Download a published set into :func:`data_folder`, see :func:`hsic_lab.datasets._published.fetch`; returns its folder.

    Raises ValueError for a set that is not downloaded.
    """
    if name not in SOURCES:
        raise ValueError(f"{name!r} is not downloaded; the sets that are: {sorted(SOURCES)}")
    return fetch(SOURCES[name], data_folder(folder), progress)


def status(name: str, folder: str | os.PathLike | None = None) -> str:
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
    print(f"Data: digit_scenes, rendered from images that scikit-learn ships (no CIFAR-10 at {path})")
    return load("digit_scenes")
