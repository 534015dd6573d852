"""Losses that push different images apart: NT-Xent, its debiased and supervised forms, and the spectral loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import check_choice, check_views, no_autocast
from hsic_lab._distributed import all_gather_rows
from hsic_lab.losses._base import TwoViewLoss
from hsic_lab.losses._off_diagonal import ROUTES, split_squared_norm


class NTXentLoss(TwoViewLoss):
    """`mean_i [-s_ii+ / T + log sum_{j != i} exp(s_ij / T)]`: Chen et al. 2020 (SimCLR, arXiv 2002.05709), eq. 1.

    `s` are cosines between the 2n embeddings of both views, `s_ii+` that of the two views of one image, T the
    `temperature`. With the kernel `k = s/T` of small variance it is `-HSIC(Z, Y) + E Var k / 2` and a constant, Y the
    identity of the image and HSIC as in `SSLHSICLoss` (Li et al. 2021, arXiv 2106.08320).

    `class_prior` is the probability that a negative is of the anchor's class; above 0 the negatives are debiased,
    `N_g = max((sum_neg - class_prior N exp(s+/T)) / (1 - class_prior), N exp(-1/T))` with N = 2n - 2:
    Chuang et al. 2020 (arXiv 2007.00224). Not affected by the length of rows
    (between 1e-12 and, in float32, 1e18).
    """

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = True, class_prior: float = 0.0) -> None:
        super().__init__(gather_distributed)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        if not 0 <= class_prior < 1:
            raise ValueError(f"class_prior must be in [0, 1), got {class_prior!r}")
        self.temperature = temperature
        self.class_prior = class_prior

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        x, y = F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)
        z = torch.cat([x, y])
        logits = (z @ z.T / self.temperature).fill_diagonal_(-math.inf)
        positives = (x * y).sum(dim=1) / self.temperature
        denominator = self._debiased(logits, positives) if self.class_prior else logits.logsumexp(dim=1)
        return {"alignment": -positives.mean(), "uniformity": denominator.mean()}

    def _debiased(self, logits: Tensor, positives: Tensor) -> Tensor:
        n, prior = len(positives), self.class_prior
        itself = torch.eye(n, dtype=torch.bool, device=logits.device).repeat(2, 2)
        negatives, positives = logits.masked_fill(itself, -math.inf).logsumexp(dim=1), positives.repeat(2)
        count = 2 * n - 2
        # In units of the larger of the two sums, so that neither overflows.
        unit = torch.maximum(negatives, positives).detach()
        positive_sum = (positives - unit).exp()
        corrected = ((negatives - unit).exp() - prior * count * positive_sum) / (1 - prior)
        least = count * (-1 / self.temperature - unit).exp()
        return unit + (positive_sum + torch.maximum(corrected, least)).log()

    def lower_bound(self, n: int, d: int) -> float:
        """At the regular simplex of n images, which needs d >= n - 1; below that no closed form is known."""
        if d < n - 1 or self.class_prior:
            return super().lower_bound(n, d)
        t = self.temperature
        return -1 / t + math.log(math.exp(1 / t) + (2 * n - 2) * math.exp(-1 / (t * (n - 1))))

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, class_prior={self.class_prior}"


class SupConLoss(TwoViewLoss):
    """NT-Xent whose positives are all embeddings of the same label: Khosla et al. 2020 (arXiv 2004.11362), eq. 2.

    `mean_i [-mean_{p in P(i)} s_ip / T + log sum_{j != i} exp(s_ij / T)]` over the embeddings of any number of views,
    times T with `rescale` (the authors' code with equal temperatures, and lightly). `loss(z_a, z_b, labels=labels)`
    takes integer `labels` `(n,)`; without them every image is its own class and the loss is T times NT-Xent.
    """

    many_views = True

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = True, rescale: bool = True) -> None:
        super().__init__(gather_distributed)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.temperature = temperature
        self.rescale = rescale

    def forward(self, z_a: Tensor, z_b: Tensor, *more: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss, a 0-d tensor."""
        return sum(self.terms(z_a, z_b, *more, labels=labels).values())

    def terms(self, z_a: Tensor, z_b: Tensor, *more: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The named parts of the loss, 0-d tensors that sum to it."""
        check_views(z_a, z_b)
        with no_autocast(z_a):
            if labels is None:
                views = self.prepare(z_a, z_b, *more)
                return self._terms(*views, labels=torch.arange(len(views[0]), device=z_a.device))
            if not isinstance(labels, Tensor):
                raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
            if labels.shape != z_a.shape[:1] or labels.is_floating_point():
                raise ValueError(
                    f"labels must be integers of shape {tuple(z_a.shape[:1])}, got {labels.dtype} {tuple(labels.shape)}"
                )
            labels = all_gather_rows(labels) if self.gathers() else labels
            return self._terms(*self.prepare(z_a, z_b, *more), labels=labels)

    def _terms(self, *views: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = F.normalize(torch.cat(views), dim=1)
        labels = labels.repeat(len(views))
        same = (labels[:, None] == labels).to(z.dtype).fill_diagonal_(0)
        scale = self.temperature if self.rescale else 1.0
        positives = (z * (same @ z)).sum(dim=1) / (same.sum(dim=1) * self.temperature)
        logits = (z @ z.T / self.temperature).fill_diagonal_(-math.inf)
        return {"alignment": -scale * positives.mean(), "uniformity": scale * logits.logsumexp(dim=1).mean()}

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, rescale={self.rescale}"


class SpectralContrastiveLoss(TwoViewLoss):
    """`[-2 mean_b x_b'y_b + mean_{b != c} (x_b'y_c)^2] / mu`: HaoChen et al. 2021 (arXiv 2106.04156).

    x and y are the rows of the views, those longer than `sqrt(mu)` cut back to that length. That ball and the division
    by mu are of the authors' code; the paper's loss has neither. The second term is the off-diagonal squared_norm of `XY'/d`
    as that of Barlow Twins is of `X'Y/n`: the same function, called with transposed matrices, so that it needs the
    smaller of `n x n` and `d x d`. With the pairs b = c kept and no cut it would be Barlow Twins at lambda = 1 less d,
    at identical standardized views. `route` is that of `split_squared_norm`.
    """

    def __init__(self, mu: float = 1.0, gather_distributed: bool = True, route: str = "auto") -> None:
        super().__init__(gather_distributed)
        if not mu > 0:
            raise ValueError(f"mu must be positive, got {mu!r}")
        self.mu = mu
        self.route = check_choice(route, ROUTES, "route")

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        n, d = z_a.shape
        diagonal, squared_norm = split_squared_norm(self._cut(z_a).T, self._cut(z_b).T, ROUTE_OF_TRANSPOSE[self.route])
        return {
            "alignment": -2 * d / self.mu * diagonal.mean(),
            "contrast": d**2 / (n * (n - 1) * self.mu) * squared_norm,
        }

    def _cut(self, z: Tensor) -> Tensor:
        radius = math.sqrt(self.mu)
        return z * (radius / z.norm(dim=1, keepdim=True).clamp_min(radius))

    def expected_if_independent(self, n: int, d: int) -> float:
        """For unrelated views whose rows point in all directions alike and reach the radius."""
        return self.mu / d

    def lower_bound(self, n: int, d: int) -> float:
        """At the best number m of rows of full length, orthogonal (m <= d) or a tight frame (m > d: Welch).

        The loss is linear in the squared length of each row, so that every row has full length or none.
        """
        return min(-2 * m / n + self.mu * max(0.0, m * (m / d - 1)) / (n * (n - 1)) for m in range(n + 1))

    def extra_repr(self) -> str:
        return f"mu={self.mu}, route={self.route!r}"


# The route is named by the matrix of the batch that it forms, and the batch arrives transposed.
ROUTE_OF_TRANSPOSE = {"auto": "auto", "primal": "dual", "dual": "primal"}


class NegativeCosineSimilarity(TwoViewLoss):
    """`-mean_b cos(p_b, z_b)`: Chen and He 2021 (SimSiam, arXiv 2011.10566), eq. 1; BYOL's loss is `2 + 2` times it.

    Nothing in it keeps the embeddings apart: with a constant embedding it is at its floor of -1. SimSiam prevents
    that outside of the loss, by a predictor and a stop-gradient that are the caller's:
    `(loss(p_a, z_b.detach()) + loss(p_b, z_a.detach())) / 2`. A row of zeros counts as uncorrelated.
    """

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        return {"alignment": -(F.normalize(z_a, dim=1) * F.normalize(z_b, dim=1)).sum(dim=1).mean()}

    def expected_if_independent(self, n: int, d: int) -> float:
        """0 for unrelated views that point in all directions alike; a common direction c of both gives -|c|^2."""
        return 0.0

    def lower_bound(self, n: int, d: int) -> float:
        """-1, at identical views."""
        return -1.0
