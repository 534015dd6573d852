"""Recipes of others by name, as settings that a `TrainConfig` takes."""

from typing import Any

from hsic_lab.checks import one_of
from hsic_lab.config import TrainConfig


def preset(name: str, **changes: Any) -> TrainConfig:
    """The settings of a published recipe, with `changes`. Raises ValueError for another name.

    "report"    Tsai et al. 2021 (arXiv 2104.13712), github.com/yaohungt/Barlow-Twins-HSIC, CIFAR-10: ResNet-50,
                d = 128, lambda = 1/d, Adam at 1e-3 with an L2 penalty of 1e-6, no schedule, batch 128, 1000 epochs.
                Their code also normalises projections to unit length; the equations do not, and neither does this
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
    one_of(name, PRESETS, "preset")
    batch = TrainConfig(batch_size=changes.get("batch_size", 2048)).batch_size  # checked before it is multiplied
    settings = {
        "report": {
            "dataset": "cifar10", "views": "report", "encoder": "resnet50", "projector": (512, 128),
            "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 1e-6, "schedule": "constant",
            "warmup_epochs": 0.0, "batch_size": 128, "epochs": 1000,
        },
        "official": {
            "views": "barlow_twins", "encoder": "resnet50", "stem": "imagenet", "projector": (8192, 8192, 8192),
            "lambda_param": 0.0051, "optimizer": "lars", "learning_rate": 0.2 * batch / 256,
            "bias_learning_rate": 0.0048 * batch / 256, "weight_decay": 1e-6, "warmup_epochs": 10.0,
            "final_learning_rate": 1e-3, "batch_size": 2048, "epochs": 1000,
        },
        "solo": {
            "dataset": "cifar10", "views": "solo", "encoder": "resnet18", "projector": (2048, 2048, 2048),
            "lambda_param": 0.0051, "loss_scale": 0.1, "optimizer": "lars", "trust_coefficient": 0.02,
            "trust_clip": True, "learning_rate": 0.3, "weight_decay": 1e-4, "warmup_epochs": 10.0,
            "batch_size": 256, "epochs": 1000,
        },
    }[name]
    return TrainConfig(**settings | changes)


PRESETS = ("report", "official", "solo")
