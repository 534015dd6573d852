"""A training run on disk, and the checkpoints of an unfinished one."""

import errno
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsic_lab._checks import check_type, is_whole
from hsic_lab._io import remove_leftovers, replace_file
from hsic_lab.training._config import TrainConfig
from hsic_lab.training._setup import make_networks

SETTINGS, HISTORY, SNAPSHOTS, WEIGHTS = "run.json", "history.csv", "correlation.safetensors", "weights.safetensors"
SAMPLES = "samples.safetensors"  # older runs lack it
FILES = (SETTINGS, HISTORY, SNAPSHOTS, SAMPLES, WEIGHTS)
MONITOR = "monitor.csv"  # only in runs with a monitor
FOLDER = "checkpoints"
KEPT = 2  # the newest checkpoint, and the one before it in case the newest is damaged
LOCK = "train.lock"  # held while a process trains
_STEP = "step_"
Settings = tuple[TrainConfig, str, dict[str, Any], dict[str, str]]  # config, status, metadata, digests of files
_LACKS = {errno.EACCES, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.ESTALE}  # not a file's fault


class DamagedRun(ValueError):
    """A file of a run cannot be read, or is not the one that was written."""


class MissingFile(DamagedRun, FileNotFoundError):
    """A file of a run is not there."""


@dataclass(eq=False, repr=False)
class Run:
    """Result of one training: settings, history, snapshots of C and networks, in one folder.

    Attributes
    ----------
    folder, config, status : Path, TrainConfig, str
        "running", "finished", "interrupted" or "failed: ..." with the reason.
    encoder, projector : nn.Module
        The networks. After `load` they are in evaluation mode on the CPU.
    metadata : dict
        Data set size and fingerprint, device, precision and versions.
    history, monitor : DataFrame
        One row for each logged step: the loss and its terms, mean entries of C on and off the diagonal, the root mean
        square of the latter, and so on; one for each evaluation on training labels, with its protocol and split.
    snapshots, samples : dict of int to Tensor of shape (d, d), and of shape (2, m, d)
        By step, 0 before training: C of the same held-out pairs, in evaluation mode; and standardized projections of
        both views of the first m of these pairs, in float16.
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

    def __post_init__(self) -> None:
        self._kept = self.status  # in the folder

    def __repr__(self) -> str:
        kept = f"{len(self.history)} rows of history, {len(self.snapshots)} snapshots"
        return f"Run({str(self.folder)!r}, {self.config.loss}, {self.status}, {kept})"

    @property
    def unfinished(self) -> str:
        """What is to be said of weights of a training that has not finished; empty if it has."""
        words = f"{self.folder} is not finished ({self.status}): its weights are those of step"
        return "" if self.status == "finished" else f"{words} {max(self.snapshots, default=0)} or later"

    def save(self) -> None:
        """Write all files of the folder. Each file is replaced as a whole; `run.json` then holds their digests."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {WEIGHTS: _on_cpu(nn.ModuleDict({"encoder": self.encoder, "projector": self.projector}).state_dict())}
        for name, by_step in ((SNAPSHOTS, self.snapshots), (SAMPLES, self.samples)):
            tensors[name] = {f"{_STEP}{step:06d}": tensor for step, tensor in by_step.items()}
        tables = {HISTORY: self.history} | ({MONITOR: self.monitor} if len(self.monitor) else {})
        files: dict[str, Callable[[Path], Any]] = {name: partial(save_file, one) for name, one in tensors.items()}
        files |= {name: partial(frame.to_csv, index=False) for name, frame in tables.items()}
        self._save_settings({})  # a process that is killed now leaves old and new files: none can be checked
        for name, write in files.items():
            replace_file(self.folder / name, write)
        self._kept = self.status
        self._save_settings({name: _digest(self.folder / name) for name in files})

    def _save_settings(self, digests: dict[str, str]) -> None:
        settings = {"config": asdict(self.config), "state": self._kept, "facts": self.metadata}
        own = _text_digest(json.dumps(settings | {"sha256": digests}))
        text = json.dumps(settings | {"sha256": digests | {SETTINGS: own}}, indent=2)
        replace_file(self.folder / SETTINGS, lambda path: path.write_text(text + "\n"))

    @classmethod
    def load(cls, folder: str | os.PathLike, encoder: nn.Module | None = None) -> "Run":
        """Read the folder of a run; warn if it is unfinished. `encoder` is your own module, which gets the weights."""
        path = Path(check_type("folder", folder, str, os.PathLike)) / SETTINGS
        before = path.read_bytes() if path.is_file() else b""
        try:
            run = cls._load(Path(folder), encoder)
        except DamagedRun:
            if path.read_bytes() == before:
                raise
            return cls.load(folder, encoder)  # a process that trains has saved the run between two of the files
        if run.unfinished:
            warnings.warn(f"{run.unfinished}; to finish it, pass resume=True to train, or --resume", stacklevel=2)
        return run

    @classmethod
    def _load(cls, folder: Path, encoder: nn.Module | None) -> "Run":
        config, status, metadata, digests = read_settings(folder)
        encoder, projector = make_networks(config, metadata["channels"], encoder, metadata.get("features"))
        networks = nn.ModuleDict({"encoder": encoder, "projector": projector}).eval()
        weights = _read(folder / WEIGHTS, load_file, digests)
        try:
            networks.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS} does not fit the encoder of {SETTINGS}: {error}") from error
        history, snapshots = _read(folder / HISTORY, _read_history, digests), read_snapshots(folder, digests)
        monitor = _read(folder / MONITOR, _read_history, digests) if (folder / MONITOR).exists() else pd.DataFrame()
        samples = read_snapshots(folder, digests, SAMPLES)
        return cls(folder, config, encoder, projector, status, metadata, history, snapshots, monitor, samples)


def read_settings(folder: Path) -> Settings:
    """The config, the status, the metadata and the digests of files in the folder of a run; older runs lack digests."""
    if not (folder / SETTINGS).is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {SETTINGS}. `hsic-lab train` makes one.")

    def parse(path: Path) -> Settings:
        settings = json.loads(path.read_text())
        digests = settings.pop("sha256", {}) if isinstance(settings, dict) else None
        match settings, digests:
            case {"config": dict(config), "state": str(state), "facts": {"channels": _} as facts}, dict():
                if any(not is_whole(facts.get(name, 1)) or facts.get(name, 1) < 1 for name in ("channels", "features")):
                    raise ValueError(f"channels and features must be whole numbers of at least 1, got {facts}")
            case _:
                raise ValueError("it lacks config, state, facts or the number of channels, or one is of another type")
        own, older = digests.pop(SETTINGS, None), not digests and len(settings) == 3  # older runs have no digests
        if own != _text_digest(json.dumps(settings | {"sha256": digests})) and not (own is None and older):
            warnings.warn(f"{path} was changed since the training wrote it", stacklevel=1)
        return TrainConfig.from_json(config), state, facts, digests

    return _read(folder / SETTINGS, parse, {})


def settings_to_resume(folder: Path) -> Settings:
    """As `read_settings`; if that file is damaged, what the newest checkpoint says, with a warning."""
    try:
        return read_settings(folder)
    except DamagedRun as error:
        kept = load_checkpoint(folder / FOLDER)
        if kept is None or "config" not in kept.values:
            raise
        warnings.warn(f"{error}: its settings are those of the checkpoint at step {kept.step}", stacklevel=1)
        return TrainConfig.from_json(kept.values["config"]), "running", kept.values["facts"], {}


def read_snapshots(folder: Path, digests: Mapping[str, str], name: str = SNAPSHOTS) -> dict[int, Tensor]:
    """The matrices C in the folder of a run by step, or its samples, which older runs lack."""
    if name == SAMPLES and name not in digests and not (folder / name).exists():
        return {}
    return {int(key.removeprefix(_STEP)): c for key, c in sorted(_read(folder / name, load_file, digests).items())}


def _read_history(path: Path) -> pd.DataFrame:
    if not path.read_text().strip():  # the run stopped before its first logged step
        return pd.DataFrame()
    if "step" not in (history := pd.read_csv(path)):
        raise ValueError(f"no column 'step' among {list(history.columns)}")
    return history


def _read(path: Path, reader: Callable[[Path], Any], digests: Mapping[str, str]) -> Any:
    """What `reader` gives for the file; DamagedRun with advice if it fails or the digest is another."""
    advice = "resume the training" if (path.parent / FOLDER).exists() else "train the run again"
    try:
        if path.name in digests and _digest(path) != digests[path.name]:
            raise ValueError(f"its digest is not the one in {SETTINGS}")
        return reader(path)
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not path.exists():
            raise MissingFile(f"{path} is missing: the run was never saved whole; {advice}") from None
        if of_the_machine(error) or isinstance(error, FileNotFoundError):  # how safetensors says "too many open files"
            raise
        raise DamagedRun(f"{path} is damaged ({error}); {advice}") from error


def of_the_machine(error: Exception) -> bool:
    """Whether a lack of memory, disk, GPU or permission made the error: nothing is known of files or settings."""
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
    return memory or "CUDA error" in str(error) or getattr(error, "errno", None) in _LACKS


def _on_cpu(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies that safetensors can write: contiguous, and apart where networks share a weight."""
    if strange := {key: value for key, value in state.items() if not isinstance(value, Tensor)}:
        raise TypeError(f"all values of a network's state must be tensors to be saved, got {strange}")
    return {key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}


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
    document = json.dumps({"sha256": _text_digest(content), "content": content})
    replace_file(path, lambda temporary: temporary.write_text(document))
    remove_checkpoints(folder, keep=_finished(folder)[-KEPT:])


def _finished(folder: Path) -> list[Path]:
    """The JSON files of the checkpoints in the folder, oldest first."""
    return sorted(folder.glob("step_????????.json"))


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint, None if there is none; warns of damaged ones, ValueError if all are damaged."""
    damaged = []
    for path in reversed(_finished(folder)):
        try:
            document, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
            if _text_digest(document["content"]) != document["sha256"]:
                raise ValueError(f"the digest of {path.name} does not match its content")
            content = json.loads(document["content"])
            if _digest(weights) != content["tensors"]:
                raise ValueError(f"the digest of {weights.name} does not match the one in {path.name}")
            checkpoint = Checkpoint(content["step"], load_file(weights), content["values"])
        except Exception as error:
            if of_the_machine(error):
                raise
            damaged.append(f"checkpoint {path} is damaged ({error})")
        else:
            for message in damaged:
                warnings.warn(f"{message}; the one before it is used", stacklevel=1)
            return checkpoint
    if damaged:
        raise DamagedRun(f"{'; '.join(damaged)}. No other is left: remove {folder} to start over")
    return None


def remove_checkpoints(folder: Path, keep: Sequence[Path] = ()) -> None:
    """Remove the files that `save_checkpoint` wrote, without those to `keep`, and the folder if nothing is left."""
    remove_leftovers(folder, r"step_\d{8}\.(json|safetensors)")
    for path in [*_finished(folder), *folder.glob("step_????????.safetensors")]:
        if path.with_suffix(".json") not in keep:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty, or a link to another disk
        folder.rmdir()


def remove_run(folder: Path) -> None:
    """Remove the files that a training wrote."""
    remove_checkpoints(folder / FOLDER)
    remove_leftovers(folder, *FILES, MONITOR)
    for name in (*FILES, MONITOR):
        (folder / name).unlink(missing_ok=True)


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
            number = int(where.removeprefix("optimizer."))
            parameter = parameters[number] if number < len(parameters) else torch.empty(0)
            if value.ndim and value.shape != parameter.shape:
                raise RuntimeError(f"{key} has the shape {tuple(value.shape)}, its weight {tuple(parameter.shape)}")
            like = parameter if value.ndim else value  # in the memory layout of the parameter
            moments.setdefault(number, {})[name] = torch.empty_like(like, device=parameter.device).copy_(value)
        elif key in state or not hasattr(modules.get(where), name):
            own[key] = value
        else:  # a buffer outside the state, perhaps None so far
            setattr(modules[where], name, value.to(parameters[0].device))
    loss = {key: value for key, value in state.items() if key.startswith("loss.")}  # early checkpoints lack it
    networks.load_state_dict(loss | own)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
