"""Barlow Twins and HSIC_SSL: two targets for one cross-correlation matrix."""

import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import check_choice
from hsic_lab.correlation import cross_correlation
from hsic_lab.losses._base import TwoViewLoss
from hsic_lab.losses._off_diagonal import CONTRASTS, ROUTES, standardized_squared_norm


class HSICSSLLoss(TwoViewLoss):
    """`sum_i (1 - C_ii)^2 + lambda sum_{i != j} (C_ij - t)^2`: Tsai et al. 2021 (arXiv 2104.13712), eq. 5, with t = -1.

    C is the cross-correlation of the two views, t the `target` of its off-diagonal. `lambda_param=None` is the rule
    of the report, lambda = 1/d. It differs from Barlow Twins (t = 0) by a rank-one form and a constant,
    `lambda [d (d-1) t^2 - 2 t (1'C1 - tr C)]`, where `1'C1` is the covariance of the two views' feature sums; these
    are the terms `feature_sum` and `constant`. The target -1 cannot be met: positive semi-definite C with unit
    diagonal has a mean off-diagonal of at least -1/(d-1), and the loss a floor of `lambda d (d-2)^2 / (d-1)`.

    The reference code also normalizes each projection to unit length first and divides by the n-1 standard deviation;
    neither is in the equation and neither is done here. Rescaling or shifting a feature changes nothing.
    `contrast="samples"` is the sample-contrastive twin: lambda weighs pairs of images in place of pairs of features,
    with the same `||C||_F^2`. `route` and `contrast` are those of `split_squared_norm`.
    """

    def __init__(
        self,
        lambda_param: float | None = None,
        target: float = -1.0,
        gather_distributed: bool = True,
        route: str = "auto",
        contrast: str = "dimensions",
    ) -> None:
        super().__init__(gather_distributed)
        if lambda_param is not None and not lambda_param >= 0:
            raise ValueError(f"lambda_param must be at least 0, or None for 1/d, got {lambda_param!r}")
        self.lambda_param = lambda_param
        self.target = target
        self.route = check_choice(route, ROUTES, "route")
        self.contrast = check_choice(contrast, CONTRASTS, "contrast")

    def weight(self, d: int) -> float:
        """lambda at width d."""
        return 1 / d if self.lambda_param is None else self.lambda_param

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        n, d = z_a.shape
        weight = self.weight(d)
        diagonal, squared_norm, sums_a, sums_b = standardized_squared_norm(
            z_a, z_b, self.route, self.contrast, with_sums=self.target != 0
        )
        terms = {"invariance": (1 - diagonal).square().sum(), "redundancy": weight * squared_norm}
        if self.target != 0:
            feature_sums = sums_a @ sums_b / n
            terms["feature_sum"] = -2 * self.target * weight * (feature_sums - diagonal.sum())
            terms["constant"] = diagonal.new_tensor(weight * d * (d - 1) * self.target**2)
        return terms

    def expected_if_independent(self, n: int, d: int) -> float:
        """The expected loss of unrelated views, whatever their distribution: the mean over all permutations of rows.

        Every `C_ij` then has mean 0 and mean square `1/(n-1)`; the redundancy term is lambda times about `d^2/n`.
        """
        off = d * (d - 1) / (n - 1) if self.contrast == "dimensions" else d**2 / (n * (n - 1))
        return d + d / (n - 1) + self.weight(d) * (off + d * (d - 1) * self.target**2)

    def lower_bound(self, n: int, d: int) -> float:
        """The least loss of identical views: at target 0, 0 if d <= n - 1, else `lambda (d^2/(n-1) - d)` (Welch).

        For `contrast="samples"` known where the target is 0 and d >= n - 1, at the simplex of n rows.
        """
        t, rank = self.target, min(n - 1, d)
        if self.contrast == "samples":
            return self.weight(d) * d**2 / (n * (n - 1)) if t == 0 and d >= n - 1 else super().lower_bound(n, d)
        if n == 2:  # rows of signs: 1'C1 is the square of their sum, which is odd where d is
            total = d**2 if t > 0 else d % 2
            return self.weight(d) * (d * (d - 1) * (1 + t**2) - 2 * t * (total - d))
        # C has trace d and rank eigenvalues; that of the constant vector, 1'C1/d = s, is paid for by the target.
        others = rank - 1
        s = min(max(d * (1 + t * others) / rank, 0.0), float(d))
        squared_norms = [d**2 / min(n - 1, d - 1)] if d > 1 and t < 0 else []
        squared_norms.append(s**2 + (d - s) ** 2 / others - 2 * t * d * s if others else d**2 - 2 * t * d**2)
        return self.weight(d) * (min(squared_norms) - d + 2 * t * d + d * (d - 1) * t**2)

    def extra_repr(self) -> str:
        weight = "1/d" if self.lambda_param is None else self.lambda_param
        return f"lambda_param={weight}, target={self.target}, route={self.route!r}, contrast={self.contrast!r}"


class BarlowTwinsLoss(HSICSSLLoss):
    """`sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2`: Zbontar et al. 2021 (arXiv 2103.03230), eq. 1.

    `lambda_param=None` is 1/d, the rule of Tsai et al. 2021; the default is that of the Barlow Twins paper, tuned at
    d = 8192. With `HSIC = ||C||_F^2` the second term is `lambda (HSIC - sum_i C_ii^2)`, so `route="auto"` forms the
    cheaper of `d x d` and `n x n` (near n = d not always the smaller), and beside it nothing larger than a view.
    """

    def __init__(
        self,
        lambda_param: float | None = 5e-3,
        gather_distributed: bool = True,
        route: str = "auto",
        contrast: str = "dimensions",
    ) -> None:
        super().__init__(lambda_param, 0.0, gather_distributed, route, contrast)


class ReferenceCodeLoss(TwoViewLoss):
    """`sum_i (1 - C_ii)^2 + lambda sum_{i != j} (C_ij - t)^2` as github.com/yaohungt/Barlow-Twins-HSIC has it.

    Two steps of that code are in no equation of the report (Tsai et al. 2021, arXiv 2104.13712), and each is a switch:

    * `unit_rows`: every projection is scaled to length 1 before the columns are standardized, which couples the
      features and makes the loss depend on their scales;
    * `bessel`: columns are divided by the n - 1 standard deviation and C by n, so that C is `(n-1)/n` times what
      `cross_correlation` returns, and identical views keep a diagonal of `(n-1)/n`.

    With both off it is `HSICSSLLoss(lambda_param, target)`, for which use that: this one forms C. It serves to measure
    what the two steps do. `lambda_param=None` is 1/d. Raises ValueError for a negative `lambda_param`.
    """

    def __init__(
        self,
        lambda_param: float | None = None,
        target: float = 0.0,
        unit_rows: bool = True,
        bessel: bool = True,
        gather_distributed: bool = True,
    ) -> None:
        super().__init__(gather_distributed)
        if lambda_param is not None and not lambda_param >= 0:
            raise ValueError(f"lambda_param must be at least 0, or None for 1/d, got {lambda_param!r}")
        self.lambda_param, self.target, self.unit_rows, self.bessel = lambda_param, target, unit_rows, bessel

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        n, d = z_a.shape
        if self.unit_rows:
            z_a, z_b = F.normalize(z_a), F.normalize(z_b)
        c = cross_correlation(z_a, z_b) * ((n - 1) / n if self.bessel else 1.0)
        diagonal = c.diagonal()
        off = (c - self.target).square().sum() - (diagonal - self.target).square().sum()
        weight = 1 / d if self.lambda_param is None else self.lambda_param
        return {"invariance": (1 - diagonal).square().sum(), "redundancy": weight * off}

    def extra_repr(self) -> str:
        return f"target={self.target}, unit_rows={self.unit_rows}, bessel={self.bessel}"
