"""What the settings of a training describe: loss, views, networks, optimizer and learning rate."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim

from hsic_lab.datasets import ImageData
from hsic_lab.encoders import ConvEncoder, MLPProjector, PooledEncoder, ResNetEncoder
from hsic_lab.losses import TwoViewLoss
from hsic_lab.training._config import LOSSES, TrainConfig
from hsic_lab.views import augmentation

Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]
Tensors = Sequence[Tensor]


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of the CPU and of a CUDA device for the block; afterwards they are as before."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def float32_default() -> Iterator[None]:
    """Make new tensors float32 within the block, whatever default type the program has chosen."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_loss(config: TrainConfig) -> TwoViewLoss:
    """The loss of the settings, without their `loss_scale`."""
    return LOSSES[config.loss](**config.loss_arguments)


def make_views(config: TrainConfig, data: ImageData, views: Views | None = None) -> Views | None:
    """The function that makes two views: `views`, else the augmentation of the settings; None for scenes."""
    if views is not None and not callable(views):
        raise TypeError(f"views must be a function, got {views!r}; TrainConfig(views=...) takes the names")
    chosen = config.views != "default" or config.view_size is not None
    given = f"views={config.views!r}, view_size={config.view_size!r}"
    if views is not None and chosen:
        raise ValueError(f"views must be given as a function or as a setting, got both: {given}")
    if data.scenes is not None and (views is not None or chosen):
        accepted = f"{data.name} takes views='default', no view_size and no function, for it holds pairs"
        raise ValueError(f"{accepted}, got {views or given}")
    if data.scenes is not None or views is not None:
        return views
    if data.train.images.dtype != torch.uint8:
        raise ValueError(f"{data.name!r} holds float32 rows: give views of your own")
    return augmentation(config.views, config.view_size or min(data.train.images.shape[-2:]))


def make_networks(config: TrainConfig, channels: int, encoder: Any = None, features: Any = None) -> tuple[Any, Any]:
    """Encoder and projector as the seed initializes them; for "custom" the encoder given, with `features` outputs."""
    if (config.encoder == "custom") != (encoder is not None):
        given = "no module" if encoder is None else "a module"
        raise ValueError(f"encoder must be 'custom' exactly if a module is given, got {config.encoder!r} and {given}")
    with seeded(config.seed), float32_default():
        if config.encoder in ("conv", "pooled"):
            encoder = (ConvEncoder if config.encoder == "conv" else PooledEncoder)(config.width, channels)
        elif encoder is None:
            encoder = ResNetEncoder(int(config.encoder.removeprefix("resnet")), config.stem, channels)
        return encoder, MLPProjector([encoder.out_features if features is None else features, *config.projector])


def make_predictor(config: TrainConfig) -> nn.Module | None:
    """The predictor of the settings, initialized by their seed; None if they have no predictor."""
    d = config.projector[-1]
    with seeded(config.seed + 1):
        return MLPProjector([d, *config.predictor, d]) if config.predictor else None


class OnlineNetwork(nn.Module):
    """The trained network: images to `(p, z)` with z the projections and p their prediction (z without predictor)."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder, projector, predictor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.encoder(images))
        return (z if self.predictor is None else self.predictor(z)), z


class TargetNetwork(nn.Module):
    """A copy of encoder and projector that follows the online network: Grill et al. (2020), arXiv:2006.07733."""

    def __init__(self, online: OnlineNetwork, momentum: float) -> None:
        super().__init__()
        self.encoder, self.projector = copy.deepcopy(online.encoder), copy.deepcopy(online.projector)
        self.requires_grad_(False)
        self.momentum = momentum
        self.train()  # in evaluation mode the statistics of batch normalization would not change

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    @torch.no_grad()
    def ema_update(self, online: OnlineNetwork, progress: float) -> None:
        """`target <- m target + (1 - m) online`; m rises from the momentum to 1 as `progress` goes from 0 to 1."""
        m = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for own, others in ((self.encoder, online.encoder), (self.projector, online.projector)):
            torch._foreach_lerp_(list(own.parameters()), list(others.parameters()), 1 - m)


def loss_terms(loss: TwoViewLoss, config: TrainConfig, predicted: Tensors, targets: Tensors) -> dict[str, Tensor]:
    """The named terms of the loss for `predicted = (p_a, p_b)` and `targets = (t_a, t_b)`, times `loss_scale`.

    With a predictor or another target than "same" each term is the mean over the pairs (p_a, t_b) and (p_b, t_a):
    Chen and He (2021), SimSiam, arXiv:2011.10566, equation 4.
    """
    if config.target == "same" and not config.predictor:
        terms = loss.terms(*predicted)
    else:
        t_a, t_b = (target.detach() for target in targets) if config.target == "stop_gradient" else targets
        one, other = loss.terms(predicted[0], t_b), loss.terms(predicted[1], t_a)
        terms = {name: 0.5 * (one[name] + other[name]) for name in one}
    return terms if config.loss_scale == 1 else {name: config.loss_scale * value for name, value in terms.items()}


def join_views(parts: Tensors) -> list[Tensor]:
    """The two views of a batch, from parts that each hold both views of some images, one after the other."""
    return [torch.cat(halves) for halves in zip(*(part.chunk(2) for part in parts), strict=True)]


class LARS(optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum: You et al. (2017), arXiv:1708.03888, as Barlow Twins uses it.

    `u = g + weight_decay w` for a gradient g, then `m <- momentum m + q u` and `w <- w - lr m`. In groups with `adapt`
    the factor q is `trust_coefficient |w| / |u|`, with `clip` that over lr and at most 1; it is 1 where a norm is 0.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3, adapt: bool = True, clip: bool = False,
    ) -> None:  # fmt: skip
        if not (lr > 0 and 0 <= momentum <= 1 and weight_decay >= 0 and trust_coefficient > 0):
            needs = "LARS needs lr > 0, momentum in [0, 1], weight_decay >= 0, trust_coefficient > 0"
            raise ValueError(f"{needs}, got {lr!r}, {momentum!r}, {weight_decay!r}, {trust_coefficient!r}")
        rates = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, rates | {"trust_coefficient": trust_coefficient, "adapt": adapt, "clip": clip})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            if not (weights := [w for w in group["params"] if w.grad is not None]):
                continue
            # One call for all parameters of each operation: a loop would launch a thousand small kernels.
            updates = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            if group["adapt"]:
                norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
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
        return loss


def parameter_groups(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The trained weights, and the trained vectors: biases and batch normalization."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def make_optimizer(config: TrainConfig, network: nn.Module) -> optim.Optimizer:
    """The optimizer of the settings, with the highest rate of a group under "peak". LARS does not decay vectors."""
    groups: list[dict[str, Any]] = [{"params": [p for p in network.parameters() if p.requires_grad]}]
    if config.optimizer == "lars" or config.bias_learning_rate is not None:
        weights, vectors = parameter_groups(network)
        bias_rate = config.learning_rate if config.bias_learning_rate is None else config.bias_learning_rate
        exempt = {"weight_decay": 0.0, "adapt": False} if config.optimizer == "lars" else {}
        groups = [{"params": weights}, {"params": vectors, "lr": bias_rate} | exempt]
    trust: dict[str, Any] = {"trust_coefficient": config.trust_coefficient, "clip": config.trust_clip}
    kinds: dict[str, Callable[..., optim.Optimizer]] = {
        "lars": partial(LARS, momentum=config.momentum, **trust), "adamw": partial(optim.AdamW, fused=True),
        "sgd": partial(optim.SGD, momentum=config.momentum, fused=True), "adam": partial(optim.Adam, fused=True),
    }  # fmt: skip
    groups = [group for group in groups if group["params"]]
    optimizer = kinds[config.optimizer](groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def rate_share(config: TrainConfig, step: float, warmup: float, steps: int) -> float:
    """The learning rate after `step` updates as a share of its peak: linear over `warmup` steps, then the schedule."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    return config.final_learning_rate + (1 - config.final_learning_rate) * cosine


def set_learning_rate(optimizer: optim.Optimizer, config: TrainConfig, step: int, steps_per_epoch: int) -> None:
    """Give every group its rate for the next update. The rate depends on the step alone: no state to resume."""
    share = rate_share(config, step, config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
