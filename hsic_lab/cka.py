"""Centred kernel alignment: HSIC on the scale of a correlation, of a sample or of a stream of batches."""

import math

import torch
from torch import Tensor

from hsic_lab.checks import paired_samples
from hsic_lab.hsic import paired
from hsic_lab.kernels import Kernel, Linear
from hsic_lab.self_hsic import hsic_parts, near_one, require_positive, varies


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
