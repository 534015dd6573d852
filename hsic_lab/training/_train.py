"""What a training frees stays with the process: on a CPU, clearing fresh pages costs as much as half its arithmetic."""

import ctypes
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

from hsic_lab._distributed import across_processes, barrier, own_rows, processes, world_size
from hsic_lab.datasets import ImageData, load
from hsic_lab.datasets._published import full_name
from hsic_lab.evaluation import extract_features
from hsic_lab.training._callbacks import Callback, make_monitor
from hsic_lab.training._config import TrainConfig, hardware, pick_device, resolved_precision
from hsic_lab.training._data import TrainingPairs, held_out_pairs
from hsic_lab.training._networks import OnlineNetwork, TargetNetwork, Views, build_networks, make_predictor
from hsic_lab.training._run import (
    FILES,
    FOLDER,
    MONITOR,
    SETTINGS,
    Run,
    load_checkpoint,
    plain,
    read_settings,
    read_snapshots,
    remove_checkpoints,
)
from hsic_lab.training._trainer import Trainer, stop_requests

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h
_KEPT = 1 << 30
_MOST_BY_ITSELF = 1 << 25  # bytes to which glibc raises its thresholds on its own; twice that for the first


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block, glibc hands out freed memory again, up to 1 GiB a block, before it asks for more; then it gives
    back what is left.

    On its own it returns large blocks to the system at once, which clears every page of the next one, and a training
    step frees and asks for all its activations. For the whole process; elsewhere than on glibc nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _KEPT)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MOST_BY_ITSELF)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST_BY_ITSELF)
        libc.malloc_trim(0)


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
               `seconds`) end on a CPU as if it had not been. Raises ValueError if it has other settings or images, or
               if all its checkpoints are damaged
    encoder:   your own module, `(n, c, h, w) -> (n, p)`; it is trained in place, all of it in training mode, and the
               config's `encoder` is "custom"
    views:     `(images, generator) -> (view_a, view_b)` in place of the config's `views`, uint8 or floats on the scale
               of `views.normalize`; not for scenes
    callbacks: each is called with an `Event` at every logged step, snapshot and evaluation of the monitor

    Of several threads of one process, one trains at a time: a callback must not wait for another.
    Under `torchrun` every process calls this alike and holds its rows of each batch; loss, statistics and batch
    normalization are those of one process with all rows. `folder` must be the same for all; one process writes it.

    Raises FileExistsError if `folder` already holds a run and `resume` is not set.
    """
    folder = Path(folder)
    device = pick_device(config.device)
    config = config if encoder is None else replace(config, encoder="custom")
    data = data or load(config.dataset)
    config = replace(config, dataset=data.name)
    with _ONE_AT_A_TIME, processes(device), freed_memory_kept():
        return _train(config, folder, data, device, progress, resume, encoder, views, callbacks)


def train_or_load(config: TrainConfig, folder: str | Path, data: ImageData | None = None, progress: bool = True) -> Run:
    """The finished run of exactly these settings in `folder`: read, or trained, or an unfinished one resumed.

    Raises FileExistsError if `folder` holds a run of others, or of other images than `data`.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists():
        stored, state, metadata = read_settings(folder)
        dataset = full_name(config.dataset) if data is None else data.name
        try:
            _same_run(folder, stored, metadata, replace(config, dataset=dataset), data)
        except ValueError as error:
            raise FileExistsError(f"{error}: remove it or choose another folder") from error
        if state == "finished":
            return Run.load(folder)
    return train(config, folder, data, progress, resume=True)


def _train(
    config: TrainConfig,
    folder: Path,
    data: ImageData,
    device: torch.device,
    progress: bool,
    resume: bool,
    encoder: nn.Module | None,
    views: Views | None,
    callbacks: Sequence[Callback],
) -> Run:
    going_on = (folder / SETTINGS).exists()
    if going_on and not resume:
        raise FileExistsError(f"{folder} already holds a run: resume it, remove it, or choose another folder")
    if going_on:
        stored, state, metadata = read_settings(folder)
        _same_run(folder, stored, metadata, config, data, views)
        if state == "finished":
            return Run.load(folder, encoder)
    barrier()  # before one of them writes what the others look for
    pairs = TrainingPairs(data, config, device, own_rows(config.batch_size), views)
    run = _new_run(config, folder, data, device, encoder, views is not None)
    trainer = _trainer(run, config, data, pairs, callbacks)
    if going_on:
        _go_on(trainer)
    held_out = held_out_pairs(data, config, device, views)
    run.metadata["held_out_pairs"] = len(held_out[0])
    return _fit(trainer, held_out, progress)


def _fit(trainer: Trainer, held_out: Sequence[Tensor], progress: bool) -> Run:
    run = trainer.run
    try:
        with stop_requests() as stop:
            trainer.fit(held_out, stop, progress and trainer.writes)
        run.status = "finished"  # also where the request to stop came within the last step
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run.status = "interrupted" if stopped else f"failed: {error}"
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
    config: TrainConfig,
    folder: Path,
    data: ImageData,
    device: torch.device,
    encoder: nn.Module | None,
    own_views: bool = False,
) -> Run:
    images = data.train.images
    channels = images.shape[1]
    features = None
    if encoder is not None:
        features = extract_features(encoder, images[:2]).shape[1]
    with _seeded(config.seed):
        encoder, projector = build_networks(config, channels, encoder, features)
    precision = resolved_precision(config.precision, device)
    metadata: dict[str, Any] = {
        "channels": channels,
        "train_images": sum(map(len, data.trained_on)),
        "pictures": data.fingerprint,
        "device": str(device),
        "hardware": hardware(device),
        "precision": precision,
        "views": "custom" if own_views else "by name",
        "processes": world_size(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return Run(folder, config, encoder, projector, metadata=metadata | ({"features": features} if features else {}))


def _same_run(
    folder: Path,
    stored: TrainConfig,
    metadata: dict[str, Any],
    config: TrainConfig,
    data: ImageData | None,
    views: Views | None = None,
) -> None:
    """ValueError unless the run in `folder` has these settings, images and views (runs did not always say)."""
    there, wanted = plain(stored), plain(config)
    if there != wanted:
        names = sorted(name for name in wanted if there[name] != wanted[name])
        different = {name: (there[name], wanted[name]) for name in names}
        raise ValueError(f"{folder} holds a run with other settings (there, here): {different}")
    if data is not None and (there := metadata.get("pictures", data.fingerprint)) != (here := data.fingerprint):
        raise ValueError(f"{folder} holds a run on other images, {there}; those of {data.name!r} are {here}")
    if "views" in metadata and (metadata["views"] == "custom") != (views is not None):
        raise ValueError(f"{folder} holds a run with{'out' * (views is not None)} views of its own: give the same")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initialization is seeded and leaves the caller's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
