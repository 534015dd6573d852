"""Kernels, the median bandwidth rule and low-rank factors of Gram matrices.

A kernel is a small immutable object. Called on samples it returns their Gram matrix. All kernels here are positive
definite, and ``k1 + k2`` and ``k1 * k2`` are kernels again. `Gaussian`, `Laplace` and `InverseMultiquadric` are
characteristic: in the limit of many rows, HSIC with them is 0 only if the samples are independent. `Linear` detects
correlation only, `Polynomial` moments up to its degree. `Delta` is the kernel for class labels.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import as_samples, check_choice, drawn_rows, no_autocast

__all__ = [
    "Delta", "Gaussian", "InverseMultiquadric", "Kernel", "Laplace", "Linear", "Polynomial", "Product", "Sum", "factor",
    "median_distance", "named", "squared_distances",
]  # fmt: skip

# 2 million distances: the standard error of their median is below 1 % for usual samples.
MEDIAN_ROWS = 2000


class Kernel:
    """A positive definite function of two rows.

    A kernel of your own defines `gram`, `fit` if its bandwidth follows a rule, and `frequencies` if it is to have
    Fourier features.

    Examples
    --------
    >>> import torch
    >>> kernel = Gaussian(1.0) + Linear()
    >>> kernel(torch.tensor([[0.0], [1.0]]))
    tensor([[1.0000, 0.6065],
            [0.6065, 2.0000]])
    """

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The Gram matrix (n, m) of `x` (n, p) and `y` (m, p); None for `y` means `x`. Vectors are one column.

        The median rule uses the rows of both. Raises ValueError or TypeError if a sample is not floating, holds NaN or
        infinite values, or has the wrong shape. `Delta` accepts integers and booleans as well.
        """
        x = self.samples(x, "x")
        y = None if y is None else self.samples(y, "y")
        if y is not None and x.shape[1] != y.shape[1]:
            raise ValueError(f"x and y must have the same number of columns, got {x.shape[1]} and {y.shape[1]}")
        if y is not None and x.is_floating_point() and y.is_floating_point():
            dtype = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(dtype), y.to(dtype)
        with no_autocast(x):
            return self.fit(x if y is None else torch.cat([x, y])).gram(x, y)

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        """`x` as an (n, p) tensor that the kernel accepts, else ValueError or TypeError."""
        try:
            return as_samples(x, name)
        except TypeError as error:
            raise TypeError(f"{error} (class labels take the kernel Delta())") from None

    def fit(self, x: Tensor) -> "Kernel":
        """The kernel with every bandwidth rule replaced by its value on `x`."""
        return self

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The Gram matrix of checked samples, (n, m); the kernel is fitted. None for `y` means `x`."""
        raise NotImplementedError

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        """`count` random w of shape (p,) with ``E cos(w'(x - x')) = k(x, x')``: (p, count) in float64."""
        accepted = "Gaussian, Laplace, InverseMultiquadric or a product of them"
        raise TypeError(f"Fourier features need {accepted}, got {self!r}")

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other)

    def __mul__(self, other: "Kernel") -> "Kernel":
        return Product(self, other)


@dataclass(frozen=True)
class Linear(Kernel):
    """Linear kernel ``k(x, x') = <x, x'>``."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return x @ (x if y is None else y).T


@dataclass(frozen=True)
class Polynomial(Kernel):
    """Polynomial kernel ``k(x, x') = (<x, x'> + offset)^degree``.

    It depends on the origin and the unit of x. Standardize x first: high powers leave the range of float32.

    Parameters
    ----------
    degree : int, default 2
        At least 1.
    offset : float, default 1.0
        At least 0.
    """

    degree: int = 2
    offset: float = 1.0

    def __post_init__(self) -> None:
        if not (isinstance(self.degree, int) and self.degree >= 1):
            raise ValueError(f"degree must be an integer of at least 1, got {self.degree!r}")
        if not self.offset >= 0:
            raise ValueError(f"offset must be at least 0, got {self.offset!r}")

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return (x @ (x if y is None else y).T + self.offset) ** self.degree


@dataclass(frozen=True)
class Delta(Kernel):
    """Kernel of class labels: 1 where two rows are equal, 0 elsewhere. Accepts integers and booleans."""

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        return as_samples(x, name, labels=True)

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        y = x if y is None else y
        equal = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
        for column_x, column_y in zip(x.T, y.T, strict=True):
            equal &= column_x[:, None] == column_y
        return equal.to(dtype)


@dataclass(frozen=True)
class _Scaled(Kernel):
    """Base of the kernels of a distance, which have a bandwidth."""

    bandwidth: Any = "median"  # or a positive float or 0-d Tensor

    def __post_init__(self) -> None:
        s = self.bandwidth
        value = s.detach() if isinstance(s, Tensor) else s
        if not (s == "median" if isinstance(s, str) else float(value) > 0):
            raise ValueError(f'bandwidth must be "median" or a positive number, got {s!r}')

    def fit(self, x: Tensor) -> "Kernel":
        return replace(self, bandwidth=median_distance(x, self._norm)) if isinstance(self.bandwidth, str) else self

    _norm = 2


@dataclass(frozen=True)
class Gaussian(_Scaled):
    """Gaussian kernel ``k(x, x') = exp(-||x - x'||^2 / (2 s^2))`` with bandwidth s.

    Parameters
    ----------
    bandwidth : float, Tensor or "median", default "median"
        Bandwidth in the unit of x, positive. "median" takes `median_distance` of the sample as a constant, without
        gradient. A 0-d tensor with ``requires_grad`` is a learnable bandwidth.
    """

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.exp(squared_distances(x, y) * (-0.5 / self.bandwidth**2))

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        return _normal(generator, p, count) / self.bandwidth


@dataclass(frozen=True)
class Laplace(_Scaled):
    """Laplace kernel ``k(x, x') = exp(-||x - x'||_1 / s)``.

    The bandwidth s is given as for `Gaussian`; its median rule uses the distance ``||x - x'||_1``.
    """

    _norm = 1

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.exp(torch.cdist(x, x if y is None else y, p=1) / -self.bandwidth)

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        # Independent Cauchy coordinates: exp(-|t|/s) is the characteristic function of Cauchy(1/s).
        return _normal(generator, p, count) / _normal(generator, p, count) / self.bandwidth


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """Inverse multiquadric kernel ``k(x, x') = c / sqrt(c^2 + ||x - x'||^2)`` (Li et al. 2021, arXiv:2106.08320).

    The bandwidth c is given as for `Gaussian`.
    """

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.rsqrt(1 + squared_distances(x, y) / self.bandwidth**2)

    def frequencies(self, p: int, count: int, generator: torch.Generator) -> Tensor:
        # c (c^2 + r^2)^-1/2 = E exp(-t r^2) with t ~ Gamma(1/2, rate c^2), that is, 2 t c^2 is chi-square with one
        # degree of freedom. Given t, the frequencies are normal with variance 2 t.
        return _normal(generator, p, count) * _normal(generator, 1, count).abs() / self.bandwidth


@dataclass(frozen=True)
class _Pair(Kernel):
    """Base of sums and products of two kernels."""

    first: Kernel
    second: Kernel

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        # Labels are accepted only if both kernels accept them.
        return self.second.samples(self.first.samples(x, name), name)

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
        first = self.first.frequencies(p, count, generator)
        return first + self.second.frequencies(p, count, generator)


NAMED: dict[str, type[Kernel]] = {
    "linear": Linear, "gaussian": Gaussian, "laplace": Laplace, "imq": InverseMultiquadric,
}  # fmt: skip


def named(name: str) -> Kernel:
    """The kernel "linear", "gaussian", "laplace" or "imq", with the median rule where it has a bandwidth.

    Raises ValueError for any other name.
    """
    return NAMED[check_choice(name, tuple(NAMED), "kernel")]()


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Squared distances ``||x_i - y_j||^2``, (n, p), (m, p) -> (n, m). None for `y` means `x`, with a diagonal of 0."""
    # Distances do not depend on the origin, but the rounding error of the expanded square does.
    origin = x.detach().mean(dim=0)
    x = x - origin
    xx = x.square().sum(dim=1)
    if y is None:
        distances = (xx[:, None] + xx[None, :]).addmm_(x, x.T, alpha=-2)
        distances = distances - torch.diag_embed(distances.diagonal())
    else:
        y = y - origin
        distances = (xx[:, None] + y.square().sum(dim=1)[None, :]).addmm_(x, y.T, alpha=-2)
    return distances.clamp_min(0)  # negative values are rounding


def median_distance(x: Tensor, norm: int = 2) -> float:
    """Median of the ``n (n - 1) / 2`` distances between different rows, the lower one for an even number.

    Parameters
    ----------
    x : Tensor of shape (n, p) or (n,)
        The sample, n at least 2. Above 2000 rows, 2000 of them are used, drawn with a fixed seed.
    norm : {1, 2}, default 2
        The norm of the distance.

    Returns
    -------
    float
        The median, in the unit of `x`. If it is 0, the median of the positive distances; if all rows are equal, 1.

    Raises
    ------
    ValueError, TypeError
        If `x` is not a finite floating sample of 2 or more rows, or if a distance overflows.
    """
    x = as_samples(x, "x").detach()
    if len(x) < 2:
        raise ValueError(f"the median distance needs at least 2 rows, got shape {tuple(x.shape)}")
    distances = F.pdist(drawn_rows(x, MEDIAN_ROWS), p=norm)
    median = distances.median()
    if median == 0:
        distances = distances[distances > 0]
        median = distances.median() if len(distances) else torch.ones(())
    if not median.isfinite():
        raise ValueError(f"the median distance of this sample leaves the range of {x.dtype}: standardize the sample")
    return float(median)


def require_finite(values: Tensor, kernel: Kernel) -> Tensor:
    """The `values` of a kernel themselves; ValueError if one is not finite, because comparisons with NaN mislead."""
    if not values.isfinite().all():
        raise ValueError(f"{kernel!r} leaves the range of {values.dtype} on this sample: standardize the sample")
    return values


def factor(
    kernel: Kernel, x: Tensor, rank: int = 256, method: str = "cholesky", tolerance: float = 1e-6, seed: int = 0
) -> Tensor:
    """Low-rank factor Phi of the Gram matrix, ``K ~ Phi Phi'``. Differentiable in `x` and in bandwidths.

    Parameters
    ----------
    kernel : Kernel
        The kernel; a median rule is fitted on all rows.
    x : Tensor of shape (n, p) or (n,)
        The sample.
    rank : int, default 256
        Largest number of columns; for "fourier" the number of columns, which must be even.
    method : {"cholesky", "nystrom", "fourier"}, default "cholesky"
        "cholesky" is the incomplete Cholesky factorization. It takes the row of the largest residual as a pivot until
        ``tr(K - Phi Phi') <= tolerance * tr K``; no entry of that residual exceeds its trace. "nystrom" is the same
        with pivots among `rank` random rows. "fourier" are random features ``sqrt(2 / r) [cos(x W), sin(x W)]`` for
        `Gaussian`, `Laplace`, `InverseMultiquadric` and their products, unbiased, with an error of order ``r^-1/2``.
        Use different seeds for x and y there: shared frequencies bias HSIC.
    tolerance : float, default 1e-6
        Share of the trace that may be left out, between 0 and 1.
    seed : int, default 0
        Seed of the random rows and frequencies.

    Returns
    -------
    Tensor of shape (n, r)
        Phi, r at most `rank`.

    Raises
    ------
    ValueError, TypeError
        If an argument is out of range, the kernel has no Fourier features, or K is 0 or not finite.

    References
    ----------
    Fine and Scheinberg (2001), JMLR 2 (Cholesky); Williams and Seeger (2001), NIPS 13 (Nystroem); Rahimi and Recht
    (2007), NIPS 20 (Fourier features).

    Examples
    --------
    >>> import torch
    >>> factor(Delta(), torch.arange(40) % 5).shape
    torch.Size([40, 5])
    """
    check_choice(method, ("cholesky", "nystrom", "fourier"), "method")
    if not rank >= 1:
        raise ValueError(f"rank must be at least 1, got {rank!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance!r}")
    if method == "fourier" and rank % 2:
        raise ValueError(f"Fourier features come in pairs, rank must be even, got {rank}")
    x = kernel.samples(x, "x")
    kernel, dtype = kernel.fit(x), x.dtype if x.is_floating_point() else torch.get_default_dtype()
    generator = torch.Generator().manual_seed(seed)
    with no_autocast(x):
        if method == "fourier":
            angles = x @ kernel.frequencies(x.shape[1], rank // 2, generator).to(x)
            return torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / rank) ** 0.5
        # In float64: float32 rounds the distances of far rows by more than the small eigenvalues of the pivots' Gram.
        x = x.double() if x.is_floating_point() else x
        if method == "nystrom":
            landmarks = torch.randperm(len(x), generator=generator)[:rank].to(x.device)
            pivots = landmarks[_pivots(kernel, x[landmarks], rank, tolerance)]
        else:
            pivots = _pivots(kernel, x, rank, tolerance)
        chosen = x[pivots]
        lower = torch.linalg.cholesky(kernel.gram(chosen, None))
        return torch.linalg.solve_triangular(lower, kernel.gram(chosen, x), upper=False).T.to(dtype)


@torch.no_grad()
def _pivots(kernel: Kernel, x: Tensor, rank: int, tolerance: float) -> Tensor:
    """Rows that an incomplete Cholesky factorization of the Gram matrix takes, in their order."""
    residual = torch.cat([kernel.gram(block, None).diagonal() for block in x.split(256)]).clone()
    require_finite(residual, kernel)
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


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)
