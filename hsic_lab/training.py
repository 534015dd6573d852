"""Train an encoder on pairs of views: a config in, a run on disk out."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from hsic_lab.allocation import freed_memory_kept
from hsic_lab.checkpoints import FOLDER, load_checkpoint, remove_checkpoints
from hsic_lab.config import LOSSES, TrainConfig
from hsic_lab.datasets import ImageData, default, full_name, load
from hsic_lab.frozen import extract_features
from hsic_lab.hardware import hardware, resolved_precision
from hsic_lab.interrupts import stop_requests
from hsic_lab.monitors import make_monitor
from hsic_lab.norm_relu import kernel
from hsic_lab.optimizers import warmup_cosine
from hsic_lab.pairs import TrainingPairs, Views, held_out_pairs
from hsic_lab.parallel import across_processes, own_rows, processes, wait_for_all
from hsic_lab.processes import process_count
from hsic_lab.runs import FILES, MONITOR, SETTINGS, Run, build_networks, plain, read_settings, read_snapshots
from hsic_lab.siamese import OnlineNetwork, TargetNetwork, make_predictor
from hsic_lab.trainer import Callback, Event, Trainer

__all__ = ["LOSSES", "Event", "TrainConfig", "pick_device", "train", "train_once", "warmup_cosine"]

_ONE_AT_A_TIME = RLock()  # what is random in networks is drawn from the generator of the whole process
if hasattr(os, "register_at_fork"):  # a child may be forked while a thread of its parent trains
    os.register_at_fork(after_in_child=lambda: globals().update(_ONE_AT_A_TIME=RLock()))


def train(
    config: TrainConfig,
    folder: str | Path,
    data: ImageData | None = None,
    progress: bool = True,
    *,
    resume: bool = False,
    encoder: nn.Module | None = None,
    views: Views | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train with `config`, keep the run in `folder`, return it.

    The folder is written at the start, at every snapshot and at the end, with a checkpoint every `checkpoint_every`
    epochs. Ctrl-C and SIGTERM are heeded after the step at hand, which is checkpointed (the last one finishes the run,
    and then the request is heeded). A loss or gradient that is not
    finite (FloatingPointError naming the step) and any other error leave the run so far, with its state in `run.json`,
    and are raised.

    resume:    go on with the run in `folder`, from its newest checkpoint that is whole (a warning names others); start
               it if there is none, return it if it is finished. However it was stopped, weights and history (but for
               `seconds`) end on a CPU as if it had not been. Raises ValueError if it has other settings or pictures, or
               if all its checkpoints are damaged
    encoder:   your own module, `(n, c, h, w) -> (n, p)`; it is trained in place, all of it in training mode, and the
               config's `encoder` is "custom"
    views:     `(images, generator) -> (view_a, view_b)` in place of the config's `views`, uint8 or floats on the scale
               of `views.normalize`; not for scenes
    callbacks: each is called with an `Event` at every logged step, snapshot and evaluation of the monitor

    Of several threads of one process, one trains at a time: a callback must not wait for another.
    Under `torchrun` every process calls this alike and holds its rows of each batch; loss, statistics and batch
    normalisation are those of one process with all rows. `folder` must be the same for all; one process writes it.

    Raises FileExistsError if `folder` already holds a run and `resume` is not set.
    """
    folder = Path(folder)
    device = pick_device(config.device)
    config = config if encoder is None else replace(config, encoder="custom")
    data = data or (default() if config.dataset == "default" else load(config.dataset))
    config = replace(config, dataset=data.name)
    with _ONE_AT_A_TIME, processes(device), freed_memory_kept():
        return _train(config, folder, data, device, progress, resume, encoder, views, callbacks)


def train_once(
    config: TrainConfig, folder: str | Path, data: ImageData | None = None, progress: bool = True
) -> Run:
    """The finished run of exactly these settings in `folder`: read, or trained, or an unfinished one resumed.

    Raises FileExistsError if `folder` holds a run of others, or of other pictures than `data`.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists():
        stored, state, facts = read_settings(folder)
        if data is not None:
            dataset = data.name
        else:
            dataset = stored["dataset"] if config.dataset == "default" else full_name(config.dataset)
        try:
            _same_run(folder, stored, facts, replace(config, dataset=dataset), data)
        except ValueError as error:
            raise FileExistsError(f"{error}: remove it or choose another folder") from error
        if state == "finished":
            return Run.load(folder)
    return train(config, folder, data, progress, resume=True)


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU; under `torchrun` the process's own.

    Raises ValueError for a name that is none, or a CUDA device where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and (local := os.environ.get("LOCAL_RANK")) is not None:
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, and torch finds no CUDA device")
    return device


def _train(
    config: TrainConfig, folder: Path, data: ImageData, device: torch.device, progress: bool, resume: bool,
    encoder: nn.Module | None, views: Views | None, callbacks: Sequence[Callback],
) -> Run:
    going_on = (folder / SETTINGS).exists()
    if going_on and not resume:
        raise FileExistsError(f"{folder} already holds a run: resume it, remove it, or choose another folder")
    if going_on:
        stored, state, facts = read_settings(folder)
        _same_run(folder, stored, facts, config, data, views)
        if state == "finished":
            return Run.load(folder, encoder)
    wait_for_all()  # before one of them writes what the others look for
    pairs = TrainingPairs(data, config, device, own_rows(config.batch_size), views)
    run = _new_run(config, folder, data, device, encoder, views is not None)
    trainer = _trainer(run, config, data, pairs, callbacks)
    if going_on:
        _go_on(trainer)
    held_out = held_out_pairs(data, config, device, views)
    run.facts["held_out_pairs"] = len(held_out[0])
    return _fit(trainer, held_out, progress)


def _fit(trainer: Trainer, held_out: Sequence[Tensor], progress: bool) -> Run:
    run = trainer.run
    try:
        with stop_requests() as stop:
            trainer.fit(held_out, stop, progress and trainer.writes)
        run.state = "finished"  # also where the request to stop came within the last step
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run.state = "interrupted" if stopped else f"failed: {error}"
        raise
    finally:
        trainer.online.eval()
        trainer.save_run()
    if trainer.writes:
        remove_checkpoints(run.folder / FOLDER)
    if stop:
        raise stop.error()
    return run


def _go_on(trainer: Trainer) -> None:
    """Put the trainer where the folder's newest whole checkpoint stands; leave it at the start if there is none."""
    folder = trainer.run.folder
    if trainer.writes:  # left by a process that was killed while it wrote
        for name in (*FILES, MONITOR):
            for path in folder.glob(f".{name}.*"):
                path.unlink(missing_ok=True)
    checkpoint = load_checkpoint(folder / FOLDER)
    if checkpoint is not None:
        trainer.resume(checkpoint)
        kept = read_snapshots(folder)
        trainer.run.snapshots = {step: c for step, c in kept.items() if step <= checkpoint.step}
    if trainer.writes:
        print(f"Resuming {folder} after step {trainer.step_count} of {trainer.steps}", flush=True)


def _trainer(
    run: Run, config: TrainConfig, data: ImageData, pairs: TrainingPairs, callbacks: Sequence[Callback]
) -> Trainer:
    with _seeded(config.seed + 1):
        predictor = make_predictor(config)
    online = OnlineNetwork(run.encoder, run.projector, predictor)
    online = across_processes(online, pairs.device).to(pairs.device, memory_format=torch.channels_last)
    run.encoder, run.projector = online.encoder, online.projector
    target = TargetNetwork(online, config.target_momentum) if config.target == "momentum" else None
    monitor = make_monitor(config.monitor, data)
    return Trainer(run, online, target, config, pairs, monitor, callbacks)


def _new_run(
    config: TrainConfig, folder: Path, data: ImageData, device: torch.device, encoder: nn.Module | None,
    own_views: bool = False,
) -> Run:
    settings, images = plain(config), data.train.images
    channels = images.shape[1]
    features = None
    if encoder is not None:
        features = extract_features(encoder, images[:2]).shape[1]
    with _seeded(config.seed):
        encoder, projector = build_networks(settings, channels, encoder, features)
    precision = resolved_precision(config.precision, device)
    compiled = device.type == "cpu" and precision == "bfloat16" and kernel() is not None
    facts: dict[str, Any] = {
        "channels": channels, "train_images": sum(map(len, data.trained_on)), "pictures": data.fingerprint,
        "device": str(device), "hardware": hardware(device), "precision": precision,
        "norm_relu": "compiled" if compiled else "torch", "views": "custom" if own_views else "by name",
        "processes": process_count(), "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Run(folder, settings, encoder, projector, facts=facts | ({"features": features} if features else {}))


def _same_run(
    folder: Path, stored: dict[str, Any], facts: dict[str, Any], config: TrainConfig, data: ImageData | None,
    views: Views | None = None,
) -> None:
    """ValueError unless the run in `folder` has these settings, pictures and views (runs did not always say)."""
    wanted = plain(config)
    if stored != wanted:
        names = sorted(name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name))
        different = {name: (stored.get(name), wanted.get(name)) for name in names}
        raise ValueError(f"{folder} holds a run with other settings (there, here): {different}")
    if data is not None and (there := facts.get("pictures", data.fingerprint)) != (here := data.fingerprint):
        raise ValueError(f"{folder} holds a run on other pictures, {there}; those of {data.name!r} are {here}")
    if "views" in facts and (facts["views"] == "custom") != (views is not None):
        raise ValueError(f"{folder} holds a run with{'out' * (views is not None)} views of its own: give the same")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initialisation is seeded and leaves the caller's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
