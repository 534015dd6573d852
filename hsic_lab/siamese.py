"""The networks around a loss of two views: encoder, projector, and what SimSiam and BYOL add to prevent collapse."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hsic_lab.config import TrainConfig
from hsic_lab.encoders import MLPProjector


class OnlineNetwork(nn.Module):
    """What is trained: `images (n, c, h, w) -> (p, z)`, both `(n, d)`, with `z = projector(encoder(images))`.

    p is `predictor(z)`, or z itself where there is no predictor.
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.encoder(images))
        return (z if self.predictor is None else self.predictor(z)), z


class TargetNetwork(nn.Module):
    """A copy of encoder and projector whose weights follow the online network's: Grill et al. 2020 (arXiv 2006.07733).

    `follow` moves every parameter, `target <- m target + (1 - m) online`, with `m = 1 - (1 - momentum) (1 + cos(pi
    progress)) / 2`, so that it stands still at the end. Batch normalisation keeps statistics of its own passes.
    """

    def __init__(self, online: OnlineNetwork, momentum: float) -> None:
        super().__init__()
        self.encoder, self.projector = copy.deepcopy(online.encoder), copy.deepcopy(online.projector)
        self.requires_grad_(False)
        self.momentum = momentum
        self.train()  # whatever mode the encoder was given in: its statistics would stand still

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    @torch.no_grad()
    def follow(self, online: OnlineNetwork, progress: float) -> None:
        """One step towards `online`, at a share `progress` of the training."""
        m = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for own, others in ((self.encoder, online.encoder), (self.projector, online.projector)):
            torch._foreach_lerp_(list(own.parameters()), list(others.parameters()), 1 - m)


def make_predictor(config: TrainConfig) -> nn.Module | None:
    """The MLP from projections to projections that the settings describe, None for none."""
    d = config.projector[-1]
    return MLPProjector([d, *config.predictor, d]) if config.predictor else None


def compare(
    loss: nn.Module, config: TrainConfig, predicted: Sequence[Tensor], targets: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The loss's named terms for two views, `predicted = (p_a, p_b)` and `targets = (t_a, t_b)`, all `(n, d)`.

    `loss(p_a, p_b)` where the views are compared with each other as they are; else the mean of `loss(p_a, t_b)` and
    `loss(p_b, t_a)`: Chen and He 2021 (SimSiam, arXiv 2011.10566), eq. 4. All terms are multiplied by `loss_scale`.
    """
    if config.target == "same" and not config.predictor:
        terms = loss.terms(*predicted)
    else:
        if config.target == "stop_gradient":
            targets = [target.detach() for target in targets]
        one, other = loss.terms(predicted[0], targets[1]), loss.terms(predicted[1], targets[0])
        terms = {name: 0.5 * (one[name] + other[name]) for name in one}
    return terms if config.loss_scale == 1 else {name: config.loss_scale * value for name, value in terms.items()}


def two_views(parts: Sequence[Tensor]) -> list[Tensor]:
    """From parts of a batch, each both views of its images one after the other, the two views of the whole batch."""
    if len(parts) == 1:
        return list(parts[0].chunk(2))
    return [torch.cat(halves) for halves in zip(*(part.chunk(2) for part in parts), strict=True)]
