"""Labeled images and the data sets made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

if TYPE_CHECKING:
    from hsic_lab.datasets.digit_scenes import DigitScenes

UNKNOWN = -1  # the label of an image without a label


@dataclass(frozen=True, eq=False, repr=False)  # comparing tensors has no single truth value
class Images:
    """One split of a data set: images or rows of numbers, with labels.

    Attributes
    ----------
    images, labels : Tensor of shape (n, c, h, w) or (n, ...), (n,)
        uint8 images, or float32 rows of any shape, which encoders receive as they are; int64 class numbers or -1.
    factors : DataFrame or None
        Known factors of variation, one row an image.
    """

    images: Tensor
    labels: Tensor
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.uint8, torch.float32) or self.labels.dtype != torch.int64:
            found = f"{self.images.dtype} and {self.labels.dtype}"
            raise TypeError(f"images must be torch.uint8 or torch.float32, and labels torch.int64, got {found}")
        fits = self.images.ndim == 4 if self.images.dtype == torch.uint8 else self.images.ndim >= 2
        if not fits or self.labels.shape != self.images.shape[:1]:
            found = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"images must be uint8 (n, c, h, w) or float32 (n, ...), and labels (n,), got {found}")
        if self.factors is not None and len(self.factors) != len(self.images):
            raise ValueError(f"factors must have one row an image: {len(self.factors)} rows, {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Images({tuple(self.images.shape)}, {self.images.dtype}, {len(self.labels.unique())} different labels)"

    def sample(self, n: int) -> Images:
        """Return n images, or all if there are fewer: the first n, or evenly spaced ones if the classes are sorted."""
        return self if n >= len(self) else self.subset(self._sampled(n))

    def split(self, n: int) -> tuple[Images, Images]:
        """Return the n images of `sample`, and the others in their order."""
        sampled = self._sampled(n)
        others = torch.ones_like(self.labels, dtype=torch.bool).index_fill_(0, sampled, False)
        return self.subset(sampled), self.subset(others)

    def _sampled(self, n: int) -> Tensor:
        n = min(n, len(self))
        by_class = int((self.labels.diff() != 0).sum()) < len(self.labels.unique())  # one block of rows a class
        positions = torch.arange(n, device=self.labels.device)
        return positions * len(self) // max(1, n) if by_class else positions

    def subset(self, index: Tensor | slice | list[int]) -> Images:
        """Return the images at ``index``, in its order: positions, a boolean mask of shape (n,), or a slice."""
        positions = torch.arange(len(self), device=self.images.device)[index]
        if positions.ndim != 1:
            raise ValueError(f"index must be positions, a mask of {len(self)} or a slice, got {index!r}")
        rows = None if self.factors is None else self.factors.iloc[positions.cpu().numpy()].reset_index(drop=True)
        return Images(self.images[positions], self.labels[positions], rows)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: two labeled splits, the names of the classes, and optional further parts.

    Attributes
    ----------
    name, class_names : str, tuple of str
        Name of the data set, which a run keeps as its ``config.dataset``, and of each class number.
    train, test, unlabelled : Images, Images, Images or None
        The labeled splits, and further images to train on, with label -1. All have one shape and dtype.
    scenes, source : DigitScenes or None, dict or None
        Renderer of fresh training pairs; options with which ``load`` makes the set again, None if made of arrays.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    unlabelled: Images | None = None
    scenes: DigitScenes | None = None
    source: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "test": self.test, "unlabelled": self.unlabelled}
        for kind, of in (("shape (c, h, w)", lambda x: tuple(x.shape[1:])), ("dtype", lambda x: x.dtype)):
            found = {name: of(part.images) for name, part in parts.items() if part is not None}
            if len(set(found.values())) > 1:
                raise ValueError(f"the images of all parts of {self.name!r} must have one {kind}, got {found}")

    @property
    def trained_on(self) -> tuple[Tensor, ...]:
        """The images for training without labels: those of ``train``, then those of ``unlabelled``."""
        return (self.train.images,) if self.unlabelled is None else (self.train.images, self.unlabelled.images)

    @cached_property
    def fingerprint(self) -> str:
        """Shape of the images in ``trained_on`` and a hash of some hundred of them; runs keep it as "pictures"."""
        return _summary(self.trained_on)

    @cached_property
    def judged(self) -> str:
        """The same of the test images and of all labels, which probes use; runs keep it under this name."""
        return _summary((self.test.images,), self.train.labels, self.test.labels)


def _summary(images: Sequence[Tensor], *labels: Tensor) -> str:
    """Return the shapes of images, and a hash of some hundred of them and of the labels."""
    some = [*(part[:: max(1, len(part) // 256)] for part in images), *labels]
    content = b"".join(part.cpu().contiguous().numpy().tobytes() for part in some)
    shapes = " and ".join(" x ".join(map(str, part.shape)) for part in images)
    return f"{shapes} ({hashlib.sha256(content).hexdigest()[:16]})"
