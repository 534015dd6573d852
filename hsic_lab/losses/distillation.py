"""Losses that only pull views together and leave it to the network to prevent collapse."""

import torch.nn.functional as F
from torch import Tensor

from hsic_lab.losses.base import TwoViewLoss


class NegativeCosineSimilarity(TwoViewLoss):
    """`-mean_b cos(p_b, z_b)`: Chen and He 2021 (SimSiam, arXiv 2011.10566), eq. 1; BYOL's loss is `2 + 2` times it.

    Nothing in it keeps the embeddings apart: with a constant embedding it is at its floor of -1. SimSiam prevents
    that outside of the loss, by a predictor and a stop-gradient that are the caller's:
    `(loss(p_a, z_b.detach()) + loss(p_b, z_a.detach())) / 2`. A row of zeros counts as uncorrelated.
    """

    def _terms(self, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
        return {"alignment": -(F.normalize(z_a, dim=1) * F.normalize(z_b, dim=1)).sum(dim=1).mean()}

    def chance(self, n: int, d: int) -> float:
        """0 for unrelated views that point in all directions alike; a common direction c of both gives -|c|^2."""
        return 0.0

    def floor(self, n: int, d: int) -> float:
        """-1, at identical views."""
        return -1.0
