"""How good are the features by now? Judged on training labels during training; the test split stays unread."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from hsic_lab._checks import check_choice
from hsic_lab.datasets import ImageData
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.evaluation._features import knn_protocol
from hsic_lab.evaluation._probes import validation_split
from hsic_lab.training._run import Run


@dataclass(frozen=True)
class Event:
    """What a callback is told: `kind` is "step" (a logged one), "snapshot" or "monitor", `values` its row.

    `run` holds networks, snapshots and settings; `run.history` is brought up to date at snapshots.
    """

    kind: str
    step: int
    values: dict[str, Any]
    run: Run


Callback = Callable[[Event], None]


BANK, QUERIES = 10_000, 2_000  # at most: a monitor must not cost more than what it watches


def make_monitor(kind: str, data: ImageData, seed: int = 0) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function `encoder -> row` with the accuracy and all that names it, None for the kind "none".

    One stratified split of the training images, a function of `seed`: labels of the `BANK` part are used, `QUERIES`
    are asked. "knn" is the weighted vote of `knn_accuracy`, "linear" the probe of `linear_probe`. The encoder trains
    on all these images without labels, so that this follows a training and compares runs; the figure to report is
    that of `hsic-lab probe`, on the test split. Features that cannot be judged (NaN, a zero row for "knn") are warned
    of and have the accuracy NaN. Raises ValueError for a split too small for its classes.
    """
    if check_choice(kind, ("none", "knn", "linear"), "monitor") == "none":
        return None
    labels = data.train.labels.cpu().numpy()
    n = len(labels)
    queries = min(QUERIES, max(1, n // 5))
    rows = np.arange(n)
    bank, asked = train_test_split(
        rows, train_size=min(BANK, n - queries), test_size=queries, stratify=labels, random_state=seed
    )
    if kind == "linear":  # what no training can change is said before it
        validation_split(labels[bank], seed=seed)
    protocol = knn_protocol(len(bank)) if kind == "knn" else "linear probe"

    def features(encoder: nn.Module, part: np.ndarray) -> Tensor:
        blocks = torch.from_numpy(part).split(512)  # a part of large images may not fit into memory
        return torch.cat([extract_features(encoder, data.train.images[block]) for block in blocks])

    def monitor(encoder: nn.Module) -> dict[str, Any]:
        try:
            bank_x, asked_x = (features(encoder, part) for part in (bank, asked))
            if kind == "knn":
                accuracy = knn_accuracy(bank_x, labels[bank], asked_x, labels[asked])
            else:
                accuracy = linear_probe(bank_x, labels[bank], asked_x, labels[asked], seed=seed).accuracy
        except ValueError as error:  # features may collapse, and the training go on
            warnings.warn(f"the monitor has no accuracy to tell: {error}", stacklevel=2)
            accuracy = float("nan")
        return {
            "accuracy": accuracy,
            "protocol": protocol,
            "split": "training images, labels of the bank only",
            "n_bank": len(bank),
            "n_queries": len(asked),
            "split_seed": seed,
        }

    return monitor


class TensorBoardLogger:
    """A callback for `train`: every number of a logged step or evaluation becomes a scalar at its step.

    Raises ModuleNotFoundError, saying how to get it, if the package tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "logging to TensorBoard needs the package tensorboard: pip install tensorboard"
            ) from error
        self.writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        for name, value in event.values.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"{event.kind}/{name}", value, event.step)
        self.writer.flush()
