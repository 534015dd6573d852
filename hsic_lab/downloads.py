"""Where the published sets come from, and how they get into the data folder whole or not at all."""

import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import pooch
from tqdm.auto import tqdm

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
