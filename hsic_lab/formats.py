"""The published binary formats, each read by one function from a file to tensors: no pickle, nothing executed.

What the bytes cannot be is a ValueError that names the file and what was expected; a missing file is
FileNotFoundError. Which files make a set, and what to do about a bad one, is the business of `datasets`.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hsic_lab.images import Images

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


def map_file(path: Path) -> Tensor:
    """The bytes of a file as a uint8 vector that the system reads when they are touched.

    The mapping is private: the file can be read-only, and writing to the tensor does not change it.
    """
    return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)


def _check_labels(path: Path, labels: Tensor, low: int, high: int) -> None:
    wrong = (labels < low) | (labels > high)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{path}: record {row} has the label {int(labels[row])}, expected {low}..{high}")
