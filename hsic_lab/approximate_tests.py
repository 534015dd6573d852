"""Tests of independence with HSIC that take one look at the sample: quick, and level only approximately.

`hsic_lab.independence` has them beside the exact ones, with what they have in common.
"""

import torch
from scipy import stats

from hsic_lab.centred_samples import Samples, centred_gram, fitted_pair, is_constant
from hsic_lab.hsic import hsic
from hsic_lab.kernels import Kernel, require_finite
from hsic_lab.null_distributions import permutation_moments, weighted_chi_squares
from hsic_lab.results import TestResult, sampled_result


@torch.no_grad()
def gamma_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None,
) -> TestResult:
    """Biased HSIC against the gamma distribution that has the mean and the variance of the permutation null.

    Gretton et al. 2008 match moments too; theirs assume k(x, x) = 1, these are exact at every n >= 4 and for every
    diagonal (`permutation_moments` has the derivation). The shape is an approximation: p-values far below 0.01 are
    indicative. The tail is the survival function: never 0 from cancellation.
    """
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    gram_x, gram_y = centred_gram(kernel_x, x), centred_gram(kernel_y, y)
    statistic = float((gram_x * gram_y).mean())
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
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    n = len(x)
    gram_x, gram_y = centred_gram(kernel_x, x), centred_gram(kernel_y, y)
    eigenvalues = (torch.linalg.eigvalsh(gram) / n for gram in (gram_x, gram_y))
    null = weighted_chi_squares(*eigenvalues, draws, torch.Generator().manual_seed(seed)) / n
    return sampled_result(float((gram_x * gram_y).mean()), null, f"spectral, {draws} draws")


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
