"""Pictures in folders, one folder a class: decoded once to one array, which is kept beside them."""

import hashlib
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
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from hsic_lab.formats import map_file
from hsic_lab.images import Images

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
CACHE = ".hsic_lab-{size}-{digest}.npy"


def find_pictures(folder: Path) -> list[Path]:
    """Every picture under `folder`, however deep, in the order of their paths; hidden files and folders are left out.

    A picture is a file whose name ends in one of `SUFFIXES`, in lower or upper case.
    """
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]  # fmt: skip
    return sorted(found)


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its pictures, for the visible sub-folders of `folder` in alphabetical order.

    Raises ValueError if there is no sub-folder, or one without pictures.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no sub-folder: expected one folder of pictures a class")
    classes = {name: find_pictures(folder / name) for name in names}
    if empty := [name for name, files in classes.items() if not files]:
        accepted = ", ".join(sorted(SUFFIXES))
        raise ValueError(f"{folder / empty[0]} holds no picture; accepted are files ending in {accepted}")
    return classes


def decode(path: Path, size: int | None) -> np.ndarray:
    """One picture as uint8 (3, h, w).

    Turned as its EXIF orientation says, converted to RGB (grey levels are repeated, transparency is dropped, of an
    animation the first frame counts). With `size`, its shorter side is resized to `size` (bilinear, antialiased) and
    the central `size` x `size` square is cut out. Raises ValueError naming the file if it cannot be decoded or has
    more than 8 bits a channel, which a conversion would clip.
    """
    try:
        with Image.open(path) as opened:
            raw = " ".join(str(tile[3]) for tile in opened.tile)  # how the file has it, where the mode is silent of it
            if opened.mode not in EIGHT_BIT or re.search(";16[BLN]", raw):
                raise ValueError(f"its mode is {opened.mode!r} ({raw}), not 8 bits a channel: convert it first")
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read: {error}. Replace or remove it") from error
    if size is not None and picture.size != (size, size):
        scale = size / min(picture.size)
        shape = tuple(max(size, round(side * scale)) for side in picture.size)
        picture = picture.resize(shape, Image.Resampling.BILINEAR)
        left, top = ((side - size) // 2 for side in picture.size)
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture).transpose(2, 0, 1)


def decode_all(files: Sequence[Path], size: int | None, keep_in: Path, progress: bool = True) -> Tensor:
    """All pictures as one memory-mapped uint8 tensor (n, 3, h, w), see :func:`decode`; decoded on every core, once.

    The array is kept as `.hsic_lab-SIZE-DIGEST.npy` in `keep_in`, written under a temporary name and renamed. The
    digest is one of every file's path, length and time of change, so that a changed folder is decoded again and its
    former array removed. Where `keep_in` cannot be written, a warning says so and the array stays in memory.
    Raises ValueError as `decode` does, and without `size` for two pictures of different sizes.
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
        warnings.warn(f"decoded pictures are not kept, every load decodes again: {error}", stacklevel=2)
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
    """Decode splits with the same classes, and `extra` pictures without: the splits, the extra ones, class names.

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
    pictures = decode_all([path for part in [*files, list(extra)] for path in part], size, root)
    *parts, rest = pictures.split([*map(len, files), len(extra)])
    return [Images(part, numbers) for part, numbers in zip(parts, labels, strict=True)], rest, names


def _fill(array: np.ndarray, files: Sequence[Path], size: int | None, progress: bool) -> None:
    def one(row: int) -> None:
        picture = decode(files[row], size)
        if picture.shape != array.shape[1:]:
            raise ValueError(
                f"{files[row]} has {picture.shape[2]} x {picture.shape[1]} pixels, {files[0]} {array.shape[3]} x "
                f"{array.shape[2]}: load(folder, size=64), for instance, resizes and crops all to one square"
            )
        array[row] = picture

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            for _ in tqdm(pool.map(one, range(len(files))), "decoding", len(files), disable=not progress):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else a bad first picture waits for all the others
            raise


def _left_over(folder: Path) -> set[Path]:
    """Arrays that a killed process began: a day old, as a living one, maybe on another machine, may be writing them."""
    begun = folder.glob(CACHE.format(size="*", digest="*") + ".*")
    return {path for path in begun if time.time() - path.stat().st_mtime > 24 * 3600}


def digest(files: Sequence[Path], root: Path) -> str:
    """Of the pictures and their order, and of nothing that differs between two copies made with `cp -a`."""
    content = hashlib.sha256()
    for path in files:
        facts = path.stat()
        content.update(f"{path.relative_to(root).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return content.hexdigest()[:16]


def _map_array(path: Path) -> Tensor:
    header = np.load(path, mmap_mode="r", allow_pickle=False)
    return map_file(path)[header.offset :].view(header.shape)
