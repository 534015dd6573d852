"""The off-diagonal part of the squared Frobenius norm of C = X'Y/n, from C (d x d) or from two Grams (n x n)."""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from hsic_lab._checks import matmul, no_autocast
from hsic_lab.correlation import reciprocal_std, standardize_with_scale

ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")
_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into the L2 cache of a core
_HEAD = 64  # features whose correlations are computed one by one


def split_squared_norm(
    x: Tensor, y: Tensor | None = None, route: str = "auto", contrast: str = "dimensions", standardized: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal `(d,)` of `C = X'Y/n`, sum of the squares of its other entries, and their sum. `y` is `x` by default.

    The squared norm is `||C||_F^2 = <XX', YY'>_F / n^2`: for centered columns, HSIC with linear kernels. Each side of
    this equation has a diagonal that can be left out (Garrido et al. 2023, theorem 3.3, here for two views):
    * `contrast="dimensions"`: `sum_{i != j} C_ij^2`, over pairs of features (Barlow Twins, VICReg);
    * `contrast="samples"`: `sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2`, over pairs of images.
    Both are computed by both routes, in O(n d^2) from C or in O(n^2 d) from the Grams. With `standardized`, x and y
    are standardized first; the dual route standardizes again for backward.
    """
    n, d = x.shape
    if route == "auto":
        # Primal: 3 products of n d^2 (one forward, two backward). Dual: 4 of n^2 d (two and two), and work on every
        # element that takes as long as about 200 multiplications.
        route = "primal" if 3 * d <= 4 * n + 200 else "dual"
    if contrast == "samples":
        return _over_pairs_of_images(x, y, route, standardized)
    if route == "dual" and not standardized:
        return _dual_without_head(x, y)
    return _split(x, y, route, standardized)


def column_blocks(z: Tensor) -> list[slice]:
    """Slices that cover the columns of `z` `(n, d)`: blocks that fit the cache of a CPU, one block on a GPU."""
    n, d = z.shape
    width = d if z.is_cuda else max(64, _BLOCK_ELEMENTS // n)  # pieces of fewer than 64 columns are read slowly
    return [slice(start, start + width) for start in range(0, d, width)]


def _over_pairs_of_images(x: Tensor, y: Tensor | None, route: str, standardized: bool) -> tuple[Tensor, Tensor, Tensor]:
    n, d = x.shape
    if standardized:
        x, y = standardize_with_scale(x)[0], None if y is None else standardize_with_scale(y)[0]
    y = x if y is None else y
    diagonal = (x * y).mean(dim=0)
    total = (x.sum(dim=1) * y.sum(dim=1)).sum() / n - diagonal.sum()
    if route == "dual":
        products = matmul(x, x.T) * matmul(y, y.T)
        return diagonal, (products - products.diagonal().diag_embed()).sum() / n**2, total
    # Rows that dominate the difference of the norm and its diagonal go through their Grams, as in `_dual_without_head`.
    top = (x.square().sum(dim=1) * y.square().sum(dim=1)).detach().topk(min(_HEAD, n, d)).indices
    products = (matmul(x[top], x.T) * matmul(y[top], y.T)).scatter(1, top[:, None], 0)
    x, y = x.index_fill(0, top, 0), y.index_fill(0, top, 0)
    rest = (matmul(x.T, y)).square().sum() - (x.square().sum(dim=1) * y.square().sum(dim=1)).sum()
    return diagonal, (2 * products.sum() - products[:, top].sum() + rest) / n**2, total


def _dual_without_head(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The dual route for features of any scales: those of the largest `C_ii` go through their rows and columns of C.

    The dual route subtracts `sum_i C_ii^2` from the squared norm. If few features dominate both, no digit is left.
    Without these, what is subtracted is of the order of their correlations, as `C_ij^2` is about `C_ii C_jj / n`.
    """
    n, d = x.shape
    other = x if y is None else y
    top = (x * other).sum(dim=0).detach().abs().topk(min(_HEAD, n, d)).indices
    rest_x = x.index_fill(1, top, 0)
    rest_y = None if y is None else y.index_fill(1, top, 0)
    diagonal, squared_norm, total = _split(rest_x, rest_y, "dual", False)
    rows, columns = matmul(x[:, top].T, other) / n, matmul(other[:, top].T, rest_x) / n
    head = rows.gather(1, top[:, None])[:, 0]
    squared_norm = squared_norm + rows.scatter(1, top[:, None], 0).square().sum() + columns.square().sum()
    return diagonal.index_add(0, top, head), squared_norm, total + rows.sum() - head.sum() + columns.sum()


def _split(x: Tensor, y: Tensor | None, route: str, standardized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`split_squared_norm` over pairs of features, by the functions below or, within transforms, by torch's own."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _by_autograd(x, y, route, standardized)
    return _Split.apply(x, y, route, standardized)


def _by_autograd(x: Tensor, y: Tensor | None, route: str, standardized: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of `_Split`, which autograd differentiates to any order in any mode."""
    n = len(x)
    if standardized:
        x, y = standardize_with_scale(x)[0], None if y is None else standardize_with_scale(y)[0]
    y = x if y is None else y
    if route == "primal":
        c = matmul(x.T, y) / n
        others = c - c.diagonal().diag_embed()
        return c.diagonal(), others.square().sum(), others.sum()
    diagonal, total = (x * y).mean(dim=0), (x.sum(dim=1) * y.sum(dim=1)).sum() / n
    squared_norm = (matmul(x, x.T) * matmul(y, y.T)).sum() / n**2
    return diagonal, squared_norm - diagonal.square().sum(), total - diagonal.sum()


class _Split(Function):
    # Written out because autograd would differentiate X X' as a product of two different matrices, six products where
    # the symmetry of the Grams needs four, and would standardize in twice as many passes over the views.
    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor | None, route: str, standardized: bool) -> tuple[Tensor, ...]:
        results, saved = (_primal if route == "primal" else _dual)(z_a, z_b, standardized)
        ctx.save_for_backward(z_a, z_b, *saved)
        ctx.route, ctx.standardized = route, standardized
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        z_a, z_b, *saved = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            inputs = [z for z in (z_a, z_b) if z is not None]
            results, pull = torch.func.vjp(lambda x, y=None: _by_autograd(x, y, ctx.route, ctx.standardized), *inputs)
            filled = tuple(torch.zeros_like(r) if g is None else g for r, g in zip(results, gradients, strict=True))
            return (*pull(filled), *[None] * (4 - len(inputs)))
        compute = _primal_backward if ctx.route == "primal" else _dual_backward
        numbers = (0.0 if g is None else g for g in gradients)
        with no_autocast(z_a):  # backward() may run inside the caller's autocast
            return *compute(z_a, z_b, ctx.standardized, saved, *numbers), None, None


def _primal(z_a: Tensor, z_b: Tensor | None, standardized: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    n = len(z_a)
    saved: tuple[Tensor, ...] = ()
    if standardized:  # as `standardize_with_scale`, but the scales are applied to C and not to the views
        views = torch.stack([z_a, z_a if z_b is None else z_b])
        views -= (means := views.sum(dim=1, keepdim=True).mul_(1 / n))
        views -= views.sum(dim=1, keepdim=True).mul_(1 / n)
        scales = reciprocal_std(means[:, 0], views.square().sum(dim=1).mul_(1 / n))
        (x, y), (scale_x, scale_y) = views, scales
        c = (x.T @ y).mul_((scale_x / n)[:, None]).mul_(scale_y)
    else:
        c = (z_a.T @ (z_a if z_b is None else z_b)).mul_(1 / n)
    diagonal = c.diagonal().clone()
    squares = c.fill_diagonal_(0).square()
    rows = squares.sum(dim=1)
    if standardized:
        saved = views, scales, torch.stack([rows, squares.sum(dim=0)]), diagonal
    return (diagonal, rows.sum(), c.sum()), (c, *saved)


def _primal_backward(z_a, z_b, standardized, saved, for_diagonal, for_squared_norm, for_total):
    c, *moments = saved
    n = len(z_a)
    if not standardized:
        weights = c * (2 / n * for_squared_norm)  # the gradient with respect to C, over n
        weights.diagonal().add_(for_diagonal / n)
        return ((z_a @ weights).mul_(2), None) if z_b is None else (z_b @ weights.T, z_a @ weights)
    views, scales, squares, diagonal = moments
    (x, y), (scale_x, scale_y) = views, scales
    scale_x = scale_x / n
    weights = (c * (2 * for_squared_norm * scale_x)[:, None]).mul_(scale_y)
    along = 2 * for_squared_norm * squares + for_diagonal * diagonal  # row and column sums of C times its gradient
    if isinstance(for_total, Tensor):
        weights.addr_(for_total * scale_x, scale_y)
        along += for_total * torch.stack([c.sum(dim=1), c.sum(dim=0)])
    weights.diagonal().copy_(for_diagonal * scale_x * scale_y)
    # The gradients of standardized views have mean 0, because the other view has, and need no more than this product.
    along_x, along_y = along.mul_(scales).mul_(scales).mul_(1 / n)
    for_x = (y @ weights.T).addcmul_(x, along_x, value=-1)
    for_y = (x @ weights).addcmul_(y, along_y, value=-1)
    return (for_x + for_y, None) if z_b is None else (for_x, for_y)


def _dual(z_a: Tensor, z_b: Tensor | None, standardized: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    n, d = z_a.shape
    gram_x = z_a.new_zeros(n, n)
    gram_y = gram_x if z_b is None else z_a.new_zeros(n, n)
    sum_x = z_a.new_zeros(n)
    sum_y = sum_x if z_b is None else z_a.new_zeros(n)
    diagonal = z_a.new_empty(d)
    for block in column_blocks(z_a):
        x = y = _columns(z_a, block, standardized)[0]
        gram_x.addmm_(x, x.T)
        sum_x += x.sum(dim=1)
        if z_b is not None:
            y = _columns(z_b, block, standardized)[0]
            gram_y.addmm_(y, y.T)
            sum_y += y.sum(dim=1)
        diagonal[block] = (x * y).mean(dim=0)
    # Standardized features lose no digits in the difference: where d > n, ||C||^2 exceeds the norm of its diagonal.
    squared_norm = (gram_x * gram_y).sum() / n**2 - diagonal.square().sum()
    return (diagonal, squared_norm, sum_x @ sum_y / n - diagonal.sum()), (gram_x, gram_y, sum_x, sum_y, diagonal)


def _dual_backward(z_a, z_b, standardized, saved, for_diagonal, for_squared_norm, for_total):
    gram_x, gram_y, sum_x, sum_y, diagonal = saved
    n, scale = len(z_a), 2 / len(z_a) ** 2 * for_squared_norm
    column = (for_diagonal - for_total - 2 * for_squared_norm * diagonal) / n
    weights_x, weights_y = gram_y * scale, gram_x * scale
    row_x, row_y = (s[:, None] * (for_total / n) for s in (sum_y, sum_x))
    for_x, for_y = torch.empty_like(z_a), z_a if z_b is None else torch.empty_like(z_a)
    for block in column_blocks(z_a):
        x, scale_x = _columns(z_a, block, standardized)
        y, scale_y = (x, None) if z_b is None else _columns(z_b, block, standardized)
        for_x[:, block] = _standardize_backward((weights_x @ x).add_(row_x).addcmul_(column[block], y), x, scale_x)
        if z_b is not None:
            for_y[:, block] = _standardize_backward((weights_y @ y).add_(row_y).addcmul_(column[block], x), y, scale_y)
    return (for_x.mul_(2), None) if z_b is None else (for_x, for_y)


def _columns(z: Tensor, block: slice, standardized: bool) -> tuple[Tensor, Tensor | None]:
    return standardize_with_scale(z[:, block]) if standardized else (z[:, block], None)


def _standardize_backward(gradient: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    """The gradient with respect to z, written into `gradient`, the one with respect to x."""
    if scale is None:
        return gradient
    along = (x * gradient).sum(dim=0).mul_(1 / len(x))
    return gradient.sub_(gradient.mean(dim=0)).addcmul_(x, along, value=-1).mul_(scale)
