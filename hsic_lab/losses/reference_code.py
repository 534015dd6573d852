"""The report's equations as its own repository computes them: unit rows first, and a divisor of n - 1 in one place."""

import torch.nn.functional as F
from torch import Tensor

from hsic_lab.correlation import cross_correlation
from hsic_lab.losses.base import TwoViewLoss


class ReferenceCodeLoss(TwoViewLoss):
    """`sum_i (1 - C_ii)^2 + lambda sum_{i != j} (C_ij - t)^2` as github.com/yaohungt/Barlow-Twins-HSIC has it.

    Two steps of that code are in no equation of the report (Tsai et al. 2021, arXiv 2104.13712), and each is a switch:

    * `unit_rows`: every projection is scaled to length 1 before the columns are standardised, which couples the
      features and makes the loss depend on their scales;
    * `bessel`: columns are divided by the n - 1 standard deviation and C by n, so that C is `(n-1)/n` times what
      `cross_correlation` returns, and identical views keep a diagonal of `(n-1)/n`.

    With both off it is `HSICSSLLoss(lambda_param, target)`, for which use that: this one forms C. It serves to measure
    what the two steps do. `lambda_param=None` is 1/d. Raises ValueError for a negative `lambda_param`.
    """

    def __init__(
        self, lambda_param: float | None = None, target: float = 0.0, unit_rows: bool = True, bessel: bool = True,
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
