"""A training run on disk: settings, history, snapshots of C and weights in one folder, whole at every moment."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsic_lab.checks import only_tensors
from hsic_lab.config import TrainConfig
from hsic_lab.encoders import ConvEncoder, MLPProjector
from hsic_lab.files import replace_file
from hsic_lab.resnet import ResNetEncoder

SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS = "run.json", "history.csv", "correlation.safetensors", "weights.safetensors"
FILES = (SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS)
_STEP = "step_"
MONITOR = "monitor.csv"  # only in runs with a monitor


@dataclass(eq=False)
class Run:
    """What one training left behind.

    config:    the settings, as a plain dictionary
    state:     "running", "finished", "interrupted" or "failed: why"
    history:   one row a logged step: step, epoch, loss, the loss's terms, diagonal, off_diagonal, ...
    snapshots: step -> C `(d, d)` of the same held-out pairs, in evaluation mode; step 0 is before training
    monitor:   one row an evaluation on training labels, naming its protocol and its split; see `monitors`

    While it is unfinished its folder also holds `checkpoints/`, from which `train(..., resume=True)` goes on.
    """

    folder: Path
    config: dict[str, Any]
    encoder: nn.Module
    projector: nn.Module
    state: str = "running"
    facts: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    snapshots: dict[int, Tensor] = field(default_factory=dict)
    monitor: pd.DataFrame = field(default_factory=pd.DataFrame)

    def save(self) -> None:
        """Write every file of the folder, each through a temporary name."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"encoder.{k}": v for k, v in self.encoder.state_dict().items()}
        tensors |= {f"projector.{k}": v for k, v in self.projector.state_dict().items()}
        tensors = only_tensors(tensors)
        # Clones: a module may use one weight twice, and safetensors refuses tensors that share memory.
        tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        snapshots = {f"{_STEP}{step:06d}": c for step, c in self.snapshots.items()}
        settings = {"config": self.config, "state": self.state, "facts": self.facts}
        replace_file(self.folder / HISTORY, lambda path: self.history.to_csv(path, index=False))
        if len(self.monitor):
            replace_file(self.folder / MONITOR, lambda path: self.monitor.to_csv(path, index=False))
        replace_file(self.folder / SNAPSHOTS, lambda path: save_file(snapshots, path))
        replace_file(self.folder / WEIGHTS, lambda path: save_file(tensors, path))
        replace_file(self.folder / SETTINGS, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))

    @classmethod
    def load(cls, folder: str | os.PathLike, encoder: nn.Module | None = None) -> "Run":
        """Read a run folder. A run of an encoder of your own needs that `encoder`, to be filled with its weights.

        Raises FileNotFoundError if the folder is no run, ValueError naming the file that is damaged.
        """
        folder = Path(folder)
        config, state, facts = read_settings(folder)
        encoder, projector = build_networks(config, facts["channels"], encoder, facts.get("features"))
        weights = _read(folder / WEIGHTS, load_file)
        for name, module in (("encoder", encoder), ("projector", projector)):
            prefix = f"{name}."
            own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            try:
                module.load_state_dict(own)
            except RuntimeError as error:
                raise ValueError(f"{folder / WEIGHTS} does not fit the {name} of {SETTINGS}: {error}") from error
        history = _read(folder / HISTORY, _read_history)
        monitor = _read(folder / MONITOR, _read_history) if (folder / MONITOR).exists() else pd.DataFrame()
        snapshots = read_snapshots(folder)
        return cls(folder, config, encoder.eval(), projector.eval(), state, facts, history, snapshots, monitor)


def read_settings(folder: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The config, the state and the facts in a run folder; settings younger than the run have their defaults."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {SETTINGS}. `hsic-lab train` makes one.")
    return _read(folder / SETTINGS, _read_settings)


def read_snapshots(folder: Path) -> dict[int, Tensor]:
    """The matrices C of a run folder by step."""
    return {int(name.removeprefix(_STEP)): c for name, c in sorted(_read(folder / SNAPSHOTS, load_file).items())}


def plain(config: TrainConfig) -> dict[str, Any]:
    """A config as its JSON file gives it back: lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def build_networks(
    config: dict[str, Any], channels: int, encoder: nn.Module | None = None, features: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """The encoder and the projector that the settings describe, freshly initialised.

    When the settings say "custom", `encoder` is the user's own module, kept as it is, from images `(n, c, h, w)` to
    `(n, features)`. Raises ValueError if it is missing, or given although the settings name another.
    """
    kind = config.get("encoder", "conv")
    if (kind == "custom") != (encoder is not None):
        raise ValueError(f"encoder={kind!r} in the settings, and {'no' if encoder is None else 'a'} module was given")
    if encoder is None and kind == "conv":
        encoder = ConvEncoder(config["width"], channels)
    elif encoder is None:
        encoder = ResNetEncoder(int(kind.removeprefix("resnet")), config["stem"], channels)
    features = encoder.out_features if features is None else features
    return encoder, MLPProjector([features, *config["projector"]])


def _read_settings(path: Path) -> tuple[dict[str, Any], str, dict[str, Any]]:
    settings = json.loads(path.read_text())
    missing = {"config", "state", "facts"} - settings.keys()
    if missing:
        raise ValueError(f"it lacks {sorted(missing)}")
    return plain(TrainConfig()) | settings["config"], settings["state"], settings["facts"]


def _read_history(path: Path) -> pd.DataFrame:
    if not path.read_text().strip():  # stopped before the first logged step
        return pd.DataFrame()
    history = pd.read_csv(path)
    if "step" not in history:
        raise ValueError(f"no column 'step' among {list(history.columns)}")
    return history


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: the run was never saved whole; train it again") from None
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error
