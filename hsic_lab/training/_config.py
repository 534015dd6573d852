"""What a run or a table of measurements says about the machine that made it, and the precision that suits it."""

import json
import math
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hsic_lab._checks import check_choice, is_whole
from hsic_lab.losses import (
    BarlowTwinsLoss,
    HSICSSLLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    ReferenceCodeLoss,
    SpectralContrastiveLoss,
    SSLHSICLoss,
    VICRegLoss,
)
from hsic_lab.views import AUGMENTATIONS


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name where the system tells it, else its kind."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def resolved_precision(precision: str, device: torch.device) -> str:
    """The precision of the networks: "auto" is bfloat16 where the hardware multiplies it, else float32."""
    if precision != "auto":
        return precision
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_multiplies_bfloat16()
    return "bfloat16" if native else "float32"


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this CPU has bfloat16 dot products; where it has not, autocast is slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


# lambda = 1/d, the rule of Tsai et al. 2021, is what makes runs of different widths comparable.
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "barlow_twins": partial(BarlowTwinsLoss, lambda_param=None),
    "hsic_ssl": HSICSSLLoss,
    "vicreg": VICRegLoss,
    "ssl_hsic": SSLHSICLoss,
    "spectral": SpectralContrastiveLoss,
    "nt_xent": NTXentLoss,
    "negative_cosine": NegativeCosineSimilarity,
    "reference_code": ReferenceCodeLoss,
}
ENCODERS = ("conv", "resnet18", "resnet34", "resnet50")
OPTIMIZERS = ("adamw", "adam", "sgd", "lars")
_CHOICES = {
    "loss": tuple(LOSSES),
    "views": tuple(AUGMENTATIONS),
    "encoder": (*ENCODERS, "custom"),
    "stem": ("cifar", "imagenet"),
    "target": ("same", "stop_gradient", "momentum"),
    "optimizer": OPTIMIZERS,
    "schedule": ("cosine", "constant"),
    "monitor": ("none", "knn", "linear"),
    "precision": ("auto", "bfloat16", "float32"),
}
_LEAST = {
    "batch_size": 2,
    "epochs": 1,
    "width": 1,
    "snapshots": 2,
    "log_every": 1,
    "seed": 0,
    "weight_decay": 0,
    "checkpoint_every": 1,
    "monitor_every": 1,
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes. Raises ValueError, quoting the value, for settings out of range.

    dataset:       a name for `datasets.load`
    loss:          a name in `LOSSES`;  lambda_param: weight of its redundancy term, None for the entry's default (1/d
                   for Barlow Twins and HSIC_SSL);  loss_options: further arguments;  loss_scale: a factor on all terms
    views:         how two views of a image are made, a name in `presets.AUGMENTATIONS`; squares of the
                   image's shorter side; not for digit scenes
    shared:        what the two views of a digit scene have in common (other sets: crops of one image)
    encoder:       "conv" (`ConvEncoder`, `width` channels first), "resnet18", "resnet34", "resnet50" (with `stem`)
    projector:     widths after the encoder, the last is d
    predictor:     hidden widths of a predictor after the projector, () for none
    target:        what the (predicted) view is compared with: the other view's projection, "same", its projection
                   without gradient, "stop_gradient", or that of a slowly moving copy of the networks, "momentum",
                   whose `target_momentum` rises to 1 along a cosine. See `hsic_lab.siamese`
    batch_size:    pairs that the loss sees at once, in all processes together
    micro_batch:   pairs (of each process) that pass through the network at once, None for all; see `gradient_cache`
    epochs:        passes over the training set and what is unlabelled beside it, for scenes over as many fresh pairs;
                   a last ragged batch is dropped
    optimizer:     "adamw", "adam" (L2 penalty in the gradient), "sgd", "lars" (with `momentum`); for LARS its
                   `trust_coefficient`, and with `trust_clip` no layer moves at more than the learning rate
    learning_rate: peak of a linear warm-up, then by `schedule` a cosine to `final_learning_rate` (a share) or constant
    bias_learning_rate: the same for biases and batch normalization, None for `learning_rate`
    snapshots:     how many matrices C are kept (at most one a step), the first before training and the last after it
    checkpoint_every, monitor_every: in epochs;  monitor: "knn" or "linear" on training labels; see `monitors`
    device:        "auto" is CUDA if there is one;  precision: "auto" is bfloat16 where the hardware multiplies it
    compile:       run the networks through `torch.compile`
    """

    dataset: str = "digit_scenes"
    loss: str = "barlow_twins"
    lambda_param: float | None = None
    loss_options: dict[str, Any] = field(default_factory=dict)
    loss_scale: float = 1.0
    views: str = "default"
    shared: tuple[str, ...] = ("digit",)
    encoder: str = "conv"
    stem: str = "cifar"
    width: int = 16
    projector: tuple[int, ...] = (512, 128)
    predictor: tuple[int, ...] = ()
    target: str = "same"
    target_momentum: float = 0.99
    batch_size: int = 256
    micro_batch: int | None = None
    epochs: int = 22
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    bias_learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    trust_coefficient: float = 1e-3
    trust_clip: bool = False
    schedule: str = "cosine"
    final_learning_rate: float = 0.0
    warmup_epochs: float | None = None
    snapshots: int = 12
    log_every: int = 10
    checkpoint_every: int = 1
    monitor: str = "none"
    monitor_every: int = 5
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            self._check_type(setting.name, setting.type, getattr(self, setting.name))
        for name, accepted in _CHOICES.items():
            check_choice(getattr(self, name), accepted, name)
        for name, low in _LEAST.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "loss_scale", "trust_coefficient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")
        for name in ("momentum", "target_momentum", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if self.warmup_epochs is None:
            object.__setattr__(self, "warmup_epochs", min(1.5, self.epochs / 2))
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"warmup_epochs must be in 0..{self.epochs} (epochs), got {self.warmup_epochs!r}")
        if not self.projector or min(self.projector) < 1:
            raise ValueError(f"projector must hold at least one positive width, got {self.projector!r}")
        if min(self.predictor, default=1) < 1:
            raise ValueError(f"predictor must hold positive widths, got {self.predictor!r}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1 or None, got {self.micro_batch!r}")
        if self.bias_learning_rate is not None and not self.bias_learning_rate > 0:
            raise ValueError(f"bias_learning_rate must be positive or None, got {self.bias_learning_rate!r}")
        self.make_loss()

    def _check_type(self, name: str, kind: Any, value: Any) -> None:
        if kind in (int, float, int | None, float | None):
            optional = kind in (int | None, float | None)
            if optional and value is None:
                return
            if kind in (float, float | None) and isinstance(value, Real) and not isinstance(value, bool):
                value = float(value)  # 1 and 1.0 are one setting, and one run
                if not math.isfinite(value):
                    raise ValueError(f"{name} must be finite, got {value!r}")
            elif kind in (int, int | None) and is_whole(value):
                value = int(value)
            else:
                raise ValueError(
                    f"{name} must be a{' whole' * (kind in (int, int | None))} number"
                    f"{' or None' * optional}, got {value!r}"
                )
            object.__setattr__(self, name, value)
        elif kind is str and isinstance(value, os.PathLike):  # of a folder of images
            object.__setattr__(self, name, os.fspath(value))
        elif kind in (bool, str):
            if not isinstance(value, kind):
                raise ValueError(f"{name} must be {'true or false' if kind is bool else 'a string'}, got {value!r}")
        elif name == "loss_options":
            try:
                json.dumps(dict(value))
            except (TypeError, ValueError) as error:
                raise ValueError(f"loss_options must be a dictionary that JSON can hold, got {value!r}") from error
        elif kind == tuple[str, ...]:
            if not isinstance(value, tuple | list):
                raise ValueError(f"{name} must be a list of names, got {value!r}")
        elif kind == tuple[int, ...]:
            if not isinstance(value, tuple | list) or not all(isinstance(width, Integral) for width in value):
                raise ValueError(f"{name} must be a list of widths, got {value!r}")
            object.__setattr__(self, name, type(value)(map(int, value)))

    @classmethod
    def from_json(cls, settings: dict[str, Any]) -> "TrainConfig":
        """The config of a `run.json`: lists become tuples, settings younger than the file take their defaults."""
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        if values.get("views") == "report":  # the name of that augmentation before version 0.2
            values["views"] = "tsai2021"
        if "target" in values.get("loss_options", {}):  # the name of that loss option before version 0.2
            values["loss_options"] = {
                {"target": "off_diagonal_target"}.get(k, k): v for k, v in values["loss_options"].items()
            }
        if values.get("loss") == "vicreg" and values.get("lambda_param") is not None:  # as it was written once
            weight = {"lambda_param": values.pop("lambda_param")}
            values["loss_options"] = weight | values.get("loss_options", {})
        return cls(**values)

    def make_loss(self) -> nn.Module:
        """The loss that the settings describe. Raises ValueError for options that it does not have."""
        if self.lambda_param is not None and self.loss == "vicreg":
            raise ValueError(
                f"VICReg's lambda_param weighs its invariance, not a redundancy, got lambda_param={self.lambda_param}: "
                "set loss_options, which take lambda_param, mu_param and nu_param"
            )
        options = self.loss_options | ({} if self.lambda_param is None else {"lambda_param": self.lambda_param})
        try:
            return LOSSES[self.loss](**options)
        except TypeError as error:
            raise ValueError(f"loss {self.loss!r} does not take the options {options}: {error}") from error


def recipe(name: str, **changes: Any) -> TrainConfig:
    """The settings of a published recipe, with `changes`. Raises ValueError for another name.

    "tsai2021"    Tsai et al. 2021 (arXiv 2104.13712), github.com/yaohungt/Barlow-Twins-HSIC, CIFAR-10: ResNet-50,
                d = 128, lambda = 1/d, Adam at 1e-3 with an L2 penalty of 1e-6, no schedule, batch 128, 1000 epochs.
                Their code also normalizes projections to unit length; the equations do not, and neither does this
    "official"  Zbontar et al. 2021 (arXiv 2103.03230), github.com/facebookresearch/barlowtwins, ImageNet: ResNet-50,
                8192-8192-8192, lambda 0.0051, LARS with rates 0.2 and 0.0048 per 256 images (scaled to `batch_size`),
                weight decay 1e-6, 10 epochs of warm-up, a cosine to a thousandth, batch 2048, 1000 epochs.
                Their code also starts the last scale of every residual block at 0; this does not
    "solo"      da Costa et al. 2022, github.com/vturrisi/solo-learn, CIFAR: ResNet-18, 2048-2048-2048, lambda 0.0051,
                loss scale 0.1, LARS at 0.3 (trust coefficient 0.02, trust ratio clipped), weight decay 1e-4, batch
                256, 1000 epochs. Their LARS takes |g| + wd |w| where this one takes |g + wd w|, and their
                projector has biases

    Each has the `views` of its authors, so that none is for digit scenes without `views="default"` among the changes.
    """
    check_choice(name, RECIPES, "recipe")
    batch = TrainConfig(batch_size=changes.get("batch_size", 2048)).batch_size  # checked before it is multiplied
    settings = {
        "tsai2021": {
            "dataset": "cifar10",
            "views": "tsai2021",
            "encoder": "resnet50",
            "projector": (512, 128),
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "weight_decay": 1e-6,
            "schedule": "constant",
            "warmup_epochs": 0.0,
            "batch_size": 128,
            "epochs": 1000,
        },
        "official": {
            "views": "barlow_twins",
            "encoder": "resnet50",
            "stem": "imagenet",
            "projector": (8192, 8192, 8192),
            "lambda_param": 0.0051,
            "optimizer": "lars",
            "learning_rate": 0.2 * batch / 256,
            "bias_learning_rate": 0.0048 * batch / 256,
            "weight_decay": 1e-6,
            "warmup_epochs": 10.0,
            "final_learning_rate": 1e-3,
            "batch_size": 2048,
            "epochs": 1000,
        },
        "solo": {
            "dataset": "cifar10",
            "views": "solo",
            "encoder": "resnet18",
            "projector": (2048, 2048, 2048),
            "lambda_param": 0.0051,
            "loss_scale": 0.1,
            "optimizer": "lars",
            "trust_coefficient": 0.02,
            "trust_clip": True,
            "learning_rate": 0.3,
            "weight_decay": 1e-4,
            "warmup_epochs": 10.0,
            "batch_size": 256,
            "epochs": 1000,
        },
    }[name]
    return TrainConfig(**settings | changes)


RECIPES = ("tsai2021", "official", "solo")


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU; under `torchrun` the process's own.

    Raises ValueError for a name that is none, or a CUDA device where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (local := os.environ.get("LOCAL_RANK")) is not None:
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, and torch finds no CUDA device")
    return device
