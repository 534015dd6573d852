"""Feature maps with K ~ Phi Phi', `(n, r)`: HSIC of the maps is linear HSIC, O(n r^2) instead of O(n^2).

    hsic(factor(kernel_x, x, seed=0), factor(kernel_y, y, seed=1))

How to choose. `"cholesky"` where n rows are at hand and accuracy is to be promised: it stops at a stated tolerance.
`"nystrom"` is the same on a random subset of the rows: cheaper pivots, no promise. `"fourier"` needs no pivots, is
the same map for new rows and costs nothing but its columns; its error falls as rank^-1/2.
"""

from functools import singledispatch

import torch
from torch import Tensor

from hsic_lab.checks import full_precision, one_of
from hsic_lab.kernels import Gaussian, InverseMultiquadric, Kernel, Laplace, Product, require_finite


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
    one_of(method, ("cholesky", "nystrom", "fourier"), "method")
    if not rank >= 1:
        raise ValueError(f"rank must be at least 1, got {rank!r}")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, got {tolerance!r}")
    x = kernel.samples(x, "x")
    kernel, dtype = kernel.fit(x), x.dtype if x.is_floating_point() else torch.get_default_dtype()
    generator = torch.Generator().manual_seed(seed)
    with full_precision(x):
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
