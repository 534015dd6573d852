"""The off-diagonal part of the squared Frobenius norm of C = X'Y/n, from C (d x d) or from two Grams (n x n)."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab._checks import no_autocast
from hsic_lab.correlation import standardize_backward, standardize_forward

ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")
_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into the L2 cache of a core


def split_squared_norm(
    x: Tensor, y: Tensor | None = None, route: str = "auto", contrast: str = "dimensions", standardized: bool = False
) -> tuple[Tensor, Tensor]:
    """Diagonal `(d,)` of `C = X'Y/n` and the off-diagonal part of its squared norm; `y` is `x` if it is left out.

    The squared norm is `||C||_F^2 = <XX', YY'>_F / n^2`: for centered columns, HSIC with linear kernels. Each side of
    this equation has a diagonal that can be left out (Garrido et al. 2023, theorem 3.3, here for two views):
    * `contrast="dimensions"`: `sum_{i != j} C_ij^2`, over pairs of features (Barlow Twins, VICReg);
    * `contrast="samples"`: `sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2`, over pairs of images.
    Both are computed by both routes, in O(n d^2) from C or in O(n^2 d) from the Grams. Differentiable once. With
    `standardized`, x and y are standardized first; the dual route standardizes again for backward.
    """
    n, d = x.shape
    if route == "auto":
        # Primal: 3 products of n d^2 (one forward, two backward). Dual: 4 of n^2 d (two and two), and work on every
        # element that takes as long as about 200 multiplications.
        route = "primal" if 3 * d <= 4 * n + 200 else "dual"
    return (_Primal if route == "primal" else _Dual).apply(x, y, contrast == "samples", standardized)


def column_blocks(z: Tensor) -> list[slice]:
    """Slices that cover the columns of `z` `(n, d)`: blocks that fit the cache of a CPU, one block on a GPU."""
    n, d = z.shape
    width = d if z.is_cuda else max(64, _BLOCK_ELEMENTS // n)  # pieces of fewer than 64 columns are read slowly
    return [slice(start, start + width) for start in range(0, d, width)]


# Both functions are written out because autograd would differentiate X X' as a product of two different matrices: six
# products where the symmetry of the Grams needs four.
class _Primal(Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, samples: bool, standardized: bool) -> tuple[Tensor, Tensor]:
        other = x if y is None else y
        scales: tuple[Tensor, ...] = ()
        if standardized:
            (x, scale_x), (other, scale_y) = _standardize_by_blocks(x), _standardize_by_blocks(other)
            y, scales = other, (scale_x, scale_y)
        c = (x.T @ other).div_(len(x))
        diagonal = c.diagonal().clone()
        if samples:
            squared_norm = c.square().sum() - x.square().sum(dim=1) @ other.square().sum(dim=1) / len(x) ** 2
        else:
            squared_norm = c.fill_diagonal_(0).square().sum()
        ctx.save_for_backward(x, y, c, *scales)
        ctx.samples = samples
        return diagonal, squared_norm

    @staticmethod
    @once_differentiable
    def backward(ctx, for_diagonal: Tensor, for_squared_norm: Tensor) -> tuple:
        x, y, c, *scales = ctx.saved_tensors
        n, other = len(x), x if y is None else y
        scale = 2 * for_squared_norm / n
        weights = c * scale  # the gradient with respect to C, over n
        weights.diagonal().add_(for_diagonal / n)
        with no_autocast(x):  # backward() may run inside the caller's autocast
            for_x, for_y = other @ weights.T, x @ weights
        if ctx.samples:
            for_x -= scale / n * other.square().sum(dim=1, keepdim=True) * x
            for_y -= scale / n * x.square().sum(dim=1, keepdim=True) * other
        if y is None:
            return for_x + for_y, None, None, None
        for gradient, z, scale in zip((for_x, for_y), (x, y), scales, strict=False):  # no scales: not standardized
            for block in column_blocks(z):
                standardize_backward(gradient[:, block], z[:, block], scale[block])
        return for_x, for_y, None, None


class _Dual(Function):
    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor | None, samples: bool, standardized: bool) -> tuple[Tensor, Tensor]:
        n, d = z_a.shape
        gram_x = z_a.new_zeros(n, n)
        gram_y = gram_x if z_b is None else z_a.new_zeros(n, n)
        diagonal = z_a.new_empty(d)
        for block in column_blocks(z_a):
            x = y = _columns(z_a, block, standardized)[0]
            gram_x.addmm_(x, x.T)
            if z_b is not None:
                y = _columns(z_b, block, standardized)[0]
                gram_y.addmm_(y, y.T)
            diagonal[block] = (x * y).mean(dim=0)
        if samples:
            gram_x.fill_diagonal_(0)
            gram_y.fill_diagonal_(0)
        squared_norm = (gram_x * gram_y).sum() / n**2
        if not samples:
            # No digits are lost in the difference: where d > n, ||C||^2 exceeds the squared norm of its diagonal.
            squared_norm = squared_norm - diagonal.square().sum()
        ctx.save_for_backward(z_a, z_b, gram_x, gram_y, diagonal)
        ctx.samples, ctx.standardized = samples, standardized
        return diagonal, squared_norm

    @staticmethod
    @once_differentiable
    def backward(ctx, for_diagonal: Tensor, for_squared_norm: Tensor) -> tuple:
        z_a, z_b, gram_x, gram_y, diagonal = ctx.saved_tensors
        n = len(z_a)
        scale = 2 * for_squared_norm / n**2
        column = (for_diagonal if ctx.samples else for_diagonal - 2 * for_squared_norm * diagonal) / n
        weights_x, weights_y = gram_y * scale, gram_x * scale
        for_x, for_y = torch.empty_like(z_a), torch.empty_like(z_a)
        with no_autocast(z_a):
            for block in column_blocks(z_a):
                x, scale_x = _columns(z_a, block, ctx.standardized)
                y, scale_y = (x, None) if z_b is None else _columns(z_b, block, ctx.standardized)
                own_x = (weights_x @ x).addcmul_(column[block], y)
                own_y = (weights_y @ y).addcmul_(column[block], x)
                for_x[:, block] = own_x if scale_x is None else standardize_backward(own_x, x, scale_x)
                for_y[:, block] = own_y if scale_y is None else standardize_backward(own_y, y, scale_y)
        return (for_x + for_y, None, None, None) if z_b is None else (for_x, for_y, None, None)


def _columns(z: Tensor, block: slice, standardized: bool) -> tuple[Tensor, Tensor | None]:
    return standardize_forward(z[:, block]) if standardized else (z[:, block], None)


def _standardize_by_blocks(z: Tensor) -> tuple[Tensor, Tensor]:
    x, scale = torch.empty_like(z), z.new_empty(z.shape[1])
    for block in column_blocks(z):
        x[:, block], scale[block] = standardize_forward(z[:, block])
    return x, scale
