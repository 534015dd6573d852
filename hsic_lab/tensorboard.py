"""Training curves in TensorBoard, for those who have it."""

from pathlib import Path

from hsic_lab.trainer import Event


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
