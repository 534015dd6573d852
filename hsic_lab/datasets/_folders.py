"""Data sets from folders of images, which are decoded once, and from arrays."""

from __future__ import annotations

import hashlib
import math
import os
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.contrib.concurrent import thread_map

from hsic_lab._checks import as_labels, as_tensor, check_integer, check_number, check_type
from hsic_lab._io import progress_options, replace_file
from hsic_lab.datasets._images import UNKNOWN, ImageData, Images

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
SPLITS = {word: "train" for word in ("train", "training", "trn")}
SPLITS |= {word: "test" for word in ("test", "testing", "tst", "holdout", "heldout")}
SPLITS |= {word: "val" for word in ("val", "valid", "validation", "dev", "devel", "eval", "evaluation")}
UNLABELLED = ("unlabelled", "unlabeled")
CACHE_BYTES = 64 << 30  # limit of all decoded images together
OWN = re.compile(r"[0-9a-f]{16}-(as_is|\d+px)-[0-9a-f]{16}\.npy")  # arrays in the cache folder
OWN_LEFT = re.compile(rf"\.{OWN.pattern}\.[0-9a-f]{{32}}")


def printable(name: object) -> str:
    """Return a name as text that can be written; bytes that are not UTF-8 become escapes."""
    return os.fsencode(str(name)).decode(errors="backslashreplace")


def _words(name: str) -> list[str]:
    words = re.split("[^a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return [word.removeprefix("x") for word in words]


def split_of(name: str, splits: Mapping[str, str] = SPLITS) -> str | None:
    """Return "train", "test" or "val" if a word of the name says so: X_train, valid, TestImages, val2017."""
    return next((splits[word] for word in _words(name) if word in splits), None)


def find_images(folder: Path, unread: Counter | None = None) -> list[Path]:
    """Return the visible image files under `folder` and folders linked in it, sorted; count other files by ending."""
    found: list[Path] = []
    seen = set(folder.resolve().parents)  # a link to one of these makes a loop
    for where, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (here := Path(where).resolve()) in seen:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += _only_images((Path(where, name) for name in names), unread)
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error  # `os.walk` would pass over a folder that cannot be read


def _only_images(files: Iterable[Path], unread: Counter | None) -> list[Path]:
    """Return the visible image files; count the other visible ones by their ending."""
    visible = [path for path in files if not path.name.startswith(".")]
    if unread is not None:
        unread.update(printable(path.suffix.lower()) for path in visible if path.suffix.lower() not in SUFFIXES)
    return [path for path in visible if path.suffix.lower() in SUFFIXES]


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, in alphabetical order."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_classes(folder: Path, unread: Counter | None = None, apart: Sequence[Path] = ()) -> dict[str, list[Path]]:
    """Return the images of each visible sub-folder that is not `apart`, in alphabetical order of the sub-folders."""
    visible = [path for path in subfolders(folder) if path not in apart]
    if not visible:
        raise ValueError(f"{folder} has no sub-folder: expected one folder of images a class")
    if len(visible) == 1 and subfolders(visible[0]):
        raise ValueError(f"{folder} has one folder, which holds folders itself: give {visible[0]} if these are classes")
    for path in visible:
        if splits := [inner.name for inner in subfolders(path) if inner.name.lower() in SPLITS]:
            raise ValueError(f"the class folder {path} holds the split {splits[0]!r}: expected {splits[0]}/{path.name}")
    classes = {printable(path.name): find_images(path, unread) for path in visible}
    if empty := [name for name, files in classes.items() if not files]:
        raise ValueError(f"{folder / empty[0]} holds no image; accepted are files ending in {sorted(SUFFIXES)}")
    return classes


def decode(path: Path, size: int | None, transparent: list[Path]) -> np.ndarray:
    """Return an image (first frame, upright by EXIF) as uint8 RGB (3, h, w) of this size; list transparent ones."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            raw = " ".join(str(tile[3]) for tile in opened.tile)  # the mode "RGB" can hide 16 bits a channel
            if opened.mode not in EIGHT_BIT or re.search(";16[BLN]", raw):
                raise ValueError(f"its mode is {opened.mode!r} ({raw}), not 8 bits a channel: convert it first")
            if opened.has_transparency_data and np.asarray(opened.convert("RGBA"))[..., 3].min() < 255:
                transparent.append(path)
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        words = f"{path} is not an image that can be read: {error}. Replace or remove it"
        raise ValueError(printable(words)) from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def decode_all(files: Sequence[Path], size: int | None, root: Path) -> Tensor:
    """Return images as one uint8 tensor (n, 3, h, w), mapped from a file in the cache folder."""
    from pooch import os_cache

    shape = (len(files), *((3, size, size) if size else _first_readable(files)[1]))
    n_bytes = math.prod(shape)
    if n_bytes > CACHE_BYTES:
        found = f"{root}: {len(files)} decoded images of {shape[3]} x {shape[2]} pixels take {n_bytes / 2**30:.1f} GiB"
        raise ValueError(f"{found}, more than {CACHE_BYTES / 2**30:g}: choose a smaller size")
    # The place is part of the name: copied sets may agree in names, sizes and times, and differ in content.
    place, label = hashlib.sha256(os.fsencode(root)).hexdigest()[:16], "as_is" if size is None else f"{size}px"
    folder = Path(os.environ.get("HSIC_LAB_CACHE") or os_cache("hsic_lab")).expanduser()
    kept = folder / f"{place}-{label}-{_files_digest(files, root, own=True)}.npy"
    if (images := _kept_images(kept, shape)) is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _make_room(kept, f"{place}-{label}-", CACHE_BYTES - n_bytes)
            replace_file(kept, lambda path: _decode_to(path, files, size, shape))
        except OSError as error:
            remedy = f"{n_bytes} bytes must fit there, or HSIC_LAB_CACHE must name another folder"
            raise OSError(f"decoded images cannot be kept in {folder} ({error}): {remedy}") from error
        if (images := _kept_images(kept, shape)) is None:
            raise FileNotFoundError(f"another process removed {kept}: load the images again")
    return images


def _first_readable(files: Sequence[Path]) -> tuple[Path, tuple[int, ...]]:
    """The first image that can be read, and its shape; ValueError if there is none. `_decode_to` names the others."""
    for file in files:
        with suppress(ValueError):
            return file, decode(file, None, []).shape
    return files[0], decode(files[0], None, []).shape


def _kept_images(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Return the array that was kept, None if there is none, or a damaged one or one of another shape."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # writing does not change the file
        with path.open("rb") as file:
            file.seek(-32, os.SEEK_END)
            digest = file.read()
    except (OSError, ValueError, EOFError):
        return None
    if array.shape != shape or array.dtype != np.uint8 or hashlib.sha256(array.data).digest() != digest:
        return None
    with suppress(OSError):  # the folder may be read-only
        os.utime(path)  # the least recently used array is removed first
    return torch.from_numpy(array)


def _make_room(kept: Path, former: str, most: int) -> None:
    """Remove arrays whose names begin with `former`, leftovers of killed processes, the oldest beyond `most` bytes."""
    found, total = [], 0
    for path in kept.parent.iterdir():
        with suppress(FileNotFoundError):  # another process may remove the same files
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    for changed, size, path in sorted(found, reverse=True):
        if OWN_LEFT.fullmatch(path.name):
            if time.time() - changed > 24 * 3600:  # a younger one may belong to a living process
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        elif OWN.fullmatch(path.name) and path != kept:
            total += size
            if path.name.startswith(former) or total > most:
                path.unlink(missing_ok=True)


def read_classes(
    splits: Sequence[dict[str, list[Path]]], size: int | None, root: Path, extra: Sequence[Path] = ()
) -> tuple[list[Images], Tensor, tuple[str, ...]]:
    """Return splits with the same classes, the `extra` images and the class names, in the order of the first split."""
    names = tuple(splits[0])
    if unknown := sorted({name for split in splits for name in split} - set(names)):
        raise ValueError(f"{root}: the test split has the class {unknown[0]!r}, which the training split has not")
    files = [[path for paths in split.values() for path in paths] for split in splits]
    labels = [torch.tensor([names.index(name) for name, paths in split.items() for _ in paths]) for split in splits]
    images = decode_all([path for part in [*files, extra] for path in part], size, root)
    *parts, rest = images.split([*map(len, files), len(extra)])
    return [Images(part, numbers) for part, numbers in zip(parts, labels, strict=True)], rest, names


def _decode_to(path: Path, files: Sequence[Path], size: int | None, shape: tuple[int, ...]) -> None:
    """Write a new .npy file whose rows are the images, decoded on all cores, and the SHA-256 of the rows."""
    transparent: list[Path] = []
    broken: list[tuple[Path, str]] = []
    array = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # writing to a map of a full disk would kill the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def one(row: int) -> None:
        try:
            image = decode(files[row], size, transparent)
        except ValueError as error:  # the others are looked at, so that all are named at once
            broken.append((files[row], str(error)))
            return
        if image.shape != array.shape[1:]:
            (h, w), (height, width) = image.shape[1:], array.shape[2:]
            found = printable(f"{files[row]} has {w} x {h} pixels, {_first_readable(files)[0]} {width} x {height}")
            raise ValueError(f"{found}: size=64 (--size 64), for instance, resizes and crops all to one square")
        array[row] = image

    thread_map(one, range(len(files)), desc="decoding", max_workers=os.cpu_count(), **progress_options(len(files)))
    if broken:
        (_, words), *others = sorted(broken)
        names = [printable(file) for file, _ in others[:9]] + [f"{len(others) - 9} more"] * (len(others) > 9)
        also = f". Nor can {', '.join(names)} be read: {len(broken)} of {len(files)} files" if others else ""
        raise ValueError(words + also)
    array.flush()
    with path.open("ab") as end:  # `np.load` reads no further than the array
        end.write(hashlib.sha256(array.data).digest())
    if transparent:
        found = f"{len(transparent)} of {len(files)} images have transparent pixels, for example {min(transparent)}"
        warnings.warn(f"{found}: transparency is dropped, and the colors below it are used", stacklevel=2)


def _files_digest(files: Sequence[Path], root: Path, own: bool = False) -> str:
    """Return a hash of paths, sizes and times, equal for copies made with `cp -a`, or their `own` hash."""
    found = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    lines = [os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n") for name, stat in found]
    if own:  # no program can set these; another file put in place of the old one has others, whatever its time
        lines += [f"{stat.st_ctime_ns} {stat.st_ino}\n".encode() for _, stat in found]
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


def content_digest(data: ImageData | str | PathLike) -> str:
    """Return a hash of all images and labels of a data set; of a folder, of paths, sizes and times of change."""
    if not isinstance(data, ImageData):
        return _files_digest(find_images(Path(data)), Path(data))
    content = hashlib.sha256()
    for split in (data.train, data.test, *filter(None, [data.unlabelled])):
        for tensor in (split.images, split.labels):
            content.update(str(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def from_folder(
    path: str | PathLike, size: int | None = None, test_fraction: float = 0.2, seed: int = 0,
    train_folder: str | None = None,
) -> ImageData:  # fmt: skip
    """Return an :class:`ImageData` from folders of images, one a class; decoded images (RGB) are kept in a cache.

    The environment's ``HSIC_LAB_CACHE`` names the folder of the cache. A warning tells what is left out.

    Parameters
    ----------
    path : path
        Folder with ``train/CLASS/...`` and ``test/CLASS/...`` or ``val/CLASS/...`` in any usual spelling; or with
        ``CLASS/...``, of which a part is held out. ``unlabelled/`` may hold images without classes. Images that are in
        no folder have no classes at all. The absolute path is the name of the set.
    size : int or None, default None
        Pixels to which the shorter side is resized before the central square is cut out. None keeps images of one size.
    test_fraction : float, default 0.2
        Part of each class that is held out at random, rounded down, if there is no folder for tests.
    seed : int, default 0
        Seed of the choice of the images that are held out.
    train_folder : str or None, default None
        The folder in ``path`` to train on, if the names do not say it; "." if all folders in ``path`` are classes.
    """
    if not str(check_type("path", path, str, PathLike)):
        raise ValueError("expected the path of a folder of images, got ''")
    path = Path(os.path.abspath(Path(path).expanduser()))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: expected one with a sub-folder of images a class")
    size = None if size is None else check_integer("size", size, 1)
    test_fraction, seed = check_number("test_fraction", test_fraction, 0, 1), check_integer("seed", seed, 0)
    roots, unread = _find_splits(path, train_folder), Counter[str]()
    loose = [_only_images(sorted(file for file in root.iterdir() if not file.is_dir()), unread) for root in roots]
    inside = [folder for parent in {path: 0, **dict.fromkeys(roots)} for folder in subfolders(parent)]
    apart = [folder for folder in inside if folder.name.lower() in UNLABELLED and roots != [folder]]
    unlabelled = [file for folder in apart for file in find_images(folder, unread)]
    flat = all(loose) and not any(set(subfolders(root)) - set(apart) for root in roots)
    splits = [{"": files} for files in loose] if flat else [find_classes(root, unread, apart) for root in roots]
    others = set(subfolders(path)) - {*roots, *apart} if path not in roots else set()
    left_out = [f"{sum(map(len, loose))} images outside the class folders"] if any(loose) and not flat else []
    left_out += [f"the folder {printable(folder.name)}" for folder in sorted(others) if find_images(folder)]
    left_out += [f"{count} files ending in {ending!r}" for ending, count in sorted(unread.items())]
    if left_out:
        warnings.warn(f"{printable(path)}: not read: {', '.join(left_out)}", stacklevel=2)
    parts, rest, names = read_classes(splits, size, path, unlabelled)
    if flat:
        parts, names = [Images(part.images, torch.full_like(part.labels, UNKNOWN)) for part in parts], ()
    train, test = parts if len(parts) == 2 else _hold_out(parts[0], test_fraction, seed)
    without_labels = Images(rest, torch.full((len(rest),), UNKNOWN)) if len(rest) else None
    options = {"size": size, "test_fraction": test_fraction, "seed": seed, "train_folder": train_folder}
    return ImageData(str(path), train, test, names, without_labels, source=options)


def _find_splits(path: Path, train_folder: str | None) -> list[Path]:
    """Return the folders of the training and the test split, or the one that holds both; ValueError if unclear."""
    visible = [folder for folder in subfolders(path) if folder.name.lower() not in UNLABELLED]
    kinds = [split_of(folder.name) for folder in visible]
    if len(kinds) < 2 or not all(kinds):  # among other folders, bullet_train is a class
        kinds = [SPLITS.get(folder.name.lower()) for folder in visible]
    pairs = list(zip(visible, kinds, strict=True))
    by_kind = {kind: [folder for folder, its in pairs if its == kind] for kind in ("train", "test", "val")}
    if train_folder is not None:
        if ".." in Path(train_folder).parts or Path(train_folder).is_absolute() or not (path / train_folder).is_dir():
            raise ValueError(f"train_folder must be a folder in {path} or '.', got {train_folder!r}")
        by_kind["train"] = [path / train_folder]
        if by_kind["train"] == [path]:
            return [path]
    held_out = by_kind["test"] or by_kind["val"]
    found = [folder.name for folders in by_kind.values() for folder in folders]
    remedy = "train_folder (--train-folder) names the one to train on, or '.' if all folders are classes"
    named = [] if train_folder else [folder.name for folder in [*by_kind["train"], *held_out]]
    rest = {"".join(word for word in _words(name) if word not in SPLITS) for name in named} - {""}
    if len(rest) > 1 or len(by_kind["train"]) > 1 or len(held_out) > 1 or (held_out and not by_kind["train"]):
        raise ValueError(f"{path} has the folders {', '.join(found)}, which are no clear pair of splits: {remedy}")
    if by_kind["train"] and not held_out and train_folder is None:
        raise ValueError(f"{path} has a folder {found[0]} but neither test nor val: {remedy}")
    inner = [{folder.name for folder in subfolders(one)} for one in visible]
    alike = len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner)
    if not found and alike and not SPLITS.keys() & {name.lower() for name in inner[0]}:
        same = ", ".join(sorted(map(printable, inner[0])))
        raise ValueError(f"each folder in {path} holds the folders {same}, as splits do: {remedy}")
    return [*by_kind["train"], *held_out] or [path]


def from_arrays(
    images: ArrayLike | Tensor, labels: ArrayLike | Tensor, test_images: ArrayLike | Tensor | None = None,
    test_labels: ArrayLike | Tensor | None = None, name: str = "arrays", test_fraction: float = 0.2, seed: int = 0,
) -> ImageData:  # fmt: skip
    """Return an :class:`ImageData` from arrays of images.

    Parameters
    ----------
    images, test_images : array of shape (n, h, w), (n, h, w, c) or (n, c, h, w)
        uint8, or floats in [0, 1], which are rounded to multiples of 1/255; c is 1 or 3.
    labels, test_labels : array of shape (n,)
        Integers, booleans or strings; class numbers are positions in the sorted distinct values of ``labels``.
    name, test_fraction, seed : str, float, int, default "arrays", 0.2, 0
        Name of the set; the others as in :func:`from_folder`, without ``test_images``.

    Examples
    --------
    >>> import numpy as np
    >>> from hsic_lab.datasets import from_arrays
    >>> from_arrays(np.zeros((10, 8, 8), np.uint8), ["cat", "dog"] * 5).train.images.shape
    torch.Size([8, 1, 8, 8])
    """
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels go together: one is given without the other")
    values = as_labels("labels", labels)
    known = np.unique(values)
    train = Images(as_images("images", images), _class_numbers(values, known))
    if test_images is None or test_labels is None:
        train, test = _hold_out(train, test_fraction, seed)
    else:
        numbers = _class_numbers(as_labels("test_labels", test_labels), known)
        test = Images(as_images("test_images", test_images), numbers)
    return ImageData(name, train, test, tuple(map(str, known)))


def as_images(name: str, images: ArrayLike | Tensor) -> Tensor:
    """Return images of any accepted layout as uint8 (n, c, h, w)."""
    pixels = as_tensor(images, name, shared=True)
    if not pixels.is_floating_point() and pixels.dtype != torch.uint8:
        found = getattr(images, "dtype", pixels.dtype)
        raise TypeError(f"{name} must be uint8 or floats in [0, 1], got {found}: convert to uint8 if 255 is white")
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(f"{name} must be (n, h, w), (n, h, w, c) or (n, c, h, w), got {tuple(pixels.shape)}")
    first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if first == last:
        found = f"{tuple(pixels.shape)}: on {'both' if first else 'neither'}"
        raise ValueError(f"{name} must have 1 or 3 channels on axis 1 or 3, got {found}")
    if last:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} of floats must be in [0, 1], got values from {low:g} to {high:g}")
        pixels = pixels.mul(255).round().to(torch.uint8)
    return pixels.contiguous()


def _class_numbers(labels: np.ndarray, known: np.ndarray) -> Tensor:
    """Return the positions of the labels in the sorted array `known`."""
    if strange := sorted(set(labels.tolist()) - set(known.tolist())):
        raise ValueError(f"test_labels holds {strange[0]!r}, which labels does not")
    return torch.from_numpy(np.searchsorted(known, labels).astype(np.int64))


def _hold_out(whole: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """Return a training and a test split: `fraction` of each class is held out, rounded down; the order stays."""
    fraction = check_number("test_fraction", fraction, 0, 1, above=True, below=True)
    seed = check_integer("seed", seed, 0)
    shuffle = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    held_out = torch.zeros(len(whole), dtype=torch.bool)
    for label in whole.labels.unique():
        members = shuffle[whole.labels[shuffle] == label]
        held_out[members[: math.floor(fraction * len(members) + 1e-9)]] = True
    if not held_out.any():
        raise ValueError(f"test_fraction {fraction} of every class is less than one image: hold out more")
    return whole.subset(~held_out), whole.subset(held_out)
