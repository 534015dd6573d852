"""Data sets of the user's own: folders of pictures, and arrays."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hsic_lab.checks import as_labels, as_tensor, is_whole
from hsic_lab.folders import find_classes, find_pictures, read_classes
from hsic_lab.image_data import ImageData
from hsic_lab.images import Images

UNKNOWN = -1  # the label of an unlabelled picture


def from_folder(
    path: str | os.PathLike, size: int | None = None, test_fraction: float = 0.2, seed: int = 0
) -> ImageData:
    """Pictures in folders: ``path/train/CLASS/...`` with ``path/test`` or ``path/val`` alike, or ``path/CLASS/...``.

    Pictures become RGB. With ``size`` the shorter side is resized to it and the central square cut out, see
    :func:`hsic_lab.folders.decode`; without, all must have one size. ``path/unlabelled`` may hold pictures
    without classes. Of ``path/CLASS``, ``test_fraction`` of each class (rounded down) is held out by a shuffle with
    ``seed``, and the two parts are copies in memory; the other layout stays mapped from disk. The set's name is the
    folder's absolute path, so that :func:`hsic_lab.datasets.load` finds it again.
    Raises FileNotFoundError if there is no such folder, ValueError for a layout or picture that cannot be read.
    """
    path = Path(os.path.abspath(Path(path).expanduser()))
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}: expected one with a sub-folder of pictures a class")
    if size is not None and not (is_whole(size) and size >= 1):
        raise ValueError(f"size must be a whole number of at least 1 pixel, or None, got {size!r}")
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
        raise ValueError(f"test_fraction {fraction} of every class is less than one picture: hold out more")
    return whole.subset(~held_out), whole.subset(held_out)


def _without_labels(pictures: Tensor) -> Images | None:
    return Images(pictures, torch.full((len(pictures),), UNKNOWN)) if len(pictures) else None
