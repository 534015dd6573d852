"""What HSIC is distributed like at independence: exact permutation moments, and the asymptotic law of eigenvalues."""

import torch
from torch import Tensor


def permutation_moments(gram_x: Tensor, gram_y: Tensor) -> tuple[float, float]:
    """Mean and variance of `tr(K L[pi, pi]) / n^2` over all n! permutations pi, exactly, for centred Grams, n >= 4.

    Mean: pi is uniform, so the diagonal contributes `tr K tr L / n`, and an off-diagonal entry of L has the mean
    `-tr L / (n (n-1))` because the rows of a centred Gram sum to 0; together

        E = tr K tr L / (n^2 (n-1)).

    Nothing is assumed of k(x, x). With k(x, x) = 1 and mu the mean off-diagonal entry of the uncentred Gram,
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
