"""What a statistical test found, and its image."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import no_autocast
from hsic_lab.hsic import center
from hsic_lab.hsic._estimators import paired_samples
from hsic_lab.kernels import Gaussian, Kernel, Linear, factor, require_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TestResult:
    """What a test found: names as in SciPy. A large statistic speaks against independence.

    `null` holds the statistics under the null hypothesis where the test draws them, and then
    `pvalue = (1 + #{null >= statistic}) / (1 + len(null))`; `distribution` is the frozen SciPy distribution where
    the test has one instead. `components` has a row for each pair of kernels of an aggregated test.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    statistic: float
    pvalue: float
    method: str
    null: Tensor | None = field(default=None, repr=False)
    distribution: object | None = field(default=None, repr=False)
    components: pd.DataFrame | None = field(default=None, repr=False)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """The null (histogram, or density) with the statistic as a vertical line, on `ax` or new axes."""
        import matplotlib.pyplot as plt

        ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")[1] if ax is None else ax
        if self.null is not None:
            ax.hist(self.null.numpy(), bins=40, density=True, color="0.75", label="null")
        elif self.distribution is not None:
            at = np.linspace(*self.distribution.ppf([0.005, 0.999]), 200)
            ax.fill_between(at, self.distribution.pdf(at), color="0.75", label="null")
        ax.axvline(self.statistic, color="C3", label=f"observed, p = {self.pvalue:.3g}")
        ax.set(xlabel="statistic", ylabel="density", title=self.method)
        ax.legend(frameon=False)
        return ax


def sampled_result(statistic: float, null: Tensor, method: str) -> TestResult:
    """The result of a test that draws its `null`: the observed statistic counts as one of the draws."""
    return TestResult(statistic, (1 + int((null >= statistic).sum())) / (1 + len(null)), method, null)


Labels = Tensor | np.ndarray | Sequence


def draw_permutations(n: int, count: int, generator: torch.Generator, groups: Labels | None = None) -> Tensor:
    """`count` uniform permutations of n rows, `(count, n)` integers on the CPU; with `groups` (n labels of any kind)
    rows change places only with rows of their own group.

    Raises ValueError unless count >= 1, there is one label a row, and some group has at least two rows.
    """
    if count < 1:
        raise ValueError(f"permutations must be at least 1, got {count}")
    keys = torch.rand(count, n, dtype=torch.float64, generator=generator)
    if groups is None:
        return keys.argsort(dim=1)
    codes = group_codes(groups, n)
    # Sorting by (group, random key) lists the rows group by group, shuffled inside; the k-th place of that list
    # belongs to the row that is k-th when nothing is shuffled.
    places = codes.argsort(stable=True)
    permutations = torch.empty(count, n, dtype=torch.int64)
    permutations[:, places] = (keys + codes).argsort(dim=1)
    return permutations


def gram_products(grams_x: Tensor, grams_y: Tensor, permutations: Tensor) -> Tensor:
    """`sum_ij K_ij L[pi_i, pi_j]` of every symmetric K in `grams_x` `(a, n, n)` with every symmetric L in `grams_y`
    `(b, n, n)` and every pi in `permutations` `(B, n)`: `(B, a, b)` in float64.

    O(B a b n^2) time and no array larger than the Grams. Rows of L are copied whole (fast), then their columns are
    picked while the rows lie in cache; i <= j is enough by symmetry, and a tile of K serves all permutations before
    the next. Tiles are summed in the Grams' precision, their totals in float64.
    """
    a, n = grams_x.shape[:2]
    permutations = permutations.to(grams_x.device)
    products = grams_x.new_zeros(len(permutations), a, len(grams_y), dtype=torch.float64)
    cells = 2**18 if grams_x.device.type == "cpu" else 2**26
    rows = max(1, min(n, cells // n))
    batch = max(1, cells // (rows * n))
    # Fresh memory for every tile would cost more than the copying.
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
                    # A product of matrices adds in long chains, and its error would tell equal sums apart.
                    torch.mul(permuted, tile[i], out=scratch)
                    products[first : first + batch, i, j] += scratch.sum(dim=1)
    return products


def factor_products(factor_x: Tensor, factor_y: Tensor, permutations: Tensor) -> Tensor:
    """`||X' Y[pi]||_F^2`, which is `gram_products` of `X X'` and `Y Y'`, from the factors `(n, r)` and `(n, s)`:
    `(B,)` in float64, in O(B n r s) time."""
    n, s = factor_y.shape
    permutations = permutations.to(factor_x.device)
    batch = max(1, 2**20 // (n * s))
    products = []
    for chunk in permutations.split(batch):
        picked = factor_y.index_select(0, chunk.T.flatten()).view(n, -1)  # column block b: Y in the b-th order
        with no_autocast(picked):
            squares = (factor_x.T @ picked).square_().sum(dim=0, dtype=torch.float64)
        products.append(squares.view(-1, s).sum(dim=1))
    return torch.cat(products)


def diagonal_products(diagonal_x: Tensor, diagonal_y: Tensor, permutations: Tensor) -> Tensor:
    """`sum_i K_ii L[pi_i, pi_i]` of every pi in `permutations` `(B, n)`: `(B,)` in float64."""
    return diagonal_y.double()[permutations.to(diagonal_y.device)] @ diagonal_x.double()


def products_rounding(gram_x: Tensor, gram_y: Tensor) -> float:
    """What `gram_products` in float32 of two Grams without diagonals, and float64 sums of these, may be wrong by."""
    (whole_x, off_x), (whole_y, off_y) = map(_norms, (gram_x, gram_y))
    return 1e-6 * off_x * off_y + 1e-13 * whole_x * whole_y


def _norms(gram: Tensor) -> tuple[float, float]:
    """Of a Gram, and of what lies beside its diagonal."""
    return float(gram.norm()), float((gram - gram.diagonal().diag_embed()).norm())


def unbiased(products: Tensor, diagonal_x: Tensor, diagonal_y: Tensor, permutations: Tensor) -> Tensor:
    """Unbiased HSIC (Song et al. 2012, eq. 5) of the permuted pairs from `sum_{i != j} K_ij L[pi_i, pi_j]`, `(B,)`, K
    and L centered, and their diagonals.

    Unbiased HSIC does not change when K is centered, and the rows of a centered Gram without its diagonal sum to
    `-K_ii`. Their formula is then `[sum_ij K_ij L_ij - n/(n-2) sum_i K_ii L_ii + tr K tr L / ((n-1)(n-2))] / (n(n-3))`:
    permutations move its second term, which is noise in the biased estimator. Measured on a rotated pair of uniform
    sources, n = 80: of 400 draws the test with the biased one rejects none that this one does not, and misses 25.
    """
    n = len(diagonal_x)
    traces = diagonal_x.double().sum() * diagonal_y.double().sum()
    diagonal = diagonal_products(diagonal_x, diagonal_y, permutations)
    # The diagonals of both may outweigh all the rest: in float32 they would drown it.
    return (products - 2 / (n - 2) * diagonal + traces / ((n - 1) * (n - 2))) / (n * (n - 3))


def group_codes(groups: Labels, n: int) -> Tensor:
    """The labels as integers 0, 1, ...: `(n,)`. Raises ValueError as `draw_permutations` does."""
    labels = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), one label a row, got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"groups holds {int(np.isnan(labels).sum())} labels that are NaN")
    values, codes = np.unique(labels, return_inverse=True)
    if len(values) == n:
        raise ValueError(f"groups must have a group of at least 2 rows, got {n} groups for {n} rows")
    return torch.from_numpy(codes.reshape(n))


Samples = Tensor | np.ndarray


def fitted_pair(
    x: Samples, y: Samples, kernel_x: Kernel | None, kernel_y: Kernel | None, at_least: int
) -> tuple[Tensor, Tensor, Kernel, Kernel]:
    """Both samples checked, floating ones in float64, and their kernels (left out: Gaussian) fitted."""
    kernel_x, kernel_y = kernel_x or Gaussian(), kernel_y or Gaussian()
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least)
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    # What is left of a flat Gram when it is centered would in float32 be rounding, which tells equal pairings apart.
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    # No test depends on the origin of a linear kernel, the rounding error of its Gram does.
    x, y = (
        z - z.mean(dim=0) if isinstance(k, Linear) and not is_constant(z) else z
        for z, k in ((x, kernel_x), (y, kernel_y))
    )
    return x, y, kernel_x.fit(x), kernel_y.fit(y)


def is_constant(z: Tensor, codes: Tensor | None = None) -> bool:
    """Whether all rows, or all rows of a group, are equal."""
    if codes is None:
        return bool((z == z[:1]).all())
    return all(is_constant(z[codes == code]) for code in codes.unique())


def centered_gram(kernel: Kernel, z: Tensor, groups: Labels | None = None) -> Tensor:
    """The Gram `(n, n)` less its means, within groups if there are some; ValueError if an entry is not finite."""
    gram = kernel(z).double()
    codes = None if groups is None else group_codes(groups, len(z)).to(gram.device)
    if is_constant(z, codes):
        return torch.zeros_like(gram)  # without the rounding error of a mean
    require_finite(gram, kernel)
    return center(gram) if codes is None else _minus_means(_minus_means(gram, codes).T, codes)


def centered_factor(kernel: Kernel, z: Tensor, tolerance: float, groups: Labels | None = None) -> Tensor:
    """A factor `(n, r)` of the Gram within `tolerance` of its trace, less its means, within groups if there are any."""
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be between 0 and 1, a share of the trace, got {tolerance!r}")
    codes = (torch.zeros(len(z), dtype=torch.int64) if groups is None else group_codes(groups, len(z))).to(z.device)
    if is_constant(z, codes):
        return kernel(z[:1]).new_zeros(len(z), 1)
    return _minus_means(factor(kernel, z, rank=len(z), tolerance=tolerance).double(), codes)


def _minus_means(rows: Tensor, codes: Tensor) -> Tensor:
    """Every row minus the mean row of its group."""
    sums = rows.new_zeros(int(codes.max()) + 1, rows.shape[1]).index_add_(0, codes, rows)
    return rows - (sums / codes.bincount()[:, None])[codes]


@torch.no_grad()
def permutation_test(
    x: Samples,
    y: Samples,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    *,
    permutations: int = 999,
    groups: Labels | None = None,
    tolerance: float | None = None,
    seed: int = 0,
) -> TestResult:
    """Exact test of independence: unbiased HSIC (Song et al. 2012) against its values when the rows of y are permuted.

    P(pvalue <= a) <= a at every n, for every distribution and kernel, because at independence the observed pairing
    is one of 1 + `permutations` exchangeable ones. With `groups` (n labels) rows change places, and are centered, within
    their group only: the test of independence of x and y given the group. Centered over all rows, a dependence within
    groups that opposes the one between them would go unseen. The statistic is then the same formula of the Grams
    centered within groups: no unbiased estimate of anything, and no less exact a test.

    `tolerance` replaces the Grams by factors, `K ~ X X'` with `tr(K - X X') <= tolerance * tr K`
    (incomplete Cholesky, `lowrank.factor`), and the statistic by that of `X X'` and `Y Y'`. The
    factors are functions of one sample each, so that the level stays exact; the statistic, and with it the p-value,
    is an approximation of the one from the Grams. `method` says which was used.

    Values closer to the statistic than rounding can tell (1e-6 of `||K||_F ||L||_F / (n (n-3))`, K and L centered and
    without their diagonals) count as equal to it. Needs n >= 4.
    """
    x, y, kernel_x, kernel_y = fitted_pair(x, y, kernel_x, kernel_y, at_least=4)
    n = len(x)
    draws = draw_permutations(n, permutations, torch.Generator().manual_seed(seed), groups)
    if tolerance is None:
        k, l = centered_gram(kernel_x, x, groups), centered_gram(kernel_y, y, groups)
        (unit_k, scale_k), (unit_l, scale_l) = map(_unit, (k, l))
        products = gram_products(_off(unit_k)[None], _off(unit_l)[None], draws).flatten() * (scale_k * scale_l)
        rounding = scale_k * scale_l * products_rounding(unit_k, unit_l)
        diagonals = k.diagonal(), l.diagonal()
        observed = (k * l).sum() - diagonals[0] @ diagonals[1]
        method = "permutation, Gram matrices"
    else:
        u, v = centered_factor(kernel_x, x, tolerance, groups), centered_factor(kernel_y, y, tolerance, groups)
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
    x: Samples,
    y: Samples,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    *,
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
    permutations: int = 999,
    groups: Labels | None = None,
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
        zip(*(_unit(centered_gram(kernel, z, groups)) for kernel in kernels), strict=True)
        for z, kernels in ((x, kernels_x), (y, kernels_y))
    )
    products = gram_products(torch.stack([*map(_off, units_x)]), torch.stack([*map(_off, units_y)]), draws).flatten(1)
    pairs = list(product(units_x, units_y))
    values = torch.stack(
        [unbiased(column, u.diagonal(), v.diagonal(), draws) for column, (u, v) in zip(products.T, pairs, strict=True)],
        dim=1,
    ).cpu()
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
