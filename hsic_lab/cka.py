"""Centered kernel alignment (CKA). The module can be called like `hsic_lab.cka.cka`."""

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hsic_lab._checks import CallableModule, check_choice, default_dtype, is_constant, no_autocast, row_product
from hsic_lab.hsic import StreamingLinearHSIC

from hsic_lab.hsic._estimators import (  # isort: skip
    DUAL_ROWS, TILE_ROWS, CenteredRows, at_origin, center, exact, fit_at_origin, fitted_kernel, from_sums,
    paired_samples,
)  # fmt: skip
from hsic_lab.kernels import DistanceInduced, Kernel, Linear, kernel_or, near_one, require_finite

__all__ = ["MinibatchCKA", "StreamingLinearCKA", "cka"]


def cka(
    x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "unbiased",
    route: str = "auto",
) -> Tensor:  # fmt: skip
    """Centered kernel alignment: HSIC normalized like a correlation, ``HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))``.

    It is 1 for equal samples. With linear kernels it does not change under rotations, shifts and isotropic scaling. It
    raises ValueError if HSIC(x, x) or HSIC(y, y) is not positive: a constant sample, or a bandwidth that does not fit.
    The result is a tensor of shape (), differentiable in `x`, `y` and bandwidths. Reference: Kornblith et al. (2019),
    "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.

    Parameters
    ----------
    x, y : Tensor of shape (n, p), (n, q)
        Samples whose rows belong together.
    kernel_x, kernel_y, route
        As in `hsic`.
    estimator : {"unbiased", "biased"}, default "unbiased"
        "unbiased" (debiased CKA, n at least 4) is within [-1, 1] and near 0 for independent samples. "biased" is within
        [0, 1]; for independent samples of unrelated columns it grows towards 1 with p / n. Compare it at equal n only.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(cka(x, 5 - 2 * x).item(), 6), round(cka(x, x**2).item(), 1)
    (1.0, 0.0)
    """
    x, y, xy, xx, yy = _checked_parts(x, y, kernel_x, kernel_y, estimator, route)
    for name, sample in (("x", x), ("y", y)):
        if is_constant(sample):
            raise ValueError(f"{name} is constant: all {len(sample)} rows are equal, and CKA is not defined")
    return _ratio(xy, xx, yy).to(next((z.dtype for z in (x, y) if z.is_floating_point()), default_dtype()))


def cka_or_nan(x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> float:
    """Unbiased `cka` as a float, NaN where it is not defined."""
    *_, xy, xx, yy = _checked_parts(x, y, kernel_x, kernel_y, "unbiased", "auto")
    return float(xy / (xx.sqrt() * yy.sqrt())) if xx > 0 and yy > 0 else math.nan


def _checked_parts(
    x: Tensor, y: Tensor, kernel_x: Kernel | None, kernel_y: Kernel | None, estimator: str, route: str
) -> tuple[Tensor, ...]:
    """The checked samples and their `_parts`."""
    kernel_x, kernel_y = kernel_or(Linear(), kernel_x, "kernel_x"), kernel_or(Linear(), kernel_y, "kernel_y")
    check_choice(estimator, ("biased", "unbiased"), "estimator")
    check_choice(route, ("auto", "primal", "dual", "tiled"), "route")
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    scale_free = Linear, DistanceInduced
    x, y = (near_one(z) if isinstance(kernel, scale_free) else z for z, kernel in ((x, kernel_x), (y, kernel_y)))
    return x, y, *_parts(x, y, fitted_kernel(kernel_x, x, "x"), fitted_kernel(kernel_y, y, "y"), estimator, route)


def _parts(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, estimator: str, route: str) -> tuple[Tensor, ...]:
    """HSIC(x, y), HSIC(x, x) and HSIC(y, y) for fitted kernels, exactly 0 where the value is only rounding."""
    samples: Any = (kernel_x, x), (kernel_y, y)
    (n, p), q = x.shape, y.shape[1]
    linear = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear)
    if linear and (route == "primal" or (route == "auto" and (p + q <= n or n > DUAL_ROWS) and p * q <= n * (p + q))):
        values, small = _estimates(samples, estimator, "covariances")
        values, small = _estimates(samples, estimator, "primal") if any(small) else (values, small)
    else:
        values, small = _estimates(samples, estimator, "dual" if route == "auto" and n <= DUAL_ROWS else route)
    if any(small):
        # The unbiased HSIC leaves out the diagonal, nearly all of the Gram here: take it off first, in float64.
        samples = tuple((kernel, z.double() if z.is_floating_point() else z) for kernel, z in samples)
        values, small = _estimates(samples, estimator, "dual" if n <= 4096 else "tiled", last=True)
    xx, yy, xy = require_finite(torch.stack(values), kernel_x, kernel_y)
    xx, yy = (v * (not s and not is_constant(z)) for v, s, z in zip((xx, yy), small, (x, y), strict=True))
    return xy * ((xx != 0) & (yy != 0)), xx, yy


def _estimates(samples: Any, estimator: str, route: str, last: bool = False) -> tuple[list[Tensor], list[bool]]:
    """HSIC(x, x), HSIC(y, y), HSIC(x, y); whether the first two are too small to be exact, at `last` only rounding."""
    x, n, unbiased, pairs = samples[0][1], len(samples[0][1]), estimator == "unbiased", ((0, 0), (1, 1), (0, 1))
    diagonals: Sequence[Tensor]
    with no_autocast(x):
        if route == "dual":
            grams, diagonals = zip(*(gram_and_diagonal(kernel, z, estimator) for kernel, z in samples), strict=True)
            values = [grams[i].flatten() @ grams[j].flatten() / (n * (n - 3) if unbiased else n**2) for i, j in pairs]
            eps = torch.finfo(diagonals[0].dtype).eps
            tolerance = (1024 * eps) ** 2 if last else 16 * eps  # HSIC(x, x) is a mean of squares
        elif route == "covariances":
            rows = [z - z.mean(dim=0) for z in (at_origin(*sample) for sample in samples)]
            diagonals = [z.square().sum(dim=1, dtype=torch.float64) for z in rows]
            values, tolerance = [], 1 / n
            for i, j in pairs:
                squared_norm = row_product(rows[i], rows[j]).double().square().sum()
                # The columns are centered, so rows of the Grams without diagonals sum to minus the diagonals.
                a, b = diagonals[i] * unbiased, diagonals[j] * unbiased
                values.append(from_sums(squared_norm - a @ b, -a.sum(), -b.sum(), a @ b, n, unbiased))
        else:
            kernels, z = zip(*(fit_at_origin(*sample) for sample in samples), strict=True)
            values = [exact(z[i], z[j], kernels[i], kernels[j], unbiased, route, TILE_ROWS) for i, j in pairs]
            blocks = ((kernel, at_origin(kernel, z.detach()).split(256)) for kernel, z in samples)
            diagonals = [torch.cat([kernel.gram(z, None).diagonal() for z in block]) for kernel, block in blocks]
            tolerance = 16 * n * torch.finfo(values[0].dtype).eps
    limits = (tolerance * diagonal.detach().double().square().mean() for diagonal in diagonals)
    return values, [unbiased and bool(v <= limit) for v, limit in zip(values, limits, strict=False)]


def gram_and_diagonal(kernel: Kernel, x: Tensor, estimator: str) -> tuple[Tensor, Tensor]:
    """Centered Gram in float64, and the diagonal before; inner products are HSIC times n (n - 3), or n^2 if biased."""
    gram = kernel.gram(at_origin(kernel, x), None)
    return u_center(gram) if estimator == "unbiased" else center(gram.double()), gram.detach().diagonal()


def u_center(gram: Tensor) -> Tensor:
    """The U-centered Gram A in float64; `<A, B>_F / (n (n - 3))` is the unbiased HSIC (Székely and Rizzo 2014)."""
    n, centered = len(gram), gram.to(torch.float64, copy=True).fill_diagonal_(0)
    size, rows = centered.detach().norm(), centered.sum(dim=1) / (n - 2)
    # In place: one array of the size of gram.
    centered.sub_((rows - rows.sum() / (n - 1))[:, None]).sub_(rows).fill_diagonal_(0)
    # Exactly 0 if all pairs of different rows have one value, up to rounding.
    return centered.mul_(centered.detach().norm() > 64 * torch.finfo(gram.dtype).eps * size)


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(x, y), HSIC(x, x) and HSIC(y, y); ValueError unless the last two are positive and finite."""
    for name, value in (("x", float(xx.detach())), ("y", float(yy.detach()))):
        if not 0 < value < math.inf:
            raise ValueError(f"CKA is not defined: HSIC({name}, {name}) is {value:.3g}, not positive and finite")
    return xy / (xx.sqrt() * yy.sqrt())


class MinibatchCKA:
    """Unbiased CKA of samples that arrive in batches.

    Each unbiased HSIC is averaged over the batches, weighted by their rows, before the ratio is formed (Nguyen et al.
    2021, arXiv:2010.15327, equation 3). So the batch size adds only noise; one batch gives exactly `cka`. A batch of
    fewer than 4 rows joins the batch before it, the first one the batch after it. Kernels are as in `cka`; a median
    rule is fitted to the first batch and kept. Sums are float64; no gradient flows.

    Examples
    --------
    >>> import torch
    >>> metric = MinibatchCKA()
    >>> for rows in torch.arange(10.0).split(5):
    ...     metric.update(rows, 3 - rows)
    >>> round(metric.compute().item(), 6)
    1.0
    """

    def __init__(self, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> None:
        self.kernel_x = kernel_or(Linear(), kernel_x, "kernel_x")
        self.kernel_y = kernel_or(Linear(), kernel_y, "kernel_y")
        self.reset()

    def reset(self) -> None:
        """Forget all batches and the fitted bandwidths."""
        self._kernels: tuple[Kernel, Kernel] | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._latest: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch (n, p), (n, q), n at least 1."""
        x, y = (z.detach() for z in paired_samples(x, y, self.kernel_x, self.kernel_y, at_least=1))
        if self._latest is not None:
            old_x, old_y = self._latest
            for name, old, new in (("x", old_x, x), ("y", old_y, y)):
                if old.shape[1] != new.shape[1]:
                    raise ValueError(f"{name} had {old.shape[1]} columns in the batch before, now {new.shape[1]}")
            if min(len(x), len(old_x)) < 4:
                x, y = torch.cat([old_x, x]), torch.cat([old_y, y])
            else:
                self._sums += self._weighted(old_x, old_y)
        if self._kernels is None and len(x) >= 4:
            self._kernels = fitted_kernel(self.kernel_x, x, "x"), fitted_kernel(self.kernel_y, y, "y")
        self._latest = x.clone(), y.clone()  # the caller may reuse its buffers

    def compute(self) -> Tensor:
        """CKA of the batches so far, a float64 tensor of shape (); more batches may follow."""
        if self._latest is None or len(self._latest[0]) < 4:
            raise ValueError(f"needs at least 4 rows, got {0 if self._latest is None else len(self._latest[0])}")
        return _ratio(*(self._sums + self._weighted(*self._latest)))

    def _weighted(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows times HSIC(x, y), HSIC(x, x) and HSIC(y, y)."""
        assert self._kernels is not None  # a batch is weighted once it has 4 rows, and fitted then
        parts = _parts(x, y, *self._kernels, "unbiased", "auto")
        return len(x) * torch.stack(parts).double().cpu()


class StreamingLinearCKA:
    """Linear CKA of samples that arrive in chunks of any size, equal to `cka` of all rows, in O((p + q)^2) memory."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._xy, self._xx, self._yy = (StreamingLinearHSIC() for _ in range(3))
        self._eps = 0.0  # rounding unit of the narrowest dtype so far

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows (n, p) and (n, q), n at least 1."""
        x, y = (z.detach() for z in paired_samples(x, y, Linear(), Linear(), at_least=1))
        with no_autocast(x):
            a, b = CenteredRows(x), CenteredRows(y)
            for part, left, right in ((self._xy, a, b), (self._xx, a, a), (self._yy, b, b)):
                part._add(left, right)
        self._eps = max(self._eps, torch.finfo(x.dtype).eps)

    def compute(self, estimator: str = "unbiased") -> Tensor:
        """CKA of all rows so far, "unbiased" or "biased": a float64 tensor of shape ()."""
        xy, xx, yy = (part.compute(estimator) for part in (self._xy, self._xx, self._yy))
        for name, part, value in (("x", self._xx, xx), ("y", self._yy, yy)):
            # The products of a chunk have the rounding error of its dtype.
            if value and value <= 64 * self._eps * part.compute("biased"):
                own = f"HSIC({name}, {name}) is {value:.3g}"
                raise ValueError(f"CKA is not defined: {own}, rounding error; feed float64")
        return _ratio(xy, xx, yy)


sys.modules[__name__].__class__ = CallableModule
