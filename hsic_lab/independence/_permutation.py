"""Exact permutation tests of independence, and the result of every test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hsic_lab._checks import check_integer, check_number, check_type, is_constant, seeded, to_array
from hsic_lab.hsic import center, dhsic
from hsic_lab.hsic._estimators import at_origin, paired_samples, require_digits
from hsic_lab.kernels import Gaussian, Kernel, kernel_or, require_finite

from hsic_lab.hsic._joint import (  # isort: skip
    ShiftedGram, can_store, gram_parts, hsic_of_sums, joint_mean, joint_rounding, require_unit,
    shift_orders, shifted_hsic,
)  # fmt: skip

Samples = Tensor | np.ndarray
Labels = Tensor | np.ndarray | Sequence
DEGENERATE = ", degenerate: every draw has this statistic"  # a sample is constant, or all its rows differ for `Delta`
Sides = Sequence[tuple[Sequence[Kernel], Tensor]]  # of x and of y: its kernels and its sample


@dataclass(frozen=True, eq=False)
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

    @property
    def out_of(self) -> int | None:
        """Number of values among which the p-value counts, the observed one included; None without a `null`."""
        return None if self.null is None else 1 + len(self.null)

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


def sampled_result(statistic: float, null: Tensor, method: str, rounding: float = 0) -> TestResult:
    """The result of a test that draws its null; the observed statistic counts as one of the draws.

    Drawn values within the rounding error of the observed one are equal to it.
    """
    null = torch.where((null - statistic).abs() <= rounding, statistic, null)
    pvalue = (1 + int((null >= statistic).sum())) / (1 + len(null))
    method += f": p-value out of {1 + len(null)}" + DEGENERATE * bool((null == statistic).all())
    return TestResult(statistic, pvalue, method, null)


@torch.no_grad()
def permutation_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *, permutations: int = 999,
    groups: Labels | None = None, seed: int = 0,
) -> TestResult:  # fmt: skip
    """Exact test of independence: unbiased HSIC against its values when the rows of y are permuted.

    If x and y are independent and the rows of x or of y are exchangeable, ``P(pvalue <= a) <= a`` for every n, kernel
    and distribution of a row. Independent draws are exchangeable. Rows of a time series are not: at level 0.05, four
    out of five pairs of independent autoregressive series (n = 500, coefficient 0.9) are rejected. Use `shift_test`.

    The permutations are all cyclic shifts of the rows in one or more random orders, which Fourier transforms score at
    once: n permutations take a few times as long as the two Gram matrices, and no Gram is stored if n is large. Shifts
    are a group, so the observed pairing is equally likely to have any rank among them. The result has `null`.
    References: Gretton et al. (2008), "A Kernel Statistical Test of Independence"; Song et al. (2012), equation 5.

    Parameters
    ----------
    x, y : Tensor or ndarray of shape (n, p) and (n, q), or (n,)
        Samples, n at least 4; rows of one index belong together. Integers need the kernel ``Delta()``.
    kernel_x, kernel_y : Kernel or None, default None
        Kernels of `hsic_lab.kernels`; None is a Gaussian with the median bandwidth.
    permutations, seed : int, default 999 and 0
        Least number of permutations, and the seed that they are drawn with. The next multiple of n is scored, at least
        ``permutations + 1`` with the observed pairing; the result's `out_of` is its number.
    groups : labels of shape (n,) or None, default None
        Test independence given the group, still exactly. Shifts and centering are within groups. Needs O(n^2) memory.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    >>> result = permutation_test(x, x.square())
    >>> result.pvalue, result.out_of
    (0.001, 1000)
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    values, rounding = _permuted([([kernel_x], x), ([kernel_y], y)], permutations, groups, seed)
    within = "" if groups is None else " within groups"
    return sampled_result(float(values[0, 0]), values[0, 1:], f"permutation{within}", float(rounding))


@torch.no_grad()
def shift_test(
    x: Samples, y: Samples, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, *, guard: int
) -> TestResult:
    """Test two stationary time series for dependence: unbiased HSIC against its values when y is shifted in time.

    A long shift breaks the dependence between the series and keeps that within each. Short shifts do not, and are left
    out. The level is approximate: it holds for long series that forget their past well within `guard` steps. The test
    finds dependence at lag 0; shift one series for another lag. The result has `null`, without random numbers.
    Reference: Chwialkowski and Gretton (2014), "A Kernel Independence Test for Random Processes".

    Parameters
    ----------
    x, y, kernel_x, kernel_y
        As in `permutation_test`, with the rows in the order of time.
    guard : int
        Shortest shift, from 1 to ``n // 2``: shifts from `guard` to ``n - guard`` are scored. Take several times the
        lag at which the autocorrelation of the series has faded.
    """
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    guard = check_integer("guard", guard, 1, len(x) // 2)
    values, rounding = _shifted([([kernel_x], x), ([kernel_y], y)], torch.arange(len(x))[None])
    null = values[0, guard : len(x) - guard + 1]
    return sampled_result(float(values[0, 0]), null, f"shifts of {guard} or more", float(rounding))


@torch.no_grad()
def dhsic_test(
    *samples: Samples, kernels: Sequence[Kernel] | None = None, permutations: int = 999, seed: int = 0
) -> TestResult:
    """Exact test of joint independence: `dhsic` against its values when the rows of every sample but one are permuted.

    The permutations are cyclic shifts in random orders, by s, 2 s, ... rows for the second, third, ... sample. Level
    and condition are those of `permutation_test`. Takes O(permutations n^2) time. The result has `null`.

    Parameters
    ----------
    *samples, kernels : Tensor or ndarray of shape (n, p_1), ..., (n, p_m), sequence of Kernel or None, default None
        Two or more samples whose rows belong together, and their kernels; None is a Gaussian with the median bandwidth.
    permutations, seed
        As in `permutation_test`.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.kernels import Delta
    >>> a, b = torch.randint(2, (2, 100), generator=torch.Generator().manual_seed(0))
    >>> dhsic_test(a, b, a ^ b, kernels=[Delta()] * 3).pvalue  # pairwise independent, jointly dependent
    0.001
    """
    given: Any = [None] * len(samples) if kernels is None else check_type("kernels", kernels, list, tuple)
    kernels = [Gaussian() if kernel is None else kernel for kernel in given]
    dhsic(*samples, kernels=kernels)  # type: ignore[arg-type]  # checks the samples
    checked = [kernel.samples(z, "samples") for kernel, z in zip(kernels, samples, strict=True)]
    parts = [gram_parts(kernel, z) for kernel, z in zip(kernels, checked, strict=True)]
    # Over its size, a Gram has products that neither overflow nor vanish.
    sizes = [float(c.abs().max() + r.abs().max() + m.abs()) or 1.0 for c, r, m, _ in parts]
    grams = [[part / size for part in gram] for gram, size in zip(parts, sizes, strict=True)]
    unit = float(require_unit(torch.tensor(math.prod(sizes), dtype=torch.float64)))
    n, draws, generator = len(checked[0]), check_integer("permutations", permutations, 1) + 1, seeded(seed)
    blocks, values = -(-draws // n), []
    for block in range(blocks):
        # The observed pairing belongs to block 0, whose samples have one order; in other blocks each has its own.
        orders = torch.rand(len(grams) if block else 1, n, generator=generator).argsort(dim=1).expand(len(grams), n)
        pairs = [(c[o][:, o].repeat(2, 2), r[o].repeat(2), m) for (c, r, m, _), o in zip(grams, orders, strict=True)]
        others = 1 + torch.randperm(n - 1, generator=generator)
        for shift in [0, *others.tolist()][: -(-draws // blocks)]:
            starts = [slice(first := j * shift % n, first + n) for j in range(len(pairs))]
            shifted = [(c[at, at], r[at], m) for (c, r, m), at in zip(pairs, starts, strict=True)]
            values.append(unit * float(joint_mean(shifted)))
    null, rounding = torch.tensor(values, dtype=torch.float64), unit * joint_rounding(grams)
    return sampled_result(values[0], null[1:], f"joint permutation of {len(grams)} samples", rounding)


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
    (0.401, 0.006)
    """
    factors = [check_number("each of scales", scale, 0, above=True) for scale in np.ravel(scales).tolist()]
    if not factors:
        raise ValueError(f"scales must be positive numbers, at least one, got {scales!r}")
    x, y, kernel_x, kernel_y = fitted(x, y, kernel_x, kernel_y, at_least=4)
    kernels_x, kernels_y = _scaled(kernel_x, factors), _scaled(kernel_y, factors)
    values, rounding = _permuted([(kernels_x, x), (kernels_y, y)], permutations, groups, seed)
    count = values.shape[1]
    # For each pairing and each pair of kernels: the share of pairings whose HSIC is at least as large, up to rounding.
    below = torch.searchsorted(values.sort(dim=1).values, values - rounding[:, None])
    pvalues = (count - below.T).double() / count
    smallest = pvalues.amin(dim=1) + pvalues.mean(dim=1) / (2 * count)
    # Rounded to 12 decimals, because the mean depends on the order of its terms.
    scores = -torch.log10(smallest).round(decimals=12)
    components = pd.DataFrame(product(map(repr, kernels_x), map(repr, kernels_y)), columns=["kernel_x", "kernel_y"])
    components["hsic"], components["pvalue"] = values[:, 0].numpy(), pvalues[0].numpy()
    within = "" if groups is None else " within groups"
    method = f"aggregated over {len(components)} pairs of kernels, permutation{within}"
    return replace(sampled_result(float(scores[0]), scores[1:], method), components=components)


def _scaled(kernel: Any, scales: Sequence[float]) -> list[Kernel]:
    return [replace(kernel, bandwidth=s * kernel.bandwidth) for s in scales if hasattr(kernel, "bandwidth")] or [kernel]


def fitted(
    x: Any, y: Any, kernel_x: Kernel | None, kernel_y: Kernel | None, at_least: int
) -> tuple[Tensor, Tensor, Kernel, Kernel]:
    """Both samples, checked, floating-point ones in float64, and their fitted kernels; None is a Gaussian."""
    kernel_x, kernel_y = kernel_or(Gaussian(), kernel_x, "kernel_x"), kernel_or(Gaussian(), kernel_y, "kernel_y")
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least)
    # In float32 a nearly constant Gram would be rounding error after centering, and equal pairings would differ.
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    x, y = at_origin(kernel_x, x), at_origin(kernel_y, y)
    return x, y, kernel_x.fit(x), kernel_y.fit(y)


def group_codes(groups: Labels, n: int) -> Tensor:
    """The labels as integers 0, 1, ... of shape `(n,)`, checked."""
    labels = to_array(groups, "groups")
    if labels.shape != (n,):
        raise ValueError(f"groups must have shape ({n},), one label a row, got {labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise ValueError(f"groups holds {int(np.isnan(labels).sum())} labels that are NaN")
    values, codes = np.unique(labels, return_inverse=True)
    if len(values) == n:
        raise ValueError(f"groups must have a group of at least 2 rows, got {n} groups for {n} rows")
    return torch.from_numpy(codes.reshape(n))


def centered_gram(kernel: Kernel, z: Tensor, codes: Tensor | None = None) -> Tensor:
    """The Gram `(n, n)` centered over all rows or within groups; ValueError if it is not finite or only rounding."""
    gram = kernel(z).double()
    groups = [z] if codes is None else [z[(codes == code).to(z.device)] for code in codes.unique()]
    if all(map(is_constant, groups)):
        return torch.zeros_like(gram)  # exact, without the rounding error of a mean
    require_finite(gram, kernel)
    centered = center(gram) if codes is None else _minus_means(_minus_means(gram, codes).T, codes)
    return require_digits(centered, gram, kernel)


def _minus_means(rows: Tensor, codes: Tensor) -> Tensor:
    """Every row minus the mean row of its group."""
    codes = codes.to(rows.device)
    sums = rows.new_zeros(int(codes.max()) + 1, rows.shape[1]).index_add_(0, codes, rows)
    return rows - (sums / codes.bincount()[:, None])[codes]


def _permuted(sides: Sides, permutations: int, groups: Labels | None, seed: int) -> tuple[Tensor, Tensor]:
    """Unbiased HSIC of each pair of kernels, observed and then permuted, `(a b, N)`; its rounding error `(a b,)`."""
    n = len(sides[0][1])
    if groups is None:
        return _shifted(sides, shift_orders(n, permutations, seeded(seed)))
    return _shifted_within(sides, group_codes(groups, n), permutations, seed)


def _shifted(sides: Sides, orders: Tensor) -> tuple[Tensor, Tensor]:
    """As `_permuted`, for all shifts along the orders `(J, n)`."""
    stored, device = can_store(orders.shape[1], sum(len(kernels) for kernels, _ in sides)), sides[0][1].device
    grams_x, grams_y = ([ShiftedGram(kernel, z, stored) for kernel in kernels] for kernels, z in sides)
    values, rounding = shifted_hsic(grams_x, grams_y, orders.to(device))
    return values.flatten(0, 1), rounding.flatten()


def _shifted_within(sides: Sides, codes: Tensor, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """As `_permuted`, when every group is shifted by a number of rows of its own.

    For two groups the sums over their rows for all pairs of shifts are one two-dimensional circular correlation. Drawn
    elements of the group of all shifts, the identity and as many in other random orders give an exact test.
    """
    n, counts, device, generator = len(codes), codes.bincount(), sides[0][1].device, seeded(seed)
    # Ten times as many products of shifts as draws: few of them are drawn twice.
    draws = check_integer("permutations", permutations, 1) + 1
    blocks = int(min(draws, max(1, -(-10 * draws // float(counts.double().prod())))))
    count = -(-draws // blocks)
    # Groups of one size form a stack, in which they follow one another. Within groups the order is random.
    keys = counts[codes] * len(counts) + codes
    orders = (keys + torch.rand(blocks, n, dtype=torch.float64, generator=generator)).argsort(dim=1).to(device)
    sizes, members = (values.tolist() for values in counts.unique(return_counts=True))
    rows = torch.arange(n, device=device).split([a * b for a, b in zip(sizes, members, strict=True)])
    shifts = [torch.randint(a, (blocks, count, b), generator=generator) for a, b in zip(sizes, members, strict=True)]
    for shift in shifts:
        shift[0, 0] = 0  # the observed pairing
    grams_x, grams_y = ([ShiftedGram(k, z, True, centered_gram(k, z, codes)) for k in kernels] for kernels, z in sides)
    sums = torch.zeros(len(grams_x), len(grams_y), blocks, count, dtype=torch.float64, device=device)

    def spectra(grams: Sequence[ShiftedGram], some: Tensor, c: int, d: int) -> list[Tensor]:
        shape = len(some), members[c], sizes[c], members[d], sizes[d]
        at = some[:, rows[c], None], some[:, None, rows[d]]
        return [torch.fft.rfft2(gram.matrix[at].view(shape).transpose(2, 3)) for gram in grams]  # type: ignore[index]

    for c, d in combinations_with_replacement(range(len(sizes)), 2):
        pairs = torch.arange(members[c])[:, None], torch.arange(members[d])
        ones = spectra(grams_x, orders[:1], c, d)
        for some in torch.arange(blocks).split(max(1, 2**22 // n**2)):
            others = spectra(grams_y, orders[some], c, d)
            for (i, one), (j, other) in product(enumerate(ones), enumerate(others)):
                table = torch.fft.irfft2(one.conj() * other, s=(sizes[c], sizes[d]))  # of all shifts of two groups
                for draw in torch.arange(count).split(max(1, 2**20 // (len(some) * members[c] * members[d]))):
                    s, t = shifts[c][some][:, draw, :, None], shifts[d][some][:, draw, None]
                    picked = table[torch.arange(len(some))[:, None, None, None], *pairs, s, t].sum(dim=(2, 3))
                    sums[i, j, some[:, None], draw] += (1 + (c < d)) * picked
    values, rounding = hsic_of_sums(sums.flatten(2).cpu(), grams_x, grams_y, n)
    return values.flatten(0, 1), rounding.flatten()
