"""What HSIC is distributed like at independence: exact permutation moments, and the asymptotic law of eigenvalues."""

import torch
from scipy import stats
from torch import Tensor

from hsic_lab.hsic import hsic
from hsic_lab.independence._permutation import (
    Samples,
    TestResult,
    centered_gram,
    fitted_pair,
    is_constant,
    sampled_result,
)
from hsic_lab.kernels import Kernel, require_finite


def permutation_moments(gram_x: Tensor, gram_y: Tensor) -> tuple[float, float]:
    """Mean and variance of `tr(K L[pi, pi]) / n^2` over all n! permutations pi, exactly, for centered Grams, n >= 4.

    Mean: pi is uniform, so the diagonal contributes `tr K tr L / n`, and an off-diagonal entry of L has the mean
    `-tr L / (n (n-1))` because the rows of a centered Gram sum to 0; together

        E = tr K tr L / (n^2 (n-1)).

    Nothing is assumed of k(x, x). With k(x, x) = 1 and mu the mean off-diagonal entry of the uncentered Gram,
    `tr K = (n-1)(1 - mu_x)`, hence `E = (n-1)/n^2 (1 - mu_x)(1 - mu_y)`, the formula of Gretton et al. 2008 up to
    1/n^2. Variance: Kazi-Aoual et al. 1995 ("Refined approximations to permutation tests for multivariate
    inference"), with T = tr K, S = tr K^2, D = sum_i K_ii^2, likewise for L:

        2 u(K) u(L) / ((n-1)^2 (n+1)(n-2)) + v(K) v(L) / ((n+1) n (n-1)(n-2)(n-3)),
        u = (n-1) S - T^2,   v = n (n+1) D - (n-1)(T^2 + 2 S),   all divided by n^4.
    """
    n = len(gram_x)
    (t_x, u_x, v_x), (t_y, u_y, v_y) = _invariants(gram_x.double()), _invariants(gram_y.double())
    variance = 2 * u_x * u_y / ((n - 1) ** 2 * (n + 1) * (n - 2))
    variance += v_x * v_y / ((n + 1) * n * (n - 1) * (n - 2) * (n - 3))
    return t_x * t_y / (n**2 * (n - 1)), variance / n**4


def weighted_chi_squares(weights_x: Tensor, weights_y: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """`draws` samples of `sum_ij a_i b_j N_ij^2` with independent standard normal N_ij: `(draws,)` on the CPU.

    The largest weights that carry 99.9 % of the variance are simulated, the others enter by their mean, so that the
    mean of the law is kept and its variance is low by 0.1 % at most.
    """
    weights_x, weights_y = (w.double().cpu().clamp_min(0).sort(descending=True).values for w in (weights_x, weights_y))
    mean = weights_x.sum() * weights_y.sum()
    top_x, top_y = _leading(weights_x), _leading(weights_y)
    null = (mean - top_x.sum() * top_y.sum()).repeat(draws)
    for first in range(0, draws, step := max(1, 2**22 // (len(top_x) * len(top_y)))):
        count = min(step, draws - first)
        normal = torch.randn(count, len(top_x), len(top_y), dtype=torch.float64, generator=generator)
        null[first : first + count] += normal.square_() @ top_y @ top_x
    return null


def _leading(weights: Tensor) -> Tensor:
    """The leading weights that carry all but 0.05 % of the sum of squares."""
    share = weights.square().cumsum(dim=0)
    return weights[: int((share < 0.9995 * share[-1]).sum()) + 1]


def _invariants(gram: Tensor) -> tuple[float, float, float]:
    n, diagonal = len(gram), gram.diagonal()
    t, s, d = float(diagonal.sum()), float(gram.square().sum()), float(diagonal.square().sum())
    return t, (n - 1) * s - t * t, n * (n + 1) * d - (n - 1) * (t * t + 2 * s)


@torch.no_grad()
def gamma_test(x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> TestResult:
    """Biased HSIC against the gamma distribution that has the mean and the variance of the permutation null.

    Gretton et al. 2008 match moments too; theirs assume k(x, x) = 1, these are exact at every n >= 4 and for every
    diagonal (`permutation_moments` has the derivation). The shape is an approximation: p-values far below 0.01 are
    indicative. The tail is the survival function: never 0 from cancellation.
    """
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    gram_x, gram_y = centered_gram(kernel_x, x), centered_gram(kernel_y, y)
    statistic = float((gram_x * gram_y).mean())
    mean, variance = permutation_moments(gram_x, gram_y)
    if variance <= 1e-12 * mean**2:  # every permutation scores alike
        return TestResult(statistic, 1.0, "gamma, degenerate: every permutation has this statistic")
    distribution = stats.gamma(mean**2 / variance, scale=variance / mean)
    return TestResult(statistic, float(distribution.sf(statistic)), "gamma", distribution=distribution)


@torch.no_grad()
def spectral_test(
    x: Samples,
    y: Samples,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> TestResult:
    """Biased HSIC against its asymptotic null, `n HSIC -> sum_ij a_i b_j N_ij^2` (Gretton et al. 2008, theorem 2;
    Zhang et al. 2018), with a, b the eigenvalues of the centered Grams divided by n, sampled `draws` times.

    `null` is on the scale of HSIC, that is divided by n.
    """
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    n = len(x)
    gram_x, gram_y = centered_gram(kernel_x, x), centered_gram(kernel_y, y)
    eigenvalues = (torch.linalg.eigvalsh(gram) / n for gram in (gram_x, gram_y))
    null = weighted_chi_squares(*eigenvalues, draws, torch.Generator().manual_seed(seed)) / n
    return sampled_result(float((gram_x * gram_y).mean()), null, f"spectral, {draws} draws")


@torch.no_grad()
def block_test(
    x: Samples,
    y: Samples,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    *,
    block_size: int | None = None,
    seed: int = 0,
) -> TestResult:
    """Mean of the unbiased HSIC over blocks of rows, against a normal null (Zaremba et al. 2013, Zhang et al. 2018).

    The rows are shuffled (a sorted sample would have no dependence left within its blocks) and cut into
    `n // block_size` blocks; the remaining `n % block_size` rows are left out. The block values are independent with
    mean 0 at independence, so that their mean over its standard error is nearly normal when there are many. The
    default block size is the square root of n, 4 at least. No (n, n) matrix is formed but by the bandwidth rule, which
    sees the whole samples.
    """
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=8)
    n = len(x)
    size = max(4, int(n**0.5)) if block_size is None else block_size
    if not 4 <= size <= n // 2:
        raise ValueError(f"block_size must be between 4 and n // 2 = {n // 2}, got {size}")
    method = f"block, {n // size} blocks of {size} rows"
    if is_constant(x) or is_constant(y):
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
