"""HSIC from three sums over the Grams, which tiles of them supply in little memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hsic_lab.checks import full_precision
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
