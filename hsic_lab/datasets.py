"""The data sets by name: load, download, and say what is there."""

import os
from inspect import signature
from pathlib import Path

from hsic_lab.downloads import SOURCES, fetch
from hsic_lab.image_data import ImageData
from hsic_lab.images import Images
from hsic_lab.own_pictures import from_arrays, from_folder
from hsic_lab.published import LOADERS

__all__ = [
    "LOADERS", "ImageData", "Images", "check_name", "data_folder", "default", "from_arrays", "from_folder",
    "full_name", "get", "load", "state",
]


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
