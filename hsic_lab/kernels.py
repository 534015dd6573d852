"""Kernels, the median bandwidth rule and low-rank factors of Gram matrices."""

import math
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import (  # isort: skip
    as_samples, check_choice, check_integer, check_number, check_type, default_dtype, drawn_rows, is_constant,
    inner_products, is_transformed, is_vmapped, matmul, no_autocast,
)  # fmt: skip

__all__ = [
    "Delta", "DistanceInduced", "Gaussian", "InverseMultiquadric", "Kernel", "Laplace", "Linear", "Polynomial",
    "Product", "Sum", "factor", "median_distance", "named", "squared_distances",
]  # fmt: skip

TILE_ENTRIES = 1 << 18  # of distances computed at once: 1 MiB in float32, within a core's second-level cache
MEDIAN_ROWS = 2000  # 2 million distances: the standard error of their median is usually below 1 %
_normal = partial(torch.randn, dtype=torch.float64)


class Kernel:
    """A positive definite function of two rows; called on samples it returns their Gram matrix.

    Kernels are immutable; ``k1 + k2`` and ``k1 * k2`` are kernels again. HSIC with `Gaussian`, `Laplace`,
    `InverseMultiquadric` or `DistanceInduced` is 0, in the limit of many rows, only if the samples are independent.
    `Linear` detects correlation only, `Polynomial` moments up to its degree. A kernel of your own defines `gram`, `fit`
    if its bandwidth follows a rule, and `frequencies` if it is to have Fourier features.

    Examples
    --------
    >>> import torch
    >>> (Gaussian(1.0) + Linear())(torch.tensor([[0.0], [1.0]]))
    tensor([[1.0000, 0.6065],
            [0.6065, 2.0000]])
    """

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The Gram matrix (n, m) of `x` (n, p) and `y` (m, p) or, without `y`, of `x`; the median rule uses both."""
        x, y = self.samples(x, "x"), None if y is None else self.samples(y, "y")
        if y is not None and x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have the same number of columns, got {x.shape[1]} and {y.shape[1]}")
        if y is not None and x.is_floating_point() and y.is_floating_point():
            x, y = (z.to(torch.promote_types(x.dtype, y.dtype)) for z in (x, y))
        with no_autocast(x):
            return self.fit(x if y is None else torch.cat([x, y])).gram(x, y)

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        """`x` as an (n, p) tensor that the kernel accepts, else ValueError or TypeError."""
        return as_samples(x, name)

    def fit(self, x: Tensor) -> "Kernel":
        """The kernel with every bandwidth rule replaced by its value on `x`."""
        return self

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The Gram matrix of checked samples, (n, m), for a fitted kernel. None for `y` means `x`."""
        raise NotImplementedError(f"a kernel of your own must define gram(x, y), {type(self).__name__} does not")

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` random w of shape (p,) with ``E cos(w'(x - x')) = k(x, x')``: (p, count) in float64."""
        accepted = "Gaussian, Laplace, InverseMultiquadric, their products, or a kernel that defines `frequencies`"
        raise TypeError(f"Fourier features need {accepted}, got {self!r}")

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, check_type("a summand", other, Kernel))

    def __mul__(self, other: "Kernel") -> "Kernel":
        return Product(self, check_type("a factor", other, Kernel))


@dataclass(frozen=True)
class Linear(Kernel):
    """Linear kernel ``k(x, x') = <x, x'>``."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return inner_products(x) if y is None else matmul(x, y.T)


@dataclass(frozen=True)
class Polynomial(Kernel):
    """Polynomial kernel ``(<x, x'> + offset)^degree``. Standardize x: high powers leave the range of float32."""

    degree: int = 2
    offset: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "degree", check_integer("degree", self.degree, 1, 1000))
        object.__setattr__(self, "offset", check_number("offset", self.offset, 0))

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return ((inner_products(x) if y is None else matmul(x, y.T)) + self.offset) ** self.degree


@dataclass(frozen=True)
class Delta(Kernel):
    """Kernel of class labels: 1 where two rows are equal, 0 elsewhere. Accepts integers and booleans.

    It does not know that 41 is near 42: measurements, such as ages, are floats and take another kernel.
    """

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        return as_samples(x, name, labels=True)

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        y = x if y is None else y
        equal = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
        for column_x, column_y in zip(x.T, y.T, strict=True):
            equal &= column_x[:, None] == column_y
        return equal.to(x.dtype if x.is_floating_point() else default_dtype())


def power_below(value: float) -> float:
    """The largest power of two that is not above a positive number, 1 for 0: to divide by it is exact."""
    return 2.0 ** (math.frexp(value)[1] - 1) if value else 1.0


def near_one(x: Tensor) -> Tensor:
    """`x` over the power of two below its largest entry: its squares neither overflow nor vanish."""
    return x / power_below(float(x.detach().abs().max()))


@dataclass(frozen=True)
class _Scaled(Kernel):
    """Base of the kernels of a distance, which have a bandwidth."""

    bandwidth: Any = "median"  # or a positive float or 0-d Tensor
    _norm = 2

    def __post_init__(self) -> None:
        s = self.bandwidth
        number = isinstance(s, Real | Tensor) and not isinstance(s, bool) and math.prod(getattr(s, "shape", ())) == 1
        if not (s == "median" if isinstance(s, str) else number and 0 < s < math.inf):
            raise ValueError(f'bandwidth must be "median" or a positive number, got {s!r}')

    def fit(self, x: Tensor) -> "Kernel":
        if not isinstance(self.bandwidth, str):
            return self
        if not (torch.compiler.is_compiling() or is_transformed()):
            return replace(self, bandwidth=median_distance(x, self._norm))
        # The rule of `median_distance` without reading a value, which these transforms do not allow.
        distances = F.pdist(drawn_rows(x.detach(), MEDIAN_ROWS), p=self._norm)
        median, positive = distances.median(), distances.where(distances > 0, math.nan).nanmedian()
        fitted = copy(self)
        object.__setattr__(fitted, "bandwidth", positive.nan_to_num(1.0).where(median == 0, median))
        return fitted

    def _in_range(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None, float | Tensor]:
        """Samples and bandwidth over a power of two if the bandwidth's square may leave the range: that is exact."""
        s = self.bandwidth
        hidden = isinstance(s, Tensor) and (torch.compiler.is_compiling() or is_transformed())
        if hidden or 1e-15 < (size := float(s.detach() if isinstance(s, Tensor) else s)) < 1e15:
            return x, y, s
        if not 0 < size < math.inf:  # a learnable one that an optimizer has moved
            raise ValueError(f"bandwidth must be positive and finite, got {size}: learn its logarithm")
        unit = power_below(min(size, torch.finfo(x.dtype).max))
        return x / unit, None if y is None else y / unit, s / unit

    def _squares(self, x: Tensor, y: Tensor | None, factor: float) -> Tensor:
        """`squared_distances` times ``factor / bandwidth^2``."""
        x, y, s = self._in_range(x, y)
        distances, scale = squared_distances(x, y), factor / s**2
        # In place unless the gradient of a learnable bandwidth needs the distances.
        return distances * scale if isinstance(s, Tensor) else distances.mul_(scale)


@dataclass(frozen=True)
class Gaussian(_Scaled):
    """Gaussian kernel ``k(x, x') = exp(-||x - x'||^2 / (2 s^2))`` with bandwidth s.

    The bandwidth is positive, in the unit of x. "median", the default, takes `median_distance` without gradient; a 0-d
    tensor may be learnable.
    """

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self._squares(x, y, -0.5).exp_()

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        return _normal(p, count, generator=generator) / self.bandwidth


@dataclass(frozen=True)
class Laplace(_Scaled):
    """Laplace kernel ``k(x, x') = exp(-||x - x'||_1 / s)``, s as in `Gaussian` but with the median of ``||.||_1``.

    torch has no second derivative and no forward mode of this distance: both raise NotImplementedError.
    """

    _norm = 1

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        x, y, s = self._in_range(x, y)
        return (torch.cdist(x, x if y is None else y, p=1) / -s).exp_()

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        # Independent Cauchy coordinates: exp(-|t|/s) is the characteristic function of Cauchy(1/s).
        return _normal(p, count, generator=generator) / _normal(p, count, generator=generator) / self.bandwidth


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """Inverse multiquadric kernel ``k(x, x') = c / sqrt(c^2 + ||x - x'||^2)`` with bandwidth c as in `Gaussian`."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self._squares(x, y, 1.0).add_(1).rsqrt_()

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        # c (c^2 + r^2)^-1/2 = E exp(-t r^2) for 2 t c^2 ~ chi-square(1). Given t, w is normal with variance 2 t.
        return _normal(p, count, generator=generator) * _normal(1, count, generator=generator).abs() / self.bandwidth


@dataclass(frozen=True)
class DistanceInduced(Kernel):
    """Kernel of distance covariance, ``k(x, x') = (||x|| + ||x'|| - ||x - x'||) / 2``, without a bandwidth.

    With it for both samples, 4 `hsic` is the squared distance covariance and biased `cka` the squared distance
    correlation of Székely et al. (2007); the unbiased estimators match too. HSIC does not depend on the base point,
    here the origin, so `hsic`, `cka` and the tests first move it into the sample: far samples keep their digits.
    Reference: Sejdinovic et al. (2013), "Equivalence of Distance-Based and RKHS-Based Statistics".
    """

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        norms_x, norms_y = (_roots(z.square().sum(dim=1)) for z in (x, x if y is None else y))
        return (norms_x[:, None] + norms_y - _roots(squared_distances(x, y))) / 2


def _roots(squares: Tensor) -> Tensor:
    """Square roots whose gradient at 0 is 0, that of the norm at its minimum."""
    zero = squares == 0
    return squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0)


@dataclass(frozen=True)
class _Pair(Kernel):
    """Base of sums and products of two kernels."""

    first: Kernel
    second: Kernel

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        return self.second.samples(self.first.samples(x, name), name)  # labels only if both kernels accept them

    def fit(self, x: Tensor) -> Kernel:
        return type(self)(self.first.fit(x), self.second.fit(x))


@dataclass(frozen=True)
class Sum(_Pair):
    """Sum of two kernels, written ``k1 + k2``."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.first.gram(x, y) + self.second.gram(x, y)


@dataclass(frozen=True)
class Product(_Pair):
    """Product of two kernels, written ``k1 * k2``."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.first.gram(x, y) * self.second.gram(x, y)

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        # The spectral measure of a product is the convolution of the two measures.
        return self.first.frequencies(p, count, generator) + self.second.frequencies(p, count, generator)


NAMED: dict[str, type[Kernel]] = dict(linear=Linear, gaussian=Gaussian, laplace=Laplace, imq=InverseMultiquadric)


def named(name: str) -> Kernel:
    """The kernel "linear", "gaussian", "laplace" or "imq", with the median rule where it has a bandwidth."""
    return NAMED[check_choice(name, tuple(NAMED), "kernel")]()


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared distances ``||x_i - y_j||^2``, (n, p), (m, p) -> (n, m). None for `y` means `x`.

    Every entry is exact up to a relative error of a few ``eps^(3/4)``, 1e-5 in float32 and 2e-12 in float64, whatever
    the outliers or clusters of the rows. Equal rows have distance 0 and gradient 0. `torch.compile` and `vmap` cannot
    choose pairs by their values: there the error of the columns' medians, ``eps (||x_i||^2 + ||y_j||^2)``, remains.
    """
    y = x if y is None else y
    if not (len(x) and len(y)):
        return x @ y.T  # empty
    origin = middle(x)  # far from the origin the expanded square loses digits
    if torch.compiler.is_compiling() or x.is_meta or is_vmapped(x) or is_vmapped(y):
        distances, scale = _expanded_square(x, y, origin)
        return distances.masked_fill(distances < 8 * torch.finfo(x.dtype).eps * scale, 0)
    rows = max(1, TILE_ENTRIES // len(y)) if x.is_cpu else len(x)
    if rows >= len(x) or (x is y and x.requires_grad):  # tiles of x with x would take another product for the gradient
        return _repaired_square(x, y, origin)
    tiles = (_repaired_square(part, y, origin) for part in x.split(rows))
    if x.requires_grad or y.requires_grad:
        return torch.cat(list(tiles))
    distances = x.new_empty(len(x), len(y))
    for part, tile in zip(distances.split(rows), tiles, strict=True):
        part.copy_(tile)
    return distances


def middle(x: Tensor) -> Tensor:
    """Median of each column over 64 rows or so, without gradient: near most rows, whatever the outliers."""
    # Along the last dimension, where `median` is several times faster.
    return x.detach()[:: len(x) // 64 + 1].T.contiguous().median(dim=1).values


def _expanded_square(x: Tensor, y: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """``|a|^2 + |b|^2 - 2 a'b`` with ``a = x - origin``, ``b = y - origin``, and ``|a|^2 + |b|^2`` without gradient."""
    a = x - origin
    lengths = a.square().sum(dim=1)
    if x is y:
        scale, products = lengths[:, None] + lengths, inner_products(a)
    else:
        b = y - origin
        scale, products = lengths[:, None] + b.square().sum(dim=1), matmul(a, b.T)
    return torch.sub(scale, products, alpha=2), scale.detach()


def _repaired_square(x: Tensor, y: Tensor, origin: Tensor) -> Tensor:
    """`_expanded_square` with the pairs that cancel computed anew."""
    distances, scale = _expanded_square(x, y, origin)
    # Not "<": overflowed squares, whose difference is NaN, are to be computed anew, too.
    close = ~(distances.detach() >= scale * torch.finfo(x.dtype).eps ** 0.25)
    if x is y:
        distances.diagonal().copy_((x - x).detach().sum(dim=1))  # 0, and NaN for infinite rows
        close.fill_diagonal_(False)
    pairs = close.nonzero()
    while len(pairs) * min(x.shape[1], 256) > 8 * max(close.numel(), 4096) and scale.isfinite().all():
        # Too many for differences: the largest cluster gets an origin of its own, at most 0.2 times as far away.
        near_y = close[close.sum(dim=1).argmax()].nonzero()[:, 0]
        center = near_y[close[:, near_y].sum(dim=0).argmax()]
        near_x = close[:, center].nonzero()
        distances.index_put_((near_x, near_y), _repaired_square(x[near_x[:, 0]], y[near_y], y[center].detach()))
        close[near_x, near_y] = False
        pairs = close.nonzero()
    if not len(pairs):
        return distances
    i, j = pairs.T
    return distances.index_put_((i, j), (x[i] - y[j]).square().sum(dim=1))


def median_distance(x: Tensor, norm: int = 2) -> float:
    """Median of the ``n (n - 1) / 2`` distances between different rows of `x` (n, p); of two middle ones, the lower.

    Above 2000 rows, 2000 drawn with a fixed seed are used. `norm` is 1 or 2. If the median is 0, it is taken over the
    positive distances; if all rows are equal, it is 1.
    """
    x, norm = as_samples(x, "x").detach(), check_integer("norm", norm, 1, 2)
    if len(x) < 2:
        raise ValueError(f"the median distance needs at least 2 rows, got shape {tuple(x.shape)}")
    rows = drawn_rows(x, MEDIAN_ROWS)
    for unit in (1.0, power_below(float(rows.abs().max()))):  # the second if squares leave the range
        distances = F.pdist(rows / unit, p=norm)
        median = distances.median()
        median = distances[distances > 0].median() if median == 0 and distances.any() else median
        if torch.finfo(rows.dtype).tiny ** 0.4 < median < math.inf:
            return unit * float(median)
    if not is_constant(rows):
        raise ValueError(f"the median distance of this sample leaves the range of {x.dtype}: standardize the sample")
    return 1.0


def kernel_or(default: "Kernel", kernel: "Kernel | None", name: str) -> "Kernel":
    """`kernel`, checked to be one, or the default if it is None."""
    return default if kernel is None else check_type(name, kernel, Kernel)


def require_finite(values: Tensor, *kernels: Kernel) -> Tensor:
    """`values` themselves; ValueError if one is not finite, because comparisons with NaN mislead."""
    if not values.isfinite().all():
        named = " or ".join(dict.fromkeys(map(repr, kernels)))
        raise ValueError(f"{named} leaves the range of {values.dtype} on this sample: standardize the sample")
    return values


def factor(
    kernel: Kernel, x: Tensor, rank: int = 256, method: str = "cholesky", tolerance: float = 1e-6, seed: int = 0
) -> Tensor:
    """Low-rank factor Phi (n, r) of the Gram matrix, ``K ~ Phi Phi'``. Differentiable in `x` and in bandwidths.

    Parameters
    ----------
    kernel, x : Kernel, Tensor of shape (n, p) or (n,)
        The kernel and the sample; a median rule is fitted on all rows.
    rank : int, default 256
        Largest number r of columns; for "fourier" the number of columns, which must be even.
    method : {"cholesky", "nystrom", "fourier"}, default "cholesky"
        "cholesky" is incomplete Cholesky factorization (Fine and Scheinberg 2001): the row of the largest residual is
        the next pivot until ``tr(K - Phi Phi') <= tolerance * tr K``. "nystrom" (Williams and Seeger 2001) takes pivots
        among `rank` random rows. "fourier" (Rahimi and Recht 2007) are features ``sqrt(2 / r) [cos(x W), sin(x W)]``,
        unbiased with an error of order ``r^-1/2``, for `Gaussian`, `Laplace`, `InverseMultiquadric` and their products.
    tolerance : float, default 1e-6
        Share of the trace that may be left out, between 0 and 1.
    seed : int, default 0
        Seed of the random rows and frequencies. Use different seeds for x and y: shared frequencies bias HSIC.
    """
    check_choice(method, ("cholesky", "nystrom", "fourier"), "method")
    rank, seed = check_integer("rank", rank, 1), check_integer("seed", seed, 0)
    if method == "fourier" and rank % 2:
        raise ValueError(f"rank of Fourier features must be even, got {rank}")
    tolerance = check_number("tolerance", tolerance, 0, 1, above=True)
    x = check_type("kernel", kernel, Kernel).samples(x, "x")
    kernel, dtype = kernel.fit(x), x.dtype if x.is_floating_point() else default_dtype()
    generator = torch.Generator().manual_seed(seed)
    with no_autocast(x):
        if method == "fourier":
            return fourier_features(kernel, x, rank, generator)
        # In float64: float32 rounds the distances of far rows by more than the small eigenvalues of the pivots' Gram.
        x = x.double() if x.is_floating_point() else x
        candidates = x[torch.randperm(len(x), generator=generator)[:rank].to(x.device)] if method == "nystrom" else x
        chosen = candidates[_pivots(kernel, candidates, rank, tolerance)]
        lower = torch.linalg.cholesky(kernel.gram(chosen, None))
        return torch.linalg.solve_triangular(lower, kernel.gram(chosen, x), upper=False).T.to(dtype)


def fourier_features(kernel: Kernel, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Features (n, count) ``sqrt(2 / count) [cos(x W), sin(x W)]`` with random W, whose products are k on average."""
    angles = matmul(x, kernel.frequencies(x.shape[1], count // 2, generator).to(x))
    return torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / count) ** 0.5


@torch.no_grad()
def _pivots(kernel: Kernel, x: Tensor, rank: int, tolerance: float) -> Tensor:
    """Rows that an incomplete Cholesky factorization of the Gram matrix takes, in their order."""
    residual = require_finite(torch.cat([kernel.gram(block, None).diagonal() for block in x.split(256)]), kernel)
    # Residuals below the rounding error of K are noise at any tolerance.
    noise = 100 * torch.finfo(residual.dtype).eps * residual.max()
    limit = tolerance * residual.sum()
    factors = residual.new_empty(min(rank, len(x)), len(x))
    pivots: list[int] = []
    while len(pivots) < len(factors) and residual.sum() > limit and residual.max() > noise:
        pivot, count = int(residual.argmax()), len(pivots)
        row = require_finite(kernel.gram(x[pivot : pivot + 1], x)[0], kernel) - factors[:count, pivot] @ factors[:count]
        factors[count] = row / residual[pivot].sqrt()
        residual = (residual - factors[count].square()).clamp_min_(0)  # negative values are rounding
        residual[pivot] = 0
        pivots.append(pivot)
    if not pivots:
        raise ValueError("the Gram matrix is 0 everywhere: there is nothing to factor")
    return torch.tensor(pivots, device=x.device)
