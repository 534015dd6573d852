"""HSIC of a sample with itself, by which CKA divides: when is it anything but rounding?"""

import math

import torch
from torch import Tensor

from hsic_lab.hsic import hsic
from hsic_lab.kernels import Kernel, Linear

_DUAL_ROWS = 4096  # Grams of 128 MiB


def near_one(x: Tensor) -> Tensor:
    """`x` over the power of two below its largest entry: no unit of x overflows or vanishes in its squares."""
    largest = float(x.detach().abs().max())
    return x / 2.0 ** math.floor(math.log2(largest)) if largest else x


def hsic_parts(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, estimator: str = "unbiased", route: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC(x, y), HSIC(x, x), HSIC(y, y), exactly 0 where they are rounding; the kernels fitted.

    The unbiased HSIC(x, x) is what is left of the biased one without the diagonal of the Gram: nothing, where no two
    rows are alike. Where little is left, all three are computed in float64, and by a route that takes the diagonal off
    first.
    """
    pairs = ((x, kernel_x), (y, kernel_y))
    own = [hsic(z, z, kernel, kernel, estimator, route) for z, kernel in pairs]
    xy = None
    if estimator == "unbiased" and any(_little(*pair, value) for pair, value in zip(pairs, own, strict=True)):
        dtype = own[0].dtype
        x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
        route = "dual" if len(x) <= _DUAL_ROWS else "tiled"
        pairs = ((x, kernel_x), (y, kernel_y))
        own = [hsic(z, z, kernel, kernel, estimator, route) for z, kernel in pairs]
        own = [value * 0 if value <= _rounding(*pair, value) else value for pair, value in zip(pairs, own, strict=True)]
        own = [value.to(dtype) for value in own]
        xy = hsic(x, y, kernel_x, kernel_y, estimator, route).to(dtype)
    own = [value if varies(z) else value * 0 for (z, _), value in zip(pairs, own, strict=True)]
    xy = hsic(x, y, kernel_x, kernel_y, estimator, route) if xy is None else xy
    return xy * ((own[0] != 0) & (own[1] != 0)), *own


def _little(x: Tensor, kernel: Kernel, self_hsic: Tensor) -> bool:
    """Whether an unbiased HSIC(x, x) is small beside the diagonal: of `eye(n)` up to 8 n units in the last place."""
    diagonal = torch.cat([kernel.gram(rows, None).diagonal() for rows in _at_origin(x, kernel).split(256)])
    return bool(self_hsic <= 16 * len(x) * torch.finfo(self_hsic.dtype).eps * diagonal.square().mean())


def _rounding(x: Tensor, kernel: Kernel, self_hsic: Tensor) -> Tensor:
    """Below what the unbiased HSIC(x, x) is rounding, beside the Gram without its diagonal."""
    x, squares = _at_origin(x, kernel), 0.0
    for rows in torch.arange(len(x), device=x.device).split(512):
        gram = kernel.gram(x[rows], x).double()
        gram[torch.arange(len(rows)), rows] = 0
        squares = squares + gram.square().sum()
    return 64 * torch.finfo(self_hsic.dtype).eps * squares / (len(x) * (len(x) - 3))


def _at_origin(x: Tensor, kernel: Kernel) -> Tensor:
    x = x.detach()
    return x - x.mean(dim=0) if isinstance(kernel, Linear) else x


def u_center(gram: Tensor) -> Tensor:
    """The U-centred Gram A, `(n, n) -> (n, n)`: 0 on the diagonal, rows and columns that sum to 0.

    `<A, B>_F / (n (n - 3))` is the unbiased HSIC (Székely & Rizzo 2014), so unbiased CKA is the cosine of A and B.
    """
    n = len(gram)
    gram = gram - gram.diagonal().diag_embed()
    rows = gram.sum(dim=1) / (n - 2)
    centred = gram - rows[:, None] - rows[None, :] + rows.sum() / (n - 1)
    return centred - centred.diagonal().diag_embed()


def alike(gram: Tensor) -> bool:
    """Whether all pairs of different rows are alike in a Gram `(n, n)`, up to its rounding: U-centred it is 0."""
    exact = gram.double()
    off = exact - exact.diagonal().diag_embed()
    return bool(u_center(exact).norm() <= 64 * torch.finfo(gram.dtype).eps * off.norm())


def varies(x: Tensor) -> bool:
    """Whether any row of `x` `(n, p)` differs from the first."""
    return bool((x != x[0]).any())


def require_positive(name: str, self_hsic: float) -> None:
    """ValueError unless a self-HSIC is positive and finite, so that CKA is defined."""
    if not 0 < self_hsic < float("inf"):
        raise ValueError(
            f"CKA is not defined: HSIC({name}, {name}) is {self_hsic:.3g}, not positive and finite. To this kernel all "
            f"pairs of rows of {name} look alike (a constant sample, a bandwidth out of scale), or its values leave "
            "the range of the dtype"
        )
