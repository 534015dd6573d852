"""The off-diagonal part of the squared Frobenius norm of C = X'Y/n, from C (d x d) or from two Grams (n x n)."""

from functools import partial, reduce
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from hsic_lab._checks import hides_values, inner_products, is_transformed, matmul, no_autocast, row_product
from hsic_lab.correlation import column_unit, reciprocal_norm, standardize_with_scale
from hsic_lab.losses._base import pair_sum

Views = tuple[Tensor, ...]
ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")
_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into the L2 cache of a core
_HEAD = 64  # features whose correlations are computed one by one


def split_squared_norm(
    *views: Tensor, route: str = "auto", contrast: str = "dimensions", weights: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal `(d,)` of `C = X'Y/n`, sum of the squares of its other entries, and their sum.

    The three are means over the pairs (X, Y) of V >= 2 views `(n, d)`; for one view, Y is X. What a view needs by
    itself, its standardized columns, its Gram and its row sums, is computed once.

    The squared norm is `||C||_F^2 = <XX', YY'>_F / n^2`. Each side of this equation has a diagonal that can be left out
    (Garrido et al. 2023, theorem 3.3): `sum_{i != j} C_ij^2` over pairs of features (contrast "dimensions") or
    `sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2` over pairs of images ("samples"). Both are computed by both routes, in
    O(V^2 n d^2) from C or in O(V n^2 d) from the Grams. With `weights`, the views are standardized first, and the
    results are terms of a loss: `sum_i (1 - C_ii)^2`, and the two sums times their weights (0 or None for a weight 0).
    """
    n, d = views[0].shape
    if route == "auto":
        # Primal: 3 products of n d^2 a pair (one forward, two backward). Dual: 2 of n^2 d a view (one and one), and
        # work on every element that takes as long as about 200 multiplications. There are V (V - 1) / 2 pairs.
        route = "primal" if 3 * max(1, len(views) - 1) * d <= 4 * n + 200 else "dual"
    if contrast == "samples":
        return _terms(weights, *_over_pairs_of_images(_standardized(views) if weights else views, route))
    if route == "dual" and weights is None:
        return _dual_without_head(views)
    return _split(route, weights, *views)


def column_blocks(z: Tensor) -> list[slice]:
    """Slices that cover the columns of `z` `(n, d)`: blocks that fit the cache of a CPU, else one block."""
    n, d = z.shape
    # Pieces of fewer than 64 columns are read slowly. Compiled, a number of blocks that depends on n would be a guard.
    width = d if z.is_cuda or torch.compiler.is_compiling() else max(64, _BLOCK_ELEMENTS // n)
    return [slice(start, start + width) for start in range(0, d, width)]


def _standardized(views: Views) -> Views:
    return tuple(standardize_with_scale(z)[0] for z in views)


def _pairs(views: Views | Tensor) -> list[tuple[int, int]]:
    """The pairs of views, for one view that with itself."""
    return list(combinations(range(len(views)), 2)) or [(0, 0)]


def _diagonals(views: Views) -> Tensor:
    """Diagonals `(pairs, d)` of the matrices C."""
    return torch.stack([(views[i] * views[j]).mean(dim=0) for i, j in _pairs(views)])


def _total(views: Views) -> Tensor:
    """Sum of all entries of C of all pairs."""
    return pair_sum([z.sum(dim=1) for z in views]).sum() / len(views[0])


def _over_pairs_of_images(views: Views, route: str) -> tuple[Tensor, Tensor, Tensor]:
    """`split_squared_norm` for the contrast "samples"."""
    (n, d), pairs, diagonal = views[0].shape, _pairs(views), _diagonals(views)
    total = _total(views) - diagonal.sum()
    if route == "dual":
        grams = torch.stack([inner_products(x) for x in views])
        others = grams - grams.diagonal(dim1=1, dim2=2).diag_embed()
        return diagonal, pair_sum(others).sum() / n**2, total
    # Rows that dominate the difference of the norm and its diagonal go through their Grams, as in `_dual_without_head`.
    lengths = torch.stack([x.square().sum(dim=1) for x in views])
    top = pair_sum(lengths).detach().topk(min(_HEAD, n, d)).indices
    products = pair_sum([matmul(x[top], x.T).scatter(1, top[:, None], 0) for x in views])
    views, lengths = tuple(x.index_fill(0, top, 0) for x in views), lengths.index_fill(1, top, 0)
    squared_norm = reduce(torch.add, [row_product(views[i], views[j]).square().sum() for i, j in pairs])
    rest = squared_norm - pair_sum(lengths).sum()
    return diagonal, (2 * products.sum() - products[:, top].sum() + rest) / n**2, total


def _dual_without_head(views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """The dual route for features of any scales: those of the largest `C_ii` go through their rows and columns of C.

    If few features dominated both the squared norm and the diagonal that is subtracted, no digit would be left.
    """
    (n, d), pairs = views[0].shape, _pairs(views)
    top = _diagonals(views).detach().abs().sum(dim=0).topk(min(_HEAD, n, d)).indices
    rest = tuple(z.index_fill(1, top, 0) for z in views)
    diagonal, squared_norm, total = _split("dual", None, *rest)
    heads = [z[:, top].T for z in views]
    rows = torch.stack([matmul(heads[i], views[j]) for i, j in pairs]) / n
    columns = torch.stack([matmul(heads[j], rest[i]) for i, j in pairs]) / n
    place = top[None, :, None].expand(len(pairs), -1, 1)
    head, others = rows.gather(2, place)[..., 0], rows.scatter(2, place, 0)
    squared_norm = squared_norm + (others.square().sum() + columns.square().sum()) / len(pairs)
    total = total + (others.sum() + columns.sum()) / len(pairs)
    return diagonal.index_add(0, top, head.mean(dim=0)), squared_norm, total


def _split(route: str, weights: tuple[float, float] | None, *views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`split_squared_norm` over pairs of features, by the function below where it is faster and torch allows it."""
    without = torch.compiler.is_compiling() and not (torch.is_grad_enabled() and any(z.requires_grad for z in views))
    transformed = is_transformed() or forward_ad._current_level >= 0 or without  # a compiled function needs a gradient
    by_autograd = transformed or (route == "primal" and weights is None)
    return (_by_autograd if by_autograd else _Split.apply)(route, weights, *views)


def _by_autograd(route: str, weights: tuple[float, float] | None, *views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas of `_Split`, which autograd differentiates to any order in any mode."""
    views, n, pairs = _standardized(views) if weights else views, len(views[0]), _pairs(views)
    if route == "primal":
        matrices = [row_product(views[i], views[j]) / n for i, j in pairs]
        diagonal = torch.stack([c.diagonal() for c in matrices])
        others = [torch.diagonal_scatter(c, torch.zeros_like(c[0])) for c in matrices]
        squared_norm = reduce(torch.add, [c.square().sum() for c in others])
        return _terms(weights, diagonal, squared_norm, reduce(torch.add, [c.sum() for c in others]))
    diagonal = _diagonals(views)
    squared_norm = pair_sum([inner_products(x) for x in views]).sum() / n**2
    return _terms(weights, diagonal, squared_norm - diagonal.square().sum(), _total(views) - diagonal.sum())


def _terms(weights: tuple[float, float] | None, diagonal: Tensor, squared_norm: Tensor, total: Tensor | None) -> Any:
    """The terms of a loss with these weights, or all as given: means over pairs from the diagonals and two sums."""
    count = len(diagonal)
    if weights is None:
        return diagonal.mean(dim=0), squared_norm / count, None if total is None else total / count
    invariance = (diagonal - 1).square().sum() / count
    return invariance, weights[0] / count * squared_norm, None if total is None else weights[1] / count * total


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
        tensors = ctx.saved_tensors  # read once, as checkpointing asks
        views, (diagonal, *saved) = tensors[: ctx.n_views], tensors[ctx.n_views :]
        weights, standardized, count = ctx.weights or (1, 1), ctx.weights is not None, len(diagonal)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a second derivative may follow
            results, pull, *_ = torch.func.vjp(partial(_by_autograd, ctx.route, ctx.weights), *views)
            filled = (torch.zeros_like(r) if g is None else g for r, g in zip(results, gradients, strict=True))
            return None, None, *pull(tuple(filled))
        for_first, for_squared_norm, for_total = (0.0 if g is None else g for g in gradients)
        with no_autocast(diagonal):  # backward() may run inside the caller's autocast
            for_diagonal = (diagonal - 1).mul_(2 / count * for_first) if standardized else for_first / count
            given = [diagonal, for_diagonal, 2 * weights[0] / count * for_squared_norm, weights[1] / count * for_total]
            if ctx.route == "primal":
                return None, None, *_primal_backward(*saved, *given)
            return None, None, *_dual_backward(views, standardized, *saved, *given)


def _primal(views: Any, with_total: bool) -> tuple[Any, tuple[Tensor, ...]]:
    # As `standardize_with_scale`, but the scales are applied to C and not to the views.
    n, views = len(views[0]), torch.stack(views)
    mean = views.mean(dim=1, keepdim=True)
    views -= mean
    squares = views.square().sum(dim=1, keepdim=True)
    scales = squares.sqrt() / squares  # NaN for 0 and where a square overflowed
    unit = None
    # Far from 0 the mean is rounded, and the rest of it is subtracted. Below a norm of 1e-15 squares may vanish.
    largest = torch.linalg.vector_norm((mean.abs() + 1e-15) * scales, torch.inf)
    if hides_values(views) or not largest < 1:
        views -= views.mean(dim=1, keepdim=True)
        unit = column_unit(views)[:, None]
        views /= unit
        scales = reciprocal_norm(mean / unit, views.square().sum(dim=1, keepdim=True), n)
    x, s = views.unbind(), scales.unbind()
    matrices = [row_product(x[i], x[j]).mul_(s[i].T).mul_(s[j]) for i, j in _pairs(x)]
    diagonal = torch.stack([c.diagonal() for c in matrices])
    squared_norm = reduce(torch.add, [c.square().fill_diagonal_(0).sum() for c in matrices])
    total = reduce(torch.add, [c.clone().fill_diagonal_(0).sum() for c in matrices]) if with_total else None
    return (diagonal, squared_norm, total), (views, scales, unit, *matrices)


def _primal_backward(views, scales, unit, *saved):
    *matrices, _, for_diagonal, for_squares, for_total = saved
    x, s = views.unbind(), scales.unbind()
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in x]
    for c, on_diagonal, (i, j) in zip(matrices, for_diagonal.unbind(), _pairs(x), strict=True):
        weights = c * for_squares
        if isinstance(for_total, Tensor):
            weights += for_total
        weights.diagonal().copy_(on_diagonal)
        # Row and column sums of C times its gradient. More is not needed: gradients of standardized views have mean 0.
        products = weights * c
        weights.mul_(s[i].T).mul_(s[j])
        parts[i].append((x[j], weights.T, products.sum(dim=1)))
        parts[j].append((x[i], weights, products.sum(dim=0)))
    gradients = []
    for z, square, ((y, weights, along), *others) in zip(x, scales.square(), parts, strict=True):
        gradient = y @ weights
        for y, weights, more in others:
            gradient, along = gradient.addmm_(y, weights), along + more
        gradients.append(gradient.addcmul_(z, along * square, value=-1))
    return gradients if unit is None else [g.div_(u) for g, u in zip(gradients, unit, strict=True)]


def _dual(views: tuple[Tensor, ...], standardized: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    (n, d), pairs = views[0].shape, _pairs(views)
    grams, sums = views[0].new_zeros(len(views), n, n), views[0].new_zeros(len(views), n)
    diagonal = views[0].new_empty(len(pairs), d)
    for block in column_blocks(views[0]):
        columns = tuple(standardize_with_scale(z[:, block])[0] if standardized else z[:, block] for z in views)
        for gram, total, x in zip(grams, sums, columns, strict=True):
            gram.addmm_(x, x.T)
            total += x.sum(dim=1)
        diagonal[:, block] = _diagonals(columns)
    # Standardized features lose no digits in the difference: where d > n, ||C||^2 exceeds the norm of its diagonal.
    squared_norm = pair_sum(grams).sum() / n**2 - diagonal.square().sum()
    return (diagonal, squared_norm, pair_sum(sums).sum() / n - diagonal.sum()), (grams, sums)


def _dual_backward(views, standardized, grams, sums, diagonal, for_diagonal, for_squares, for_total):
    n, count = len(views[0]), len(views)
    column = (for_diagonal - for_total - for_squares * diagonal) / n
    # The gradient of a view has the sums over the other views; that of one view by itself is twice its own.
    others = 1 - torch.eye(count, device=sums.device, dtype=sums.dtype) if count > 1 else sums.new_tensor([[2.0]])
    weights = (others * (for_squares / n**2) @ grams.flatten(1)).view_as(grams)
    rows = (others * (for_total / n) @ sums)[:, :, None]
    gradients = [torch.empty_like(z) for z in views]
    for block in column_blocks(views[0]):
        columns = [standardize_with_scale(z[:, block]) if standardized else (z[:, block], None) for z in views]
        parts = [(weight @ x).add_(row) for weight, row, (x, _) in zip(weights, rows, columns, strict=True)]
        for factor, (i, j) in zip(column[:, block], _pairs(views), strict=True):
            parts[i].addcmul_(factor, columns[j][0])
            parts[j].addcmul_(factor, columns[i][0])
        for gradient, own, (x, scale) in zip(gradients, parts, columns, strict=True):
            if scale is not None:  # from the gradient with respect to x to that with respect to z
                along = (x * own).sum(dim=0).mul_(1 / n)
                own.sub_(own.mean(dim=0)).addcmul_(x, along, value=-1).mul_(scale)
            gradient[:, block] = own
    return gradients
