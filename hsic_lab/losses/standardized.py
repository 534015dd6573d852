"""What Barlow Twins needs of two views, straight from the projections, a block of columns at a time.

Standardising is per column, and Gram matrices are sums over columns: with a block that stays in the cache, each
projection is read once forward and once backward, and beside the gradients nothing as large as a view is ever held.
"""

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hsic_lab.checks import full_precision
from hsic_lab.correlation import standardize_backward, standardize_forward
from hsic_lab.losses.frobenius import (
    dual_energy,
    pick_route,
    pick_samples,
    primal_backward,
    primal_forward,
    scaled_grams,
)

_BLOCK_ELEMENTS = 1 << 17  # 512 KiB in float32: two blocks and their products fit into a core's second-level cache
_FEWEST_COLUMNS = 64  # shorter runs of a row are read inefficiently


def standardized_energy(
    z_a: Tensor, z_b: Tensor, route: str = "auto", contrast: str = "dimensions", with_sums: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """`frobenius.split_energy` of the standardised views X and Y, `(d,), ()`, and the sums of their rows or None.

    The dual route keeps two `(n, n)` Grams for backward and standardises anew there; the primal route keeps X, Y and
    C. Both take the arguments of `split_energy`. Differentiable once.
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
        diagonal, energy, c = primal_forward(x, y, samples)
        ctx.save_for_backward(x, y, scale_a, scale_b, c)
        ctx.samples = samples
        ctx.set_materialize_grads(False)
        return diagonal, energy, *((x.sum(dim=1), y.sum(dim=1)) if with_sums else (None, None))

    @staticmethod
    @once_differentiable
    def backward(
        ctx, for_diagonal: Tensor | None, for_energy: Tensor | None, *for_sums: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        x, y, scale_a, scale_b, c = ctx.saved_tensors
        for_diagonal, for_energy = _zeros_for_none(for_diagonal, for_energy, x)
        gradients = primal_backward(x, y, c, for_diagonal, for_energy, ctx.samples)
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
        energy = dual_energy(gram_x, gram_y, diagonal, samples)
        ctx.save_for_backward(z_a, z_b, gram_x, gram_y, diagonal)
        ctx.samples = samples
        ctx.set_materialize_grads(False)
        return diagonal, energy, sum_x, sum_y

    @staticmethod
    @once_differentiable
    def backward(
        ctx, for_diagonal: Tensor | None, for_energy: Tensor | None, *for_sums: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None]:
        z_a, z_b, gram_x, gram_y, diagonal = ctx.saved_tensors
        for_diagonal, for_energy = _zeros_for_none(for_diagonal, for_energy, z_a)
        for_y, for_x, column = scaled_grams(gram_x, gram_y, diagonal, for_diagonal, for_energy, ctx.samples)
        gradients = torch.empty_like(z_a), torch.empty_like(z_b)
        with full_precision(z_a):  # backward() may run inside the caller's autocast
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


def _zeros_for_none(for_diagonal: Tensor | None, for_energy: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of outputs that the caller did not use; the row sums, which cost a pass, stay None."""
    return (
        z.new_zeros(z.shape[1]) if for_diagonal is None else for_diagonal,
        z.new_zeros(()) if for_energy is None else for_energy,
    )
