"""Tests of independence that approximate the null distribution of HSIC, without permutations."""

import math

import torch
from scipy import stats
from torch import Tensor

from hsic_lab._checks import check_integer, is_constant, seeded
from hsic_lab.hsic import hsic
from hsic_lab.hsic._joint import require_unit
from hsic_lab.kernels import Gaussian, Kernel, kernel_or, near_one, require_finite

from hsic_lab.independence._permutation import (  # isort: skip
    DEGENERATE, Samples, TestResult, _scaled, centered_gram, fitted, sampled_result,
)  # fmt: skip

SCALES, RIDGES = (0.1, 0.3, 1.0, 3.0), (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # of the regressions on z


@torch.no_grad()
def gamma_test(x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> TestResult:
    """Test biased HSIC against the gamma distribution with the mean and variance of its permutation null.

    Both moments are exact for every kernel, unlike those of Gretton et al. (2008, "A Kernel Statistical Test of
    Independence"), which assume k(x, x) = 1. The shape is an approximation: small p-values are too small, above all for
    skewed samples with fewer than 100 rows, and those far below 0.01 are only indicative; they may be 0. If all
    permutations have the same statistic, the p-value is 1 and the result has no `distribution`.

    Parameters
    ----------
    x, y, kernel_x, kernel_y
        As in `permutation_test`; rows must be independent draws, n at least 4.
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    gram_x, gram_y, unit = _scaled_grams(x, y, kernel_x, kernel_y)
    statistic = unit * float((gram_x * gram_y).mean())
    mean, variance = permutation_moments(gram_x, gram_y)
    if variance <= 1e-12 * mean**2:
        return TestResult(statistic, 1.0, f"gamma{DEGENERATE}")
    distribution = stats.gamma(mean**2 / variance, scale=unit * variance / mean)
    # The survival function keeps small p-values; 1 - cdf would round them to 0.
    return TestResult(statistic, float(distribution.sf(statistic)), "gamma", distribution=distribution)


@torch.no_grad()
def spectral_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *, draws: int = 1000,
    seed: int = 0,
) -> TestResult:  # fmt: skip
    """Test biased HSIC against its asymptotic null distribution, a weighted sum of chi-squares.

    At independence ``n HSIC`` tends to ``sum_ij a_i b_j N_ij^2`` with independent standard normal ``N_ij``, where a and
    b are the eigenvalues of the centered Grams divided by n (Gretton et al. 2008, theorem 2; Zhang et al. 2018,
    "Large-Scale Kernel Methods for Independence Testing"). The result has `null`.

    Parameters
    ----------
    x, y, kernel_x, kernel_y, seed
        As in `permutation_test`; rows must be independent draws, n at least 4.
    draws : int, default 1000
        Number of draws of the null, at least 1.
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    generator = seeded(seed)
    draws = check_integer("draws", draws, 1)
    gram_x, gram_y, unit = _scaled_grams(x, y, kernel_x, kernel_y)
    weights_x, weights_y = (torch.linalg.eigvalsh(gram) / len(x) for gram in (gram_x, gram_y))
    null = weighted_chi_squares(weights_x, weights_y, draws, generator) / len(x)
    return sampled_result(unit * float((gram_x * gram_y).mean()), unit * null, "spectral")


@torch.no_grad()
def block_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    block_size: int | None = None, seed: int = 0,
) -> TestResult:  # fmt: skip
    """Test the mean of unbiased HSIC over blocks of rows against Student's t distribution.

    The rows are shuffled, because a sorted sample has no dependence within its blocks, and cut into
    ``n // block_size`` blocks; the remaining rows are left out. At independence the values of the blocks are
    independent with mean 0, and nearly normal if the samples have many columns; for few columns the test rejects less
    often than its level. No (n, n) matrix is formed, except by the median rule, which uses all rows. The result has
    `distribution`. Reference: Zaremba et al. (2013), "B-tests: Low Variance Kernel Two-Sample Tests".

    Parameters
    ----------
    x, y, kernel_x, kernel_y, seed
        As in `permutation_test`; rows must be independent draws, n at least 8.
    block_size : int or None, default None
        Rows in a block, from 4 to ``n // 2``; None is the square root of n, at least 4.
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=8)
    n = len(x)
    size = max(4, int(n**0.5)) if block_size is None else check_integer("block_size", block_size, 4, n // 2)
    method = f"block, {n // size} blocks of {size} rows"
    order = torch.randperm(n, generator=seeded(seed)).to(x.device)
    if is_constant(x) or is_constant(y):
        return TestResult(0.0, 1.0, f"{method}{DEGENERATE}")
    blocks = [rows for rows in order.split(size) if len(rows) == size]
    values = torch.stack([hsic(x[b], y[b], kernel_x, kernel_y, estimator="unbiased").double() for b in blocks])
    largest = float(values.abs().max()) or 1.0  # over it, the squares neither overflow nor vanish
    mean, error = float(values.mean()), largest * float((values / largest).std() / len(values) ** 0.5)
    if error <= 1e-12 * largest:  # equal values up to rounding, if they have not vanished by underflow
        require_unit(kernel_x(x[blocks[0]]).abs().max().double() * kernel_y(y[blocks[0]]).abs().max())
        if mean > 0:
            raise ValueError(f"all {len(blocks)} blocks have HSIC {mean:.3g}: take another block_size, or another test")
        return TestResult(mean, 1.0, f"{method}{DEGENERATE}")
    distribution = stats.t(len(values) - 1, scale=error)
    return TestResult(mean, float(distribution.sf(mean)), method, distribution=distribution)


@torch.no_grad()
def conditional_test(
    x: Samples, y: Samples, z: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None,
    kernel_z: Kernel | None = None, *, draws: int = 999, seed: int = 0,
) -> TestResult:  # fmt: skip
    """Test whether x and y are independent given a continuous z (kernel conditional independence, KCI).

    Kernel ridge regression on z, its bandwidth and ridge chosen by leave-one-out error, is subtracted first from x and
    y and then from the features of what is left; at conditional independence the products of these residuals have mean
    0 for every weight that depends on z. The statistic is the mean of ``k~(x_i, x_j) k~(y_i, y_j) k(z_i, z_j)`` over
    different rows, with the kernels k~ of the residuals. The `null` has its values when each row's product gets a
    random sign (wild bootstrap), which has the same limit as the weighted chi-squares of Zhang et al. (2011,
    arXiv:1202.3775); Pogodin et al. (2024, arXiv:2402.13196) compare such tests.

    The level is approximate, with few rows sometimes too high, and the test is only as good as the regressions:
    what they leave of z in both samples is taken for dependence. They miss functions of z that vary faster than the
    rows can show and curved functions of many columns of z, and if z determines both samples, only the errors of the
    regressions are left. No test holds this level for all distributions without losing all power (Shah and Peters
    2020). For a discrete z use `permutation_test` with `groups`, which is exact. Takes O(n^3) time and O(n^2) memory.

    Parameters
    ----------
    x, y, kernel_x, kernel_y, seed
        As in `permutation_test`; rows must be independent draws, n at least 8. Median rules are fitted to residuals.
    z, kernel_z : Tensor or ndarray of shape (n, r) or (n,), Kernel or None
        What to condition on, columns of one unit, and its kernel; None is a Gaussian with the median bandwidth. The
        regressions try 0.1, 0.3, 1 and 3 times its bandwidth.
    draws : int, default 999
        Number of draws of the null, at least 1.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.independence import permutation_test
    >>> z, *noise = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    >>> x, y = z + noise[0], z + noise[1]
    >>> permutation_test(x, y).pvalue, conditional_test(x, y, z).pvalue > 0.05
    (0.001, True)
    """
    x, y, *_ = fitted(x, y, kernel_x, kernel_y, at_least=8)
    n, draws, generator = len(x), check_integer("draws", draws, 1), seeded(seed)
    kernel_z = kernel_or(Gaussian(), kernel_z, "kernel_z")
    z = kernel_z.samples(z, "z")
    if len(z) != n or z.device != x.device:
        raise ValueError(f"z must have the {n} rows of x and y, on {x.device}, got {len(z)} on {z.device}")
    z = z.double() if z.is_floating_point() else z
    kernel_z = kernel_z.fit(z)
    bases = [torch.linalg.eigh(require_finite(k(z).double(), k)) for k in _scaled(kernel_z, SCALES)]
    left = []
    for sample in (x, y):
        if sample.is_floating_point() and not is_constant(sample):
            sample = sample - sample.mean(dim=0)
            sample = _residuals((near := near_one(sample)) @ near.T, bases) @ sample
        left.append(sample)
    kernel_x, kernel_y = (kernel_or(Gaussian(), k, "").fit(v) for k, v in zip((kernel_x, kernel_y), left, strict=True))
    gram_x, gram_y, unit = _scaled_grams(left[0], left[1], kernel_x, kernel_y)
    product = unit / (n * (n - 1)) * kernel_z(z).double().fill_diagonal_(0)
    for gram in (gram_x, gram_y):
        residuals = _residuals(gram, bases)
        product *= residuals @ gram @ residuals.T
    signs = 2.0 * torch.randint(2, (n, draws), generator=generator).to(product) - 1
    null = ((product @ signs) * signs).sum(dim=0).cpu()
    return sampled_result(float(product.sum()), null, "conditional, wild bootstrap", float(product.abs().sum()) * 2e-15)


def _residuals(gram: Tensor, bases: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The matrix ``R = r (K_z + r I)^-1`` `(n, n)` whose kernel ridge residuals R f have the least leave-one-out error.

    Features f with a centered `gram` have the residuals' Gram R K R; entry i of it over ``R_ii^2`` is the squared error
    of predicting row i from the other rows. `bases` has the eigenvalues and eigenvectors of each K_z.
    """
    least, best = math.inf, torch.empty(0)
    for values, vectors in bases:
        rotated = vectors.T @ gram @ vectors
        for ridge in RIDGES:
            shrunk = vectors * (ridge / (values.clamp_min(0) / values.mean() + ridge))
            diagonal = (shrunk * vectors).sum(dim=1)
            error = float((((shrunk @ rotated) * shrunk).sum(dim=1) / diagonal.square()).mean())
            if error < least:
                least, best = error, shrunk @ vectors.T
    return best


def _scaled_grams(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel) -> tuple[Tensor, Tensor, float]:
    """Both centered Grams over their largest entries, whose powers neither overflow nor vanish; and HSIC's factor."""
    gram_x, gram_y = centered_gram(kernel_x, x), centered_gram(kernel_y, y)
    scale_x, scale_y = (gram.abs().max().cpu() for gram in (gram_x, gram_y))
    scale_x, scale_y = (scale.where(scale > 0, 1) for scale in (scale_x, scale_y))  # of a constant
    return gram_x / scale_x, gram_y / scale_y, float(require_unit(scale_x * scale_y))


def permutation_moments(gram_x: Tensor, gram_y: Tensor) -> tuple[float, float]:
    """Mean and variance of `tr(K L[pi, pi]) / n^2` over all n! permutations pi, exactly, for centered Grams, n >= 4.

    The mean is `tr K tr L / (n^2 (n-1))`: the diagonal contributes `tr K tr L / n`, and an off-diagonal entry of L has
    the mean `-tr L / (n (n-1))`, because the rows of a centered Gram sum to 0. For k(x, x) = 1 it is the formula of
    Gretton et al. (2008). The variance (Kazi-Aoual et al. 1995) is, with T = tr K, S = tr K^2, D = sum_i K_ii^2,
        [2 u(K) u(L) / ((n-1)^2 (n+1)(n-2)) + v(K) v(L) / ((n+1) n (n-1)(n-2)(n-3))] / n^4,
        u = (n-1) S - T^2,   v = n (n+1) D - (n-1)(T^2 + 2 S).
    """
    n = len(gram_x)

    def invariants(gram: Tensor) -> tuple[float, float, float]:
        diagonal = gram.diagonal()
        t, s, d = float(diagonal.sum()), float(gram.square().sum()), float(diagonal.square().sum())
        return t, (n - 1) * s - t * t, n * (n + 1) * d - (n - 1) * (t * t + 2 * s)

    (t_x, u_x, v_x), (t_y, u_y, v_y) = invariants(gram_x.double()), invariants(gram_y.double())
    variance = 2 * u_x * u_y / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance += v_x * v_y / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return t_x * t_y / (n**2 * (n - 1)), variance / n**4


def weighted_chi_squares(weights_x: Tensor, weights_y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """`draws` samples of `sum_ij a_i b_j N_ij^2` with independent standard normal N_ij, `(draws,)` on the CPU.

    The largest weights, which carry 99.9 % of the variance, are simulated. The others enter by their mean, so the mean
    is exact and the variance is too small by at most 0.1 %.
    """
    weights = [w.double().cpu().clamp_min(0).sort(descending=True).values for w in (weights_x, weights_y)]
    shares = [w.square().cumsum(dim=0) for w in weights]
    top_x, top_y = (w[: int((s < 0.9995 * s[-1]).sum()) + 1] for w, s in zip(weights, shares, strict=True))
    null = (weights[0].sum() * weights[1].sum() - top_x.sum() * top_y.sum()).repeat(draws)
    for first in range(0, draws, step := max(1, 2**22 // (len(top_x) * len(top_y)))):
        count = min(step, draws - first)
        normal = torch.randn(count, len(top_x), len(top_y), dtype=torch.float64, generator=generator)
        null[first : first + count] += normal.square_() @ top_y @ top_x
    return null
