"""Standardise a batch and cross-correlate two views of it: the matrix C that everything here is about."""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab.checks import at_least_float32, check_views, full_precision

# A column whose spread is below this many units in the last place of its mean varies by rounding alone.
ROUNDING_ULPS = 4


def standardize(z: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1 over the batch, `(n, d) -> (n, d)`, in float32 or better.

    `(z - mean) / std` with the biased `std = sqrt(sum (z - mean)^2 / n)`, so that identical views correlate to
    exactly 1 at every n. A dead column (constant up to rounding) has no correlation with anything: it becomes 0 and
    receives the gradient 0. Rescaling a column changes nothing, as
    long as its squares stay in the range of the dtype. Differentiable once.
    Raises ValueError or TypeError unless `z` is a floating `(n, d)` with n >= 2.
    """
    check_views(z, z)
    if len(z) < 2:
        raise ValueError(f"standardizing needs at least 2 rows, got shape {tuple(z.shape)}")
    with full_precision(z):
        return _Standardize.apply(at_least_float32(z))


def standardize_forward(z: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised columns of `z` `(n, d)`, and the factor `(d,)` that scaled them: 0 for a dead column."""
    mean = _column_mean(z)
    x = z - mean
    # Far from the origin the mean itself is rounded; what is left of it is small and can be had exactly.
    x -= _column_mean(x)
    variance = _column_mean(x * x)
    std = variance.sqrt()
    dead = std <= mean.abs_().mul_(ROUNDING_ULPS * torch.finfo(z.dtype).eps)
    # std / variance, not 1 / std: where the square overflowed, NaN and not a silent 0.
    scale = (std / variance).masked_fill_(dead, 0)
    return x.mul_(scale), scale


def standardize_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient with respect to z, in the memory of that with respect to x."""
    along = _column_mean(x * gradient)
    return gradient.sub_(_column_mean(gradient)).addcmul_(x, along, value=-1).mul_(scale)


def _column_mean(z: Tensor) -> Tensor:
    # Half the time of z.mean(dim=0) on small batches, where calls cost more than arithmetic.
    return z.sum(dim=0).mul_(1 / len(z))


class _Standardize(Function):
    # Written out because torch's reductions over rows differ in speed by a factor of 100 (var_mean is the slow one)
    # and because autograd would keep and revisit every intermediate.
    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        x, scale = standardize_forward(z)
        ctx.save_for_backward(x, scale)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        return standardize_backward(gradient.clone(), *ctx.saved_tensors)


def cross_correlation(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Correlation of every feature of view A with every feature of view B, `(n, d), (n, d) -> (d, d)`.

    `C = X' Y / n` with `X = standardize(z_a)`, `Y = standardize(z_b)`: Zbontar et al. 2021 (arXiv 2103.03230), eq. 2.
    """
    check_views(z_a, z_b)
    dtype = torch.promote_types(z_a.dtype, z_b.dtype)
    with full_precision(z_a):
        return standardize(z_a.to(dtype)).T @ standardize(z_b.to(dtype)) / len(z_a)
