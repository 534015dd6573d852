"""A labelled set of images in memory: the form in which every data set reaches the rest of the library."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

if TYPE_CHECKING:
    from hsic_lab.datasets.digit_scenes import DigitScenes


@dataclass(frozen=True, eq=False)  # eq=False: == on tensors is elementwise and has no single truth value
class Images:
    """One split of a data set: images, labels and, where they are known, the causes of every image.

    images:  uint8 (n, c, h, w), values 0..255
    labels:  int64 (n,), on the same device
    factors: a data frame with one row an image, or None; it stays in main memory whatever the device

    Raises TypeError for another dtype and ValueError for shapes that do not fit together.
    """

    images: Tensor
    labels: Tensor
    factors: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.labels.dtype != torch.int64:
            raise TypeError(
                f"images must be torch.uint8 and labels torch.int64, got {self.images.dtype} and {self.labels.dtype}"
            )
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "images must have shape (n, c, h, w) and labels (n,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if self.factors is not None and len(self.factors) != len(self.images):
            raise ValueError(f"factors must have one row an image: {len(self.factors)} rows, {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Images:
        """The same set with images and labels on ``device``."""
        return Images(self.images.to(device), self.labels.to(device), self.factors)

    def sample(self, n: int) -> Images:
        """The first n images; of a split that lies class by class, n at equal distances, so that every class stays."""
        # As many blocks of one label as there are labels, in whatever order of classes.
        by_class = int((self.labels.diff() != 0).sum()) < len(self.labels.unique())
        positions = torch.arange(n, device=self.labels.device)
        return self.subset(positions * len(self) // n if by_class else positions)

    def subset(self, index: Tensor | slice | list[int]) -> Images:
        """The images that ``index`` picks, in its order: positions, a boolean mask (n,) or a slice."""
        positions = torch.arange(len(self), device=self.images.device)[index]
        if positions.ndim != 1:
            raise ValueError(f"index must be positions, a mask of {len(self)} or a slice, got {index!r}")
        factors = self.factors
        if factors is not None:
            factors = factors.iloc[positions.cpu().numpy()].reset_index(drop=True)
        return Images(self.images[positions], self.labels[positions], factors)


_SAMPLED = 256  # images of a part that enter its fingerprint


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: labelled splits, the names of the classes, and more where a set has more.

    unlabelled: images to train on without labels, beside ``train``; their labels are -1
    scenes: a renderer of endless training pairs, when the set is synthetic

    Raises ValueError for parts whose images have different shapes.
    """

    name: str
    train: Images
    test: Images
    class_names: tuple[str, ...]
    unlabelled: Images | None = None
    scenes: DigitScenes | None = None

    def __post_init__(self) -> None:
        parts = {"train": self.train, "test": self.test, "unlabelled": self.unlabelled}
        shapes = {name: tuple(part.images.shape[1:]) for name, part in parts.items() if part is not None}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"the images of all parts of {self.name!r} must have one shape (c, h, w), got {shapes}")

    @property
    def trained_on(self) -> tuple[Tensor, ...]:
        """The images that training without labels sees, the parts of an `ImageSource`: train, then unlabelled."""
        return (self.train.images,) if self.unlabelled is None else (self.train.images, self.unlabelled.images)

    @cached_property
    def fingerprint(self) -> str:
        """What tells the images that are trained on from others: their shape, and a hash of some hundred of them."""
        shapes, content = [], hashlib.sha256()
        for part in self.trained_on:
            shapes.append(" x ".join(map(str, part.shape)))
            for image in part[:: max(1, len(part) // _SAMPLED)]:
                content.update(image.cpu().contiguous().numpy().tobytes())
        return f"{' and '.join(shapes)} ({content.hexdigest()[:16]})"
