"""HSIC from three sums over the Grams, which tiles of them or a stream of rows supply in little memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsic_lab.checks import full_precision, one_of, paired_samples
from hsic_lab.kernels import Kernel

# Two float32 tiles of this side, and what is computed on the way to them, stay in a core's second-level cache.
TILE_ROWS = 512


def from_sums(trace: Tensor, total_x: Tensor, total_y: Tensor, cross: Tensor, n: int, unbiased: bool) -> Tensor:
    """Either estimator from `sum K.L`, `1'K1`, `1'L1` and `1'K L 1`; Grams without diagonals for the unbiased one.

    Biased: `[trace + total_x total_y / n^2 - 2/n cross] / n^2`. Unbiased: Song et al. 2012, eq. 5.
    """
    if unbiased:
        return (trace + total_x * total_y / ((n - 1) * (n - 2)) - 2 / (n - 2) * cross) / (n * (n - 3))
    return (trace + total_x * total_y / n**2 - 2 / n * cross) / n**2


def tiled_hsic(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, unbiased: bool, block_size: int | None = None
) -> Tensor:
    """The estimators of `hsic` on checked samples and fitted kernels, by square tiles of `block_size` rows.

    The Grams are symmetric: of all pairs of row blocks only those with i <= j are visited. Time O(n^2 (p + q)),
    memory O(block_size^2 + n); a backward pass computes each tile again instead of keeping it. Tiles have the dtype
    of the samples, everything summed over tiles is float64.
    """
    n, size = len(x), block_size or TILE_ROWS
    blocks_x, blocks_y = x.split(size), y.split(size)
    rows_x: list[Tensor | int] = [0] * len(blocks_x)
    rows_y = list(rows_x)
    trace: Tensor | int = 0

    def tile(x_i: Tensor, x_j: Tensor | None, y_i: Tensor, y_j: Tensor | None) -> tuple[Tensor, ...]:
        with full_precision(x):
            k, l = kernel_x.gram(x_i, x_j), kernel_y.gram(y_i, y_j)
            if unbiased and x_j is None:
                k, l = k - k.diagonal().diag_embed(), l - l.diagonal().diag_embed()
            sums = [k.sum(dim=1), l.sum(dim=1), (k * l).sum(dim=1)]
            if x_j is not None:
                sums += [k.sum(dim=0), l.sum(dim=0)]
        return tuple(s.double() for s in sums)

    for i in range(len(blocks_x)):
        for j in range(i, len(blocks_x)):
            pair = (blocks_x[i], blocks_x[j], blocks_y[i], blocks_y[j])
            if i == j:
                pair = (blocks_x[i], None, blocks_y[i], None)
            recompute = torch.is_grad_enabled()
            sums = checkpoint(tile, *pair, use_reentrant=False, preserve_rng_state=False) if recompute else tile(*pair)
            rows_x[i], rows_y[i] = rows_x[i] + sums[0], rows_y[i] + sums[1]
            trace = trace + sums[2].sum() * (1 if i == j else 2)
            if i != j:
                rows_x[j], rows_y[j] = rows_x[j] + sums[3], rows_y[j] + sums[4]
    rows_x, rows_y = torch.cat(rows_x), torch.cat(rows_y)
    return from_sums(trace, rows_x.sum(), rows_y.sum(), rows_x @ rows_y, n, unbiased)


class StreamingHSIC:
    """Linear HSIC of samples that come in pieces: `StreamingHSIC().update(x, y).update(...).compute()`.

    Equal to `hsic(x, y, estimator=estimator)` of all rows, whatever their order and the sizes of the pieces. Holds
    one `(p, q)` matrix in float64 and a few vectors; no gradients. O(n p q) time.
    """

    def __init__(self, estimator: str = "biased") -> None:
        self._unbiased = one_of(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
        self.rows = 0

    @torch.no_grad()
    def update(self, x: Tensor, y: Tensor) -> "StreamingHSIC":
        """Takes in the rows of `x` `(m, p)` and `y` `(m, q)`; raises as `hsic` does, and on other p or q."""
        x, y = paired_samples(x, y, at_least=1)
        if self.rows == 0:
            # HSIC does not depend on the origin, its rounding error does.
            self._origin = x.mean(dim=0), y.mean(dim=0)
            p, q = x.shape[1], y.shape[1]
            shapes = {"xy": (p, q), "x": (p,), "y": (q,), "x_yy": (p,), "y_xx": (q,), "xx": (), "yy": (), "xx_yy": ()}
            self._sums = {k: torch.zeros(s, dtype=torch.float64, device=x.device) for k, s in shapes.items()}
        for z, origin, name in ((x, self._origin[0], "x"), (y, self._origin[1], "y")):
            if z.shape[1] != len(origin):
                raise ValueError(f"{name} must have {len(origin)} columns as before, got {z.shape[1]}")
        with full_precision(x):
            x, y = x - self._origin[0], y - self._origin[1]
            xx, yy = x.square().sum(dim=1), y.square().sum(dim=1)
            piece = {"xy": x.T @ y, "x": x.sum(dim=0), "y": y.sum(dim=0), "x_yy": yy @ x, "y_xx": xx @ y}
            piece |= {"xx": xx.sum(), "yy": yy.sum(), "xx_yy": xx @ yy}
        for key, value in piece.items():
            self._sums[key] += value
        self.rows += len(x)
        return self

    def compute(self) -> Tensor:
        """HSIC of the rows so far, a 0-d float64 tensor; raises ValueError if they are too few."""
        n, s = self.rows, getattr(self, "_sums", {})
        if n < (4 if self._unbiased else 2):
            raise ValueError(f"needs at least {4 if self._unbiased else 2} rows, got {n}")
        if not self._unbiased:
            return (s["xy"] / n - torch.outer(s["x"] / n, s["y"] / n)).square().sum()
        # Row sums of the Gram without its diagonal: x_i's - |x_i|^2, with s the sum of all rows.
        cross = s["x"] @ s["xy"] @ s["y"] - s["x"] @ s["x_yy"] - s["y"] @ s["y_xx"] + s["xx_yy"]
        total_x, total_y = s["x"] @ s["x"] - s["xx"], s["y"] @ s["y"] - s["yy"]
        return from_sums(s["xy"].square().sum() - s["xx_yy"], total_x, total_y, cross, n, unbiased=True)
