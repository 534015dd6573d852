"""Losses that push different images apart: NT-Xent, SupCon and the spectral contrastive loss; and SimSiam's cosine."""

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab._checks import check_choice, check_number, check_type, inner_products, matmul, no_autocast
from hsic_lab._distributed import all_gather_rows
from hsic_lab.correlation import l2_normalize
from hsic_lab.losses._base import TwoViewLoss, pair_sum
from hsic_lab.losses._off_diagonal import ROUTES, split_squared_norm


class NTXentLoss(TwoViewLoss):
    """NT-Xent (InfoNCE) loss of SimCLR (Chen et al. 2020, arXiv:2002.05709, equation 1).

    ``mean_i [-s_ii+ / T + log sum_{j != i} exp(s_ij / T)]``, where s are cosines between the 2n projections of both
    views, ``s_ii+`` is that of the two views of one image, and T is the temperature. The length of a row does not
    matter. For the kernel ``k = s / T`` of small variance it is ``-HSIC(Z, Y) + E Var k / 2`` up to a constant and
    terms of order 1/n. Y is the identity of the image, as in `SSLHSICLoss`. The `terms`: "alignment", "uniformity".

    Parameters
    ----------
    temperature, gather_distributed : float, default 0.5, bool, default True
        Temperature T, positive, by default that of lightly; the other as in `BarlowTwinsLoss`.
    """

    many_views, min_rows = True, 1

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = True) -> None:
        super().__init__(gather_distributed)
        self.temperature = check_number("temperature", temperature, 0, above=True)

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        z, count, n = l2_normalize(torch.cat(views)), len(views), len(views[0])
        alignment = (pair_sum(z.split(n)).sum(dim=1) / self.temperature).mean() / (count * (count - 1) / 2)
        logits = _logits(z, self.temperature)
        if count == 2:  # the loss in one operation of torch, much faster than `logsumexp`
            loss = F.cross_entropy(logits, torch.arange(2 * n, device=z.device).roll(n))
            return {"alignment": -alignment, "uniformity": loss + alignment}
        # By view and image of the anchor, and view of the other projections. A pair of views has those of two views.
        sums = logits.view(count, n, count, n).logsumexp(dim=3)
        sums = torch.logaddexp(sums, sums.diagonal(dim1=0, dim2=2).T[:, :, None])
        one = torch.eye(count, dtype=torch.bool, device=logits.device)[:, None]
        return {"alignment": -alignment, "uniformity": sums.masked_fill(one, 0).sum() / (n * count * (count - 1))}

    def lower_bound(self, n: int, d: int) -> float:
        """Return the loss at the regular simplex of n images; known for d >= n - 1."""
        self._check_shape(n, d)
        if d < n - 1:
            return super().lower_bound(n, d)
        return math.log1p((2 * n - 2) * math.exp(-n / (self.temperature * (n - 1)))) if n > 1 else 0.0


class SupConLoss(TwoViewLoss):
    """Supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362): the positives have the label of the anchor.

    ``mean_i [-mean_{p in P(i)} s_ip / T + log sum_{j != i} exp(s_ij / T)]`` over the projections of two or more views,
    where s are cosines and P(i) are the other projections with the label of i; with `rescale` it is multiplied by T.
    ``loss(z_a, z_b, labels=labels)`` takes integer labels. Without labels every image is a class of its own, and the
    loss is NT-Xent (times T with `rescale`). `terms` returns "alignment" and "uniformity", the two summands.

    Parameters
    ----------
    temperature, gather_distributed
        As in `NTXentLoss`.
    rescale : bool, default True
        False: the equation as it is. True: the equation times T, which is lightly's default; at T = 0.1, a tenth. The
        authors' code (github.com/HobbitLong/SupContrast) gives the equation times ``T / base_temperature``, hence the
        value of False if its ``base_temperature`` is T (both are 0.07 by default), and that of True if it is 1.
    """

    many_views, min_rows = True, 1

    def __init__(self, temperature: float = 0.5, gather_distributed: bool = True, rescale: bool = True) -> None:
        super().__init__(gather_distributed)
        self.temperature = check_number("temperature", temperature, 0, above=True)
        self.rescale = check_type("rescale", rescale, bool)

    def forward(self, z_a: Tensor, z_b: Tensor, *more: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the loss of views of shape (n, d); `labels` are integers of shape (n,), None for n classes."""
        return reduce(torch.add, self.terms(z_a, z_b, *more, labels=labels).values())

    def terms(self, z_a: Tensor, z_b: Tensor, *more: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        if strange := [z for z in more if isinstance(z, Tensor) and not z.is_floating_point()]:
            found = f"a tensor of {strange[0].dtype}, shape {tuple(strange[0].shape)}, as a view"
            raise TypeError(f"labels must be given by name, as in loss(z_a, z_b, labels=labels), got {found}")
        views = self._prepare(z_a, z_b, *more)
        if labels is None:
            labels = torch.arange(len(views[0]), device=z_a.device)
        elif not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}; torch.as_tensor makes one")
        elif labels.device != z_a.device:
            raise ValueError(f"labels must be on the device of the views, {z_a.device}, got {labels.device}")
        elif labels.shape != z_a.shape[:1] or labels.is_floating_point() or labels.is_complex():
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(f"labels must be integers of shape ({len(z_a)},), got {found}")
        elif self.gather_distributed:
            labels = all_gather_rows(labels)
        with no_autocast(z_a):
            return self._terms(*views, labels=labels)

    def _terms(self, *views: Tensor, labels: Tensor) -> dict[str, Tensor]:
        z = l2_normalize(torch.cat(views))
        labels = labels.repeat(len(views))
        same = (labels[:, None] == labels).to(z.dtype).fill_diagonal_(0)
        scale = self.temperature if self.rescale else 1.0
        positives = (z * matmul(same, z)).sum(dim=1) / (same.sum(dim=1) * self.temperature)
        logits = _logits(z, self.temperature)
        return {"alignment": -scale * positives.mean(), "uniformity": scale * logits.logsumexp(dim=1).mean()}


class SpectralContrastiveLoss(TwoViewLoss):
    """Spectral contrastive loss (HaoChen et al. 2021, arXiv:2106.04156): makes different images orthogonal.

    ``[-2 mean_b x_b'y_b + mean_{b != c} (x_b'y_c)^2] / mu``, where x and y are the rows of the views, shortened to
    length ``sqrt(mu)`` if they are longer. The second term is the off-diagonal squared norm of ``XY'`` over n (n - 1),
    as that of Barlow Twins is of ``X'Y`` over n^2. With the pairs b = c included and without shortening, it is Barlow
    Twins at lambda = 1 minus d, for identical standardized views. The `terms`: "alignment", "contrast".

    Parameters
    ----------
    mu : float, default 1.0
        Squared length to which rows are shortened, and divisor of the loss; positive. The paper has neither; both are
        in the authors' code (github.com/jhaochenz/spectral_contrastive_learning).
    gather_distributed, route
        As in `BarlowTwinsLoss`, with the second moment in place of C.
    """

    many_views = True

    def __init__(self, mu: float = 1.0, gather_distributed: bool = True, route: str = "auto") -> None:
        super().__init__(gather_distributed)
        self.mu = check_number("mu", mu, 0, above=True)
        self.route = check_choice(route, ROUTES, "route")

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        n, d = views[0].shape
        # The batch is transposed, so the n x n products of pairs are "primal", and the dual route needs its correction.
        pairwise = (len(views) - 1) * n <= 6 * d if self.route == "auto" else self.route == "dual"
        squares = (z.square().sum(dim=1, keepdim=True).clamp_min(self.mu).div(self.mu) for z in views)
        rows = (z * (s.sqrt() / s) for z, s in zip(views, squares, strict=True))  # NaN if a square overflowed
        diagonal, squared_norm, _ = split_squared_norm(*(x.T for x in rows), route="primal" if pairwise else "dual")
        contrast = d**2 / (n * (n - 1) * self.mu) * squared_norm
        return {"alignment": -2 * d / self.mu * diagonal.mean(), "contrast": contrast}

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return the expected loss of independent views with uniformly distributed directions and long rows."""
        self._check_shape(n, d)
        return self.mu / d

    def lower_bound(self, n: int, d: int) -> float:
        """Return the smallest loss of identical views."""
        self._check_shape(n, d)
        # Rows have full length or length 0; the m rows of full length are orthogonal or a tight frame (Welch bound).
        return min(-2 * m / n + self.mu * max(0.0, m * (m / d - 1)) / (n * (n - 1)) for m in range(n + 1))


class NegativeCosineSimilarity(TwoViewLoss):
    """Negative cosine similarity, the loss of SimSiam (Chen and He 2021, arXiv:2011.10566, equation 1).

    ``-mean_b cos(p_b, z_b)``. It does not keep the projections apart: a constant projection has the smallest value, -1.
    SimSiam prevents this outside of the loss, by a predictor and a stop-gradient:
    ``(loss(p_a, z_b.detach()) + loss(p_b, z_a.detach())) / 2``. The loss of BYOL is 2 plus 2 times it.
    `gather_distributed` is as in `BarlowTwinsLoss`.
    """

    many_views, min_rows = True, 1

    def _terms(self, *views: Tensor) -> dict[str, Tensor]:
        pairs = len(views) * (len(views) - 1) / 2
        return {"alignment": -pair_sum([l2_normalize(z) for z in views]).sum(dim=1).mean() / pairs}

    def expected_if_independent(self, n: int, d: int) -> float:
        """Return 0, for uniformly distributed directions; with mean direction c in both views it is ``-||c||^2``."""
        return 0.0

    def lower_bound(self, n: int, d: int) -> float:
        return -1.0


def _logits(z: Tensor, temperature: float) -> Tensor:
    """Cosines of rows of length 1 over the temperature, -inf for a row with itself."""
    logits = inner_products(z) / temperature
    logits.diagonal().fill_(-math.inf)
    return logits
