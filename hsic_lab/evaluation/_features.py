"""The four inputs of a probe: features and labels to train on, features and labels to test on.

Labels are one-dimensional: integers, booleans or strings. Features are `(n, p)` tensors or arrays.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from hsic_lab._checks import as_labels, as_tensor, at_least_float32, finite_rows
from hsic_lab.correlation import l2_normalize
from hsic_lab.views import normalize

Data = ArrayLike | Tensor


def checked_splits(train_x, train_y, test_x, test_y) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """The four inputs, checked against each other.

    Raises ValueError, quoting the value, on shapes that do not fit, on empty or non-finite features, on fewer than two
    classes, and on a test class that the training labels lack: no probe could ever answer it.
    """
    train, test = _rows("train_x", train_x), _rows("test_x", test_x)
    train_y, test_y = as_labels("train_y", train_y), as_labels("test_y", test_y)
    for name, x, y in (("train", train, train_y), ("test", test, test_y)):
        if len(x) != len(y):
            raise ValueError(f"{name}_x has {len(x)} rows and {name}_y {len(y)} labels")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"train_x has {train.shape[1]} features and test_x {test.shape[1]}")
    classes = np.unique(train_y)
    if len(classes) < 2:
        raise ValueError(f"train_y must hold at least two classes, got only {classes.tolist()}")
    unseen = np.setdiff1d(test_y, classes)
    if len(unseen):
        raise ValueError(f"test_y holds classes that train_y lacks: {unseen.tolist()}")
    return train, test, train_y, test_y


def _rows(name: str, x: Data) -> Tensor:
    x = as_tensor(x).detach()
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (n, p) with n and p at least 1, got {tuple(x.shape)}")
    if not x.is_floating_point():
        x = x.float() if x.itemsize < 4 else x.double()  # of which float32 does not tell all apart
    return finite_rows(name, at_least_float32(x))


def chance_accuracy(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """Test accuracy of always answering the commonest training class."""
    classes, counts = np.unique(train_y, return_counts=True)
    return float(np.mean(test_y == classes[counts.argmax()]))


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
    """`images` on the model's device; uint8 is normalized to [-1, 1], floating point passes as it is."""
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), images.device)
    images = images.to(device)
    return normalize(images) if images.dtype == torch.uint8 else images


def extract_features(encoder: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Features of frozen images: `encoder(images)`, shape (n, p), float32, on the CPU.

    uint8 images (n, c, h, w) are normalized to [-1, 1]; floating-point ones are passed through as they are.
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


_BLOCK_ELEMENTS = 1 << 24  # similarities a block may hold: 64 MiB in float32


def knn_accuracy(
    train_x: Data, train_y: Data, test_x: Data, test_y: Data, k: int = 200, temperature: float = 0.5
) -> float:
    """Accuracy of the weighted k-nearest-neighbor vote of Wu et al. 2018 (arXiv 1805.01978, section 3.4).

    A test row's k training rows of highest cosine similarity s vote for their class with weight `exp(s /
    temperature)`; the class with the largest sum wins, the smaller label on a tie. Runs on the device of
    `train_x`, over blocks of test rows, so that memory does not grow with their number.

    Raises ValueError as `labelled.checked_splits`, for k outside 1..n_train, a temperature that is
    not positive, and a zero row, which has no direction.
    """
    train, test, train_y, test_y = checked_splits(train_x, train_y, test_x, test_y)
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be between 1 and the {len(train)} training rows, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    classes, votes_for = np.unique(train_y, return_inverse=True)
    votes_for = torch.as_tensor(votes_for, device=train.device)
    test = test.to(train)
    bank, queries = l2_normalize("train_x", train), l2_normalize("test_x", test)

    predictions = []
    for block in queries.split(max(1, _BLOCK_ELEMENTS // len(bank))):
        similarity, neighbors = (block @ bank.T).topk(k, dim=1)
        # Divided by the row's largest weight, which changes no vote's rank: exp cannot overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(block), len(classes))
        predictions.append(votes.scatter_add_(1, votes_for[neighbors], weights).argmax(dim=1).cpu())
    return float(np.mean(classes[torch.cat(predictions).numpy()] == test_y))
