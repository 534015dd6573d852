"""Frozen features, the checks of labeled splits, and weighted nearest neighbors."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from hsic_lab._checks import (  # isort: skip
    as_labels, as_tensor, at_least_float32, check_integer, check_number, check_type, finite_rows, with_float64,
)  # fmt: skip
from hsic_lab.correlation import directions
from hsic_lab.views import normalize

Data: TypeAlias = "ArrayLike | Tensor"  # a string, because `help` would show the long union behind ArrayLike

NEIGHBORS, TEMPERATURE = 200, 0.5
_BLOCK_ELEMENTS = 1 << 24  # similarities in one block: 64 MiB in float32


def check_splits(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data
) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """Check labeled training and test rows; return features as tensors and labels as arrays."""
    train, test = _rows("train_x", train_x), _rows("test_x", test_x)
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    for name, x, y in (("train", train, train_y), ("test", test, test_y)):
        if len(x) != len(y):
            raise ValueError(f"{name}_x has {len(x)} rows and {name}_y {len(y)} labels")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features and test_x {test.shape[1]}")
    if len(classes := np.unique(train_y)) < 2:
        raise ValueError(f"train_y must hold at least two classes, got only {classes.tolist()}")
    if len(unseen := np.setdiff1d(test_y, classes)):
        raise ValueError(f"test_y holds classes that train_y lacks: {unseen.tolist()}")
    return train, test, train_y, test_y


def _rows(name: str, x: Data) -> Tensor:
    """Finite floating-point features of shape (n, p)."""
    x = as_tensor(x, name).detach()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (n, p) with n and p at least 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        x = x.float() if x.itemsize < 4 else with_float64(x).double()  # float32 cannot tell all 32-bit integers apart
    return finite_rows(name, at_least_float32(x))


def chance_accuracy(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """Test accuracy of always predicting the most frequent training class."""
    classes, counts = np.unique(train_y, return_counts=True)
    return float(np.mean(test_y == classes[counts.argmax()]))


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Set models to eval mode within the block, then restore the training flag of every submodule."""
    flags = [(m, m.training) for model in models for m in check_type("the network", model, nn.Module).modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def check_images(images: Tensor) -> None:
    """Check for at least one image: uint8, whose shape `normalize` checks, or floating point of any shape."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}; torch.as_tensor makes one")
    if as_tensor(images, "images").ndim == 0 or images.numel() == 0:
        raise ValueError(f"images must hold at least one image, got shape {tuple(images.shape)}")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(f"images must be uint8 or floating point, got {images.dtype}")


def model_input(model: nn.Module, images: Tensor) -> Tensor:
    """Move images to the device and the floating type of the model; normalize uint8 to [-1, 1]."""
    tensors = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point()]
    images = images.to(tensors[0].device if tensors else images.device)
    images = normalize(images) if images.dtype == torch.uint8 else images
    return images.to(tensors[0].dtype) if tensors else images


def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Compute the features of images with a frozen encoder, in float32 of shape (n, p) on the CPU.

    The encoder runs on its own device, in eval mode and without gradients: batch normalization uses its running
    statistics and does not change them. Afterwards every submodule has the training flag it had before.

    Parameters
    ----------
    encoder, batch_size : nn.Module, int, default 512
        Maps images to finite features of shape (n, p); and the number of images that it sees at once.
    images : Tensor
        uint8 of shape (n, c, h, w), normalized to [-1, 1] here; or floating point. They take the type of the weights.

    Examples
    --------
    >>> import torch
    >>> from hsic_lab.evaluation import extract_features
    >>> extract_features(torch.nn.Flatten(), torch.zeros(4, 3, 2, 2)).shape
    torch.Size([4, 12])
    """
    check_images(images)
    batch_size, blocks = check_integer("batch_size", batch_size, 1), []
    with evaluating(encoder), torch.no_grad():  # inference mode would leave lazy layers with buffers that cannot train
        for block in images.split(batch_size):
            output = encoder(model_input(encoder, block))
            if not isinstance(output, Tensor) or output.is_complex():
                found = output.dtype if isinstance(output, Tensor) else type(output).__name__
                raise TypeError(f"the encoder must return one tensor of real features, got {found}")
            if output.ndim != 2 or len(output) != len(block):
                raise ValueError(f"the encoder must return shape ({len(block)}, p), got {tuple(output.shape)}")
            blocks.append(output.float().cpu())
    return finite_rows("the encoder's features", torch.cat(blocks))


def default_neighbors(n_train: int) -> int:
    """Square root of the number of training rows, at most 200: with more, all classes vote in a small data set."""
    return min(NEIGHBORS, max(1, round(n_train**0.5)))


def knn_protocol(k: int) -> str:
    """Describe the nearest-neighbor evaluation with `k` neighbors."""
    return f"weighted kNN, k = {k}, temperature {TEMPERATURE}"


def knn_accuracy(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, k: int | None = None, temperature: float = TEMPERATURE
) -> float:
    """Accuracy of the weighted k-nearest-neighbor classifier of Wu et al. (2018), arXiv:1805.01978.

    The k training rows of highest cosine similarity s to a test row vote for their class with weight
    ``exp(s / temperature)``. The class with the largest sum is predicted, the first one in sorted order on a tie. The
    computation runs on the device of `train_x`, in blocks of test rows.

    Parameters
    ----------
    train_x, train_y, test_x, test_y : array-like or Tensor
        Features and labels, as in `linear_probe`. A row of zeros has no direction and is refused.
    k, temperature : int or None, float, default None, 0.5
        Number of neighbors, None for the square root of the number of training rows, at most 200 (the k of Wu et al.);
        if there are fewer rows than k, all vote, with a UserWarning. Low temperatures favor the nearest rows.
    """
    train, test, train_y, test_y = check_splits(train_x, train_y, test_x, test_y)
    k = default_neighbors(len(train)) if k is None else check_integer("k", k, 1)
    temperature = check_number("temperature", temperature, 0, above=True)
    if k > len(train):
        warnings.warn(f"k = {k} is larger than the {len(train)} training rows: all of them vote", stacklevel=2)
    classes, codes = np.unique(train_y, return_inverse=True)
    bank, queries = directions("train_x", train), directions("test_x", test.to(train))
    class_of, predictions = torch.as_tensor(codes, device=train.device), []
    for block in queries.split(max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, neighbors = (block @ bank.T).topk(min(k, len(bank)), dim=1)
        # Subtracting the largest similarity of a row keeps the order of its votes, and exp cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(classes))
        predictions.append(votes.scatter_add_(1, class_of[neighbors], weights).argmax(dim=1).cpu())
    return float(np.mean(classes[torch.cat(predictions).numpy()] == test_y))
