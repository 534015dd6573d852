"""VICReg: the covariance of each view by itself, which is HSIC of a view with itself."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import check_choice
from hsic_lab.losses._base import TwoViewLoss, non_negative
from hsic_lab.losses._off_diagonal import CONTRASTS, ROUTES, split_squared_norm


class VICRegLoss(TwoViewLoss):
    """`lambda s(Z, Z') + mu/2 [v(Z) + v(Z')] + nu [c(Z) + c(Z')]`: Bardes et al. 2022 (arXiv 2105.04906).

    `s` is the mean over rows and features of the squared difference, `v(Z) = (1/d) sum_j max(0, 1 - sqrt(Var_j + eps))`
    and `c(Z) = (1/d) sum_{i != j} Cov_ij^2`, both with n-1. Two choices follow the authors' code (and lightly), because
    the published weights 25, 25, 1 were tuned with it: `v` is halved, and `s` averages over features; the paper's
    equations do neither. The third term is self-dependence: `d c(Z) = (n/(n-1))^2 HSIC(Z, Z) - sum_j Var_j^2`.

    `contrast="samples"` leaves out pairs of a row with itself in place of pairs of a feature with itself: the
    sample-contrastive twin (Garrido et al. 2023, arXiv 2206.02574, theorem 3.3). Not standardized: the loss sees the
    scale of every feature and wants a standard deviation of 1. `route` and `contrast` are those of `split_squared_norm`.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = True,
        eps: float = 1e-4,
        route: str = "auto",
        contrast: str = "dimensions",
    ) -> None:
        super().__init__(gather_distributed)
        non_negative(lambda_param=lambda_param, mu_param=mu_param, nu_param=nu_param, eps=eps)
        self.lambda_param, self.mu_param, self.nu_param, self.eps = lambda_param, mu_param, nu_param, eps
        self.route = check_choice(route, ROUTES, "route")
        self.contrast = check_choice(contrast, CONTRASTS, "contrast")

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        parts = [self._of_one_view(z) for z in (z_a, z_b)]
        hinge, covariance = (sum(part) for part in zip(*parts, strict=True))
        return {
            "invariance": self.lambda_param * F.mse_loss(z_a, z_b),
            "variance": self.mu_param / 2 * hinge,
            "covariance": self.nu_param * covariance,
        }

    def _of_one_view(self, z: Tensor) -> tuple[Tensor, Tensor]:
        n, d = z.shape
        z = z - z[0].detach()  # the mean of values far from the origin is rounded, the mean of differences is not
        diagonal, squared_norm = split_squared_norm(z - z.mean(dim=0), route=self.route, contrast=self.contrast)
        bessel = n / (n - 1)
        return F.relu(1 - torch.sqrt(bessel * diagonal + self.eps)).mean(), bessel**2 / d * squared_norm

    def expected_if_independent(self, n: int, d: int) -> float:
        """The expected loss of unrelated views whose features are independent standard normals (eps left out)."""
        # E max(0, 1 - s) for (n-1) s^2 ~ chi^2(n-1), by its distribution function at n-1 and that of chi^2(n).
        half = torch.tensor((n - 1) / 2, dtype=torch.float64)
        below = torch.special.gammainc(half, half)
        below_next = torch.special.gammainc(half + 0.5, half)
        mean_ratio = math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2)) / math.sqrt((n - 1) / 2)
        hinge = float(below) - mean_ratio * float(below_next)
        # Of a Wishart matrix: E ||Cov||_F^2 = d (n + d) / (n - 1), less the diagonal over features or over rows.
        own = (n + 1) / (n - 1) if self.contrast == "dimensions" else (d + 2) / n
        off = (n + d) / (n - 1) - own
        return 2 * self.lambda_param + self.mu_param * hinge + 2 * self.nu_param * off

    def lower_bound(self, n: int, d: int) -> float:
        """The least loss of identical views with one standard deviation for all features (eps left out).

        0 where d <= n - 1; wider projections cannot be uncorrelated (Welch) and trade variance for covariance.
        """
        if self.contrast == "samples":
            return super().lower_bound(n, d)
        excess = max(0.0, d / (n - 1) - 1)
        std = min(1.0, (self.mu_param / (8 * self.nu_param * excess)) ** (1 / 3)) if self.nu_param * excess else 1.0
        return self.mu_param * (1 - std) + 2 * self.nu_param * excess * std**4

    def extra_repr(self) -> str:
        weights = f"{self.lambda_param}, {self.mu_param}, {self.nu_param}"
        return f"{weights}, route={self.route!r}, contrast={self.contrast!r}"
