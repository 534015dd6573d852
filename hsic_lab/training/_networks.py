"""Optimizers with the field's parameter groups, LARS among them, and the learning rate as a function of the step."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hsic_lab.datasets import ImageData
from hsic_lab.encoders import ConvEncoder, MLPProjector, ResNetEncoder
from hsic_lab.training._config import TrainConfig
from hsic_lab.views import augmentation


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum: You et al. 2017 (arXiv 1708.03888), as Barlow Twins uses it.

    With the gradient g of a parameter w, `u = g + weight_decay w`, scaled in groups with `adapt` by
    `q = trust_coefficient ||w|| / ||u||` (1 where either norm is 0), then `m <- momentum m + q u` and `w <- w - lr m`.
    With `clip` the factor is `min(q / lr, 1)`: a layer moves as without adaptation, or slower (solo-learn's option).
    The scale comes before the momentum, as in the official code. Groups made by `parameter_groups` spare biases and
    batch normalization both decay and adaptation.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        adapt: bool = True,
        clip: bool = False,
    ) -> None:
        if not (lr > 0 and 0 <= momentum <= 1 and weight_decay >= 0 and trust_coefficient > 0):
            raise ValueError(
                "LARS needs lr > 0, momentum in [0, 1], weight_decay >= 0, trust_coefficient > 0, got "
                f"{lr!r}, {momentum!r}, {weight_decay!r}, {trust_coefficient!r}"
            )
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "trust_coefficient": trust_coefficient,
                "adapt": adapt,
                "clip": clip,
            },
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if weights:
                self._update(weights, group)
        return loss

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        # One fused call per operation over all parameters: a loop would launch a thousand small kernels.
        updates = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
        if group["adapt"]:
            norms = torch.stack(torch._foreach_norm(weights))
            update_norms = torch.stack(torch._foreach_norm(updates))
            scales = group["trust_coefficient"] * norms / update_norms
            if group["clip"]:
                scales = (scales / group["lr"]).clamp(max=1)
            scales = torch.where((norms > 0) & (update_norms > 0), scales, torch.ones_like(scales))
            torch._foreach_mul_(updates, list(scales.unbind()))
        for w in weights:
            if "momentum_buffer" not in self.state[w]:
                self.state[w]["momentum_buffer"] = torch.zeros_like(w)
        momenta = [self.state[w]["momentum_buffer"] for w in weights]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(weights, momenta, alpha=-group["lr"])


def parameter_groups(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The trained parameters in two groups: weights, and all that is a vector (biases, batch normalization)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the settings describe; every group keeps its peak rate under "peak".

    LARS spares vectors decay and adaptation, as its authors' successors do; the others decay every parameter alike,
    as the recipes with Adam and SGD do. `bias_learning_rate` puts vectors into a group of their own for any optimizer.
    """
    bias_rate = config.learning_rate if config.bias_learning_rate is None else config.bias_learning_rate
    spare = config.optimizer == "lars"
    groups: list[dict[str, Any]] = [{"params": [p for p in network.parameters() if p.requires_grad]}]
    if spare or config.bias_learning_rate is not None:
        weights, vectors = parameter_groups(network)
        sparing = {"weight_decay": 0.0, "adapt": False} if spare else {}
        groups = [{"params": weights}, {"params": vectors, "lr": bias_rate} | sparing]
    groups = [group for group in groups if group["params"]]
    rates = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "lars":
        trust = {"trust_coefficient": config.trust_coefficient, "clip": config.trust_clip}
        optimizer = LARS(groups, momentum=config.momentum, **trust, **rates)
    elif config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, fused=True, **rates)
    else:
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
        optimizer = kind(groups, fused=True, **rates)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def warmup_cosine(step: int, warmup: float, steps: int, final: float = 0.0) -> float:
    """Share of the peak learning rate at a step: linear up to 1 over `warmup` steps, then half a cosine to `final`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return final + (1 - final) * (0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def warmup_constant(step: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: linear up to 1 over `warmup` steps, 1 from there."""
    return (step + 1) / (warmup + 1) if step < warmup else 1.0


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int, steps_per_epoch: int) -> None:
    """Give every group its rate for the update after `step` updates: a function of the step, so nothing to resume."""
    warmup, steps = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if config.schedule == "constant":
        share = warmup_constant(step, warmup)
    else:
        share = warmup_cosine(step, warmup, steps, config.final_learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share


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
    progress)) / 2`, so that it stands still at the end. Batch normalization keeps statistics of its own passes.
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


def build_networks(
    config: TrainConfig, channels: int, encoder: nn.Module | None = None, features: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the projector that the settings describe, freshly initialized.

    When the settings say "custom", `encoder` is the user's own module, kept as it is, from images `(n, c, h, w)` to
    `(n, features)`. Raises ValueError if it is missing, or given although the settings name another.
    """
    kind = config.encoder
    if (kind == "custom") != (encoder is not None):
        raise ValueError(f"encoder={kind!r} in the settings, and {'no' if encoder is None else 'a'} module was given")
    if encoder is None and kind == "conv":
        encoder = ConvEncoder(config.width, channels)
    elif encoder is None:
        encoder = ResNetEncoder(int(kind.removeprefix("resnet")), config.stem, channels)
    features = encoder.out_features if features is None else features
    return encoder, MLPProjector([features, *config.projector])


Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


def make_views(data: ImageData, config: TrainConfig, views: Views | None = None) -> Views | None:
    """What makes two views of a image: `views`, else those that the settings name; None for scenes, which are pairs.

    Raises ValueError for scenes with views, and for views given beside others in the settings.
    """
    if data.scenes and (views is not None or config.views != "default"):
        raise ValueError(
            f"{data.name} takes views='default' and none of your own, got {views or config.views!r}: its pairs are two "
            "scenes, not views of a image"
        )
    if views is not None and config.views != "default":
        raise ValueError(f"views of your own were given beside views={config.views!r} in the settings: leave one out")
    if data.scenes or views is not None:
        return views
    if data.train.images.dtype != torch.uint8:
        raise ValueError(f"{data.name!r} holds float32 rows: give views of your own, (rows, generator) -> two tensors")
    return augmentation(config.views, min(data.train.images.shape[-2:]))
