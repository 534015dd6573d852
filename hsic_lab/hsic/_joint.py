"""HSIC of more than two variables, of every pair of columns, and of all cyclic shifts of the rows."""

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import reduce
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from hsic_lab._checks import (  # isort: skip
    check_choice, check_integer, check_type, default_dtype, factor_values, is_constant, no_autocast, seeded,
)  # fmt: skip
from hsic_lab.hsic._estimators import at_origin, center, fit_at_origin, from_sums, hsic, require_digits, rough_rows
from hsic_lab.kernels import Delta, Kernel, Linear, kernel_or, require_finite

Index: TypeAlias = Tensor | slice
Fitted: TypeAlias = Sequence[tuple[Kernel, Tensor]]  # kernels and their columns (n, 1)
Table: TypeAlias = Tensor | np.ndarray | pd.DataFrame | Mapping[str, Tensor]
_EPS = 2.0**-52  # rounding unit of float64
_ENTRIES = 2**24  # of the stacked Grams in memory at a time: 64 MiB in float32
_TILE = 128  # rows of a part of a Gram: with its 400 or fewer columns it fits a core's cache
_DIAGONALS = 10**8  # entries of circular diagonals in memory at a time: 800 MB
_CACHED = 2**17  # of them, those that are transformed at a time
_COLUMNS = 8  # of x and of y whose permuted HSIC is computed at a time


def dhsic(*samples: Tensor, kernels: Sequence[Kernel] | None = None) -> Tensor:
    """Joint dependence of two or more variables (dHSIC).

    ``mean(K_1 ... K_m) + prod_j mean(K_j) - 2 mean_i prod_j (K_j 1/n)_i`` with elementwise products, the squared MMD
    between the n rows and all n^m combinations of rows (Pfister et al. 2018, arXiv:1603.00285). It is never negative;
    for two variables it is the biased `hsic`. With characteristic kernels its limit is 0 only if the variables are
    jointly independent; pairwise independence is not enough. A differentiable tensor of shape (), in O(n^2) memory.

    Parameters
    ----------
    *samples : Tensor of shape (n, p_1), ..., (n, p_m)
        Variables whose rows belong together, at least two.
    kernels : sequence of Kernel, optional
        One for each variable; None means `Linear`. The origin matters to polynomial kernels, and for m > 2
        also to linear and distance-induced ones.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.kernels import Delta
    >>> a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    >>> dhsic(a, b, a ^ b, kernels=[Delta()] * 3)  # pairwise independent, jointly dependent
    tensor(0.1250)
    """
    if len(samples) < 2:
        raise ValueError(f"needs at least 2 samples, got {len(samples)}")
    given = [None] * len(samples) if kernels is None else check_type("kernels", kernels, list, tuple)
    kernels = [kernel_or(Linear(), kernel, f"kernels[{i}]") for i, kernel in enumerate(given)]
    if len(kernels) != len(samples):
        raise ValueError(f"needs one kernel per sample, got {len(kernels)} kernels for {len(samples)} samples")
    checked = [k.samples(x, f"samples[{i}]") for i, (k, x) in enumerate(zip(kernels, samples, strict=True))]
    if len({len(x) for x in checked}) != 1 or len(checked[0]) < 2:
        raise ValueError(f"samples must have the same number of rows, 2 or more, got {[len(x) for x in checked]}")
    if len(samples) == 2:
        # `hsic` centers the Grams, and so keeps the digits that the three means would cancel.
        return hsic(checked[0], checked[1], kernels[0], kernels[1])
    dtypes = [x.dtype for x in checked if x.is_floating_point()] or [default_dtype()]
    with no_autocast(checked[0]):
        value = joint_mean([gram_parts(kernel, x)[:3] for kernel, x in zip(kernels, checked, strict=True)])
        return require_finite(value.to(reduce(torch.promote_types, dtypes)), *kernels)


def gram_parts(kernel: Kernel, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """C `(n, n)`, r `(n,)` and m `()` of the Gram ``C_ij + r_i + r_j + m``, rows of mean 0, and C's rounding error."""
    x = x.double() if x.is_floating_point() else x
    kernel = kernel.fit(x)
    gram, near = require_finite(kernel.gram(x, None).double(), kernel), at_origin(kernel, x)
    rows = gram.mean(dim=1)
    if is_constant(x):  # exactly 0, instead of rounding
        return gram - gram, rows - rows, rows.mean(), rows.mean() * 0
    gram = gram if near is x else kernel.gram(near, None).double()
    return require_digits(center(gram), gram, kernel), rows - rows.mean(), rows.mean(), _EPS * gram.detach().abs().max()


def joint_mean(parts: Sequence[Sequence[Tensor]]) -> Tensor:
    """dHSIC from the parts C, r and m of each Gram, without the constants that its three means would cancel.

    With features ``mu_j + f_j`` of variable j, f_j of mean 0, their product over the variables is M + L + G, the terms
    with no, one, and two or more f_j. dHSIC is the mean of ``<G, G'>``; ll is ``<L, L'>``, lm ``<L, M>``, and so on.
    """
    (c, r, m), (d, s, k), *rest = parts
    if not rest:
        return (c * d).mean()
    gg, lg, gm = c * d, c * s + r * d, r * s
    ll, lm, mm = c * k + r[:, None] * s + s[:, None] * r + m * d, r * k + m * s, m * k
    for c, r, m in rest[:-1]:
        mixed = c + r[:, None]  # <f_j, mu_j + f_j'>
        twice = lg * mixed
        gg = ll * c + twice + twice.T + gg * (mixed + (r + m))
        lg = ll * r + lg * (m + r) + lm * c + gm * mixed
        ll = ll * m + lm[:, None] * r + r[:, None] * lm + mm * c
        gm, lm, mm = lm * r + gm * (m + r), lm * m + mm * r, mm * m
    c, r, m = rest[-1]
    mixed = c + r[:, None]
    return (ll * c).addcmul_(lg, mixed, value=2).addcmul_(gg, mixed + (r + m)).mean()


def joint_rounding(parts: Sequence[Sequence[Tensor]]) -> float:
    """Bound of the rounding error of `joint_mean`, whatever the order of the rows (Hölder's inequality)."""
    power = len(parts)
    norms = [[z.abs().pow(power).mean() ** (1 / power) for z in part] for part in parts]
    bound = joint_mean([(c.view(1, 1), r.view(1), m) for c, r, m, _ in norms])
    moved = joint_mean([((c + 8 * e).view(1, 1), (r + 8 * _EPS * (c + r + m)).view(1), m) for c, r, m, e in norms])
    return float(moved - bound + 64 * _EPS * bound)


class PairTests(NamedTuple):
    """HSIC of every pair of columns, its p-values, and those adjusted for the number of pairs, each `(p, q)`."""

    hsic: Tensor
    pvalue: Tensor
    adjusted: Tensor


def hsic_matrix(
    x: Table, y: Table, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "biased",
    normalized: bool = False, permutations: int | None = None, seed: int = 0,
) -> Any:  # fmt: skip
    """HSIC of every column of `x` with every column of `y`, for instance of features with factors, in O(n^2 p q) time.

    The estimates (p, q) are float64 without gradient; with `permutations` a named tuple `hsic, pvalue, adjusted`.

    Parameters
    ----------
    x, y : Tensor, ndarray, DataFrame or mapping of names to columns, p and q columns of n rows
        Columns of integers, booleans, strings or categories are labels and take the kernel `Delta`; make integers that
        measure something, such as ages, floats. Decimals are numbers, dates and durations seconds. A missing value is
        an error. Rows are paired by position, not by the index of a frame.
    kernel_x, kernel_y, estimator
        As in `hsic`, without "block". The kernels are for floating columns; a median rule is fitted to every column.
    normalized : bool, default False
        Divide by ``sqrt(HSIC(x_i, x_i) HSIC(y_j, y_j))``: CKA, or 0 where one of the two is not positive.
    permutations, seed : int or None, and int
        Also test every pair of columns with at least so many permutations of the rows of `y`, as `permutation_test`
        does (n at least 4), but with linear kernels, which detect correlation only, unless others are given. The
        adjusted p-values (step-down method of Westfall and Young 1993) control the family-wise error: at most a share a
        of all tables has one ``<= a`` among its independent pairs, if their columns are independent jointly, x from y.

    Examples
    --------
    >>> import numpy as np
    >>> hsic_matrix(np.arange(4.0), {"class": np.array([0, 0, 1, 1])}, normalized=True)
    tensor([[0.8000]], dtype=torch.float64)
    """
    unbiased = check_choice(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
    kernel_x, kernel_y = kernel_or(Linear(), kernel_x, "kernel_x"), kernel_or(Linear(), kernel_y, "kernel_y")
    sides = _fitted_columns(x, "x", kernel_x), _fitted_columns(y, "y", kernel_y)
    n, n_y = (len(side[0][1]) for side in sides)
    if n < (least := 4 if unbiased or permutations is not None else 2) or n != n_y:
        raise ValueError(f"x and y must have the same number of rows, at least {least}, got {n} and {n_y}")
    exact = [[(k, z.double() if z.is_floating_point() else z) for k, z in side] for side in sides]
    largest = [float(z.abs().max()) for side in sides for _, z in side if z.is_floating_point()]
    in_range = all(size == 0 or 1e-8 < size < 1e8 for size in largest)  # fourth powers, in float32
    with no_autocast(sides[0][0][1]):
        side_x, side_y = sides if in_range else exact
        values = _pair_values(side_x, side_y, (kernel_x, kernel_y), unbiased, normalized)
    if permutations is None:
        return values
    return PairTests(values, *_pair_pvalues(exact[0], exact[1], permutations, seed))  # equal ones differ in float32


@torch.no_grad()
def _pair_values(side_x: Fitted, side_y: Fitted, given: Sequence[Kernel], unbiased: bool, normalized: bool) -> Tensor:
    """HSIC of all pairs of columns `(p, q)`, or CKA, from blocks of rows; errors name the `given` kernels."""
    n, sides = len(side_x[0][1]), (side_x, side_y)
    # Both sides need one dtype, and labels have none.
    dtype = torch.float64 if torch.float64 in {z.dtype for side in sides for _, z in side} else torch.float32
    grams_x, grams_y = ([gram_part(*pair, dtype, shifted=True) for pair in side] for side in sides)
    xy = xx = yy = torch.zeros((), dtype=torch.float64)
    row_sums: list[tuple[Tensor, Tensor]] = []
    size = max(1, _ENTRIES // (n * max(len(grams_x), len(grams_y))))
    for start in range(0, n, size):
        rows = slice(start, min(start + size, n))
        k, l = (torch.stack([gram(rows, slice(None)) for gram in grams]) for grams in (grams_x, grams_y))
        if unbiased:
            k.diagonal(start, 1, 2).zero_(), l.diagonal(start, 1, 2).zero_()
        row_sums.append((k.sum(dim=2).double(), l.sum(dim=2).double()))
        # One product for each row: a float32 sum of millions of terms would cost four digits.
        xy = xy + torch.bmm(k.transpose(0, 1), l.permute(1, 2, 0)).sum(dim=0, dtype=torch.float64)
        xx = xx + k.square().sum(dim=2).sum(dim=1, dtype=torch.float64)
        yy = yy + l.square().sum(dim=2).sum(dim=1, dtype=torch.float64)
    rows_x, rows_y = (torch.cat(sums, dim=1) for sums in zip(*row_sums, strict=True))
    totals_x, totals_y = rows_x.sum(dim=1), rows_y.sum(dim=1)
    values = require_finite(from_sums(xy, totals_x[:, None], totals_y, rows_x @ rows_y.T, n, unbiased), *given)
    if not normalized:
        return values
    self_x = require_finite(from_sums(xx, totals_x, totals_x, rows_x.square().sum(dim=1), n, unbiased), *given)
    self_y = require_finite(from_sums(yy, totals_y, totals_y, rows_y.square().sum(dim=1), n, unbiased), *given)
    rounding = max(1e-12, 16 * torch.finfo(dtype).eps) / n**2  # of the sums
    alive = (self_x > rounding * xx)[:, None] & (self_y > rounding * yy)
    return torch.where(alive, values / (self_x.clamp_min(0).sqrt()[:, None] * self_y.clamp_min(0).sqrt()), 0.0)


def _fitted_columns(x: Table, name: str, kernel: Kernel) -> Fitted:
    """The fitted kernel of each column of a table, and the column `(n, 1)` as its kernel accepts it."""
    if isinstance(x, pd.DataFrame) and not x.columns.is_unique:
        raise ValueError(f"{name} must have columns of different names, got {list(x.columns)}")
    x = x.to_frame() if isinstance(x, pd.Series) else x
    if isinstance(x, pd.DataFrame | Mapping):
        given = {f"{name}[{key!r}]": x[key] for key in x}
    elif isinstance(x, Tensor | np.ndarray) and x.ndim in (1, 2):
        table = x if x.ndim == 2 else x[:, None]
        given = {f"{name}[:, {i}]": table[:, i] for i in range(table.shape[1])}
    else:
        shape = f" of shape {tuple(x.shape)}" if isinstance(x, Tensor | np.ndarray) else ""
        accepted = "a tensor or array (n, p), data frame or mapping"
        raise TypeError(f"{name} must be a table: {accepted}, got {type(x).__name__}{shape}")
    columns = {key: factor_values(column, key)[0] for key, column in given.items()}
    if len(lengths := {len(column) for column in columns.values()}) != 1:
        raise ValueError(f"{name} needs one or more columns of one length, got lengths {sorted(lengths)}")
    kernels = [kernel if column.is_floating_point() else Delta() for column in columns.values()]
    own = zip(kernels, columns.items(), strict=True)
    return [fit_at_origin(k, k.samples(column.detach(), key), key) for k, (key, column) in own]


def gram_part(kernel: Kernel, z: Tensor, dtype: torch.dtype, shifted: bool = False) -> Callable[[Index, Index], Tensor]:
    """A function that gives some rows and columns of the Gram of `z` for a fitted kernel; 0 if all rows are equal.

    With `shifted`, less the rows that HSIC does not depend on, and that would cost it digits.
    """
    if is_constant(z):  # exactly 0, instead of rounding
        return lambda i, j: torch.zeros(len(z[i]), len(z[j]), dtype=dtype, device=z.device)
    if not shifted:
        return lambda i, j: kernel.gram(z[i], z[j]).to(dtype)
    rows = rough_rows(kernel, z).to(dtype)
    return lambda i, j: kernel.gram(z[i], z[j]).to(dtype) - rows[i, None] - rows[j]


class ShiftedGram:
    """The circular diagonals of a U-centered Gram: without diagonal, over its largest entry, with rows that sum to 0.

    Unbiased HSIC is the sum of the products of two such matrices over ``n (n - 3)``. Without `stored` the matrix is
    formed by parts whenever it is needed, once here for the sums of its rows. `gram` replaces the kernel's Gram.
    """

    def __init__(self, kernel: Kernel, z: Tensor, stored: bool, gram: Tensor | None = None) -> None:
        self.part, n, centered = gram_part(kernel, z, torch.float64), len(z), gram is not None
        if stored:
            gram = self.part(slice(None), slice(None)) if gram is None else gram
            self.part = lambda i, j: gram[i][:, j]
        size, width, step = (n, n, 1) if stored else (_TILE, 8 * _TILE, 16)  # of the parts, and that of their rows

        @torch.no_grad()  # of this thread
        def sums(first: int) -> tuple[Tensor, float, float]:
            totals, norm, largest = torch.zeros(n, dtype=torch.float64, device=z.device), 0.0, 0.0
            for start in range(first * size, n, step * size):
                rows = slice(start, start + size)
                for left in range(start, n, width):  # from the diagonal on; the rest is equal by symmetry
                    part = self.part(rows, slice(left, left + width))
                    own, rest = part.tensor_split([size if left == start else 0], dim=1)
                    own.diagonal().zero_()
                    totals[rows] += part.sum(dim=1)
                    totals[left + own.shape[1] : left + width] += rest.sum(dim=0)
                    norm = math.hypot(norm, float(own.norm()), 2**0.5 * float(rest.norm()))
                    largest = max(largest, *(abs(float(bound)) for bound in part.aminmax()))
            return totals, norm, largest

        with _one_thread_each(not stored and z.is_cpu) as map_parts:
            found = list(map_parts(sums, range(step)))
        largest = max(one[2] for one in found) or 1.0
        self.scale, norm = largest, math.hypot(*(one[1] for one in found))
        totals = require_finite(torch.stack([one[0] for one in found]).sum(dim=0), kernel) / largest
        require_finite(torch.tensor(norm, dtype=torch.float64), kernel)
        self.offsets = (totals - totals.sum() / (2 * (n - 1))) / (n - 2)
        norm, total = norm / largest, float(totals.sum())
        self.raw = float(n) if centered and norm else norm  # of the entries before they were centered
        square = norm**2 - 2 / (n - 2) * float(totals.square().sum()) + total**2 / ((n - 1) * (n - 2))
        self.matrix = None if gram is None else self._center(gram, slice(None), slice(None)).fill_diagonal_(0)
        # The difference has a rounding error itself.
        self.norm = max(square, 1e-16 * norm**2) ** 0.5 if self.matrix is None else float(self.matrix.norm())

    def _center(self, part: Tensor, rows: Index, columns: Index) -> Tensor:
        return part.mul_(1 / self.scale).sub_(self.offsets[rows][:, None]).sub_(self.offsets[columns])

    def diagonals(self, orders: Tensor, first: int, out: Tensor) -> None:
        """Write entries ``(order[i], order[i + k])``, k = first, first + 1, ..., to `out` (J, count, n), i along n."""
        count, n = out.shape[1:]
        if self.matrix is not None:
            at = torch.arange(n, device=orders.device)
            out[:] = self.matrix[orders[:, None], orders[:, (at + at[first : first + count, None]) % n]]
            return
        for order, diagonals in zip(torch.cat([orders, orders], dim=1), out, strict=True):
            for start in range(0, n, _TILE):
                rows = order[start : min(start + _TILE, n)]
                columns = order[start + first :][: len(rows) + count - 1]
                part = self._center(self.part(rows, columns), rows, columns)
                # Along a row of this view the column advances with the row: entry (i, k) of it is (i, i + k) of `part`.
                view = part.contiguous().as_strided((len(rows), count), (len(columns) + 1, 1))
                diagonals[:, start : start + len(rows)] = view.T


Grams: TypeAlias = Sequence[ShiftedGram]


def shifted_hsic(grams_x: Grams, grams_y: Grams, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased HSIC of all cyclic shifts of y along orders `(J, n)` of the rows, `(a, b, J n)`, and its rounding error.

    Shift s of order j pairs row ``orders[0, i]`` of x with row ``orders[j, i + s mod n]`` of y. The sum over i and k of
    ``K_{i, i+k} L_{i+s, i+s+k}`` is, for one k, the circular correlation of two circular diagonals: a product of their
    Fourier transforms. The products are added over k, and one inverse transform gives all n shifts. Diagonals k and
    n - k are equal by symmetry. O((a + b J) n^2 log n) time and O(n) memory beside stored Grams, all in float64.
    """
    blocks, n = orders.shape
    # Transforms of other lengths can take ten times as long: pad with zeros, and add what runs over at the end.
    length = n if next_fast_len(n, real=True) == n else next_fast_len(2 * n - 1, real=True)
    stored, threads = grams_x[0].matrix is not None, torch.get_num_threads() if orders.is_cpu else 1
    # More diagonals at a time leave fewer entries of a tile unused; all threads together have a bound on memory.
    step = max(1, min(256, _DIAGONALS // (n * (len(grams_x) + blocks * len(grams_y)) * (1 if stored else threads))))
    few = max(4, _CACHED // (n * blocks))  # one at a time would set up every transform anew
    reused = threading.local()

    @torch.no_grad()  # of this thread
    def products(first: int) -> Tensor:
        count = min(step, n // 2 + 1 - first)
        if not hasattr(reused, "sides"):  # fresh memory of this size costs more than what is written to it
            shapes = ((len(grams_x), 1, step, n), (len(grams_y), blocks, step, n))
            reused.sides = [torch.empty(shape, dtype=torch.float64, device=orders.device) for shape in shapes]
        sides = [side[:, :, :count] for side in reused.sides]
        for grams, along, side in zip((grams_x, grams_y), (orders[:1], orders), sides, strict=True):
            for gram, out in zip(grams, side, strict=True):
                gram.diagonals(along, first, out)
        if 2 * (first + count - 1) == n:
            sides[0][:, :, -1] /= 2  # the diagonal n/2 has every pair of rows twice
        shape = len(grams_x), len(grams_y), blocks, length // 2 + 1
        total = torch.zeros(shape, dtype=torch.complex128, device=orders.device)
        for start in range(0, count, few):
            spectra_x, spectra_y = (torch.fft.rfft(side[:, :, start : start + few], n=length) for side in sides)
            spectra_x.conj_physical_()
            for i, j in product(range(len(grams_x)), range(len(grams_y))):
                total[i, j] += (spectra_x[i] * spectra_y[j]).sum(dim=1)
        return total

    # The parts of a Gram that is not stored are too small for several threads, so every thread has its own blocks.
    with _one_thread_each(not stored and orders.is_cpu) as map_blocks:
        sums = reduce(torch.add, map_blocks(products, range(1, n // 2 + 1, step)))
    values = torch.fft.irfft(sums, n=length).cpu()
    if length > n:
        values[..., 1:n] += values[..., length - n + 1 :]
    return hsic_of_sums(2 * values[..., :n].flatten(2), grams_x, grams_y, n)


@contextmanager
def _one_thread_each(use: bool) -> Iterator[Callable]:
    """A `map` that runs as many calls at a time as torch has threads, one thread each; without `use` the plain one."""
    if not use or (threads := torch.get_num_threads()) == 1:
        yield map
        return
    try:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def hsic_of_sums(sums: Tensor, grams_x: Grams, grams_y: Grams, n: int) -> tuple[Tensor, Tensor]:
    """HSIC from the sums of the products of the matrices `(a, b, N)`, and the bound of its rounding error, `(a, b)`."""
    sides = [[(gram.scale, gram.norm, gram.raw) for gram in grams] for grams in (grams_x, grams_y)]
    (scale_x, norm_x, raw_x), (scale_y, norm_y, raw_y) = (torch.tensor(side, dtype=torch.float64).T for side in sides)
    unit = require_unit(scale_x[:, None] * scale_y) / (n * (n - 3))
    # An entry has the rounding error of its raw value; the sum of the products, that of the transforms.
    entries = raw_x[:, None] * norm_y + norm_x[:, None] * raw_y
    rounding = _EPS * (8 * entries + 64 * norm_x[:, None] * norm_y)
    if (((sums.std(dim=-1) <= rounding) | (unit < 1e-300)) & (raw_x[:, None] * raw_y > 0)).any():
        warnings.warn(
            "the HSIC of most pairings is equal up to rounding error and counts as tied: standardize samples that are "
            "far from 0 or tiny, and check the bandwidths", stacklevel=2,
        )  # fmt: skip
    return sums * unit[..., None], rounding * unit


def require_unit(scale: Tensor) -> Tensor:
    """`scale` of the products of Grams itself; ValueError if they leave the range of float64."""
    if not 1e-300 < (largest := float(scale.max())) < 1e300:
        raise ValueError(f"products of kernels, {largest:.3g}, leave the range of float64: standardize the samples")
    return scale


def can_store(n: int, grams: int) -> bool:
    """Whether so many Grams of n rows are to be stored in memory, 64 MiB or less in float64."""
    return n * n * grams <= 2**23


def shift_orders(n: int, permutations: int, generator: torch.Generator) -> Tensor:
    """Random orders of n rows, `(J, n)`, whose n shifts each are the identity and at least `permutations` others."""
    count = -(-(check_integer("permutations", permutations, 1) + 1) // n)
    return torch.rand(count, n, dtype=torch.float64, generator=generator).argsort(dim=1)


@torch.no_grad()
def _pair_pvalues(side_x: Fitted, side_y: Fitted, permutations: int, seed: int) -> tuple[Tensor, Tensor]:
    """p-values of all pairs of columns, and their step-down adjusted ones, both `(p, q)`."""
    n, device = len(side_x[0][1]), side_x[0][1].device
    orders = shift_orders(n, permutations, seeded(seed)).to(device)
    stored, parts = can_store(n, 2 * _COLUMNS), []
    for some in (side_x[i : i + _COLUMNS] for i in range(0, len(side_x), _COLUMNS)):
        grams_x = [ShiftedGram(*pair, stored) for pair in some]
        others = (side_y[j : j + _COLUMNS] for j in range(0, len(side_y), _COLUMNS))
        found = [shifted_hsic(grams_x, [ShiftedGram(*pair, stored) for pair in other], orders) for other in others]
        parts.append([torch.cat(part, dim=1) for part in zip(*found, strict=True)])
    values, rounding = (torch.cat(part).flatten(0, 1) for part in zip(*parts, strict=True))
    # Of one mean and one spread, so that the largest value of all pairs does not belong to one pair always.
    spread = values.std(dim=1)
    scores = torch.where((spread > rounding)[:, None], (values - values.mean(dim=1)[:, None]) / spread[:, None], 0)
    least = scores[:, 0] - torch.where(spread > rounding, rounding / spread, 0).max()
    order = least.argsort(descending=True, stable=True)
    # For each pair: the largest score of the pairs that are no more significant than this one.
    largest = scores[order].flip(0).cummax(dim=0).values.flip(0)
    adjusted = torch.empty_like(least)
    adjusted[order] = (largest >= least[order, None]).double().mean(dim=1).cummax(dim=0).values
    shape = len(side_x), len(side_y)
    return (scores >= least[:, None]).double().mean(dim=1).view(shape), adjusted.view(shape)
