"""Frozen networks: the input they read, eval mode that leaves no trace, and their features."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from hsic_lab.checks import finite_rows
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


def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Features of frozen images: `encoder(images)`, shape (n, p), float32, on the CPU.

    uint8 images (n, c, h, w) are normalised to [-1, 1]; floating-point ones are passed through as they are.
    The encoder runs on its own device in eval mode without gradients, and every submodule gets its own
    training flag back, also after an exception, so that batch statistics are neither used nor moved.

    Raises ValueError for an empty input, integer images that are not uint8 (n, c, h, w), encoder output that
    is not (n, p) (nothing is flattened here: flatten in the encoder), and non-finite features.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_images(images)

    blocks = []
    with evaluating(encoder), torch.inference_mode():
        for block in images.split(batch_size):
            output = encoder(model_input(encoder, block))
            if not isinstance(output, Tensor):
                raise TypeError(f"the encoder must return one tensor, got {type(output).__name__}")
            if output.ndim != 2 or len(output) != len(block):
                shapes = f"({len(block)}, p), got {tuple(output.shape)}"
                raise ValueError(f"the encoder must return features of shape {shapes}")
            blocks.append(output.float().cpu())
    # Joined outside inference mode: the result is an ordinary tensor, which autograd accepts later.
    return finite_rows("the encoder's features", torch.cat(blocks))
