"""Callbacks of a training, and monitors that evaluate the features on training labels."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from hsic_lab.datasets import ImageData
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.training._run import Run

BANK, QUERIES = 10_000, 2_000  # limits that keep a monitor cheaper than the training
NEIGHBORS, TEMPERATURE = 200, 0.5


@dataclass(frozen=True)
class Event:
    """What a callback receives: its kind is "step" (a logged step), "snapshot" (a new C) or "monitor" (an evaluation).

    `values` is the new row of the history or of the monitor. `run.history` is updated at snapshots.
    """

    kind: str
    step: int
    values: dict[str, Any]
    run: Run


Callback = Callable[[Event], None]
Monitor = Callable[[nn.Module], dict[str, Any]]


class TensorBoardLogger:
    """Callback that writes every number of an event to the logs of TensorBoard in a folder."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("TensorBoardLogger needs tensorboard: pip install tensorboard") from error
        self.writer = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        for name, value in event.values.items():
            if isinstance(value, int | float) and name != "step":
                self.writer.add_scalar(f"{event.kind}/{name}", value, event.step)
        self.writer.flush()


def make_monitor(kind: str, data: ImageData, seed: int = 0) -> Monitor | None:
    """A function from an encoder to a row with its accuracy, protocol and split; None for the kind "none".

    The training images are split once, stratified by class: `BANK` of them have labels, `QUERIES` are classified.
    """
    if kind == "none":
        return None
    labels = data.train.labels.cpu().numpy()
    n, queries = len(labels), min(QUERIES, max(1, len(labels) // 5))
    sizes = {"train_size": min(BANK, n - queries), "test_size": queries}
    bank, asked = train_test_split(np.arange(n), **sizes, stratify=labels, random_state=seed)
    if kind == "linear":  # classes too small for a probe are an error before the training, not during it
        linear_probe(torch.zeros(len(bank), 1), labels[bank], torch.zeros(1, 1), labels[asked[:1]], seed=seed)
    k = min(NEIGHBORS, len(bank))
    protocol = f"weighted kNN, k = {k}, temperature {TEMPERATURE}" if kind == "knn" else "linear probe"
    split = {"split": "training images, labels of the bank only", "n_bank": len(bank), "n_queries": len(asked)}

    def features(encoder: nn.Module, part: np.ndarray) -> Tensor:
        blocks = torch.from_numpy(part).split(512)  # all images at once may not fit into memory
        return torch.cat([extract_features(encoder, data.train.images[block]) for block in blocks])

    def monitor(encoder: nn.Module) -> dict[str, Any]:
        try:
            parts = features(encoder, bank), labels[bank], features(encoder, asked), labels[asked]
            knn = kind == "knn"
            accuracy = knn_accuracy(*parts, k, TEMPERATURE) if knn else linear_probe(*parts, seed=seed).accuracy
        except ValueError as error:  # features may collapse while the training goes on
            warnings.warn(f"the monitor cannot evaluate the features: {error}", stacklevel=2)
            accuracy = float("nan")
        return {"accuracy": accuracy, "protocol": protocol} | split | {"split_seed": seed}

    return monitor
