"""Is x independent of y? Tests with HSIC: two that hold their level exactly, three that are quick approximations.

| test | null | level | cost |
|---|---|---|---|
| `permutation_test` | re-pairings of the rows | exact at every n | O(B n^2), or O(B n r^2) from factors |
| `aggregated_test` | the same, many bandwidths at once | exact at every n | O(B m^2 n^2) for m bandwidths a side |
| `gamma_test` | gamma with the permutation mean and variance | approximate | O(n^2) |
| `spectral_test` | weighted sum of chi-squares, simulated | asymptotic | O(n^3) |
| `block_test` | normal, from block means | asymptotic, in the number of blocks | O(n^1.5) |

Measured levels: data/results/independence_calibration.csv, with n = 20 and 100. The gamma test is a little liberal
far in the tail (1.6 % at 1 %), the block test conservative (under 3 % at 5 %, n = 100), and weak: it is for large n.

A kernel left out is Gaussian with the median rule, on each side by itself. Every test reads a one-column vector as
`(n, 1)`, treats a constant sample (all rows equal) as independent of everything (statistic 0, p-value 1), raises
ValueError or TypeError on samples that do not match, NaN, too few rows or a kernel that overflows on them, and keeps no
state.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from hsic_lab.hsic import center, hsic, paired
from hsic_lab.kernels import Gaussian, Kernel, Linear, require_finite
from hsic_lab.lowrank import factor
from hsic_lab.null_distributions import permutation_moments, weighted_chi_squares
from hsic_lab.permutations import (
    Labels,
    diagonal_products,
    draw_permutations,
    factor_products,
    gram_products,
    group_codes,
    unbiased,
)
from hsic_lab.results import TestResult

Samples = Tensor | np.ndarray


@torch.no_grad()
def permutation_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    permutations: int = 999, groups: Labels | None = None, tolerance: float | None = None, seed: int = 0,
) -> TestResult:
    """Exact test of independence: unbiased HSIC (Song et al. 2012) against its values when the rows of y are permuted.

    P(pvalue <= a) <= a at every n, for every distribution and kernel, because at independence the observed pairing
    is one of 1 + `permutations` exchangeable ones. With `groups` (n labels) rows change places, and are centred, within
    their group only: the test of independence of x and y given the group. Centred over all rows, a dependence within
    groups that opposes the one between them would go unseen. The statistic is then the same formula of the Grams
    centred within groups: no unbiased estimate of anything, and no less exact a test.

    `tolerance` replaces the Grams by factors, `K ~ X X'` with `tr(K - X X') <= tolerance * tr K`
    (incomplete Cholesky, `lowrank.factor`), and the statistic by that of `X X'` and `Y Y'`. The
    factors are functions of one sample each, so that the level stays exact; the statistic, and with it the p-value,
    is an approximation of the one from the Grams. `method` says which was used.

    Values closer to the statistic than rounding can tell (1e-6 of `||K||_F ||L||_F / (n (n-3))`, K and L centred and
    without their diagonals) count as equal to it. Needs n >= 4.
    """
    x, y, kernel_x, kernel_y = _fitted(x, y, kernel_x, kernel_y, at_least=4)
    n = len(x)
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), groups)
    if tolerance is None:
        centred = _centred_gram(kernel_x, x, groups), _centred_gram(kernel_y, y, groups)
        diagonals = [gram.diagonal().clone() for gram in centred]
        (unit_x, scale_x), (unit_y, scale_y) = map(_unit, centred)
        off_x, off_y = (unit.float().fill_diagonal_(0) for unit in (unit_x, unit_y))
        products = gram_products(off_x[None], off_y[None], draws).flatten() * (scale_x * scale_y)
        observed = (centred[0].fill_diagonal_(0) * centred[1]).sum()
        method = "permutation, Gram matrices"
    else:
        centred = (
            _centred_factor(kernel_x, x, tolerance, groups), _centred_factor(kernel_y, y, tolerance, groups)
        )
        diagonals = [features.square().sum(dim=1) for features in centred]
        (unit_x, scale_x), (unit_y, scale_y) = map(_unit, centred)
        scale_x, scale_y = scale_x**2, scale_y**2
        products = factor_products(unit_x, unit_y, draws) * (scale_x * scale_y)
        products -= diagonal_products(*diagonals, draws)
        observed = (centred[0].T @ centred[1]).square().sum() - diagonals[0] @ diagonals[1]
        method = f"permutation, factors of rank {unit_x.shape[1]}, {unit_y.shape[1]} within {tolerance:g} of the trace"
    statistic = float(unbiased(observed, *diagonals, torch.arange(n)[None]))
    null = unbiased(products, *diagonals, draws).cpu()
    rounding = scale_x * scale_y * _rounding([unit_x], [unit_y], tolerance)[0] / (n * (n - 3))
    null = torch.where((null - statistic).abs() <= rounding, statistic, null)
    return _sampled(statistic, null, method + _drawn(permutations, groups))


@torch.no_grad()
def gamma_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None,
) -> TestResult:
    """Biased HSIC against the gamma distribution that has the mean and the variance of the permutation null.

    Gretton et al. 2008 match moments too; theirs assume k(x, x) = 1, these are exact at every n >= 4 and for every
    diagonal (`permutation_moments` has the derivation). The shape is an approximation: p-values far below 0.01 are
    indicative. The tail is the survival function: never 0 from cancellation.
    """
    x, y, kernel_x, kernel_y = _fitted(x, y, kernel_x, kernel_y, at_least=4)
    gram_x, gram_y = _centred_gram(kernel_x, x), _centred_gram(kernel_y, y)
    statistic = float((gram_x.double() * gram_y).mean())
    mean, variance = permutation_moments(gram_x, gram_y)
    if variance <= 1e-12 * mean**2:  # every permutation scores alike
        return TestResult(statistic, 1.0, "gamma, degenerate: every re-pairing has this statistic")
    distribution = stats.gamma(mean**2 / variance, scale=variance / mean)
    return TestResult(statistic, float(distribution.sf(statistic)), "gamma", distribution=distribution)


@torch.no_grad()
def spectral_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    draws: int = 1000, seed: int = 0,
) -> TestResult:
    """Biased HSIC against its asymptotic null, `n HSIC -> sum_ij a_i b_j N_ij^2` (Gretton et al. 2008, theorem 2;
    Zhang et al. 2018), with a, b the eigenvalues of the centred Grams divided by n, sampled `draws` times.

    `null` is on the scale of HSIC, that is divided by n.
    """
    x, y, kernel_x, kernel_y = _fitted(x, y, kernel_x, kernel_y, at_least=4)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    n = len(x)
    gram_x, gram_y = _centred_gram(kernel_x, x).double(), _centred_gram(kernel_y, y).double()
    eigenvalues = (torch.linalg.eigvalsh(gram) / n for gram in (gram_x, gram_y))
    null = weighted_chi_squares(*eigenvalues, draws, torch.Generator().manual_seed(seed)) / n
    return _sampled(float((gram_x * gram_y).mean()), null, f"spectral, {draws} draws")


@torch.no_grad()
def block_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    block_size: int | None = None, seed: int = 0,
) -> TestResult:
    """Mean of the unbiased HSIC over blocks of rows, against a normal null (Zaremba et al. 2013, Zhang et al. 2018).

    The rows are shuffled (a sorted sample would have no dependence left within its blocks) and cut into
    `n // block_size` blocks; the remaining `n % block_size` rows are left out. The block values are independent with
    mean 0 at independence, so that their mean over its standard error is nearly normal when there are many. The
    default block size is the square root of n, 4 at least. No (n, n) matrix is formed but by the bandwidth rule, which
    sees the whole samples.
    """
    x, y, kernel_x, kernel_y = _fitted(x, y, kernel_x, kernel_y, at_least=8)
    n = len(x)
    size = max(4, int(n**0.5)) if block_size is None else block_size
    if not 4 <= size <= n // 2:
        raise ValueError(f"block_size must be between 4 and n // 2 = {n // 2}, got {size}")
    method = f"block, {n // size} blocks of {size} rows"
    if _constant(x) or _constant(y):
        return TestResult(0.0, 1.0, method)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(x.device)
    blocks = [rows for rows in order.split(size) if len(rows) == size]
    values = torch.stack([hsic(x[b], y[b], kernel_x, kernel_y, estimator="unbiased").double() for b in blocks])
    if not values.isfinite().all():
        for kernel, z in ((kernel_x, x), (kernel_y, y)):
            for rows in blocks:
                require_finite(kernel(z[rows]), kernel)
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    if error == 0:
        return TestResult(mean, 1.0, method)
    distribution = stats.norm(scale=error)
    return TestResult(mean, float(distribution.sf(mean)), method, distribution=distribution)


@torch.no_grad()
def aggregated_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0), permutations: int = 999, groups: Labels | None = None,
    seed: int = 0,
) -> TestResult:
    """Exact test that tries each kernel at each of `scales` times its bandwidth (a kernel without one as it is) and
    rejects if any pair does, at a level corrected for the trying.

    HSICAgg (Albert et al. 2022; Schrab, Kim, Guedj and Gretton 2022) gives each of the m pairs the level u / m and
    searches by bisection for the largest u at which the permuted samples reject no more often than asked. On one set
    of permutations that holds the observed pairing too, the u is a quantile of `min_k p_k`, `p_k` being the share of
    pairings that score at least as high with pair k; comparing the observed `min_k p_k` with the permuted ones is
    therefore the same decision for every level at once. All 1 + `permutations` pairings enter alike, so that
    P(pvalue <= a) <= a at every n. A smaller mean of the p_k breaks ties, else too frequent with few permutations.

    `statistic` and `null` are `-log10 min_k p_k` (with that tie-break); `components` lists unbiased HSIC
    and p_k by pair. Needs n >= 4.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, at least one, got {scales}")
    x, y, kernel_x, kernel_y = _fitted(x, y, kernel_x, kernel_y, at_least=4)
    n = len(x)
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), groups)
    draws = torch.cat([torch.arange(n)[None], draws])  # row 0 is the observed pairing
    kernels_x, kernels_y = _rescaled(kernel_x, scales), _rescaled(kernel_y, scales)
    (units_x, scales_x), (units_y, scales_y) = (
        zip(*(_unit(_centred_gram(kernel, z, groups)) for kernel in kernels), strict=True)
        for z, kernels in ((x, kernels_x), (y, kernels_y))
    )
    off_x, off_y = (torch.stack([unit.float().fill_diagonal_(0) for unit in units]) for units in (units_x, units_y))
    products = gram_products(off_x, off_y, draws).flatten(1)
    pairs = list(product(units_x, units_y))
    values = torch.stack([
        unbiased(column, u.diagonal(), v.diagonal(), draws)
        for column, (u, v) in zip(products.T, pairs, strict=True)
    ], dim=1).cpu()
    pvalues = _column_pvalues(values, torch.tensor(_rounding(units_x, units_y), dtype=torch.float64) / (n * (n - 3)))
    smallest = pvalues.amin(dim=1) + pvalues.mean(dim=1) / (2 * len(draws))
    # 12 decimals: a mean must not depend on the order of its terms.
    scores = -torch.log10(smallest).round(decimals=12)
    factors = torch.tensor([a * b for a, b in product(scales_x, scales_y)], dtype=torch.float64)
    components = pd.DataFrame(product(map(repr, kernels_x), map(repr, kernels_y)), columns=["kernel_x", "kernel_y"])
    components["hsic"], components["pvalue"] = (values[0] * factors).numpy(), pvalues[0].numpy()
    method = f"aggregated over {len(components)} pairs of kernels" + _drawn(permutations, groups)
    return replace(_sampled(float(scores[0]), scores[1:], method), components=components)


def _fitted(
    x: Samples, y: Samples, kernel_x: Kernel | None, kernel_y: Kernel | None, at_least: int
) -> tuple[Tensor, Tensor, Kernel, Kernel]:
    kernel_x, kernel_y = kernel_x or Gaussian(), kernel_y or Gaussian()
    x, y = paired(x, y, kernel_x, kernel_y, at_least)
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    # What is left of a flat Gram when it is centred would in float32 be rounding, which tells equal pairings apart.
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    # No test depends on the origin of a linear kernel, the rounding error of its Gram does.
    x, y = (z - z.mean(dim=0) if isinstance(k, Linear) and not _constant(z) else z
            for z, k in ((x, kernel_x), (y, kernel_y)))
    return x, y, kernel_x.fit(x), kernel_y.fit(y)


def _drawn(permutations: int, groups: Labels | None) -> str:
    return f", {permutations} permutations" + (" within groups" if groups is not None else "")


def _constant(z: Tensor, codes: Tensor | None = None) -> bool:
    """Whether all rows, or all rows of a group, are equal."""
    if codes is None:
        return bool((z == z[:1]).all())
    return all(_constant(z[codes == code]) for code in codes.unique())


def _centred_gram(kernel: Kernel, z: Tensor, groups: Labels | None = None) -> Tensor:
    gram = kernel(z).double()
    codes = None if groups is None else group_codes(groups, len(z)).to(gram.device)
    if _constant(z, codes):
        return torch.zeros_like(gram)  # without the rounding error of a mean
    require_finite(gram, kernel)
    return center(gram) if codes is None else _minus_means(_minus_means(gram, codes).T, codes)


def _centred_factor(kernel: Kernel, z: Tensor, tolerance: float, groups: Labels | None = None) -> Tensor:
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, a share of the trace, got {tolerance!r}")
    codes = (torch.zeros(len(z), dtype=torch.int64) if groups is None else group_codes(groups, len(z))).to(z.device)
    if _constant(z, codes):
        return kernel(z[:1]).new_zeros(len(z), 1)
    return _minus_means(factor(kernel, z, rank=len(z), tolerance=tolerance).double(), codes)


def _minus_means(rows: Tensor, codes: Tensor) -> Tensor:
    """Every row minus the mean row of its group."""
    sums = rows.new_zeros(int(codes.max()) + 1, rows.shape[1]).index_add_(0, codes, rows)
    return rows - (sums / codes.bincount()[:, None])[codes]


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix with its largest entry 1, and that entry: no units of x overflow or vanish in float32."""
    scale = float(matrix.abs().max()) or 1.0
    return matrix / scale, scale


def _rounding(units_x: Sequence[Tensor], units_y: Sequence[Tensor], tolerance: float | None = None) -> list[float]:
    """For each pair of Grams, or of factors if there is a `tolerance`, what the sums of their products may be wrong by.

    Those beside the diagonals are float32, all others float64.
    """
    if tolerance is not None:
        return [1e-12 * float((x.T @ x).norm() * (y.T @ y).norm()) for x, y in product(units_x, units_y)]

    def norms(unit: Tensor) -> tuple[float, float]:
        whole, diagonal = float(unit.norm()), float(unit.diagonal().norm())
        return whole, math.sqrt(max(0.0, whole**2 - diagonal**2))

    return [
        1e-6 * off_x * off_y + 1e-13 * whole_x * whole_y
        for (whole_x, off_x), (whole_y, off_y) in product(map(norms, units_x), map(norms, units_y))
    ]


def _rescaled(kernel: Kernel, scales: tuple[float, ...]) -> list[Kernel]:
    if not hasattr(kernel, "bandwidth"):
        return [kernel]
    return [replace(kernel, bandwidth=scale * kernel.bandwidth) for scale in scales]


def _column_pvalues(scores: Tensor, rounding: Tensor) -> Tensor:
    """For each entry of `(N, m)` the share of its column that is at least as large, up to `rounding` `(m,)`."""
    columns = scores.T.contiguous()
    below = torch.searchsorted(columns.sort(dim=1).values, columns - rounding[:, None])
    return (len(scores) - below.T).double() / len(scores)


def _sampled(statistic: float, null: Tensor, method: str) -> TestResult:
    return TestResult(statistic, (1 + int((null >= statistic).sum())) / (1 + len(null)), method, null)
