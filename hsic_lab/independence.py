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

from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from torch import Tensor

from hsic_lab.approximate_tests import block_test, gamma_test, spectral_test
from hsic_lab.centred_samples import Samples, centred_factor, centred_gram, fitted_pair
from hsic_lab.kernels import Kernel
from hsic_lab.permutations import (
    Labels,
    diagonal_products,
    draw_permutations,
    factor_products,
    gram_products,
    products_rounding,
    unbiased,
)
from hsic_lab.results import TestResult, sampled_result

__all__ = ["aggregated_test", "block_test", "gamma_test", "permutation_test", "spectral_test"]


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
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    n = len(x)
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), groups)
    if tolerance is None:
        k, l = centred_gram(kernel_x, x, groups), centred_gram(kernel_y, y, groups)
        (unit_k, scale_k), (unit_l, scale_l) = map(_unit, (k, l))
        products = gram_products(_off(unit_k)[None], _off(unit_l)[None], draws).flatten() * (scale_k * scale_l)
        rounding = scale_k * scale_l * products_rounding(unit_k, unit_l)
        diagonals = k.diagonal(), l.diagonal()
        observed = (k * l).sum() - diagonals[0] @ diagonals[1]
        method = "permutation, Gram matrices"
    else:
        u, v = centred_factor(kernel_x, x, tolerance, groups), centred_factor(kernel_y, y, tolerance, groups)
        diagonals = u.square().sum(dim=1), v.square().sum(dim=1)
        products = factor_products(u, v, draws) - diagonal_products(*diagonals, draws)
        rounding = 1e-12 * float((u.T @ u).norm() * (v.T @ v).norm())
        observed = (u.T @ v).square().sum() - diagonals[0] @ diagonals[1]
        method = f"permutation, factors of rank {u.shape[1]}, {v.shape[1]} within {tolerance:g} of the trace"
    statistic = float(unbiased(observed, *diagonals, torch.arange(n)[None]))
    null = unbiased(products, *diagonals, draws).cpu()
    null = torch.where((null - statistic).abs() <= rounding / (n * (n - 3)), statistic, null)
    return sampled_result(statistic, null, method + _drawn(permutations, groups))


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
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    n = len(x)
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), groups)
    draws = torch.cat([torch.arange(n)[None], draws])  # row 0 is the observed pairing
    kernels_x, kernels_y = _rescaled(kernel_x, scales), _rescaled(kernel_y, scales)
    (units_x, scales_x), (units_y, scales_y) = (
        zip(*(_unit(centred_gram(kernel, z, groups)) for kernel in kernels), strict=True)
        for z, kernels in ((x, kernels_x), (y, kernels_y))
    )
    products = gram_products(torch.stack([*map(_off, units_x)]), torch.stack([*map(_off, units_y)]), draws).flatten(1)
    pairs = list(product(units_x, units_y))
    values = torch.stack([
        unbiased(column, u.diagonal(), v.diagonal(), draws)
        for column, (u, v) in zip(products.T, pairs, strict=True)
    ], dim=1).cpu()
    rounding = torch.tensor([products_rounding(u, v) for u, v in pairs], dtype=torch.float64)
    pvalues = _column_pvalues(values, rounding / (n * (n - 3)))
    smallest = pvalues.amin(dim=1) + pvalues.mean(dim=1) / (2 * len(draws))
    # 12 decimals: a mean must not depend on the order of its terms.
    scores = -torch.log10(smallest).round(decimals=12)
    factors = torch.tensor([a * b for a, b in product(scales_x, scales_y)], dtype=torch.float64)
    components = pd.DataFrame(product(map(repr, kernels_x), map(repr, kernels_y)), columns=["kernel_x", "kernel_y"])
    components["hsic"], components["pvalue"] = (values[0] * factors).numpy(), pvalues[0].numpy()
    method = f"aggregated over {len(components)} pairs of kernels" + _drawn(permutations, groups)
    return replace(sampled_result(float(scores[0]), scores[1:], method), components=components)


def _drawn(permutations: int, groups: Labels | None) -> str:
    return f", {permutations} permutations" + (" within groups" if groups is not None else "")


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix with its largest entry 1, and that entry: no units of x overflow or vanish in float32."""
    scale = float(matrix.abs().max()) or 1.0
    return matrix / scale, scale


def _off(gram: Tensor) -> Tensor:
    """What lies beside the diagonal, in float32: permutations keep the diagonal in its place, and float64 counts it."""
    return gram.float().fill_diagonal_(0)


def _rescaled(kernel: Kernel, scales: tuple[float, ...]) -> list[Kernel]:
    if not hasattr(kernel, "bandwidth"):
        return [kernel]
    return [replace(kernel, bandwidth=scale * kernel.bandwidth) for scale in scales]


def _column_pvalues(scores: Tensor, rounding: Tensor) -> Tensor:
    """For each entry of `(N, m)` the share of its column that is at least as large, up to `rounding` `(m,)`."""
    columns = scores.T.contiguous()
    below = torch.searchsorted(columns.sort(dim=1).values, columns - rounding[:, None])
    return (len(scores) - below.T).double() / len(scores)
