"""Plain rows of numbers in the place of pictures: how they travel through `train`, their views, their encoder."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hsic_lab.images import Images

RowViews = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


class CorruptedRows:
    """Two views of each row `(m, p)`: in each view, each entry is replaced with probability `corruption` by the same
    column's entry of a random row of the batch.

    The corruption of SCARF (Bahri, Jiang, Tay and Metzler 2022, arXiv 2106.15147), which needs neither units nor
    additive noise: a replaced entry is one that the column takes. SCARF corrupts 60 % of one view and leaves the other
    alone; here both views have one law. What the views share is what several columns say together.
    Raises ValueError unless `0 < corruption < 1`.
    """

    def __init__(self, corruption: float = 0.3) -> None:
        if not 0 < corruption < 1:
            raise ValueError(f"corruption must be a share between 0 and 1, got {corruption!r}")
        self.corruption = corruption

    def __call__(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self._view(rows, generator), self._view(rows, generator)

    def _view(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(rows.shape, generator=generator, device=rows.device) < self.corruption
        donors = torch.randint(len(rows), rows.shape, generator=generator, device=rows.device)
        return torch.where(chosen, rows.gather(0, donors), rows)


class RowEncoder(nn.Sequential):
    """Two linear layers of `16 width` features, each with batch normalisation and ReLU: `(m, p) -> (m, 16 width)`."""

    def __init__(self, width: int, columns: int) -> None:
        features = 16 * width
        super().__init__(
            nn.Linear(columns, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True),
            nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(inplace=True),
        )


class OnPictures(nn.Module):
    """An encoder of rows `(m, p)` that reads them as pictures `(m, p, h, w)`, off the pixel at the top left."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> Tensor:
        return self.encoder(pictures[:, :, 0, 0])


def as_pictures(rows: Tensor) -> Images:
    """Float32 rows `(n, p)` as uint8 pictures `(n, p, 4, 1)` that hold each number's four bytes: nothing is rounded."""
    pixels = rows.contiguous().view(torch.uint8).view(*rows.shape, 4, 1)
    return Images(pixels, torch.zeros(len(rows), dtype=torch.int64))


def views_of_pictures(views: RowViews) -> Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]:
    """Views of rows as views of what `as_pictures` made of them: float32 `(m, p, 1, 1)` each."""

    def pair(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = pictures.flatten(2).contiguous().view(torch.float32)[:, :, 0]
        view_a, view_b = views(rows, generator)
        return view_a[:, :, None, None], view_b[:, :, None, None]

    return pair
