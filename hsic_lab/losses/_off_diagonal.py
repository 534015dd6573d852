"""The squared Frobenius norm of C = X'Y/n without its diagonal, through C (d x d) or through two Grams (n x n)."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab._checks import check_choice, no_autocast
from hsic_lab.correlation import standardize_backward, standardize_forward

ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")


def split_squared_norm(
    x: Tensor, y: Tensor | None = None, route: str = "auto", contrast: str = "dimensions"
) -> tuple[Tensor, Tensor]:
    """The diagonal of `C = X'Y/n` and what is left of `||C||_F^2`, `(n, d), (n, d) -> (d,), ()`; `y` left out is `x`.

    One number has two readings, `||C||_F^2 = <XX', YY'>_F / n^2` (for centered columns: HSIC with linear kernels), and
    each has a diagonal to leave out:

    * `contrast="dimensions"`: `sum_{i != j} C_ij^2`, pairs of features (Barlow Twins, VICReg);
    * `contrast="samples"`: `sum_{b != c} <x_b, x_c> <y_b, y_c> / n^2`, pairs of images. The two differ by
      `sum_i C_ii^2 - sum_b |x_b|^2 |y_b|^2 / n^2`: Garrido et al. 2023 (arXiv 2206.02574), theorem 3.3, here for
      two views.

    Either is reached by either route: `"primal"` forms C in O(n d^2), `"dual"` the two Grams in O(n^2 d), and
    `"auto"` takes the cheaper one, forward and backward together. Differentiable once.
    """
    return _Split.apply(x, y, pick_route(x, route), pick_samples(contrast))


def pick_route(x: Tensor, route: str) -> str:
    """The route for `x` `(n, d)` with "auto" resolved; ValueError for another name."""
    n, d = x.shape
    if check_choice(route, ROUTES, "route") == "auto":
        # 3 products of n d^2 (one forward, two backward) against 4 of n^2 d (two and two), and what else the second
        # route does to every element: it costs as much time as some 200 multiplications.
        return "primal" if 3 * d <= 4 * n + 200 else "dual"
    return route


def pick_samples(contrast: str) -> bool:
    """Whether pairs of samples are contrasted; ValueError for another name."""
    return check_choice(contrast, CONTRASTS, "contrast") == "samples"


class _Split(Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, route: str, samples: bool) -> tuple[Tensor, Tensor]:
        diagonal, squared_norm, *matrices = FORWARD[route](x, x if y is None else y, samples)
        ctx.save_for_backward(x, y, *matrices)
        ctx.route, ctx.samples = route, samples
        return diagonal, squared_norm

    @staticmethod
    @once_differentiable
    def backward(ctx, for_diagonal: Tensor, for_squared_norm: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *matrices = ctx.saved_tensors
        gradients = BACKWARD[ctx.route](
            x, x if y is None else y, *matrices, for_diagonal, for_squared_norm, ctx.samples
        )
        return (sum(gradients), None, None, None) if y is None else (*gradients, None, None)


# Forward: diagonal, squared_norm, and the matrices that backward needs. Written out because autograd differentiates X X' as
# a product of two different matrices, and so pays for six products where the symmetry of the Grams needs four, and
# because either route has the diagonal at hand.
def primal_forward(x: Tensor, y: Tensor, samples: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, squared_norm, and C as backward wants it."""
    c = (x.T @ y).div_(len(x))
    diagonal = c.diagonal().clone()
    if samples:
        return diagonal, c.square().sum() - _row_squared_norm(x) @ _row_squared_norm(y) / len(x) ** 2, c
    return diagonal, c.fill_diagonal_(0).square().sum(), c


def primal_backward(
    x: Tensor, y: Tensor, c: Tensor, for_diagonal: Tensor, for_squared_norm: Tensor, samples: bool
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and y."""
    scale = 2 * for_squared_norm / len(x)
    weights = c * scale
    weights.diagonal().add_(for_diagonal / len(x))
    with no_autocast(x):  # backward() may run inside the caller's autocast
        for_x, for_y = y @ weights.T, x @ weights
    if samples:
        for_x -= scale / len(x) * _row_squared_norm(y)[:, None] * x
        for_y -= scale / len(x) * _row_squared_norm(x)[:, None] * y
    return for_x, for_y


def dual_squared_norm(gram_x: Tensor, gram_y: Tensor, diagonal: Tensor, samples: bool) -> Tensor:
    """Energy from the Grams, whose diagonals it sets to 0 where pairs of samples are meant."""
    if samples:
        gram_x.fill_diagonal_(0)
        gram_y.fill_diagonal_(0)
    squared_norm = (gram_x * gram_y).sum() / len(gram_x) ** 2
    # No digits are lost in the difference: at d > n, where this route is taken, ||C||^2 exceeds the diagonal.
    return squared_norm if samples else squared_norm - diagonal.square().sum()


def scaled_grams(
    gram_x: Tensor, gram_y: Tensor, diagonal: Tensor, for_diagonal: Tensor, for_squared_norm: Tensor, samples: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and v such that the gradient with respect to x is `B x + v y`, with respect to y `A y + v x`."""
    n = len(gram_x)
    scale = 2 * for_squared_norm / n**2
    column = (for_diagonal if samples else for_diagonal - 2 * for_squared_norm * diagonal) / n
    return gram_x * scale, gram_y * scale, column


def _dual_forward(x: Tensor, y: Tensor, samples: bool) -> tuple[Tensor, ...]:
    gram_x = x @ x.T
    gram_y = gram_x if y is x else y @ y.T
    diagonal = (x * y).mean(dim=0)
    return diagonal, dual_squared_norm(gram_x, gram_y, diagonal, samples), gram_x, gram_y, diagonal


def _dual_backward(
    x: Tensor,
    y: Tensor,
    gram_x: Tensor,
    gram_y: Tensor,
    diagonal: Tensor,
    for_diagonal: Tensor,
    for_squared_norm: Tensor,
    samples: bool,
) -> tuple[Tensor, Tensor]:
    for_y, for_x, column = scaled_grams(gram_x, gram_y, diagonal, for_diagonal, for_squared_norm, samples)
    with no_autocast(x):
        return (for_x @ x).addcmul_(column, y), (for_y @ y).addcmul_(column, x)


FORWARD = {"primal": primal_forward, "dual": _dual_forward}
BACKWARD = {"primal": primal_backward, "dual": _dual_backward}


def _row_squared_norm(x: Tensor) -> Tensor:
    return x.square().sum(dim=1)


_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into a core's second-level cache
_FEWEST_COLUMNS = 64  # shorter runs of a row are read inefficiently


def standardized_squared_norm(
    z_a: Tensor, z_b: Tensor, route: str = "auto", contrast: str = "dimensions", with_sums: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`frobenius.split_squared_norm` of the standardized views X and Y, `(d,), ()`, and the sums of their rows or None.

    The dual route keeps two `(n, n)` Grams for backward and standardizes anew there; the primal route keeps X, Y and
    C. Both take the arguments of `split_squared_norm`. Differentiable once.
    """
    function = _Primal if pick_route(z_a, route) == "primal" else _Dual
    return function.apply(z_a, z_b, pick_samples(contrast), with_sums)


def column_blocks(z: Tensor) -> list[slice]:
    """Slices that cover the columns of `z` `(n, d)`; a GPU gets all of them in one."""
    n, d = z.shape
    width = d if z.is_cuda else max(_FEWEST_COLUMNS, _BLOCK_ELEMENTS // n)
    return [slice(start, start + width) for start in range(0, d, width)]


class _Primal(Function):
    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, samples: bool, with_sums: bool) -> tuple[Tensor | None, ...]:
        x, scale_a = _standardize_by_blocks(z_a)
        y, scale_b = _standardize_by_blocks(z_b)
        diagonal, squared_norm, c = primal_forward(x, y, samples)
        ctx.save_for_backward(x, y, scale_a, scale_b, c)
        ctx.samples = samples
        ctx.set_materialize_grads(False)
        return diagonal, squared_norm, *((x.sum(dim=1), y.sum(dim=1)) if with_sums else (None, None))

    @staticmethod
    @once_differentiable
    def backward(
        ctx, for_diagonal: Tensor | None, for_squared_norm: Tensor | None, *for_sums: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        x, y, scale_a, scale_b, c = ctx.saved_tensors
        for_diagonal, for_squared_norm = _zeros_for_none(for_diagonal, for_squared_norm, x)
        gradients = primal_backward(x, y, c, for_diagonal, for_squared_norm, ctx.samples)
        for gradient, z, scale, for_sum in zip(gradients, (x, y), (scale_a, scale_b), for_sums, strict=True):
            if for_sum is not None:
                gradient += for_sum[:, None]
            blocks = column_blocks(z)
            if len(blocks) == 1:
                standardize_backward(gradient, z, scale)
            else:
                for block in blocks:
                    standardize_backward(gradient[:, block], z[:, block], scale[block])
        return (*gradients, None, None)


class _Dual(Function):
    @staticmethod
    def forward(ctx, z_a: Tensor, z_b: Tensor, samples: bool, with_sums: bool) -> tuple[Tensor | None, ...]:
        n, d = z_a.shape
        gram_x, gram_y = z_a.new_zeros(n, n), z_a.new_zeros(n, n)
        sum_x, sum_y = (z_a.new_zeros(n), z_a.new_zeros(n)) if with_sums else (None, None)
        diagonal = z_a.new_empty(d)
        for block in column_blocks(z_a):
            x, y = standardize_forward(z_a[:, block])[0], standardize_forward(z_b[:, block])[0]
            gram_x.addmm_(x, x.T)
            gram_y.addmm_(y, y.T)
            if with_sums:
                sum_x += x.sum(dim=1)
                sum_y += y.sum(dim=1)
            diagonal[block] = (x * y).mean(dim=0)
        squared_norm = dual_squared_norm(gram_x, gram_y, diagonal, samples)
        ctx.save_for_backward(z_a, z_b, gram_x, gram_y, diagonal)
        ctx.samples = samples
        ctx.set_materialize_grads(False)
        return diagonal, squared_norm, sum_x, sum_y

    @staticmethod
    @once_differentiable
    def backward(
        ctx, for_diagonal: Tensor | None, for_squared_norm: Tensor | None, *for_sums: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        z_a, z_b, gram_x, gram_y, diagonal = ctx.saved_tensors
        for_diagonal, for_squared_norm = _zeros_for_none(for_diagonal, for_squared_norm, z_a)
        for_y, for_x, column = scaled_grams(gram_x, gram_y, diagonal, for_diagonal, for_squared_norm, ctx.samples)
        gradients = torch.empty_like(z_a), torch.empty_like(z_b)
        with no_autocast(z_a):  # backward() may run inside the caller's autocast
            for block in column_blocks(z_a):
                x, scale_a = standardize_forward(z_a[:, block])
                y, scale_b = standardize_forward(z_b[:, block])
                sides = ((for_x, x, y, scale_a), (for_y, y, x, scale_b))
                for out, (weights, own, other, scale), for_sum in zip(gradients, sides, for_sums, strict=True):
                    gradient = (weights @ own).addcmul_(column[block], other)
                    if for_sum is not None:
                        gradient += for_sum[:, None]
                    out[:, block] = standardize_backward(gradient, own, scale)
        return (*gradients, None, None)


def _standardize_by_blocks(z: Tensor) -> tuple[Tensor, Tensor]:
    blocks = column_blocks(z)
    if len(blocks) == 1:
        return standardize_forward(z)
    x, scale = torch.empty_like(z), z.new_empty(z.shape[1])
    for block in blocks:
        x[:, block], scale[block] = standardize_forward(z[:, block])
    return x, scale


def _zeros_for_none(for_diagonal: Tensor | None, for_squared_norm: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of outputs that the caller did not use; the row sums, which cost a pass, stay None."""
    return (
        z.new_zeros(z.shape[1]) if for_diagonal is None else for_diagonal,
        z.new_zeros(()) if for_squared_norm is None else for_squared_norm,
    )
