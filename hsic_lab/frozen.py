"""Frozen networks: the input they read, and eval mode that leaves no trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from hsic_lab.views import normalize


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode within the block; every submodule's own training flag afterwards, also after an exception."""
    flags = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_images(images: Tensor) -> None:
    """At least one image: uint8 `(n, c, h, w)`, or floating point of any shape that the model reads."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}; torch.as_tensor makes one")
    if images.ndim == 0 or images.numel() == 0:
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if images.dtype == torch.uint8 and images.ndim != 4:
        raise ValueError(f"uint8 images must have shape (n, c, h, w), got {tuple(images.shape)}")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}")


def model_input(model: nn.Module, images: Tensor) -> Tensor:
    """`images` on the model's device; uint8 is normalised to [-1, 1], floating point passes as it is."""
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), images.device)
    images = images.to(device)
    return normalize(images) if images.dtype == torch.uint8 else images
