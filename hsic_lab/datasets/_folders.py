"""Images in folders, one folder a class: decoded once to one array, which is kept beside them."""

import hashlib
import math
import os
import re
import time
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from hsic_lab._checks import as_labels, as_tensor, is_whole
from hsic_lab._io import map_file
from hsic_lab.datasets._images import ImageData, Images

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
CACHE = ".hsic_lab-{size}-{digest}.npy"


def find_images(folder: Path) -> list[Path]:
    """Every image under `folder`, however deep, in the order of their paths; hidden files and folders are left out.

    A image is a file whose name ends in one of `SUFFIXES`, in lower or upper case.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]  # fmt: skip
    return sorted(found)


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its images, for the visible sub-folders of `folder` in alphabetical order.

    Raises ValueError if there is no sub-folder, or one without images.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no sub-folder: expected one folder of images a class")
    classes = {name: find_images(folder / name) for name in names}
    if empty := [name for name, files in classes.items() if not files]:
        accepted = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{folder / empty[0]} holds no image; accepted are files ending in {accepted}")
    return classes


def decode(path: Path, size: int | None) -> np.ndarray:
    """One image as uint8 (3, h, w).

    Turned as its EXIF orientation says, converted to RGB (gray levels are repeated, transparency is dropped, of an
    animation the first frame counts). With `size`, its shorter side is resized to `size` (bilinear, antialiased) and
    the central `size` x `size` square is cut out. Raises ValueError naming the file if it cannot be decoded or has
    more than 8 bits a channel, which a conversion would clip.
    """
    try:
        with Image.open(path) as opened:
            raw = " ".join(str(tile[3]) for tile in opened.tile)  # how the file has it, where the mode is silent of it
            if opened.mode not in EIGHT_BIT or re.search(";16[BLN]", raw):
                raise ValueError(f"its mode is {opened.mode!r} ({raw}), not 8 bits a channel: convert it first")
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a image that can be read: {error}. Replace or remove it") from error
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        shape = tuple(max(size, round(side * scale)) for side in image.size)
        image = image.resize(shape, Image.Resampling.BILINEAR)
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def decode_all(files: Sequence[Path], size: int | None, keep_in: Path, progress: bool = True) -> Tensor:
    """All images as one memory-mapped uint8 tensor (n, 3, h, w), see :func:`decode`; decoded on every core, once.

    The array is kept as `.hsic_lab-SIZE-DIGEST.npy` in `keep_in`, written under a temporary name and renamed. The
    digest is one of every file's path, length and time of change, so that a changed folder is decoded again and its
    former array removed. Where `keep_in` cannot be written, a warning says so and the array stays in memory.
    Raises ValueError as `decode` does, and without `size` for two images of different sizes.
    """
    label = "as_is" if size is None else f"{size}px"
    kept = keep_in / CACHE.format(size=label, digest=digest(files, keep_in))
    if kept.is_file():
        return _map_array(kept)
    first = decode(files[0], size)
    shape = (len(files), *first.shape)
    temporary = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
    except OSError as error:
        warnings.warn(f"decoded images are not kept, every load decodes again: {error}", stacklevel=2)
        array = np.empty(shape, np.uint8)
    try:
        _fill(array, files, size, progress)
        if not isinstance(array, np.memmap):
            return torch.from_numpy(array)
        array.flush()
        os.replace(temporary, kept)
    finally:
        temporary.unlink(missing_ok=True)
    former = set(keep_in.glob(CACHE.format(size=label, digest="*"))) - {kept}
    for path in former | _left_over(keep_in):
        path.unlink(missing_ok=True)  # another process may be doing the same
    return _map_array(kept)


def read_classes(
    splits: Sequence[dict[str, list[Path]]], size: int | None, root: Path, extra: Sequence[Path] = ()
) -> tuple[list[Images], Tensor, tuple[str, ...]]:
    """Decode splits with the same classes, and `extra` images without: the splits, the extra ones, class names.

    Labels are positions in the first split's order. Raises ValueError if a later split has a class that it has not.
    """
    names = tuple(splits[0])
    for split in splits[1:]:
        if unknown := sorted(set(split) - set(names)):
            raise ValueError(f"{root}: the test split has the class {unknown[0]!r}, which the training split has not")
    files = [[path for paths in split.values() for path in paths] for split in splits]
    labels = [
        torch.tensor([names.index(name) for name, paths in split.items() for _ in paths], dtype=torch.int64)
        for split in splits
    ]
    images = decode_all([path for part in [*files, list(extra)] for path in part], size, root)
    *parts, rest = images.split([*map(len, files), len(extra)])
    return [Images(part, numbers) for part, numbers in zip(parts, labels, strict=True)], rest, names


def _fill(array: np.ndarray, files: Sequence[Path], size: int | None, progress: bool) -> None:
    def one(row: int) -> None:
        image = decode(files[row], size)
        if image.shape != array.shape[1:]:
            raise ValueError(
                f"{files[row]} has {image.shape[2]} x {image.shape[1]} pixels, {files[0]} {array.shape[3]} x "
                f"{array.shape[2]}: load(folder, size=64), for instance, resizes and crops all to one square"
            )
        array[row] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in tqdm(pool.map(one, range(len(files))), "decoding", len(files), disable=not progress):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else a bad first image waits for all the others
            raise


def _left_over(folder: Path) -> set[Path]:
    """Arrays that a killed process began: a day old, as a living one, maybe on another machine, may be writing them."""
    begun = folder.glob(CACHE.format(size="*", digest="*") + ".*")
    return {path for path in begun if time.time() - path.stat().st_mtime > 24 * 3600}


def digest(files: Sequence[Path], root: Path) -> str:
    """Of the images and their order, and of nothing that differs between two copies made with `cp -a`."""
    content = hashlib.sha256()
    for path in files:
        metadata = path.stat()
        content.update(f"{path.relative_to(root).as_posix()}\0{metadata.st_size}\0{metadata.st_mtime_ns}\n".encode())
    return content.hexdigest()[:16]


def _map_array(path: Path) -> Tensor:
    header = np.load(path, mmap_mode="r", allow_pickle=False)
    return map_file(path)[header.offset :].view(header.shape)


UNKNOWN = -1  # the label of an unlabelled image


def from_folder(
    path: str | os.PathLike, size: int | None = None, test_fraction: float = 0.2, seed: int = 0
) -> ImageData:
    """Images in folders: ``path/train/CLASS/...`` with ``path/test`` or ``path/val`` alike, or ``path/CLASS/...``.

    Images become RGB. With ``size`` the shorter side is resized to it and the central square cut out, see
    :func:`hsic_lab.datasets._folders.decode`; without, all must have one size. ``path/unlabelled`` may hold images
    without classes. Of ``path/CLASS``, ``test_fraction`` of each class (rounded down) is held out by a shuffle with
    ``seed``, and the two parts are copies in memory; the other layout stays mapped from disk. The set's name is the
    folder's absolute path, so that :func:`hsic_lab.datasets._published.load` finds it again.
    Raises FileNotFoundError if there is no such folder, ValueError for a layout or image that cannot be read.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: expected one with a sub-folder of images a class")
    if size is not None and not (is_whole(size) and size >= 1):
        raise ValueError(f"size must be a whole number of at least 1 pixel, or None, got {size!r}")
    unlabelled = find_images(path / "unlabelled")
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
    """A set from arrays: images (n, h, w), (n, h, w, c) or (n, c, h, w) with c = 1 or 3, and n labels.

    Images are uint8, or floats in [0, 1], which are rounded to 1/255. Labels are integers or strings; the classes
    are the sorted distinct training labels, called ``class_names`` or by themselves. Without test arrays,
    ``test_fraction`` of each class is held out as in :func:`from_folder`. Raises TypeError and ValueError for what
    does not fit, and for images whose channel axis is not clear.
    """
    if (test_images is None) != (test_labels is None):
        raise ValueError("test_images and test_labels go together: one is given without the other")
    values = as_labels("labels", labels)
    known = np.unique(values)
    if class_names is not None and len(class_names) != len(known):
        raise ValueError(f"class_names must name the {len(known)} classes of labels, got {len(class_names)}")
    names = tuple(str(label) for label in (known if class_names is None else class_names))
    train = Images(_as_images("images", images), _positions(values, known))
    if test_images is None:
        train, test = _hold_out(train, test_fraction, seed)
    else:
        test = Images(_as_images("test_images", test_images), _positions(as_labels("test_labels", test_labels), known))
    rest = train.images[:0] if unlabelled is None else _as_images("unlabelled", unlabelled)
    return ImageData(name, train, test, names, _without_labels(rest))


def _as_images(name: str, images: ArrayLike | Tensor) -> Tensor:
    pixels = as_tensor(images, shared=True)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    if pixels.ndim != 4 or pixels.numel() == 0:
        raise ValueError(f"{name} must be (n, h, w), (n, h, w, c) or (n, c, h, w), got {tuple(pixels.shape)}")
    first, last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if first == last:
        where = "on both" if first else "on neither"
        raise ValueError(f"{name} must have 1 or 3 channels on axis 1 or on axis 3, got {tuple(pixels.shape)}: {where}")
    if last:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{name} of floats must be in [0, 1], got values from {low:g} to {high:g}")
        pixels = pixels.mul(255).round().to(torch.uint8)
    return pixels.contiguous()


def _positions(labels: np.ndarray, known: np.ndarray) -> Tensor:
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
        held_out[members[: math.floor(fraction * len(members) + 1e-9)]] = True
    if not held_out.any():
        raise ValueError(f"test_fraction {fraction} of every class is less than one image: hold out more")
    return whole.subset(~held_out), whole.subset(held_out)


def _without_labels(images: Tensor) -> Images | None:
    return Images(images, torch.full((len(images),), UNKNOWN)) if len(images) else None
