"""The four inputs of a probe: features and labels to train on, features and labels to test on.

Labels are one-dimensional: integers, booleans or strings. Features are `(n, p)` tensors or arrays.
"""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from hsic_lab.checks import as_labels, as_tensor, at_least_float32, finite_rows

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
