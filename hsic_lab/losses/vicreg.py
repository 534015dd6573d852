"""VICReg: a loss of the covariance of each view, which is the HSIC of a view with itself."""

import math
from functools import reduce
from itertools import accumulate

import torch
import torch.nn.functional as F
from scipy.special import gammainc
from torch import Tensor

from hsic_lab._checks import check_choice, check_number
from hsic_lab.losses._base import TwoViewLoss
from hsic_lab.losses._off_diagonal import CONTRASTS, ROUTES, split_squared_norm


class VICRegLoss(TwoViewLoss):
    """VICReg loss (Bardes et al. 2022, arXiv:2105.04906): similar views; uncorrelated features of standard deviation 1.

    ``lambda s(Z, Z') + mu / 2 [v(Z) + v(Z')] + nu [c(Z) + c(Z')]``, where s is the mean squared difference,
    ``v(Z) = (1/d) sum_j max(0, 1 - sqrt(Var_j + eps))`` and ``c(Z) = (1/d) sum_{i != j} Cov_ij^2``, with variances and
    covariances over ``n - 1``. The third term is the dependence of a view on itself:
    ``d c(Z) = (n / (n - 1))^2 HSIC(Z, Z) - sum_j Var_j^2`` with linear kernels. Views are not standardized, so the
    scale of a feature matters. `terms` returns "invariance", "variance" and "covariance", the weighted summands.

    Parameters
    ----------
    lambda_param, mu_param, nu_param : float, default 25.0, 25.0, 1.0
        Weights of the three terms, at least 0; the defaults are those of the paper. As the authors' code and lightly,
        and unlike the paper's equations, this class halves v and averages s over features.
    eps : float, default 1e-4
        Added to the variance for a finite gradient, at least 0.
    gather_distributed, route, contrast
        As in `BarlowTwinsLoss`; `route` and `contrast` concern the third term.
    """

    many_views = True

    def __init__(
        self, lambda_param: float = 25.0, mu_param: float = 25.0, nu_param: float = 1.0,
        gather_distributed: bool = True, eps: float = 1e-4, route: str = "auto", contrast: str = "dimensions",
    ) -> None:  # fmt: skip
        super().__init__(gather_distributed)
        given = {"lambda_param": lambda_param, "mu_param": mu_param, "nu_param": nu_param, "eps": eps}
        self.lambda_param, self.mu_param, self.nu_param, self.eps = (check_number(k, v, 0) for k, v in given.items())
        self.route, self.contrast = check_choice(route, ROUTES, "route"), check_choice(contrast, CONTRASTS, "contrast")

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        (n, d), count = views[0].shape, len(views)
        # The sum of |z_v - z_w|^2 over pairs is V times that of k / (k + 1) |z_k+1 - mean of k views before it|^2.
        before = enumerate(zip(views[1:], accumulate(views), strict=False), 1)
        squares = [k / (k + 1) * (z - total / k if k > 1 else z - total).square().mean() for k, (z, total) in before]
        # Far from the origin the mean would be rounded; the mean of differences from a row is not.
        stacked = torch.stack([z - z[0].detach() for z in views])
        centered = (stacked - stacked.mean(dim=1, keepdim=True)).unbind()
        parts = [split_squared_norm(z, route=self.route, contrast=self.contrast)[:2] for z in centered]
        variances, squared_norms = (torch.stack(part) for part in zip(*parts, strict=True))
        bessel = n / (n - 1)
        return {
            "invariance": 2 / (count - 1) * self.lambda_param * reduce(torch.add, squares),
            "variance": self.mu_param * F.relu(1 - torch.sqrt(bessel * variances + self.eps)).mean(),
            "covariance": 2 * self.nu_param / count * bessel**2 / d * squared_norms.sum(),
        }

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of independent views of standard normal features (without eps)."""
        self._check_shape(n, d)
        # E max(0, 1 - s) for (n-1) s^2 ~ chi^2(n-1), from the distribution functions of chi^2(n-1) and chi^2(n) at n-1.
        half = (n - 1) / 2
        mean_ratio = math.exp(math.lgamma(n / 2) - math.lgamma(half)) / math.sqrt(half)
        hinge = float(gammainc(half, half) - mean_ratio * gammainc(half + 0.5, half))
        # Wishart matrix: E ||Cov||_F^2 = d (n + d) / (n - 1); `own` is the part of the diagonal, over d.
        own = (n + 1) / (n - 1) if self.contrast == "dimensions" else (d + 2) / n
        off = (n + d) / (n - 1) - own
        return 2 * self.lambda_param + self.mu_param * hinge + 2 * self.nu_param * off

    def lower_bound(self, n: int, d: int) -> float:
        """Return the smallest loss of identical views with equal variances, without eps; 0 if d <= n - 1.

        If d > n - 1 and `nu_param` is large against `mu_param`, unequal variances can have a smaller loss.
        """
        self._check_shape(n, d)
        if self.contrast == "samples":
            return super().lower_bound(n, d)
        excess = max(0.0, d / (n - 1) - 1)
        std = min(1.0, (self.mu_param / (8 * self.nu_param * excess)) ** (1 / 3)) if self.nu_param * excess else 1.0
        return self.mu_param * (1 - std) + 2 * self.nu_param * excess * std**4
