"""Checkpoints of a training: tensors as safetensors, the rest as JSON, each with a digest that notices damage."""

import hashlib
import json
import warnings
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hsic_lab.checks import only_tensors
from hsic_lab.files import replace_file

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
        "step": checkpoint.step, "values": checkpoint.values, "tensors": _digest(stem.with_suffix(".safetensors"))
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
            checkpoint = _read(path)
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
                raise TypeError(f"the optimiser keeps {key} = {value!r}, which is no tensor: it cannot be resumed")
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
            # In the parameter's memory layout, as the optimiser would have made it.
            like = torch.empty_like(parameter if value.shape == parameter.shape else value, device=parameter.device)
            optimizer.state[parameter][name] = like.copy_(value)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.json"), reverse=True)


def _read(path: Path) -> Checkpoint:
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
