"""The off-diagonal part of the squared Frobenius norm of C = X'Y/n, from C (d x d) or from two Grams (n x n)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from hsic_lab._checks import is_transformed, matmul, no_autocast
from hsic_lab.correlation import reciprocal_norm, standardize_with_scale

ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")
_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into the L2 cache of a core
_HEAD = 64  # features whose correlations are computed one by one


def split_squared_norm(
    x: Tensor, y: Tensor | None = None, route: str = "auto", contrast: str = "dimensions",
    weights: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Diagonal `(d,)` of `C = X'Y/n`, sum of the squares of its other entries, and their sum. `y` is `x` by default.

    The squared norm is `||C||_F^2 = <XX', YY'>_F / n^2`. Each side of this equation has a diagonal that can be left out
    (Garrido et al. 2023, theorem 3.3): `sum_{i != j} C_ij^2` over pairs of features (contrast "dimensions") or
    `sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2` over pairs of images ("samples"). Both are computed by both routes, in
    O(n d^2) from C or in O(n^2 d) from the Grams. With `weights`, x and y are standardized first, and the results are
    terms of a loss: `sum_i (1 - C_ii)^2`, and the two sums times their weights (0 or None for a weight 0).
    """
    n, d = x.shape
    if route == "auto":
        # Primal: 3 products of n d^2 (one forward, two backward). Dual: 4 of n^2 d (two and two), and work on every
        # element that takes as long as about 200 multiplications.
        route = "primal" if 3 * d <= 4 * n + 200 else "dual"
    if contrast == "samples":
        return _terms(weights, *_over_pairs_of_images(*_both(weights is not None, x, y), route))
    if route == "dual" and weights is None:
        return _dual_without_head(x, y)
    return _split(route, weights, x, *([] if y is None else [y]))


def column_blocks(z: Tensor) -> list[slice]:
    """Slices that cover the columns of `z` `(n, d)`: blocks that fit the cache of a CPU, one block on a GPU."""
    n, d = z.shape
    width = d if z.is_cuda else max(64, _BLOCK_ELEMENTS // n)  # pieces of fewer than 64 columns are read slowly
    return [slice(start, start + width) for start in range(0, d, width)]


def _both(standardized: bool, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    y = x if y is None else y
    return (standardize_with_scale(x)[0], standardize_with_scale(y)[0]) if standardized else (x, y)


def _over_pairs_of_images(x: Tensor, y: Tensor, route: str) -> tuple[Tensor, Tensor, Tensor]:
    """`split_squared_norm` for the contrast "samples"."""
    n, d = x.shape
    diagonal = (x * y).mean(dim=0)
    total = (x.sum(dim=1) * y.sum(dim=1)).sum() / n - diagonal.sum()
    if route == "dual":
        products = matmul(x, x.T) * matmul(y, y.T)
        return diagonal, (products - products.diagonal().diag_embed()).sum() / n**2, total
    # Rows that dominate the difference of the norm and its diagonal go through their Grams, as in `_dual_without_head`.
    top = (x.square().sum(dim=1) * y.square().sum(dim=1)).detach().topk(min(_HEAD, n, d)).indices
    products = (matmul(x[top], x.T) * matmul(y[top], y.T)).scatter(1, top[:, None], 0)
    x, y = x.index_fill(0, top, 0), y.index_fill(0, top, 0)
    rest = matmul(x.T, y).square().sum() - (x.square().sum(dim=1) * y.square().sum(dim=1)).sum()
    return diagonal, (2 * products.sum() - products[:, top].sum() + rest) / n**2, total


def _dual_without_head(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The dual route for features of any scales: those of the largest `C_ii` go through their rows and columns of C.

    If few features dominated both the squared norm and the diagonal that is subtracted, no digit would be left.
    """
    n, d = x.shape
    views = [x] if y is None else [x, y]
    other = views[-1]
    top = (x * other).sum(dim=0).detach().abs().topk(min(_HEAD, n, d)).indices
    rest = [z.index_fill(1, top, 0) for z in views]
    diagonal, squared_norm, total = _split("dual", None, *rest)
    rows, columns = matmul(x[:, top].T, other) / n, matmul(other[:, top].T, rest[0]) / n
    head = rows.gather(1, top[:, None])[:, 0]
    squared_norm = squared_norm + rows.scatter(1, top[:, None], 0).square().sum() + columns.square().sum()
    return diagonal.index_add(0, top, head), squared_norm, total + rows.sum() - head.sum() + columns.sum()


def _split(route: str, weights: tuple[float, float] | None, *views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`split_squared_norm` over pairs of features, by the function below where it is faster and torch allows it."""
    transformed = is_transformed() or forward_ad._current_level >= 0
    by_autograd = transformed or (route == "primal" and weights is None)
    return (_by_autograd if by_autograd else _Split.apply)(route, weights, *views)


def _by_autograd(route: str, weights: tuple[float, float] | None, *views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of `_Split`, which autograd differentiates to any order in any mode."""
    x, y = _both(weights is not None, *views)
    if route == "primal":
        c = matmul(x.T, y) / len(x)
        others = c - c.diagonal().diag_embed()
        return _terms(weights, c.diagonal(), others.square().sum(), others.sum())
    diagonal, total = (x * y).mean(dim=0), (x.sum(dim=1) * y.sum(dim=1)).sum() / len(x)
    squared_norm = (matmul(x, x.T) * matmul(y, y.T)).sum() / len(x) ** 2
    return _terms(weights, diagonal, squared_norm - diagonal.square().sum(), total - diagonal.sum())


def _terms(weights: tuple[float, float] | None, diagonal: Tensor, squared_norm: Tensor, total: Tensor | None) -> Any:
    """The terms of a loss with these weights, or all as given."""
    if weights is None:
        return diagonal, squared_norm, total
    return (diagonal - 1).square().sum(), weights[0] * squared_norm, None if total is None else weights[1] * total


class _Split(Function):
    # Autograd would need six products where the symmetry of the Grams needs four, and many more operations.
    @staticmethod
    def forward(ctx, route, weights, *views):
        parts, saved = _primal(views, weights[1] != 0) if route == "primal" else _dual(views, weights is not None)
        ctx.save_for_backward(*views, parts[0], *saved)
        ctx.route, ctx.weights, ctx.n_views = route, weights, len(views)
        ctx.set_materialize_grads(False)
        return _terms(weights, *parts)

    @staticmethod
    def backward(ctx, *gradients):
        views, (diagonal, *saved) = ctx.saved_tensors[: ctx.n_views], ctx.saved_tensors[ctx.n_views :]
        weights, standardized = ctx.weights or (1, 1), ctx.weights is not None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            results, pull, *_ = torch.func.vjp(partial(_by_autograd, ctx.route, ctx.weights), *views)
            filled = (torch.zeros_like(r) if g is None else g for r, g in zip(results, gradients, strict=True))
            return None, None, *pull(tuple(filled))
        for_first, for_squared_norm, for_total = (0.0 if g is None else g for g in gradients)
        with no_autocast(diagonal):  # backward() may run inside the caller's autocast
            for_diagonal = (diagonal - 1).mul_(2 * for_first) if standardized else for_first
            given = [diagonal, for_diagonal, 2 * weights[0] * for_squared_norm, weights[1] * for_total]
            if ctx.route == "primal":
                return None, None, *_primal_backward(*saved, *given)
            return None, None, *_dual_backward(views, standardized, *saved, *given)


def _primal(views: Any, with_total: bool) -> tuple[Any, tuple[Tensor, ...]]:
    # As `standardize_with_scale`, but the scales are applied to C and not to the views.
    n, views = len(views[0]), torch.stack(views)
    first = views[:, 0].clone()
    views -= first[:, None]
    views -= views.mean(dim=1, keepdim=True)
    scales = reciprocal_norm(first, views.square().sum(dim=1), n)
    scale = scales[0, :, None] * scales[1]
    c = (views[0].T @ views[1]).mul_(scale)
    diagonal = c.diagonal().clone()
    squared_norm = c.fill_diagonal_(0).square().sum()
    return (diagonal, squared_norm, c.sum() if with_total else None), (views, scales, scale, c)


def _primal_backward(views, scales, scale, c, diagonal, for_diagonal, for_squares, for_total):
    (x, y), weights = views, c * for_squares
    if isinstance(for_total, Tensor):
        weights += for_total
    # Row and column sums of C times its gradient. More is not needed: the gradients of standardized views have mean 0.
    products = weights * c
    along = torch.stack([products.sum(dim=1), products.sum(dim=0)]).addcmul_(for_diagonal, diagonal)
    weights.diagonal().copy_(for_diagonal)
    weights *= scale
    along_x, along_y = along.mul_(scales).mul_(scales)
    return (y @ weights.T).addcmul_(x, along_x, value=-1), (x @ weights).addcmul_(y, along_y, value=-1)


def _dual(views: tuple[Tensor, ...], standardized: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    n, d = views[0].shape
    grams, sums = views[0].new_zeros(len(views), n, n), views[0].new_zeros(len(views), n)
    diagonal = views[0].new_empty(d)
    for block in column_blocks(views[0]):
        columns = [standardize_with_scale(z[:, block])[0] if standardized else z[:, block] for z in views]
        for gram, total, x in zip(grams, sums, columns, strict=True):
            gram.addmm_(x, x.T)
            total += x.sum(dim=1)
        diagonal[block] = (columns[0] * columns[-1]).mean(dim=0)
    # Standardized features lose no digits in the difference: where d > n, ||C||^2 exceeds the norm of its diagonal.
    squared_norm = (grams[0] * grams[-1]).sum() / n**2 - diagonal.square().sum()
    return (diagonal, squared_norm, sums[0] @ sums[-1] / n - diagonal.sum()), (grams, sums)


def _dual_backward(views, standardized, grams, sums, diagonal, for_diagonal, for_squares, for_total):
    n = len(views[0])
    column = (for_diagonal - for_total - for_squares * diagonal) / n
    weights, rows = grams * (for_squares / n**2), sums[:, :, None] * (for_total / n)
    gradients = [torch.empty_like(z) for z in views]
    for block in column_blocks(views[0]):
        columns = [standardize_with_scale(z[:, block]) if standardized else (z[:, block], None) for z in views]
        for view, (x, scale) in enumerate(columns):
            other = ~view  # the other view counted from the end, or the only one
            own = (weights[other] @ x).add_(rows[other]).addcmul_(column[block], columns[other][0])
            if scale is not None:  # from the gradient with respect to x to that with respect to z
                along = (x * own).sum(dim=0).mul_(1 / n)
                own.sub_(own.mean(dim=0)).addcmul_(x, along, value=-1).mul_(scale)
            gradients[view][:, block] = own
    return gradients if len(views) > 1 else [gradients[0].mul_(2)]
