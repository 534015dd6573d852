"""Linear HSIC and CKA of more rows than memory holds: exact, from moments that chunks of rows add to."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hsic_lab.checks import full_precision, one_of, paired_samples
from hsic_lab.self_hsic import require_positive


class _Centred:
    """Rows about their mean in float64, the same in their own dtype, and their squared lengths."""

    def __init__(self, x: Tensor) -> None:
        # About the first row, then about the mean: a constant sample is exactly 0, not rounding.
        first = x[0].double()
        self.rows = x.double() - first
        offset = self.rows.mean(dim=0)
        self.rows -= offset
        self.mean = first + offset
        self.narrow = self.rows.to(x.dtype)
        self.squares = torch.linalg.vecdot(self.rows, self.rows)


@dataclass(frozen=True)
class _Moments:
    """Sums over n rows of x `(p,)` and y `(q,)`, both about their means, with a = |x|^2 and b = |y|^2."""

    n: int
    mean_x: Tensor
    mean_y: Tensor
    a: Tensor  # sum of a
    b: Tensor
    ab: Tensor
    bx: Tensor  # (p,)
    ay: Tensor  # (q,)
    xy: Tensor  # (p, q)

    @classmethod
    def of(cls, x: "_Centred", y: "_Centred") -> "_Moments":
        xy = (x.narrow.T @ y.narrow).double()
        bx, ay = y.squares @ x.rows, x.squares @ y.rows
        squares = x.squares.sum(), y.squares.sum(), x.squares @ y.squares
        return cls(len(x.rows), x.mean, y.mean, *squares, bx, ay, xy)

    def shifted(self, u: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The sums (a, b, ab, bx, ay, xy) of x + u and y + v; the means are 0, so that half of the terms vanish."""
        uu, vv = u @ u, v @ v
        a, b = self.a + self.n * uu, self.b + self.n * vv
        ab = self.ab + 2 * (self.bx @ u + self.ay @ v) + 4 * (u @ self.xy @ v) + self.a * vv + b * uu
        bx = self.bx + 2 * (self.xy @ v) + b * u
        ay = self.ay + 2 * (u @ self.xy) + a * v
        return a, b, ab, bx, ay, self.xy + self.n * torch.outer(u, v)

    def __add__(self, other: "_Moments") -> "_Moments":
        """The moments of both sets of rows, about their joint mean (Chan, Golub & LeVeque 1983)."""
        n = self.n + other.n
        mean_x = self.mean_x + (other.mean_x - self.mean_x) * (other.n / n)
        mean_y = self.mean_y + (other.mean_y - self.mean_y) * (other.n / n)
        both = (part.shifted(part.mean_x - mean_x, part.mean_y - mean_y) for part in (self, other))
        return _Moments(n, mean_x, mean_y, *(left + right for left, right in zip(*both, strict=True)))


class StreamingLinearHSIC:
    """Linear HSIC of all rows of a stream, equal to `hsic(x, y)` on the rows put together, in O(p q) memory.

    The unbiased estimator needs, beside the cross-covariance, sums of `|x|^2 |y|^2` about the mean; chunks of any
    sizes in any order give the same answer, also where the mean drifts or is far from 0. Sums are float64; only the
    product of a centred chunk with another is formed in the dtype of the rows. No gradient flows.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._moments: _Moments | None = None

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in rows `(n, p)`, `(n, q)`, n >= 1. Raises ValueError or TypeError as `hsic` does."""
        x, y = (z.detach() for z in paired_samples(x, y, at_least=1))
        with full_precision(x):
            self._add(_Centred(x), _Centred(y))

    def _add(self, x: _Centred, y: _Centred) -> None:
        chunk = _Moments.of(x, y)
        if self._moments is not None and self._moments.xy.shape != chunk.xy.shape:
            before, now = tuple(self._moments.xy.shape), tuple(chunk.xy.shape)
            raise ValueError(f"x and y had {before} columns in the chunks before, now {now}")
        self._moments = chunk if self._moments is None else self._moments + chunk

    def compute(self, estimator: str = "biased") -> Tensor:
        """HSIC of all rows so far, a float64 0-d tensor. Raises ValueError for fewer than 2 (unbiased: 4) rows."""
        unbiased = one_of(estimator, ("biased", "unbiased"), "estimator") == "unbiased"
        n, least = 0 if self._moments is None else self._moments.n, 4 if unbiased else 2
        if n < least:
            raise ValueError(f"needs at least {least} rows, got {n}")
        m = self._moments
        total = m.xy.square().sum()
        if not unbiased:
            return total / n**2
        # Song et al. 2012, eq. 5: about the mean the row sums K~1 are -a and L~1 are -b.
        return (total - m.ab * (n / (n - 2)) + m.a * m.b / ((n - 1) * (n - 2))) / (n * (n - 3))


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
        with full_precision(x):
            x, y = _Centred(x), _Centred(y)
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
