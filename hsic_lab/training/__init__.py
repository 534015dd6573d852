"""Training of encoders on two or more views, and the runs that it leaves on disk."""

from hsic_lab.training._config import LOSSES, TrainConfig, recipe
from hsic_lab.training._run import Run
from hsic_lab.training._train import train, train_or_load
from hsic_lab.training._trainer import Callback, Event, TensorBoardLogger

__all__ = ["LOSSES", "Callback", "Event", "Run", "TensorBoardLogger", "TrainConfig", "recipe", "train", "train_or_load"]
