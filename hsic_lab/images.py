"""A labelled set of pictures in memory: the form in which every data set reaches the rest of the library."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)  # eq=False: == on tensors is elementwise and has no single truth value
class Images:
    """One split of a data set: pictures, labels and, where they are known, the causes of every picture.

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
                "images must be torch.uint8 and labels torch.int64, "
                f"got {self.images.dtype} and {self.labels.dtype}"
            )
        if self.images.ndim != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                "images must have shape (n, c, h, w) and labels (n,), "
                f"got {tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            )
        if self.factors is not None and len(self.factors) != len(self.images):
            raise ValueError(
                f"factors must have one row an image: {len(self.factors)} rows, {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Images:
        """The same set with pictures and labels on ``device``."""
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
