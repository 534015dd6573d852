"""The squared Frobenius norm of C = X'Y/n without its diagonal, through C (d x d) or through two Grams (n x n)."""

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab.checks import full_precision, one_of

ROUTES = ("auto", "primal", "dual")
CONTRASTS = ("dimensions", "samples")


def split_energy(
    x: Tensor, y: Tensor | None = None, route: str = "auto", contrast: str = "dimensions"
) -> tuple[Tensor, Tensor]:
    """The diagonal of `C = X'Y/n` and what is left of `||C||_F^2`, `(n, d), (n, d) -> (d,), ()`; `y` left out is `x`.

    One number has two readings, `||C||_F^2 = <XX', YY'>_F / n^2` (for centred columns: HSIC with linear kernels), and
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
    if one_of(route, ROUTES, "route") == "auto":
        # 3 products of n d^2 (one forward, two backward) against 4 of n^2 d (two and two), and what else the second
        # route does to every element: it costs as much time as some 200 multiplications.
        return "primal" if 3 * d <= 4 * n + 200 else "dual"
    return route


def pick_samples(contrast: str) -> bool:
    """Whether pairs of samples are contrasted; ValueError for another name."""
    return one_of(contrast, CONTRASTS, "contrast") == "samples"


class _Split(Function):
    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor | None, route: str, samples: bool) -> tuple[Tensor, Tensor]:
        diagonal, energy, *matrices = FORWARD[route](x, x if y is None else y, samples)
        ctx.save_for_backward(x, y, *matrices)
        ctx.route, ctx.samples = route, samples
        return diagonal, energy

    @staticmethod
    @once_differentiable
    def backward(ctx, for_diagonal: Tensor, for_energy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *matrices = ctx.saved_tensors
        gradients = BACKWARD[ctx.route](x, x if y is None else y, *matrices, for_diagonal, for_energy, ctx.samples)
        return (sum(gradients), None, None, None) if y is None else (*gradients, None, None)


# Forward: diagonal, energy, and the matrices that backward needs. Written out because autograd differentiates X X' as
# a product of two different matrices, and so pays for six products where the symmetry of the Grams needs four, and
# because either route has the diagonal at hand.
def primal_forward(x: Tensor, y: Tensor, samples: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, energy, and C as backward wants it."""
    c = (x.T @ y).div_(len(x))
    diagonal = c.diagonal().clone()
    if samples:
        return diagonal, c.square().sum() - _row_energy(x) @ _row_energy(y) / len(x) ** 2, c
    return diagonal, c.fill_diagonal_(0).square().sum(), c


def primal_backward(
    x: Tensor, y: Tensor, c: Tensor, for_diagonal: Tensor, for_energy: Tensor, samples: bool
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and y."""
    scale = 2 * for_energy / len(x)
    weights = c * scale
    weights.diagonal().add_(for_diagonal / len(x))
    with full_precision(x):  # backward() may run inside the caller's autocast
        for_x, for_y = y @ weights.T, x @ weights
    if samples:
        for_x -= scale / len(x) * _row_energy(y)[:, None] * x
        for_y -= scale / len(x) * _row_energy(x)[:, None] * y
    return for_x, for_y


def dual_energy(gram_x: Tensor, gram_y: Tensor, diagonal: Tensor, samples: bool) -> Tensor:
    """Energy from the Grams, whose diagonals it sets to 0 where pairs of samples are meant."""
    if samples:
        gram_x.fill_diagonal_(0)
        gram_y.fill_diagonal_(0)
    energy = (gram_x * gram_y).sum() / len(gram_x) ** 2
    # No digits are lost in the difference: at d > n, where this route is taken, ||C||^2 exceeds the diagonal.
    return energy if samples else energy - diagonal.square().sum()


def scaled_grams(
    gram_x: Tensor, gram_y: Tensor, diagonal: Tensor, for_diagonal: Tensor, for_energy: Tensor, samples: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and v such that the gradient with respect to x is `B x + v y`, with respect to y `A y + v x`."""
    n = len(gram_x)
    scale = 2 * for_energy / n**2
    column = (for_diagonal if samples else for_diagonal - 2 * for_energy * diagonal) / n
    return gram_x * scale, gram_y * scale, column


def _dual_forward(x: Tensor, y: Tensor, samples: bool) -> tuple[Tensor, ...]:
    gram_x = x @ x.T
    gram_y = gram_x if y is x else y @ y.T
    diagonal = (x * y).mean(dim=0)
    return diagonal, dual_energy(gram_x, gram_y, diagonal, samples), gram_x, gram_y, diagonal


def _dual_backward(
    x: Tensor, y: Tensor, gram_x: Tensor, gram_y: Tensor, diagonal: Tensor,
    for_diagonal: Tensor, for_energy: Tensor, samples: bool,
) -> tuple[Tensor, Tensor]:
    for_y, for_x, column = scaled_grams(gram_x, gram_y, diagonal, for_diagonal, for_energy, samples)
    with full_precision(x):
        return (for_x @ x).addcmul_(column, y), (for_y @ y).addcmul_(column, x)


FORWARD = {"primal": primal_forward, "dual": _dual_forward}
BACKWARD = {"primal": primal_backward, "dual": _dual_backward}


def _row_energy(x: Tensor) -> Tensor:
    return x.square().sum(dim=1)
