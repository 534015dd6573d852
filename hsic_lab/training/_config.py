"""Settings of a training, published recipes, and what is known about the machine."""

import inspect
import json
import math
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hsic_lab import losses
from hsic_lab._checks import check_choice, check_integer, check_number, check_type, near
from hsic_lab.views import AUGMENTATIONS

# lambda = 1 / d, the rule of Tsai et al. (2021), makes runs of different widths comparable.
LOSSES: dict[str, Callable[..., losses.TwoViewLoss]] = {
    "barlow_twins": partial(losses.BarlowTwinsLoss, lambda_param=None), "hsic_ssl": losses.HSICSSLLoss,
    "vicreg": losses.VICRegLoss, "ssl_hsic": losses.SSLHSICLoss, "spectral": losses.SpectralContrastiveLoss,
    "nt_xent": losses.NTXentLoss, "negative_cosine": losses.NegativeCosineSimilarity,
    "reference_code": losses.ReferenceCodeLoss, "sigreg": losses.SIGRegLoss,
}  # fmt: skip

# What a setting accepts, in words, and the function that gives an accepted value its one form and refuses any other.
Rule = tuple[str, Callable[[Any], Any]]


def _whole(low: int, high: int | None = None) -> Rule:
    bound = f"of at least {low}" if high is None else f"in [{low}, {high}]"
    return f"a whole number {bound}", lambda v: check_integer("", v, low, 2**63 - 1 if high is None else high)


def _number(low: float = -math.inf, high: float = math.inf) -> Rule:
    bound = f" in [{low}, {high}]" if high < math.inf else f" of at least {low}" if low > -math.inf else ""
    return f"a finite number{bound}", lambda v: check_number("", v, low, high)


def _one_of(*names: str) -> Rule:
    return f"one of {', '.join(map(repr, names))}", lambda v: check_choice(v, names, "")


def _or_none(rule: Rule) -> Rule:
    return f"{rule[0]}, or None", lambda v: None if v is None else rule[1](v)


def _list_of(words: str, convert: Callable[[Any], Any]) -> Rule:
    return f"a list of {words}", lambda v: tuple(map(convert, check_type("", v, tuple, list)))


_POSITIVE: Rule = "a finite number above 0", lambda v: check_number("", v, 0, above=True)
_BOOLEAN: Rule = "true or false", lambda v: check_type("", v, bool)
_TEXT: Rule = "a string", lambda v: os.fspath(check_type("", v or None, str, os.PathLike))  # no empty one
_NAMES, _WIDTHS = _list_of("names", lambda v: check_type("", v, str)), _list_of("positive widths", _whole(1)[1])
_SIDES: Rule = (
    "a whole number of at least 2, a list of them, or None",
    lambda v: tuple(map(_whole(2)[1], v)) if isinstance(v, tuple | list) else _or_none(_whole(2))[1](v),
)
_TABLE: Rule = "a dictionary that JSON can hold", lambda v: json.loads(json.dumps({**v}, allow_nan=False))


def _setting(default: Any, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class TrainConfig:
    """Settings that decide what a training computes.

    Values are checked, else ValueError, and brought to one form: settings that mean the same compare equal.

    Parameters
    ----------
    dataset : str, default "digit_scenes"
        Name of a data set for `datasets.load`, or the path of a folder of images.
    loss : str, default "barlow_twins"
        Name of the loss, a key of `LOSSES`.
    lambda_param : float or None, default None
        Weight of the redundancy term. None means 1/d for Barlow Twins and HSIC_SSL, and the default of any other loss.
        Used by itself, `BarlowTwinsLoss` has 0.005.
    loss_options, loss_scale : dict, float, default {}, 1
        Further arguments of the loss, and a factor that multiplies all its terms.
    views : str, default "default"
        Augmentation that makes the views of an image: that of Tsai et al. (2021), of Zbontar et al. (2021,
        "barlow_twins"), of solo-learn, of Chen et al. (2020, "simclr"), or "default". Not for digit scenes.
    view_size : int, tuple of int or None, default None
        Side of the views in pixels, None for that of the images. Small views make a training fast. A list has the side
        of each view: ``views_per_image=4, view_size=[32, 32, 16, 16]``. Views of one side are one batch for batch
        normalization.
    views_per_image : int, default 2
        Views of each image, at least 2. The loss is the mean over their pairs, or that of all views for the losses that
        are defined so: SIGReg and SSL-HSIC. C, in the history and the snapshots, is of the first two views. Digit
        scenes are pairs.
    shared : tuple of str, default ("digit",)
        Factors that the two views of a digit scene have in common. Other data sets ignore it.
    encoder : str, default "conv"
        Encoder; "custom" is a module given to `train`.
    stem : str, default "cifar"
        First layers of a ResNet: "cifar" for images of about 32 pixels, else "imagenet".
    width : int, default 16
        Channels of the first convolution of the "conv" and "pooled" encoders.
    projector : tuple of int, default (512, 128)
        Widths of the layers after the encoder. The last one is d, the dimension of the projections.
    predictor : tuple of int, default ()
        Hidden widths of a predictor after the projector. An empty list means no predictor.
    target, target_momentum : str, float, default "same", 0.99
        What a view is compared with: the projection of the other view ("same"), that projection without its gradient
        ("stop_gradient"), or that of an average of past networks ("momentum"; its momentum rises from here to 1).
    batch_size : int, default 256
        Pairs that the loss sees at once, in all processes together.
    micro_batch : int or None, default None
        Pairs that pass through the networks at once, in all processes together, None for all. Only batch normalization
        differs from that of a whole batch.
    epochs : int, default 22
        Passes over the training images. The last incomplete batch of an epoch is left out.
    optimizer : str, default "adamw"
        Optimizer. "adam" adds weight decay to the gradient; "sgd" and "lars" use momentum.
    learning_rate, bias_learning_rate : float, default 0.004, None
        Learning rate at the end of the warm-up; biases and batch normalization may have their own.
    weight_decay : float, default 0.0001
        Weight decay.
    momentum, trust_coefficient, trust_clip : float, float, bool, default 0.9, 0.001, False
        Of "sgd" and "lars"; of "lars"; and for "lars", whether no layer moves at more than the learning rate.
    schedule, final_learning_rate : str, float, default "cosine", 0
        Learning rate after the warm-up: constant, or a cosine down to this share of `learning_rate`.
    warmup_epochs : float or None, default None
        Epochs of a linear warm-up. None means 1.5, or half of a shorter training.
    snapshots, log_every, checkpoint_every, monitor_every : int, default 12, 10, 1, 5
        Number of matrices C kept; steps between rows of the history; epochs between checkpoints; between evaluations.
    monitor : str, default "none"
        Evaluation on training labels during training: k nearest neighbors or a linear probe.
    seed : int, default 0
        Seed of the initialization, of the batches and of the views.
    device : str, default "auto"
        "cpu", "cuda", "cuda:N" or "mps". "auto" is CUDA if there is one, else the CPU.
    precision : str, default "auto"
        Precision of the networks. "auto" is bfloat16 if the hardware multiplies it, else float32, which is then faster.
    compile : bool, default False
        Run the networks through `torch.compile`.

    Examples
    --------
    >>> from hsic_lab.training import TrainConfig
    >>> TrainConfig(projector=[256, 64]) == TrainConfig(projector=(256, 64))
    True
    """

    dataset: str = _setting("digit_scenes", _TEXT)
    loss: str = _setting("barlow_twins", _one_of(*LOSSES))
    lambda_param: float | None = _setting(None, _or_none(_number()))
    loss_options: dict[str, Any] = field(default_factory=dict, metadata={"rule": _TABLE})
    loss_scale: float = _setting(1.0, _POSITIVE)
    views: str = _setting("default", _one_of(*AUGMENTATIONS))
    view_size: int | tuple[int, ...] | None = _setting(None, _SIDES)
    views_per_image: int = _setting(2, _whole(2))
    shared: tuple[str, ...] = _setting(("digit",), _NAMES)
    encoder: str = _setting("conv", _one_of("conv", "pooled", "resnet18", "resnet34", "resnet50", "custom"))
    stem: str = _setting("cifar", _one_of("cifar", "imagenet"))
    width: int = _setting(16, _whole(1))
    projector: tuple[int, ...] = _setting((512, 128), _WIDTHS)
    predictor: tuple[int, ...] = _setting((), _WIDTHS)
    target: str = _setting("same", _one_of("same", "stop_gradient", "momentum"))
    target_momentum: float = _setting(0.99, _number(0, 1))
    batch_size: int = _setting(256, _whole(2))
    micro_batch: int | None = _setting(None, _or_none(_whole(1)))
    epochs: int = _setting(22, _whole(1))
    optimizer: str = _setting("adamw", _one_of("adamw", "adam", "sgd", "lars"))
    learning_rate: float = _setting(4e-3, _POSITIVE)
    bias_learning_rate: float | None = _setting(None, _or_none(_POSITIVE))
    momentum: float = _setting(0.9, _number(0, 1))
    weight_decay: float = _setting(1e-4, _number(0))
    trust_coefficient: float = _setting(1e-3, _POSITIVE)
    trust_clip: bool = _setting(False, _BOOLEAN)
    schedule: str = _setting("cosine", _one_of("cosine", "constant"))
    final_learning_rate: float = _setting(0.0, _number(0, 1))
    warmup_epochs: float = _setting(None, _or_none(_number(0)))
    snapshots: int = _setting(12, _whole(2))
    log_every: int = _setting(10, _whole(1))
    checkpoint_every: int = _setting(1, _whole(1))
    monitor: str = _setting("none", _one_of("none", "knn", "linear"))
    monitor_every: int = _setting(5, _whole(1))
    seed: int = _setting(0, _whole(0, (1 << 62) - 1))
    device: str = _setting("auto", _TEXT)
    precision: str = _setting("auto", _one_of("auto", "bfloat16", "float32"))
    compile: bool = _setting(False, _BOOLEAN)

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, (accepted, convert) = getattr(self, setting.name), setting.metadata["rule"]
            try:
                vars(self)[setting.name] = convert(value)
            except (TypeError, ValueError) as error:
                hint = near(value, re.findall(r"'(\w+)'", accepted))
                raise ValueError(f"{setting.name} must be {accepted}, got {value!r}{hint}") from error
        if not self.projector:
            raise ValueError("projector must hold at least one width, got ()")
        if isinstance(self.view_size, tuple) and len(self.view_size) != self.views_per_image:
            found = f"got view_size={self.view_size!r}, views_per_image={self.views_per_image}"
            raise ValueError(f"view_size must be one number, or one for each view of an image, {found}")
        if self.warmup_epochs is None:
            vars(self)["warmup_epochs"] = min(1.5, self.epochs / 2)
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must be in 0..{self.epochs} (epochs), got {self.warmup_epochs!r}")
        if self.loss == "vicreg" and self.lambda_param is not None:
            meant = "VICReg's lambda_param weighs its invariance, not a redundancy: set it in loss_options"
            raise ValueError(f"{meant}, got lambda_param={self.lambda_param}")
        try:
            LOSSES[self.loss](**self.loss_arguments)
        except TypeError as error:
            taken = inspect.signature(LOSSES[self.loss]).parameters
            reason = f": it takes only {', '.join(taken)}" if self.loss_arguments.keys() - taken else f": {error}"
            raise ValueError(f"loss {self.loss!r} does not take {self.loss_arguments}{reason}") from error

    @property
    def loss_arguments(self) -> dict[str, Any]:
        """All arguments of the loss: `loss_options`, and `lambda_param` if it is set."""
        return self.loss_options | ({} if self.lambda_param is None else {"lambda_param": self.lambda_param})

    @property
    def parts(self) -> int:
        """The number of parts of a batch that pass through the networks one after the other."""
        return -(-self.batch_size // (self.micro_batch or self.batch_size))

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """The config of a `run.json`. Fields that an older file lacks take their defaults, older names are replaced."""
        values = dict(settings)
        if values.get("views") == "report":  # the name of "tsai2021" before version 0.2
            values["views"] = "tsai2021"
        if values.get("loss") == "vicreg" and values.get("lambda_param") is not None:  # an early form of its weights
            weight = {"lambda_param": values.pop("lambda_param")}
            values["loss_options"] = weight | values.get("loss_options", {})
        options = values.get("loss_options")
        if isinstance(options, Mapping) and "target" in options:  # its name before version 0.2
            values["loss_options"] = {{"target": "off_diagonal_target"}.get(k, k): v for k, v in options.items()}
        return cls(**values)


_RECIPES: dict[str, dict[str, Any]] = {
    "tsai2021": {
        "dataset": "cifar10", "views": "tsai2021", "encoder": "resnet50", "projector": (512, 128), "optimizer": "adam",
        "learning_rate": 1e-3, "weight_decay": 1e-6, "schedule": "constant", "warmup_epochs": 0.0, "batch_size": 128,
        "epochs": 1000,
    },
    "official": {
        "views": "barlow_twins", "encoder": "resnet50", "stem": "imagenet", "projector": (8192, 8192, 8192),
        "lambda_param": 0.0051, "optimizer": "lars", "weight_decay": 1e-6, "warmup_epochs": 10.0,
        "final_learning_rate": 1e-3, "batch_size": 2048, "epochs": 1000,
    },
    "solo": {
        "dataset": "cifar10", "views": "solo", "encoder": "resnet18", "projector": (2048, 2048, 2048),
        "lambda_param": 0.0051, "loss_scale": 0.1, "optimizer": "lars", "trust_coefficient": 0.02, "trust_clip": True,
        "learning_rate": 0.3, "weight_decay": 1e-4, "warmup_epochs": 10.0, "batch_size": 256, "epochs": 1000,
    },
    "cpu_speedrun": {
        "dataset": "cifar10", "encoder": "pooled", "width": 64, "view_size": 16, "lambda_param": 0.04,
        "learning_rate": 0.01, "projector": (512, 128), "epochs": 48, "snapshots": 2,
    },
}  # fmt: skip


def recipe(name: str, **changes: Any) -> TrainConfig:
    """Settings of a published training, or of a short one on a CPU, with changes.

    Published recipes have the augmentation of their authors; for digit scenes, which are pairs already, add
    ``views="default"``.

    Parameters
    ----------
    name : {"tsai2021", "official", "solo", "cpu_speedrun"}
        "tsai2021": Tsai et al. (2021), arXiv:2104.13712, for CIFAR-10. Their code also scales projections to unit
        length; their equations and this recipe do not. "official": Zbontar et al. (2021), arXiv:2103.03230, for
        ImageNet; give the `dataset`. Learning rates are 0.2 and 0.0048 per 256 images. Their code also starts the last
        scale of a residual block at 0. "solo": da Costa et al. (2022), github.com/vturrisi/solo-learn, for CIFAR. Their
        LARS divides by ``|g| + wd |w|``, this one by ``|g + wd w|``; their projector has biases. "cpu_speedrun":
        CIFAR-10 in minutes on a CPU; its settings were chosen on training images, for Barlow Twins.
    **changes
        Fields of `TrainConfig` that replace those of the recipe.

    Examples
    --------
    >>> from hsic_lab.training import recipe
    >>> recipe("official", batch_size=512).learning_rate
    0.4
    """
    settings = _RECIPES[check_choice(name, tuple(_RECIPES), "recipe")]
    if name == "official":
        batch = TrainConfig(batch_size=changes.get("batch_size", settings["batch_size"])).batch_size
        settings = settings | {"learning_rate": 0.2 * batch / 256, "bias_learning_rate": 0.0048 * batch / 256}
    return TrainConfig(**settings | changes)


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA if there is one, under `torchrun` "cuda" is the one of this process."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    if kind == "cuda" and "LOCAL_RANK" in os.environ:
        kind = f"cuda:{os.environ['LOCAL_RANK']}"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", kind):
        raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:N, got {name!r}")
    family, _, index = kind.partition(":")
    count = int(torch.backends.mps.is_available()) if kind == "mps" else torch.cuda.device_count()
    if kind != "cpu" and int(index or 0) >= count:
        raise ValueError(f"device is {name!r}, but torch finds {count or 'no'} {family.upper()} device(s)")
    if kind == "mps" and (count := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(f"device 'mps' is for one process, got {count} processes")
    return torch.device(kind)


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor if the system tells it, else its architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name.*?: *(.*?) *$", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return names[0] if names else platform.processor() or platform.machine()


def resolved_precision(precision: str, device: torch.device) -> str:
    """The precision itself, or for "auto" bfloat16 where the hardware multiplies it and float32 elsewhere."""
    if precision != "auto":
        return precision
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else device.type == "cpu" and cpu
    return "bfloat16" if native else "float32"
