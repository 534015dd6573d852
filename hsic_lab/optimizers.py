"""Optimisers with the field's parameter groups, LARS among them, and the learning rate as a function of the step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hsic_lab.config import TrainConfig


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum: You et al. 2017 (arXiv 1708.03888), as Barlow Twins uses it.

    With the gradient g of a parameter w, `u = g + weight_decay w`, scaled in groups with `adapt` by
    `q = trust_coefficient ||w|| / ||u||` (1 where either norm is 0), then `m <- momentum m + q u` and `w <- w - lr m`.
    With `clip` the factor is `min(q / lr, 1)`: a layer moves as without adaptation, or slower (solo-learn's option).
    The scale comes before the momentum, as in the official code. Groups made by `parameter_groups` spare biases and
    batch normalisation both decay and adaptation.
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
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient,
            "adapt": adapt, "clip": clip,
        })

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
    """The trained parameters in two groups: weights, and all that is a vector (biases, batch normalisation)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


def make_optimizer(config: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser that the settings describe; every group keeps its peak rate under "peak".

    LARS spares vectors decay and adaptation, as its authors' successors do; the others decay every parameter alike,
    as the recipes with Adam and SGD do. `bias_learning_rate` puts vectors into a group of their own for any optimiser.
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
