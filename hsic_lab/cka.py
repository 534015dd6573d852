"""Centered kernel alignment (CKA): HSIC on the scale of a correlation, of a sample or of a stream of batches."""

import math
import sys

import torch
from torch import Tensor

from hsic_lab._checks import CallableModule, no_autocast, paired_samples
from hsic_lab.hsic import StreamingLinearHSIC, hsic
from hsic_lab.hsic._estimators import _Centered, paired
from hsic_lab.kernels import Kernel, Linear

_DUAL_ROWS = 4096  # Grams of 128 MiB


def near_one(x: Tensor) -> Tensor:
    """`x` over the power of two below its largest entry: no unit of x overflows or vanishes in its squares."""
    largest = float(x.detach().abs().max())
    return x / 2.0 ** math.floor(math.log2(largest)) if largest else x


def hsic_parts(
    x: Tensor, y: Tensor, kernel_x: Kernel, kernel_y: Kernel, estimator: str = "unbiased", route: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC(x, y), HSIC(x, x), HSIC(y, y), exactly 0 where they are rounding; the kernels fitted.

    The unbiased HSIC(x, x) is what is left of the biased one without the diagonal of the Gram: nothing, where no two
    rows are alike. Where little is left, all three are computed in float64, and by a route that takes the diagonal off
    first.
    """
    pairs = ((x, kernel_x), (y, kernel_y))
    own = [hsic(z, z, kernel, kernel, estimator, route) for z, kernel in pairs]
    xy = None
    if estimator == "unbiased" and any(_little(*pair, value) for pair, value in zip(pairs, own, strict=True)):
        dtype = own[0].dtype
        x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
        route = "dual" if len(x) <= _DUAL_ROWS else "tiled"
        pairs = ((x, kernel_x), (y, kernel_y))
        own = [hsic(z, z, kernel, kernel, estimator, route) for z, kernel in pairs]
        own = [value * 0 if value <= _rounding(*pair, value) else value for pair, value in zip(pairs, own, strict=True)]
        own = [value.to(dtype) for value in own]
        xy = hsic(x, y, kernel_x, kernel_y, estimator, route).to(dtype)
    own = [value if varies(z) else value * 0 for (z, _), value in zip(pairs, own, strict=True)]
    xy = hsic(x, y, kernel_x, kernel_y, estimator, route) if xy is None else xy
    return xy * ((own[0] != 0) & (own[1] != 0)), *own


def _little(x: Tensor, kernel: Kernel, self_hsic: Tensor) -> bool:
    """Whether an unbiased HSIC(x, x) is small beside the diagonal: of `eye(n)` up to 8 n units in the last place."""
    diagonal = torch.cat([kernel.gram(rows, None).diagonal() for rows in _at_origin(x, kernel).split(256)])
    return bool(self_hsic <= 16 * len(x) * torch.finfo(self_hsic.dtype).eps * diagonal.square().mean())


def _rounding(x: Tensor, kernel: Kernel, self_hsic: Tensor) -> Tensor:
    """Below what the unbiased HSIC(x, x) is rounding, beside the Gram without its diagonal."""
    x, squares = _at_origin(x, kernel), 0.0
    for rows in torch.arange(len(x), device=x.device).split(512):
        gram = kernel.gram(x[rows], x).double()
        gram[torch.arange(len(rows)), rows] = 0
        squares = squares + gram.square().sum()
    return 64 * torch.finfo(self_hsic.dtype).eps * squares / (len(x) * (len(x) - 3))


def _at_origin(x: Tensor, kernel: Kernel) -> Tensor:
    x = x.detach()
    return x - x.mean(dim=0) if isinstance(kernel, Linear) else x


def u_center(gram: Tensor) -> Tensor:
    """The U-centered Gram A, `(n, n) -> (n, n)`: 0 on the diagonal, rows and columns that sum to 0.

    `<A, B>_F / (n (n - 3))` is the unbiased HSIC (Székely & Rizzo 2014), so unbiased CKA is the cosine of A and B.
    """
    n = len(gram)
    gram = gram - gram.diagonal().diag_embed()
    rows = gram.sum(dim=1) / (n - 2)
    centered = gram - rows[:, None] - rows[None, :] + rows.sum() / (n - 1)
    return centered - centered.diagonal().diag_embed()


def alike(gram: Tensor) -> bool:
    """Whether all pairs of different rows are alike in a Gram `(n, n)`, up to its rounding: U-centered it is 0."""
    exact = gram.double()
    off = exact - exact.diagonal().diag_embed()
    return bool(u_center(exact).norm() <= 64 * torch.finfo(gram.dtype).eps * off.norm())


def varies(x: Tensor) -> bool:
    """Whether any row of `x` `(n, p)` differs from the first."""
    return bool((x != x[0]).any())


def require_positive(name: str, self_hsic: float) -> None:
    """ValueError unless a self-HSIC is positive and finite, so that CKA is defined."""
    if not 0 < self_hsic < float("inf"):
        raise ValueError(
            f"CKA is not defined: HSIC({name}, {name}) is {self_hsic:.3g}, not positive and finite. To this kernel all "
            f"pairs of rows of {name} look alike (a constant sample, a bandwidth out of scale), or its values leave "
            "the range of the dtype"
        )


def cka(
    x: Tensor,
    y: Tensor,
    kernel_x: Kernel | None = None,
    kernel_y: Kernel | None = None,
    estimator: str = "unbiased",
    route: str = "auto",
) -> Tensor:
    """CKA between the rows of `x` `(n, p)` and of `y` `(n, q)`, a 0-d tensor; a kernel left out is linear.

    `HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))` (Kornblith et al. 2019), each HSIC by the same `estimator` and `route`
    as in `hsic`:

    * `"unbiased"` (debiased CKA, Nguyen et al. 2021), n >= 4, within [-1, 1]: near 0 for independent samples, so it
      is negative about half of the time there. (The ratio of unbiased estimates is itself only nearly unbiased.)
    * `"biased"`, within [0, 1]: grows towards 1 with p / n even for independent samples; do not compare it between n.

    1 for equal samples; with linear kernels unchanged by rotations, shifts and isotropic scaling of x or y, not by
    other linear maps. Differentiable in x, y and bandwidths. Raises ValueError where CKA is not defined, which is
    where HSIC(x, x) or HSIC(y, y) is not positive (x constant, or a bandwidth so small that no two rows are alike),
    and whatever `hsic` raises.
    """
    x, y, xy, xx, yy = _parts(x, y, kernel_x, kernel_y, estimator, route)
    for name, sample in (("x", x), ("y", y)):
        if not varies(sample):
            raise ValueError(f"{name} is constant: all {len(sample)} rows are equal, and CKA is not defined")
    require_positive("x", float(xx.detach()))
    require_positive("y", float(yy.detach()))
    return xy / (xx.sqrt() * yy.sqrt())


def cka_or_nan(x: Tensor, y: Tensor, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> float:
    """Unbiased `cka` as a number, NaN where it is not defined."""
    *_, xy, xx, yy = _parts(x, y, kernel_x, kernel_y, "unbiased", "auto")
    return float(xy / (xx.sqrt() * yy.sqrt())) if xx > 0 and yy > 0 else math.nan


def _parts(
    x: Tensor, y: Tensor, kernel_x: Kernel | None, kernel_y: Kernel | None, estimator: str, route: str
) -> tuple[Tensor, ...]:
    """The samples, checked, and `hsic_parts` of them."""
    kernel_x, kernel_y = kernel_x or Linear(), kernel_y or Linear()
    x, y = paired(x, y, kernel_x, kernel_y, at_least=2)
    x, y = (near_one(z) if isinstance(kernel, Linear) else z for z, kernel in ((x, kernel_x), (y, kernel_y)))
    return x, y, *hsic_parts(x, y, kernel_x.fit(x), kernel_y.fit(y), estimator, route)


class MinibatchCKA:
    """Unbiased CKA of samples that arrive in batches (Nguyen, Raghu & Kornblith 2021, eq. 3).

    The unbiased HSIC(x, y), HSIC(x, x) and HSIC(y, y) of the batches are averaged, then the ratio is formed. Each is
    an unbiased estimate whatever the batch size, so the result does not drift with it as the biased one does; one
    batch gives exactly `cka(x, y)`. A batch weighs as many rows as it has (batches of one size: the plain mean).

    Any loader will do: a batch of fewer than 4 rows, too few for the estimator, joins the batch before it (the one
    after it, if it is the first). Otherwise the order of the batches does not matter. The price is that the latest
    batch is kept. A kernel with a rule for its bandwidth is fitted to the first batch and kept: give a number where
    the order of the batches must not matter. Sums are float64; no gradient flows.
    """

    def __init__(self, kernel_x: Kernel | None = None, kernel_y: Kernel | None = None) -> None:
        self.kernel_x, self.kernel_y = kernel_x or Linear(), kernel_y or Linear()
        self.reset()

    def reset(self) -> None:
        """Forget all batches, and what was fitted to them."""
        self._kernels = None
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._latest: tuple[Tensor, Tensor] | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in a batch `(n, p)`, `(n, q)`, n >= 1. Raises ValueError or TypeError as `hsic` does."""
        x, y = (z.detach() for z in paired_samples(x, y, at_least=1))
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
        """CKA over the batches so far, a float64 0-d tensor; more batches may follow.

        Raises ValueError for fewer than 4 rows, and where the averaged HSIC(x, x) or HSIC(y, y) is not positive.
        """
        rows = 0 if self._latest is None else len(self._latest[0])
        if rows < 4:
            raise ValueError(f"needs at least 4 rows, got {rows}")
        xy, xx, yy = self._sums + self._weighted(*self._latest)
        require_positive("x", float(xx))
        require_positive("y", float(yy))
        return xy / (xx.sqrt() * yy.sqrt())

    def _weighted(self, x: Tensor, y: Tensor) -> Tensor:
        """Rows times HSIC(x, y), HSIC(x, x), HSIC(y, y)."""
        if self._kernels is None:
            self._kernels = self.kernel_x.fit(x), self.kernel_y.fit(y)
        k, l = self._kernels
        return len(x) * torch.stack([part.double() for part in hsic_parts(x, y, k, l)]).cpu()


class StreamingLinearCKA:
    """Linear CKA of all rows of a stream, equal to `cka(x, y)` on the rows put together.

    Unlike `MinibatchCKA` it is exact whatever the chunks; it takes O((p + q)^2) memory and linear kernels only.
    """

    def __init__(self) -> None:
        self._xy, self._xx, self._yy = (StreamingLinearHSIC() for _ in range(3))
        self._eps = 0.0

    def reset(self) -> None:
        """Forget all rows."""
        self._eps = 0.0  # of the widest rounding fed in
        for part in (self._xy, self._xx, self._yy):
            part.reset()

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in rows `(n, p)`, `(n, q)`, n >= 1. Raises ValueError or TypeError as `hsic` does."""
        x, y = (z.detach() for z in paired_samples(x, y, at_least=1))
        with no_autocast(x):
            x, y = _Centered(x), _Centered(y)
            for part, left, right in ((self._xy, x, y), (self._xx, x, x), (self._yy, y, y)):
                part._add(left, right)
        self._eps = max(self._eps, torch.finfo(x.narrow.dtype).eps)

    def compute(self, estimator: str = "unbiased") -> Tensor:
        """CKA of all rows so far, a float64 0-d tensor. Raises ValueError as `cka` does, and for too few rows."""
        xy, xx, yy = (part.compute(estimator) for part in (self._xy, self._xx, self._yy))
        for name, part, value in (("x", self._xx, xx), ("y", self._yy, yy)):
            # The products of a chunk have the rounding of its dtype.
            if value and value <= 64 * self._eps * part.compute("biased"):
                raise ValueError(
                    f"HSIC({name}, {name}) is {float(value):.3g}, no more than the rounding of the largest rows in "
                    "their dtype: feed float64, or CKA is not defined (all pairs of rows alike)"
                )
            require_positive(name, float(value))
        return xy / (xx.sqrt() * yy.sqrt())


sys.modules[__name__].__class__ = CallableModule
