"""Kernels k(x, x'): a small immutable object, called on samples, gives their Gram matrix.

Every kernel here is positive definite, and `k1 + k2`, `k1 * k2` are kernels again. `Gaussian`, `Laplace` and
`InverseMultiquadric` are characteristic: HSIC with them is 0 only at independence. `Linear` sees correlation and
nothing else, `Polynomial` the moments up to its degree, `Delta` is the kernel of labels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab.checks import as_samples, full_precision, one_of

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
        with full_precision(x):
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

    It depends on the origin and the unit of x: standardise x first, or high powers leave float32's range.
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
    "linear": Linear, "gaussian": Gaussian, "laplace": Laplace, "imq": InverseMultiquadric,
}


def named(name: str) -> Kernel:
    """The kernel called "linear", "gaussian", "laplace" or "imq", with the median rule where it has a bandwidth."""
    return NAMED[one_of(name, tuple(NAMED), "kernel")]()


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
        raise ValueError(
            f"the median distance of this sample leaves the range of {x.dtype}: standardise the sample"
        )
    return float(median)


def require_finite(values: Tensor, kernel: Kernel) -> Tensor:
    """The kernel's `values`; ValueError if one is not finite: no comparison with NaN is true, so that tests mislead."""
    if not values.isfinite().all():
        raise ValueError(f"{kernel!r} leaves the range of {values.dtype} on this sample: standardise the sample")
    return values
