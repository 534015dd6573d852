"""A training run on disk: settings, history, snapshots of C and weights in one folder, whole at every moment."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsic_lab._checks import only_tensors
from hsic_lab._io import replace_file
from hsic_lab.training._config import TrainConfig
from hsic_lab.training._networks import build_networks

SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS = "run.json", "history.csv", "correlation.safetensors", "weights.safetensors"
FILES = (SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS)
_STEP = "step_"
MONITOR = "monitor.csv"  # only in runs with a monitor


@dataclass(eq=False)
class Run:
    """What one training left behind.

    config:    the settings
    status:    "running", "finished", "interrupted" or "failed: why"
    history:   one row a logged step: step, epoch, loss, the loss's terms, diagonal, off_diagonal, ...
    snapshots: step -> C `(d, d)` of the same held-out pairs, in evaluation mode; step 0 is before training
    monitor:   one row an evaluation on training labels, naming its protocol and its split; see `monitors`

    While it is unfinished its folder also holds `checkpoints/`, from which `train(..., resume=True)` goes on.
    """

    folder: Path
    config: TrainConfig
    encoder: nn.Module
    projector: nn.Module
    status: str = "running"
    metadata: dict[str, Any] = field(default_factory=dict)
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
        settings = {"config": plain(self.config), "state": self.status, "facts": self.metadata}
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
        config, state, metadata = read_settings(folder)
        encoder, projector = build_networks(config, metadata["channels"], encoder, metadata.get("features"))
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
        return cls(folder, config, encoder.eval(), projector.eval(), state, metadata, history, snapshots, monitor)


def read_settings(folder: Path) -> tuple[TrainConfig, str, dict[str, Any]]:
    """The config, the state and the metadata in a run folder; settings younger than the run have their defaults."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {SETTINGS}. `hsic-lab train` makes one.")
    return _read(folder / SETTINGS, _read_settings)


def read_snapshots(folder: Path) -> dict[int, Tensor]:
    """The matrices C of a run folder by step."""
    return {int(name.removeprefix(_STEP)): c for name, c in sorted(_read(folder / SNAPSHOTS, load_file).items())}


def plain(config: TrainConfig) -> dict[str, Any]:
    """A config as its JSON file gives it back: lists for tuples."""
    return json.loads(json.dumps(asdict(config)))


def _read_settings(path: Path) -> tuple[TrainConfig, str, dict[str, Any]]:
    settings = json.loads(path.read_text())
    missing = {"config", "state", "facts"} - settings.keys()
    if missing:
        raise ValueError(f"it lacks {sorted(missing)}")
    return TrainConfig.from_json(settings["config"]), settings["state"], settings["facts"]


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


FOLDER = "checkpoints"
KEPT = 2  # the newest, and the one before it in case the newest is damaged


@dataclass
class Checkpoint:
    """Where a training stands after `step` updates: named tensors, and plain JSON values (history, seconds, ...)."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint to the folder and remove all but the newest `KEPT`.

    The JSON file is written last and holds the digest of the tensors' file and its own: a checkpoint is either whole
    or not there, and damage done later is noticed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"step_{checkpoint.step:08d}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    replace_file(stem.with_suffix(".safetensors"), lambda path: save_file(tensors, path))
    content = {
        "step": checkpoint.step,
        "values": checkpoint.values,
        "tensors": _digest(stem.with_suffix(".safetensors")),
    }
    text = json.dumps(content)
    document = json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text})
    replace_file(stem.with_suffix(".json"), lambda path: path.write_text(document))
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    # Left by a process that was killed while it wrote.
    for orphan in [*folder.glob(".step_*"), *folder.glob("step_*.safetensors")]:
        if not orphan.with_suffix(".json").exists():
            orphan.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, None if there is none; a warning names every damaged one passed over.

    Raises ValueError if all are damaged: nothing that was learnt is thrown away unasked.
    """
    damaged = []
    for path in _newest_first(folder):
        try:
            checkpoint = _read_checkpoint(path)
        except (ValueError, OSError, KeyError, TypeError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error})")
            continue
        for message in damaged:
            warnings.warn(f"{message}; the one before it is used", stacklevel=2)
        return checkpoint
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}. None is left to go on from: remove {folder} to start over")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove what `save_checkpoint` wrote, and the folder if nothing else is in it."""
    if folder.is_dir():
        for path in [*folder.glob("step_*"), *folder.glob(".step_*")]:
            path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def training_tensors(networks: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every tensor that the next update depends on: `name.key` of the networks, `optimizer.number.key`."""
    tensors = {}
    for name, net in networks.items():
        state = dict(net.named_buffers()) | net.state_dict()  # buffers too that a module keeps out of its state
        tensors |= {f"{name}.{key}": value for key, value in state.items()}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the optimizer keeps {key} = {value!r}, which is no tensor: it cannot be resumed")
            tensors[f"optimizer.{number}.{key}"] = value
    # Clones: networks may share weights, and safetensors refuses tensors that share memory.
    return {key: value.detach().clone() for key, value in only_tensors(tensors).items()}


def restore_training(
    tensors: dict[str, Tensor], networks: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """Undo `training_tensors`. Raises RuntimeError if names or shapes do not fit the networks."""
    for name, network in networks.items():
        prefix = f"{name}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if own or name != "loss":  # checkpoints did not always hold the loss's state
            for key in own.keys() - network.state_dict().keys():
                where, _, buffer = key.rpartition(".")
                if buffer in network.get_submodule(where)._non_persistent_buffers_set:
                    value = own.pop(key)
                    like = next(chain(network.parameters(), network.buffers()), value)
                    setattr(network.get_submodule(where), buffer, value.to(like.device))
            network.load_state_dict(own)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            parameter = parameters[int(number)]
            # In the parameter's memory layout, as the optimizer would have made it.
            like = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
            optimizer.state[parameter][name] = like.copy_(value)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.json"), reverse=True)


def _read_checkpoint(path: Path) -> Checkpoint:
    document = json.loads(path.read_text())
    if hashlib.sha256(document["content"].encode()).hexdigest() != document["sha256"]:
        raise ValueError(f"the digest of {path.name} does not match its content")
    content = json.loads(document["content"])
    tensors = path.with_suffix(".safetensors")
    if _digest(tensors) != content["tensors"]:
        raise ValueError(f"the digest of {tensors.name} does not match the one in {path.name}")
    return Checkpoint(content["step"], load_file(tensors), content["values"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
