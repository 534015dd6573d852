"""A training run on disk, and the checkpoints of an unfinished one."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsic_lab._checks import only_tensors
from hsic_lab._io import replace_file
from hsic_lab.training._config import TrainConfig
from hsic_lab.training._networks import make_networks

SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS = "run.json", "history.csv", "correlation.safetensors", "weights.safetensors"
SAMPLES = "samples.safetensors"  # older runs lack it
FILES = (SETTINGS, HISTORY, SNAPSHOTS, SAMPLES, WEIGHTS)
MONITOR = "monitor.csv"  # only in runs with a monitor
FOLDER = "checkpoints"
KEPT = 2  # the newest checkpoint, and the one before it in case the newest is damaged
_STEP = "step_"


@dataclass(eq=False)
class Run:
    """Result of one training: settings, history, snapshots of C and networks, in one folder.

    Attributes
    ----------
    folder, config : Path, TrainConfig
        Where the run is kept, and its settings.
    encoder, projector : nn.Module
        The networks. After `load` they are in evaluation mode on the CPU.
    status : str
        "running", "finished", "interrupted" or "failed: ..." with the reason.
    metadata : dict
        Data set size and fingerprint, device, precision and versions.
    history : DataFrame
        One row for each logged step: the loss and its terms, mean entries of C on and off the diagonal, and so on.
    snapshots : dict of int to Tensor of shape (d, d)
        C of the same held-out pairs by step, in evaluation mode. Step 0 is before training.
    monitor : DataFrame
        One row for each evaluation on training labels, with its protocol and split.
    samples : dict of int to Tensor of shape (2, m, d)
        Standardized projections of the two views of the first m held-out pairs behind each snapshot, in float16.
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
    samples: dict[int, Tensor] = field(default_factory=dict)

    def save(self) -> None:
        """Write all files of the folder. Each file is replaced as a whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        weights = _on_cpu(nn.ModuleDict({"encoder": self.encoder, "projector": self.projector}).state_dict())
        settings = {"config": asdict(self.config), "state": self.status, "facts": self.metadata}
        replace_file(self.folder / HISTORY, lambda path: self.history.to_csv(path, index=False))
        if len(self.monitor):
            replace_file(self.folder / MONITOR, lambda path: self.monitor.to_csv(path, index=False))
        for name, by_step in ((SNAPSHOTS, self.snapshots), (SAMPLES, self.samples)):
            named = {f"{_STEP}{step:06d}": tensor for step, tensor in by_step.items()}
            replace_file(self.folder / name, partial(save_file, named))
        replace_file(self.folder / WEIGHTS, lambda path: save_file(weights, path))
        replace_file(self.folder / SETTINGS, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))

    @classmethod
    def load(cls, folder: str | os.PathLike, encoder: nn.Module | None = None) -> "Run":
        """Read the folder of a run. `encoder` is your own module if it was trained with one; it gets the weights."""
        folder = Path(folder)
        config, status, metadata = read_settings(folder)
        encoder, projector = make_networks(config, metadata["channels"], encoder, metadata.get("features"))
        networks = nn.ModuleDict({"encoder": encoder, "projector": projector}).eval()
        weights = _read(folder / WEIGHTS, load_file)
        try:
            networks.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit the encoder of {SETTINGS}: {error}") from error
        history, snapshots = _read(folder / HISTORY, _read_history), read_snapshots(folder)
        monitor = _read(folder / MONITOR, _read_history) if (folder / MONITOR).exists() else pd.DataFrame()
        samples = read_snapshots(folder, SAMPLES)
        return cls(folder, config, encoder, projector, status, metadata, history, snapshots, monitor, samples)


def read_settings(folder: Path) -> tuple[TrainConfig, str, dict[str, Any]]:
    """The config, the status and the metadata in the folder of a run."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {SETTINGS}. `hsic-lab train` makes one.")

    def parse(path: Path) -> tuple[TrainConfig, str, dict[str, Any]]:
        settings = json.loads(path.read_text())
        if missing := {"config", "state", "facts"} - settings.keys():
            raise ValueError(f"it lacks {sorted(missing)}")
        return TrainConfig.from_json(settings["config"]), settings["state"], settings["facts"]

    return _read(folder / SETTINGS, parse)


def read_snapshots(folder: Path, name: str = SNAPSHOTS) -> dict[int, Tensor]:
    """The matrices C in the folder of a run by step, or its samples, which older runs lack."""
    if name == SAMPLES and not (folder / name).exists():
        return {}
    return {int(key.removeprefix(_STEP)): c for key, c in sorted(_read(folder / name, load_file).items())}


def _read_history(path: Path) -> pd.DataFrame:
    empty = not path.read_text().strip()  # the run stopped before its first logged step
    history = pd.DataFrame() if empty else pd.read_csv(path)
    if not empty and "step" not in history:
        raise ValueError(f"no column 'step' among {list(history.columns)}")
    return history


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: the run was never saved whole; train it again") from None
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); train the run again") from error


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies that safetensors can write: contiguous, and apart where networks share a weight."""
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in only_tensors(dict(state)).items()}


@dataclass
class Checkpoint:
    """The state of a training after `step` updates: named tensors, and JSON values such as the history."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Add a checkpoint, keep the newest `KEPT`. Its JSON file is written last, with digests of both files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{checkpoint.step:08d}.json"
    weights = path.with_suffix(".safetensors")
    replace_file(weights, lambda temporary: save_file(_on_cpu(checkpoint.tensors), temporary))
    content = json.dumps({"step": checkpoint.step, "values": checkpoint.values, "tensors": _digest(weights)})
    document = json.dumps({"sha256": hashlib.sha256(content.encode()).hexdigest(), "content": content})
    replace_file(path, lambda temporary: temporary.write_text(document))
    for old in sorted(folder.glob("step_*.json"))[:-KEPT]:
        old.unlink()
    for file in [
        *folder.glob(".step_*"),
        *folder.glob("step_*.safetensors"),
    ]:  # also of a process killed while it wrote
        if not file.with_suffix(".json").exists():
            file.unlink(missing_ok=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, None if there is none; warns of damaged ones, ValueError if all are damaged."""
    damaged = []
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        try:
            document, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
            if hashlib.sha256(document["content"].encode()).hexdigest() != document["sha256"]:
                raise ValueError(f"the digest of {path.name} does not match its content")
            content = json.loads(document["content"])
            if _digest(weights) != content["tensors"]:
                raise ValueError(f"the digest of {weights.name} does not match the one in {path.name}")
            checkpoint = Checkpoint(content["step"], load_file(weights), content["values"])
        except (ValueError, OSError, KeyError, TypeError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error})")
        else:
            for message in damaged:
                warnings.warn(f"{message}; the one before it is used", stacklevel=2)
            return checkpoint
    if damaged:
        raise ValueError(f"{'; '.join(damaged)}. No other is left: remove {folder} to start over")
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove the files that `save_checkpoint` wrote, and the folder if nothing else is in it."""
    for path in [*folder.glob("step_*"), *folder.glob(".step_*")]:
        path.unlink()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def training_tensors(networks: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that the next update depends on, buffers outside the state of a module included."""
    tensors = dict(networks.named_buffers()) | networks.state_dict()
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in values.items()}
    return tensors


def restore_training(tensors: Mapping[str, Tensor], networks: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Undo `training_tensors`. Raises RuntimeError if the tensors do not fit the networks."""
    state, modules, own = networks.state_dict(), dict(networks.named_modules()), {}
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        where, _, name = key.rpartition(".")
        if key.startswith("optimizer."):
            parameter = parameters[number := int(where.removeprefix("optimizer."))]
            like = parameter if value.shape == parameter.shape else value  # in the memory layout of the parameter
            moments.setdefault(number, {})[name] = torch.empty_like(like, device=parameter.device).copy_(value)
        elif key in state or not hasattr(modules.get(where), name):
            own[key] = value
        else:  # a buffer outside the state, perhaps None so far
            setattr(modules[where], name, value.to(parameters[0].device))
    loss = {key: value for key, value in state.items() if key.startswith("loss.")}  # early checkpoints lack it
    networks.load_state_dict(loss | own)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
