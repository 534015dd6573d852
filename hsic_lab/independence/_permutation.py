"""Exact permutation tests of independence, and the result of every test."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import no_autocast
from hsic_lab.hsic import center
from hsic_lab.hsic._estimators import paired_samples
from hsic_lab.kernels import Gaussian, Kernel, Linear, factor, require_finite

Samples = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence


@dataclass(frozen=True)
class TestResult:
    """Result of a test of independence, with SciPy's names; a large statistic speaks against independence.

    The p-value is ``(1 + #{null >= statistic}) / (1 + len(null))`` if the test has a `null`, else from `distribution`.
    """

    __test__ = False  # pytest would take the class for a test case
    statistic: float
    pvalue: float
    method: str  # what was computed, in words
    null: Tensor | None = field(default=None, repr=False)  # (draws,): statistics drawn under independence
    distribution: Any = field(default=None, repr=False)  # frozen SciPy distribution of the statistic, or None
    components: pd.DataFrame | None = field(default=None, repr=False)  # HSIC and p-value of each pair of kernels

    def plot(self, ax: Any = None) -> Any:
        """Draw the null distribution and the statistic on Matplotlib's `ax`, or on new axes; return the axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")[1] if ax is None else ax
        if self.null is not None:
            ax.hist(self.null.numpy(), bins=40, density=True, color="0.75", label="null")
        elif self.distribution is not None:
            at = np.linspace(self.distribution.ppf(0.005), self.distribution.ppf(0.999), 200)
            ax.fill_between(at, self.distribution.pdf(at), color="0.75", label="null")
        ax.axvline(self.statistic, color="C3", label=f"observed, p = {self.pvalue:.3g}")
        ax.set(xlabel="statistic", ylabel="density", title=self.method)
        ax.legend(frameon=False)
        return ax


def sampled_result(statistic: float, null: Tensor, method: str) -> TestResult:
    """The result of a test that draws its null; the observed statistic counts as one of the draws."""
    return TestResult(statistic, (1 + int((null >= statistic).sum())) / (1 + len(null)), method, null)


@torch.no_grad()
def permutation_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *, permutations: int = 999,
    groups: Labels | None = None, tolerance: float | None = None, seed: int = 0,
) -> TestResult:  # fmt: skip
    """Exact test of independence: unbiased HSIC against its values when the rows of y are permuted.

    If x and y are independent and the rows of x or of y are exchangeable, ``P(pvalue <= a) <= a`` for every n, kernel
    and distribution. Independent draws are exchangeable. Rows of a time series are not: two independent autoregressive
    series are rejected far too often (about 70 % of the time at level 0.05 for coefficient 0.9). The result has `null`.
    References: Gretton et al. (2008), "A Kernel Statistical Test of Independence"; Song et al. (2012), equation 5.

    Parameters
    ----------
    x, y : Tensor or ndarray of shape (n, p) and (n, q), or (n,)
        Samples, n at least 4; rows of one index belong together. Integers need the kernel ``Delta()``.
    kernel_x, kernel_y : Kernel or None, default None
        Kernels of `hsic_lab.kernels`; None is a Gaussian with the median bandwidth.
    permutations, seed : int, default 999 and 0
        Number of permutations, and the seed that they are drawn with.
    groups : labels of shape (n,) or None, default None
        Test independence given the group: rows are permuted, and Grams are centered, within groups. It stays exact.
    tolerance : float in (0, 1) or None, default None
        Replace each Gram K by ``X X'`` with ``tr(K - X X') <= tolerance tr K`` (incomplete Cholesky). The level stays
        exact; the statistic and the p-value approximate those of the Grams.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    >>> permutation_test(x, x.square()).pvalue
    0.001
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, a share of the trace, got {tolerance!r}")
    n, codes = len(x), group_codes(groups, len(x))
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), codes)
    if tolerance is None:
        k, l = centered_gram(kernel_x, x, codes), centered_gram(kernel_y, y, codes)
        (unit_k, scale_k), (unit_l, scale_l) = map(_unit, (k, l))
        products = gram_products(_off(unit_k)[None], _off(unit_l)[None], draws).flatten() * (scale_k * scale_l)
        rounding = scale_k * scale_l * _products_rounding(unit_k, unit_l)
        diagonals = k.diagonal(), l.diagonal()
        observed = (k * l).sum() - diagonals[0] @ diagonals[1]
        method = "permutation, Gram matrices"
    else:
        u, v = _centered_factor(kernel_x, x, tolerance, codes), _centered_factor(kernel_y, y, tolerance, codes)
        diagonals = u.square().sum(dim=1), v.square().sum(dim=1)
        products = factor_products(u, v, draws) - _diagonal_products(*diagonals, draws)
        rounding = 1e-12 * float((u.T @ u).norm() * (v.T @ v).norm())
        observed = (u.T @ v).square().sum() - diagonals[0] @ diagonals[1]
        method = f"permutation, factors of rank {u.shape[1]}, {v.shape[1]} within {tolerance:g} of the trace"
    statistic = float(_unbiased(observed, *diagonals, torch.arange(n)[None]))
    null = _unbiased(products, *diagonals, draws).cpu()
    null = torch.where((null - statistic).abs() <= rounding / (n * (n - 3)), statistic, null)
    within = "" if groups is None else " within groups"
    return sampled_result(statistic, null, f"{method}, {permutations} permutations{within}")


@torch.no_grad()
def aggregated_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *,
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0), permutations: int = 999, groups: Labels | None = None,
    seed: int = 0,
) -> TestResult:  # fmt: skip
    """Exact test of independence over several bandwidths: it rejects if any pair of kernels does (HSICAgg).

    For each pair of kernels, p_k is the share of pairings (observed and permuted) with an HSIC at least as large. The
    observed ``min_k p_k`` is compared with its permuted values, which corrects for the number of kernels and equals the
    bisection of Schrab et al. (2022, "Efficient Aggregated Kernel Tests using Incomplete U-statistics") at every level.
    The mean of the p_k breaks ties. Level and condition (exchangeable rows) are those of `permutation_test`.
    `statistic` and `null` are ``-log10 min_k p_k``; `components` has unbiased HSIC and p_k of each pair.

    Parameters
    ----------
    x, y, kernel_x, kernel_y, permutations, groups, seed
        As in `permutation_test`.
    scales : tuple of float, default (0.25, 0.5, 1.0, 2.0, 4.0)
        Factors of the bandwidth of each kernel, positive. A kernel without a bandwidth is used once.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(100, generator=torch.Generator().manual_seed(0))
    >>> permutation_test(x, torch.sin(20 * x)).pvalue, aggregated_test(x, torch.sin(20 * x)).pvalue
    (0.377, 0.006)
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive numbers, at least one, got {scales}")
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    n, codes = len(x), group_codes(groups, len(x))
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), codes)
    draws = torch.cat([torch.arange(n)[None], draws])  # row 0 is the observed pairing
    kernels_x, kernels_y = (
        [replace(k, bandwidth=s * k.bandwidth) for s in scales] if hasattr(k, "bandwidth") else [k]  # type: ignore[type-var]
        for k in (kernel_x, kernel_y)
    )
    units_x, scales_x = zip(*(_unit(centered_gram(kernel, x, codes)) for kernel in kernels_x), strict=True)
    units_y, scales_y = zip(*(_unit(centered_gram(kernel, y, codes)) for kernel in kernels_y), strict=True)
    products = gram_products(torch.stack([*map(_off, units_x)]), torch.stack([*map(_off, units_y)]), draws).flatten(1)
    pairs = list(product(units_x, units_y))
    columns = zip(products.T, pairs, strict=True)
    values = torch.stack([_unbiased(sums, u.diagonal(), v.diagonal(), draws) for sums, (u, v) in columns]).cpu()
    rounding = torch.tensor([_products_rounding(u, v) for u, v in pairs], dtype=torch.float64) / (n * (n - 3))
    # For each pairing and each pair of kernels: the share of pairings whose HSIC is at least as large, up to rounding.
    below = torch.searchsorted(values.sort(dim=1).values, values - rounding[:, None])
    pvalues = (len(draws) - below.T).double() / len(draws)
    smallest = pvalues.amin(dim=1) + pvalues.mean(dim=1) / (2 * len(draws))
    # Rounded to 12 decimals, because the mean depends on the order of its terms.
    scores = -torch.log10(smallest).round(decimals=12)
    factors = torch.tensor([a * b for a, b in product(scales_x, scales_y)], dtype=torch.float64)
    components = pd.DataFrame(product(map(repr, kernels_x), map(repr, kernels_y)), columns=["kernel_x", "kernel_y"])
    components["hsic"], components["pvalue"] = (values[:, 0] * factors).numpy(), pvalues[0].numpy()
    within = "" if groups is None else " within groups"
    method = f"aggregated over {len(components)} pairs of kernels, {permutations} permutations{within}"
    return replace(sampled_result(float(scores[0]), scores[1:], method), components=components)


def fitted(
    x: Any, y: Any, kernel_x: Kernel | None, kernel_y: Kernel | None, at_least: int
) -> tuple[Tensor, Tensor, Kernel, Kernel]:
    """Both samples, checked, floating-point ones in float64, and their fitted kernels; None is a Gaussian."""
    kernel_x, kernel_y = kernel_x or Gaussian(), kernel_y or Gaussian()
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least)
    # In float32 a nearly constant Gram would be rounding error after centering, and equal pairings would differ.
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    # No test depends on the origin of a linear kernel, but the rounding error of its Gram does.
    x = x - x.mean(dim=0) if isinstance(kernel_x, Linear) and not is_constant(x) else x
    y = y - y.mean(dim=0) if isinstance(kernel_y, Linear) and not is_constant(y) else y
    return x, y, kernel_x.fit(x), kernel_y.fit(y)


def is_constant(z: Tensor, codes: Tensor | None = None) -> bool:
    """Whether all rows, or all rows of each group, are equal."""
    groups = [z] if codes is None else [z[(codes == code).to(z.device)] for code in codes.unique()]
    return all(bool((group == group[:1]).all()) for group in groups)


def group_codes(groups: Labels | None, n: int) -> Tensor | None:
    """The labels as integers 0, 1, ... of shape `(n,)`, checked; None for None."""
    if groups is None:
        return None
    labels = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), one label a row, got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"groups holds {int(np.isnan(labels).sum())} labels that are NaN")
    values, codes = np.unique(labels, return_inverse=True)
    if len(values) == n:
        raise ValueError(f"groups must have a group of at least 2 rows, got {n} groups for {n} rows")
    return torch.from_numpy(codes.reshape(n))


def centered_gram(kernel: Kernel, z: Tensor, codes: Tensor | None = None) -> Tensor:
    """The Gram `(n, n)` centered over all rows or within groups; ValueError if an entry is not finite."""
    gram = kernel(z).double()
    if is_constant(z, codes):
        return torch.zeros_like(gram)  # exact, without the rounding error of a mean
    require_finite(gram, kernel)
    return center(gram) if codes is None else _minus_means(_minus_means(gram, codes).T, codes)


def _centered_factor(kernel: Kernel, z: Tensor, tolerance: float, codes: Tensor | None) -> Tensor:
    """A factor `(n, r)` of the Gram within `tolerance` of its trace, centered over all rows or within groups."""
    if is_constant(z, codes):
        return kernel(z[:1]).new_zeros(len(z), 1)
    rows = factor(kernel, z, rank=len(z), tolerance=tolerance).double()
    return _minus_means(rows, torch.zeros(len(z), dtype=torch.int64) if codes is None else codes)


def _minus_means(rows: Tensor, codes: Tensor) -> Tensor:
    """Every row minus the mean row of its group."""
    codes = codes.to(rows.device)
    sums = rows.new_zeros(int(codes.max()) + 1, rows.shape[1]).index_add_(0, codes, rows)
    return rows - (sums / codes.bincount()[:, None])[codes]


def _unit(matrix: Tensor) -> tuple[Tensor, float]:
    """The matrix divided by its largest entry, and that entry, so that float32 neither overflows nor underflows."""
    scale = float(matrix.abs().max()) or 1.0
    return matrix / scale, scale


def _off(gram: Tensor) -> Tensor:
    """The Gram without its diagonal in float32. The sums over the diagonal are computed apart, in float64."""
    return gram.float().fill_diagonal_(0)


def draw_permutations(n: int, count: int, generator: torch.Generator, codes: Tensor | None = None) -> Tensor:
    """`count` uniform permutations of n rows, `(count, n)` integers on the CPU; with `codes`, within groups."""
    if count < 1:
        raise ValueError(f"permutations must be at least 1, got {count}")
    keys = torch.rand(count, n, dtype=torch.float64, generator=generator)
    if codes is None:
        return keys.argsort(dim=1)
    # Sorting by (group, random key) lists the rows group by group, shuffled within groups. The k-th place of this list
    # belongs to the row that is k-th in the list that is not shuffled.
    permutations = torch.empty(count, n, dtype=torch.int64)
    permutations[:, codes.argsort(stable=True)] = (keys + codes).argsort(dim=1)
    return permutations


def gram_products(grams_x: Tensor, grams_y: Tensor, permutations: Tensor) -> Tensor:
    """`sum_ij K_ij L[pi_i, pi_j]` of each K in `(a, n, n)`, each L in `(b, n, n)` and each pi in `(B, n)`: `(B, a, b)`.

    The Grams are symmetric, so half of K is enough. Time is O(B a b n^2), and no array is larger than the Grams. Rows
    of L are copied whole and their columns picked in the cache. Tiles are summed in the Grams' precision, then float64.
    """
    a, n = grams_x.shape[:2]
    permutations = permutations.to(grams_x.device)
    products = grams_x.new_zeros(len(permutations), a, len(grams_y), dtype=torch.float64)
    cells = 2**18 if grams_x.device.type == "cpu" else 2**26
    rows = max(1, min(n, cells // n))
    batch = max(1, cells // (rows * n))
    # Allocated once, because allocating memory for every tile would cost more than the copying.
    whole, picked = (grams_x.new_empty(batch * rows * n) for _ in range(2))
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        tile = grams_x[:, start:stop, :stop]
        tile = (tile.tril(start) + tile.tril(start - 1)).reshape(a, -1)  # below the diagonal twice, on it once
        for first in range(0, len(permutations), batch):
            chunk = permutations[first : first + batch]
            shape, size = (len(chunk), stop - start), len(chunk) * (stop - start)
            columns = chunk[:, None, :stop].expand(*shape, stop)
            for j, gram_y in enumerate(grams_y):
                torch.index_select(gram_y, 0, chunk[:, start:stop].flatten(), out=whole[: size * n].view(size, n))
                permuted = picked[: size * stop].view(*shape, stop)
                torch.gather(whole[: size * n].view(*shape, n), 2, columns, out=permuted)
                permuted = permuted.view(len(chunk), -1)
                scratch = whole[: permuted.numel()].view_as(permuted)
                for i in range(a):
                    # A matrix product would add in long chains, and its rounding would make equal sums differ.
                    torch.mul(permuted, tile[i], out=scratch)
                    products[first : first + batch, i, j] += scratch.sum(dim=1)
    return products


def factor_products(factor_x: Tensor, factor_y: Tensor, permutations: Tensor) -> Tensor:
    """`||X' Y[pi]||_F^2`, the `gram_products` of `X X'` and `Y Y'`, in float64 `(B,)` and in O(B n r s) time."""
    n, s = factor_y.shape
    products = []
    for chunk in permutations.to(factor_x.device).split(max(1, 2**20 // (n * s))):
        picked = factor_y.index_select(0, chunk.T.flatten()).view(n, -1)  # block b of the columns: Y in the b-th order
        with no_autocast(picked):
            squares = (factor_x.T @ picked).square_().sum(dim=0, dtype=torch.float64)
        products.append(squares.view(-1, s).sum(dim=1))
    return torch.cat(products)


def _diagonal_products(diagonal_x: Tensor, diagonal_y: Tensor, permutations: Tensor) -> Tensor:
    """`sum_i K_ii L[pi_i, pi_i]` of each pi in `(B, n)`, in float64 `(B,)`."""
    return diagonal_y.double()[permutations.to(diagonal_y.device)] @ diagonal_x.double()


def _unbiased(products: Tensor, diagonal_x: Tensor, diagonal_y: Tensor, permutations: Tensor) -> Tensor:
    """Unbiased HSIC of permuted pairs `(B,)` from `sum_{i != j} K_ij L[pi_i, pi_j]` and the diagonals of K and L.

    For centered K and L the equation of Song et al. (2012) is
    `[sum_ij K_ij L_ij - n/(n-2) sum_i K_ii L_ii + tr K tr L / ((n-1)(n-2))] / (n(n-3))`. The second term changes with
    the permutation; the biased estimator lacks it and is a weaker statistic.
    """
    n = len(diagonal_x)
    traces = diagonal_x.double().sum() * diagonal_y.double().sum()
    diagonal = _diagonal_products(diagonal_x, diagonal_y, permutations)
    # In float64, because the diagonals can be much larger than all other entries.
    return (products - 2 / (n - 2) * diagonal + traces / ((n - 1) * (n - 2))) / (n * (n - 3))


def _products_rounding(gram_x: Tensor, gram_y: Tensor) -> float:
    """Bound on the rounding error of `gram_products` in float32 without diagonals, and of the float64 sums of these."""
    off_x, off_y = (gram - gram.diagonal().diag_embed() for gram in (gram_x, gram_y))
    return float(1e-6 * off_x.norm() * off_y.norm() + 1e-13 * gram_x.norm() * gram_y.norm())
