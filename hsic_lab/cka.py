"""Centered kernel alignment (CKA). The module can be called like `hsic_lab.cka.cka`."""

import math
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from hsic_lab._checks import CallableModule, check_choice, default_dtype, is_constant, no_autocast
from hsic_lab.hsic import StreamingLinearHSIC, hsic
from hsic_lab.hsic._estimators import DUAL_ROWS, CenteredRows, at_origin, center, from_sums, paired_samples
from hsic_lab.kernels import DistanceInduced, Kernel, Linear, kernel_or, require_finite

__all__ = ["MinibatchCKA", "StreamingLinearCKA", "cka"]

Samples = tuple[tuple[Tensor, Kernel], ...]


def cka(
    x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None, estimator: str = "unbiased",
    route: str = "auto",
) -> Tensor:  # fmt: skip
    """Centered kernel alignment: HSIC normalized like a correlation, ``HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))``.

    It is 1 for equal samples. With linear kernels it does not change under rotations, shifts and isotropic scaling. It
    raises ValueError if HSIC(x, x) or HSIC(y, y) is not positive: a constant sample, or a bandwidth that does not fit.

    Parameters
    ----------
    x, y : Tensor of shape (n, p), (n, q)
        Samples whose rows belong together.
    kernel_x, kernel_y, route
        As in `hsic`.
    estimator : {"unbiased", "biased"}, default "unbiased"
        "unbiased" (debiased CKA, n at least 4) is within [-1, 1] and near 0 for independent samples. "biased" is within
        [0, 1] and grows towards 1 with p / n even for independent samples: do not compare it between different n.

    Returns
    -------
    Tensor of shape ()
        CKA; differentiable in `x`, `y` and bandwidths.

    References
    ----------
    Kornblith et al. (2019), "Similarity of Neural Network Representations Revisited", arXiv:1905.00414.

    Examples
    --------
    >>> import torch
    >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> round(cka(x, 5 - 2 * x).item(), 6), round(cka(x, x**2).item(), 1)
    (1.0, 0.0)
    """
    x, y, xy, xx, yy = _checked_parts(x, y, kernel_x, kernel_y, estimator, route)
    for name, sample in (("x", x), ("y", y)):
        if is_constant(sample):
            raise ValueError(f"{name} is constant: all {len(sample)} rows are equal, and CKA is not defined")
    return _ratio(xy, xx, yy)


def cka_or_nan(x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> float:
    """Unbiased `cka` as a float, NaN where it is not defined."""
    *_, xy, xx, yy = _checked_parts(x, y, kernel_x, kernel_y, "unbiased", "auto")
    return float(xy / (xx.sqrt() * yy.sqrt())) if xx > 0 and yy > 0 else math.nan


def _checked_parts(
    x: Tensor, y: Tensor, kernel_x: Kernel | None, kernel_y: Kernel | None, estimator: str, route: str
) -> tuple[Tensor, ...]:
    """The checked samples and their `_parts`."""
    kernel_x, kernel_y = kernel_or(Linear(), kernel_x, "kernel_x"), kernel_or(Linear(), kernel_y, "kernel_y")
    check_choice(estimator, ("biased", "unbiased"), "estimator")
    check_choice(route, ("auto", "primal", "dual", "tiled"), "route")
    x, y = paired_samples(x, y, kernel_x, kernel_y, at_least=2 if estimator == "biased" else 4)
    scale_free = Linear, DistanceInduced
    x, y = (near_one(z) if isinstance(kernel, scale_free) else z for z, kernel in ((x, kernel_x), (y, kernel_y)))
    return x, y, *_parts(x, y, kernel_x.fit(x), kernel_y.fit(y), estimator, route)


def near_one(x: Tensor) -> Tensor:
    """`x` divided by the power of two below its largest entry, so that its squares neither overflow nor vanish."""
    largest = float(x.detach().abs().max())
    return x / 2.0 ** math.floor(math.log2(largest)) if largest else x


def _parts(x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, estimator: str, route: str) -> tuple[Tensor, ...]:
    """HSIC(x, y), HSIC(x, x) and HSIC(y, y) for fitted kernels, exactly 0 where the value is only rounding."""
    samples, n, p, q = ((x, kernel_x), (y, kernel_y)), len(x), x.shape[1], y.shape[1]
    linear, lost = isinstance(kernel_x, Linear) and isinstance(kernel_y, Linear), True
    if route == "auto" and n <= DUAL_ROWS:
        route = "primal" if linear and p + q <= n else "dual"
    with no_autocast(x):
        if route == "dual":
            values, lost = _from_grams(samples, estimator)
        elif linear and (route == "primal" or (route == "auto" and p * q <= n * (p + q))):
            values, lost = _from_covariances(x, y, estimator)
        if lost and route != "dual":
            values, lost = _one_by_one(samples, estimator, route)
        if lost:
            # The unbiased HSIC leaves out the diagonal, nearly all of the Gram here: take it off first, in float64.
            samples = tuple((z.double() if z.is_floating_point() else z, kernel) for z, kernel in samples)
            values, _ = _from_grams(samples, estimator) if n <= 4096 else _one_by_one(samples, estimator, "tiled")
            if n > 4096:
                values = [v * (v > _rounding(*sample, v)) for sample, v in zip(samples, values, strict=False)]
    dtype = x.dtype if x.is_floating_point() else y.dtype if y.is_floating_point() else default_dtype()
    xx, yy, xy = require_finite(torch.stack(values).to(dtype), kernel_x, kernel_y)
    xx, yy = xx * (not is_constant(x)), yy * (not is_constant(y))
    return xy * ((xx != 0) & (yy != 0)), xx, yy


def _from_grams(samples: Samples, estimator: str) -> tuple[list[Tensor], bool]:
    """HSIC(x, x), HSIC(y, y) and HSIC(x, y), and whether digits of the unbiased ones may be lost."""
    (gram_x, diagonal_x), (gram_y, diagonal_y) = (centered_gram(*sample, estimator) for sample in samples)
    pairs, n = ((gram_x, gram_x), (gram_y, gram_y), (gram_x, gram_y)), len(gram_x)
    values = [a.flatten() @ b.flatten() / (n * (n - 3) if estimator == "unbiased" else n**2) for a, b in pairs]
    return values, estimator == "unbiased" and _are_small(
        values, (diagonal_x, diagonal_y), 16 * torch.finfo(diagonal_x.dtype).eps
    )


def _from_covariances(x: Tensor, y: Tensor, estimator: str) -> tuple[list[Tensor], bool]:
    """As `_from_grams` for linear kernels, from X'X, Y'Y and X'Y."""
    n, unbiased = len(x), estimator == "unbiased"
    x, y = (z - z.mean(dim=0) for z in (at_origin(x, Linear()), at_origin(y, Linear())))
    a, b = (z.square().sum(dim=1, dtype=torch.float64) for z in (x, y))
    values = []
    for left, right, s, t in ((x, x, a, a), (y, y, b, b), (x, y, a, b)):
        product = Linear().gram(left.T, None if left is right else right.T)
        # Rows of the Grams without diagonals sum to minus the diagonals, as the columns of x and y are centered.
        diagonal = s @ t * unbiased
        trace = product.double().square().sum() - diagonal
        values.append(from_sums(trace, -s.sum() * unbiased, -t.sum(), diagonal, n, unbiased))
    return values, unbiased and _are_small(values, (a, b), 1 / n)


def _one_by_one(samples: Samples, estimator: str, route: str) -> tuple[list[Tensor], bool]:
    """As `_from_grams`, by `hsic`."""
    (x, kernel_x), (y, kernel_y) = samples
    values = [hsic(z, z, kernel, kernel, estimator, route) for z, kernel in samples]
    values.append(hsic(x, y, kernel_x, kernel_y, estimator, route))
    parts = ((at_origin(z.detach(), kernel).split(256), kernel) for z, kernel in samples)
    diagonals = (torch.cat([kernel.gram(rows, None).diagonal() for rows in z]) for z, kernel in parts)
    return values, estimator == "unbiased" and _are_small(
        values, diagonals, 16 * len(x) * torch.finfo(values[0].dtype).eps
    )


def _are_small(values: list[Tensor], diagonals: Iterable[Tensor], tolerance: float) -> bool:
    """Whether HSIC(x, x) or HSIC(y, y) is small beside the diagonal of its Gram."""
    limits = (tolerance * diagonal.detach().double().square().mean() for diagonal in diagonals)
    return any(bool(value <= limit) for value, limit in zip(values, limits, strict=False))


def centered_gram(x: Tensor, kernel: Kernel, estimator: str) -> tuple[Tensor, Tensor]:
    """Centered Gram in float64, and the diagonal before; inner products are HSIC times n (n - 3), or n^2 if biased."""
    gram = kernel.gram(at_origin(x, kernel), None)
    return u_center(gram) if estimator == "unbiased" else center(gram.double()), gram.detach().diagonal()


def _rounding(x: Tensor, kernel: Kernel, self_hsic: Tensor) -> Tensor:
    """Rounding error of the unbiased HSIC(x, x), from the off-diagonal entries of the Gram."""
    x, squares = at_origin(x.detach(), kernel), torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(len(x), device=x.device).split(512):
        gram = kernel.gram(x[rows], x).double()
        gram[torch.arange(len(rows)), rows] = 0
        squares = squares + gram.square().sum()
    return 64 * torch.finfo(self_hsic.dtype).eps * squares / (len(x) * (len(x) - 3))


def u_center(gram: Tensor) -> Tensor:
    """The U-centered Gram A in float64; `<A, B>_F / (n (n - 3))` is the unbiased HSIC (Székely and Rizzo 2014)."""
    n, centered = len(gram), gram.to(torch.float64, copy=True).fill_diagonal_(0)
    size, rows = centered.detach().norm(), centered.sum(dim=1) / (n - 2)
    # In place: one array of the size of gram.
    centered.sub_((rows - rows.sum() / (n - 1))[:, None]).sub_(rows).fill_diagonal_(0)
    # Exactly 0 if all pairs of different rows have one value, up to rounding.
    return centered.mul_(centered.detach().norm() > 64 * torch.finfo(gram.dtype).eps * size)


def _ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """CKA from HSIC(x, y), HSIC(x, x) and HSIC(y, y); ValueError unless the last two are positive and finite."""
    for name, value in (("x", float(xx.detach())), ("y", float(yy.detach()))):
        if not 0 < value < math.inf:
            raise ValueError(f"CKA is not defined: HSIC({name}, {name}) is {value:.3g}, not positive and finite")
    return xy / (xx.sqrt() * yy.sqrt())


class MinibatchCKA:
    """Unbiased CKA of samples that arrive in batches.

    Each unbiased HSIC is averaged over the batches, weighted by their rows, before the ratio is formed (Nguyen et al.
    2021, arXiv:2010.15327, equation 3). So the batch size adds only noise; one batch gives exactly `cka`. A batch of
    fewer than 4 rows joins the batch before it, the first one the batch after it. Kernels are as in `cka`; a median
    rule is fitted to the first batch and kept. Sums are float64; no gradient flows.

    Examples
    --------
    >>> import torch
    >>> metric = MinibatchCKA()
    >>> for rows in torch.arange(10.0).split(5):
    ...     metric.update(rows, 3 - rows)
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    def __init__(self, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> None:
        self.kernel_x = kernel_or(Linear(), kernel_x, "kernel_x")
        self.kernel_y = kernel_or(Linear(), kernel_y, "kernel_y")
        self.reset()

    def reset(self) -> None:
        """Forget all batches and the fitted bandwidths."""
        self._kernels: tuple[Kernel, Kernel] | None = None
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._latest: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch (n, p), (n, q), n at least 1."""
        x, y = (z.detach() for z in paired_samples(x, y, self.kernel_x, self.kernel_y, at_least=1))
        if self._latest is not None:
            old_x, old_y = self._latest
            for name, old, new in (("x", old_x, x), ("y", old_y, y)):
                if old.shape[1] != new.shape[1]:
                    raise ValueError(f"{name} had {old.shape[1]} columns in the batch before, now {new.shape[1]}")
            if min(len(x), len(old_x)) < 4:
                x, y = torch.cat([old_x, x]), torch.cat([old_y, y])
            else:
                self._sums += self._weighted(old_x, old_y)
        self._latest = x.clone(), y.clone()  # the caller may reuse its buffers

    def compute(self) -> Tensor:
        """CKA of the batches so far, a float64 tensor of shape (); more batches may follow."""
        if self._latest is None or len(self._latest[0]) < 4:
            raise ValueError(f"needs at least 4 rows, got {0 if self._latest is None else len(self._latest[0])}")
        return _ratio(*(self._sums + self._weighted(*self._latest)))

    def _weighted(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows times HSIC(x, y), HSIC(x, x) and HSIC(y, y)."""
        if self._kernels is None:
            self._kernels = self.kernel_x.fit(x), self.kernel_y.fit(y)
        parts = _parts(x, y, *self._kernels, "unbiased", "auto")
        return len(x) * torch.stack(parts).double().cpu()


class StreamingLinearCKA:
    """Linear CKA of samples that arrive in chunks of any size, equal to `cka` of all rows, in O((p + q)^2) memory."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._xy, self._xx, self._yy = (StreamingLinearHSIC() for _ in range(3))
        self._eps = 0.0  # rounding unit of the narrowest dtype so far

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add rows (n, p) and (n, q), n at least 1."""
        x, y = (z.detach() for z in paired_samples(x, y, Linear(), Linear(), at_least=1))
        with no_autocast(x):
            a, b = CenteredRows(x), CenteredRows(y)
            for part, left, right in ((self._xy, a, b), (self._xx, a, a), (self._yy, b, b)):
                part._add(left, right)
        self._eps = max(self._eps, torch.finfo(x.dtype).eps)

    def compute(self, estimator: str = "unbiased") -> Tensor:
        """CKA of all rows so far, "unbiased" or "biased": a float64 tensor of shape ()."""
        xy, xx, yy = (part.compute(estimator) for part in (self._xy, self._xx, self._yy))
        for name, part, value in (("x", self._xx, xx), ("y", self._yy, yy)):
            # The products of a chunk have the rounding error of its dtype.
            if value and value <= 64 * self._eps * part.compute("biased"):
                own = f"HSIC({name}, {name}) is {value:.3g}"
                raise ValueError(f"CKA is not defined: {own}, rounding error; feed float64")
        return _ratio(xy, xx, yy)


sys.modules[__name__].__class__ = CallableModule
