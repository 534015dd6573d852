"""Kernels k(x, x'): a small immutable object, called on samples, gives their Gram matrix.

Every kernel here is positive definite, and `k1 + k2`, `k1 * k2` are kernels again. `Gaussian`, `Laplace` and
`InverseMultiquadric` are characteristic: HSIC with them is 0 only at independence. `Linear` sees correlation and
nothing else, `Polynomial` the moments up to its degree, `Delta` is the kernel of labels.
"""

from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import as_samples, check_choice, no_autocast

# 2 million distances: the standard error of their median is below 1 % of it for any sample met here.
MEDIAN_ROWS = 2000


class Kernel:
    """A positive definite function of two rows. A kernel of your own defines `gram`, and `fit` if it has a rule."""

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Gram matrix `(n, p), (m, p) -> (n, m)`; `y` left out means `x`; a median rule reads both."""
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
        """`x` as an `(n, p)` tensor that the kernel accepts; raises ValueError or TypeError."""
        try:
            return as_samples(x, name)
        except TypeError as error:
            raise TypeError(f"{error} (class labels take the kernel Delta())") from None

    def fit(self, x: Tensor) -> "Kernel":
        """The kernel with every bandwidth that is a rule replaced by its value on `x`."""
        return self

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The Gram matrix of samples already checked, with a kernel already fitted."""
        raise NotImplementedError

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other)

    def __mul__(self, other: "Kernel") -> "Kernel":
        return Product(self, other)


@dataclass(frozen=True)
class Linear(Kernel):
    """k(x, x') = <x, x'>."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return x @ (x if y is None else y).T


@dataclass(frozen=True)
class Polynomial(Kernel):
    """k(x, x') = (<x, x'> + c)^degree with the offset c >= 0.

    It depends on the origin and the unit of x: standardize x first, or high powers leave float32's range.
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
    """k(x, x') = 1 where the rows are equal and 0 elsewhere: the kernel of labels. Accepts integers and booleans."""

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        whole = isinstance(x, Tensor | np.ndarray) and not torch.as_tensor(x).is_floating_point()
        if not whole:
            return as_samples(x, name)
        x = torch.as_tensor(x)
        as_samples(torch.zeros(x.shape), name)  # the shape has the same rules
        return x[:, None] if x.dim() == 1 else x

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        y = x if y is None else y
        equal = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
        for column_x, column_y in zip(x.T, y.T, strict=True):
            equal &= column_x[:, None] == column_y
        return equal.to(dtype)


@dataclass(frozen=True)
class _Scaled(Kernel):
    # What the kernels of a distance share: `bandwidth` and the rule for it.
    bandwidth: float | str | Tensor = "median"

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
    """k(x, x') = exp(-||x - x'||^2 / (2 s^2)) with bandwidth s, a length in the units of x.

    `bandwidth="median"` takes `median_distance(x)`, as a constant: no gradient flows through the rule. A tensor with
    `requires_grad` is a learnable bandwidth. Raises ValueError unless the bandwidth is positive. The same holds for
    the other kernels with a bandwidth.
    """

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.exp(squared_distances(x, y) * (-0.5 / self.bandwidth**2))


@dataclass(frozen=True)
class Laplace(_Scaled):
    """k(x, x') = exp(-||x - x'||_1 / s); its median rule takes the median of the same distance, sum_k |x_k - x'_k|."""

    _norm = 1

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.exp(torch.cdist(x, x if y is None else y, p=1) / -self.bandwidth)


@dataclass(frozen=True)
class InverseMultiquadric(_Scaled):
    """k(x, x') = c / sqrt(c^2 + ||x - x'||^2), c the bandwidth: Li et al. 2021 (arXiv 2106.08320)."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return torch.rsqrt(1 + squared_distances(x, y) / self.bandwidth**2)


@dataclass(frozen=True)
class _Pair(Kernel):
    first: Kernel
    second: Kernel

    def samples(self, x: Tensor | np.ndarray, name: str) -> Tensor:
        # Labels stay labels only where both parts accept them.
        return self.second.samples(self.first.samples(x, name), name)

    def fit(self, x: Tensor) -> Kernel:
        return type(self)(self.first.fit(x), self.second.fit(x))


@dataclass(frozen=True)
class Sum(_Pair):
    """k(x, x') = k1(x, x') + k2(x, x'), written `k1 + k2`."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.first.gram(x, y) + self.second.gram(x, y)


@dataclass(frozen=True)
class Product(_Pair):
    """k(x, x') = k1(x, x') k2(x, x'), written `k1 * k2`."""

    def gram(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.first.gram(x, y) * self.second.gram(x, y)


# Names for settings files; a bandwidth other than the median rule needs the class.
NAMED: dict[str, type[Kernel]] = {
    "linear": Linear,
    "gaussian": Gaussian,
    "laplace": Laplace,
    "imq": InverseMultiquadric,
}


def named(name: str) -> Kernel:
    """The kernel called "linear", "gaussian", "laplace" or "imq", with the median rule where it has a bandwidth."""
    return NAMED[check_choice(name, tuple(NAMED), "kernel")]()


def squared_distances(x: Tensor, y: Tensor | None = None) -> Tensor:
    """`||x_i - y_j||^2`, `(n, p), (m, p) -> (n, m)`; exactly 0 on the diagonal when `y` is left out."""
    # Distances do not depend on the origin, the rounding error of the expanded square does.
    origin = x.detach().mean(dim=0)
    x = x - origin
    xx = x.square().sum(dim=1)
    if y is None:
        distances = (xx[:, None] + xx[None, :]).addmm_(x, x.T, alpha=-2)
        distances = distances - torch.diag_embed(distances.diagonal())
    else:
        y = y - origin
        distances = (xx[:, None] + y.square().sum(dim=1)[None, :]).addmm_(x, y.T, alpha=-2)
    return distances.clamp_min(0)  # below 0 is rounding


def median_distance(x: Tensor, norm: int = 2) -> float:
    """Median of the n(n-1)/2 distances between different rows (lower median for an even number of them).

    `norm` is 1 or 2. Above 2000 rows, 2000 of them drawn with a fixed seed stand for all. More than half of the rows
    may be equal (labels, clipped data): a median of 0 is no scale, and the median of the distances that are not 0
    takes its place; where all rows are equal every scale gives the same kernel, and it is 1. Raises ValueError for one
    row, and for distances that overflow.
    """
    x = as_samples(x, "x").detach()
    if len(x) < 2:
        raise ValueError(f"the median distance needs at least 2 rows, got shape {tuple(x.shape)}")
    if len(x) > MEDIAN_ROWS:
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:MEDIAN_ROWS]
        x = x[drawn.to(x.device)]
    distances = F.pdist(x, p=norm)
    median = distances.median()
    if median == 0:
        distances = distances[distances > 0]
        median = distances.median() if len(distances) else torch.ones(())
    if not median.isfinite():
        raise ValueError(f"the median distance of this sample leaves the range of {x.dtype}: standardize the sample")
    return float(median)


def require_finite(values: Tensor, kernel: Kernel) -> Tensor:
    """The kernel's `values`; ValueError if one is not finite: no comparison with NaN is true, so that tests mislead."""
    if not values.isfinite().all():
        raise ValueError(f"{kernel!r} leaves the range of {values.dtype} on this sample: standardize the sample")
    return values


def factor(
    kernel: Kernel, x: Tensor, rank: int = 256, method: str = "cholesky", tolerance: float = 1e-6, seed: int = 0
) -> Tensor:
    """Phi `(n, r)` with `Phi Phi' ~ K`, r <= rank (fourier: r = rank); differentiable in x and in bandwidths.

    * `"cholesky"` (Fine and Scheinberg 2001): pivoted incomplete Cholesky of K. Takes the row with the largest
      residual until the residual trace is at most `tolerance` times `tr K`, or `rank` rows are taken. K - Phi Phi' is
      positive semi-definite, so no entry of it is larger than the residual trace. Pivots are chosen without gradient.
    * `"nystrom"` (Williams and Seeger 2001): the same with pivots among `rank` random rows,
      `Phi Phi' = K_nm K_mm^+ K_mn`, directions below the tolerance left out.
    * `"fourier"` (Rahimi and Recht 2007): `sqrt(2/r) [cos(x W), sin(x W)]`, columns of W drawn from the spectral
      measure: Gaussian, Laplace, InverseMultiquadric and their products; an even `rank`; unbiased, error ~ r^-1/2.
      Give x and y different seeds: shared frequencies add a bias to HSIC.

    Median rules are fitted on all rows. Raises ValueError or TypeError on what cannot be mapped.
    """
    check_choice(method, ("cholesky", "nystrom", "fourier"), "method")
    if not rank >= 1:
        raise ValueError(f"rank must be at least 1, got {rank!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance!r}")
    x = kernel.samples(x, "x")
    kernel, dtype = kernel.fit(x), x.dtype if x.is_floating_point() else torch.get_default_dtype()
    generator = torch.Generator().manual_seed(seed)
    with no_autocast(x):
        if method == "fourier":
            if rank % 2:
                raise ValueError(f"Fourier features come in pairs, rank must be even, got {rank}")
            angles = x @ frequencies(kernel, x.shape[1], rank // 2, generator).to(x)
            return torch.cat([angles.cos(), angles.sin()], dim=1) * (2 / rank) ** 0.5
        # In float64: pivots leave a Gram that is barely positive definite, and float32 distances of rows far from each
        # other are rounded by more than that.
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
    residual = torch.cat([kernel.gram(block, None).diagonal() for block in x.split(256)]).clone()
    require_finite(residual, kernel)
    # Residuals below the rounding error of K are noise, whatever tolerance was asked for.
    noise = 100 * torch.finfo(residual.dtype).eps * residual.max()
    limit = tolerance * residual.sum()
    factors = residual.new_empty(min(rank, len(x)), len(x))
    pivots: list[int] = []
    while len(pivots) < len(factors) and residual.sum() > limit and residual.max() > noise:
        pivot, count = int(residual.argmax()), len(pivots)
        row = require_finite(kernel.gram(x[pivot : pivot + 1], x)[0], kernel) - factors[:count, pivot] @ factors[:count]
        factors[count] = row / residual[pivot].sqrt()
        residual = (residual - factors[count].square()).clamp_min_(0)  # below 0 is rounding
        residual[pivot] = 0
        pivots.append(pivot)
    if not pivots:
        raise ValueError("the Gram matrix is 0 everywhere: there is nothing to factor")
    return torch.tensor(pivots, device=x.device)


@singledispatch
def frequencies(kernel: Kernel, p: int, count: int, generator: torch.Generator) -> Tensor:
    """`(p, count)` draws w with `E cos(w'(x - x')) = k(x, x')`, in float64; the kernel fitted."""
    accepted = "Gaussian, Laplace, InverseMultiquadric or a product of them"
    raise TypeError(f"Fourier features need {accepted}, got {kernel!r}")


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@frequencies.register
def _(kernel: Gaussian, p: int, count: int, generator: torch.Generator) -> Tensor:
    return _normal(generator, p, count) / kernel.bandwidth


@frequencies.register
def _(kernel: Laplace, p: int, count: int, generator: torch.Generator) -> Tensor:
    # Independent Cauchy coordinates: exp(-|t|/s) is the characteristic function of Cauchy(1/s).
    return _normal(generator, p, count) / _normal(generator, p, count) / kernel.bandwidth


@frequencies.register
def _(kernel: InverseMultiquadric, p: int, count: int, generator: torch.Generator) -> Tensor:
    # c (c^2 + r^2)^-1/2 = E exp(-t r^2) with t ~ Gamma(1/2, rate c^2), that is 2 t c^2 ~ chi-square with one degree
    # of freedom; given t the frequencies are normal with variance 2 t.
    return _normal(generator, p, count) * _normal(generator, 1, count).abs() / kernel.bandwidth


@frequencies.register
def _(kernel: Product, p: int, count: int, generator: torch.Generator) -> Tensor:
    # The spectral measure of a product is the convolution of the two.
    first = frequencies(kernel.first, p, count, generator)
    return first + frequencies(kernel.second, p, count, generator)
