"""Train with a config, resume, or read what is there."""

import ctypes
import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import nn

from hsic_lab._checks import check_type
from hsic_lab._distributed import own_rows, processes, same_everywhere, world_size
from hsic_lab._io import remove_leftovers, sole_process
from hsic_lab.datasets import ImageData, load
from hsic_lab.datasets._published import full_name
from hsic_lab.evaluation import extract_features
from hsic_lab.training import _setup as setup
from hsic_lab.training._config import TrainConfig, hardware, pick_device, resolved_precision
from hsic_lab.training._run import FILES, FOLDER, LOCK, MONITOR, SETTINGS, Run, remove_checkpoints, settings_to_resume
from hsic_lab.training._trainer import Callback, Trainer, make_monitor, stop_error, stop_requests

_LOCKS: dict[int, RLock] = {}  # by process, because a child may be forked while a thread of its parent trains


def training_lock() -> RLock:
    """The lock of this process: one thread trains at a time, because all draw from the global generator of torch."""
    return _LOCKS.setdefault(os.getpid(), RLock())


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc reuse freed memory, unless the environment says how: saves 27 to 30 % of the time on a CPU."""
    chosen = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"} & os.environ.keys()
    if platform.libc_ver()[0] != "glibc" or chosen:
        yield
        return
    libc, mmap_threshold, trim_threshold = ctypes.CDLL(None), -3, -1  # numbers of the parameters, from malloc.h
    libc.mallopt(mmap_threshold, 1 << 30)
    libc.mallopt(trim_threshold, 1 << 30)
    try:
        yield
    finally:
        libc.mallopt(mmap_threshold, 1 << 25)  # the old values cannot be read: the largest that glibc chooses itself
        libc.mallopt(trim_threshold, 1 << 26)
        libc.malloc_trim(0)


def train(
    config: TrainConfig, folder: str | Path, data: ImageData | None = None, progress: bool = True, *,
    resume: bool = False, encoder: nn.Module | None = None, views: setup.Views | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:  # fmt: skip
    """Train an encoder and keep the run in a folder.

    The folder is written at the start, at every snapshot and at the end. After Ctrl-C or SIGTERM the present step is
    finished and checkpointed. Under `torchrun` every process calls `train` alike and holds its rows of each batch; the
    result is that of one process. One thread trains at a time: a callback must not wait for another training.

    FileExistsError is raised if `folder` holds a run and `resume` is False, or files of a run without `run.json`;
    ValueError if the run has other settings or only damaged checkpoints; BlockingIOError if another process trains
    there; FloatingPointError if the loss or its gradient is not finite. The run so far is kept after every error.

    Parameters
    ----------
    config, folder : TrainConfig, path
        The settings, and the folder for the run, under `torchrun` the same for all processes.
    data, progress : ImageData or None, bool, default None, True
        Images to train on in place of `config.dataset`, and whether to show a progress bar.
    resume : bool, default False
        Continue the run in `folder` from its newest undamaged checkpoint, start it if there is none, return it if it is
        finished. On a CPU the result is that of an uninterrupted training; a warning names conditions that differ.
    encoder, views : nn.Module or None, callable or None, default None
        Your own encoder from images (n, c, h, w) to features (n, p), which is trained in place, in float32; and
        ``(images, generator) -> (view_1, ..., view_V)`` in place of `config.views`, from and to uint8 images or
        floating point ones on the scale of `views.normalize`. Not for digit scenes.
    callbacks : sequence of callables
        Each is called with an `Event` at every logged step, snapshot and evaluation of the monitor.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from hsic_lab.training import TrainConfig, train
    >>> config = TrainConfig(dataset="digits", width=1, projector=(8, 4), epochs=1, device="cpu")
    >>> with TemporaryDirectory() as folder:
    ...     train(config, folder, progress=False).status
    'finished'
    """
    check_type("config", config, TrainConfig), check_type("encoder", encoder, nn.Module, type(None))
    check_type("data (from_arrays makes it)", data, ImageData, type(None))
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError(f"callbacks must be a list of functions, got {callbacks!r}")
    folder, device = Path(folder).absolute(), pick_device(config.device)  # a callback may change the working folder
    with training_lock(), processes(device), freed_memory_kept(), setup.float32_default():
        if data is None:
            stored = resume and (folder / SETTINGS).exists()
            data = setup.data_of(config.dataset, settings_to_resume(folder)[2]) if stored else load(config.dataset)
        config = replace(config, dataset=data.name, encoder=config.encoder if encoder is None else "custom")
        found = _status_if_same(folder, config, data, views)
        same_everywhere(
            asdict(replace(config, device=device.type)) | {
                "images": data.fingerprint, "dtype": str(data.train.images.dtype), "own views": views is not None,
                "resolved precision": resolved_precision(config.precision, device), "torch": torch.__version__,
                "run in the folder": found, "resume": resume,
            }, device,
        )  # fmt: skip
        if found and not resume:
            raise FileExistsError(f"{folder} already holds a run: resume it (--resume), remove it, or choose another")
        if found == "finished":
            run = Run.load(folder, encoder)
            with suppress(OSError):  # left by a process that was killed at the end; the disk may be read-only
                remove_checkpoints(folder / FOLDER)
                remove_leftovers(folder, *FILES, MONITOR)
            return run
        pairs = setup.TrainingPairs(data, config, device, own_rows(config.batch_size, config.parts), views)
        run = new_run(config, folder, data, encoder, views)
        shapes = [[name, *weight.shape] for name, weight in run.encoder.named_parameters()]
        same_everywhere({"encoders": shapes}, device)
        trainer = Trainer(run, pairs, make_monitor(config.monitor, data), callbacks)
        held_out = setup.held_out_pairs(data, config, device, views)
        run.metadata["held_out_pairs"] = len(held_out[0])
        folder.mkdir(parents=True, exist_ok=True)
        with sole_process(folder / LOCK, remove=True) if trainer.writes else nullcontext() as check:
            if check is not None:
                trainer.check_folder = check
                if _status_if_same(folder, config, data, views) != found:
                    raise BlockingIOError(f"another process has just trained in {folder}: start again")
                remove_leftovers(folder, *FILES, MONITOR)
            if found:
                _warn_of_changes(folder, run.metadata)
                trainer.resume()
            same_everywhere({"step to resume from": trainer.step_count}, device)
            try:  # the run is stored with its status whatever happens
                with stop_requests() as stop:
                    trainer.fit(held_out, stop, progress and trainer.writes)
                run.status = "finished"  # also if a signal came during the last step
            except BaseException as error:
                run.status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else f"failed: {error}"
                raise
            finally:
                trainer.online.eval()
                trainer.save_run()
            if trainer.writes:
                remove_checkpoints(folder / FOLDER)
        if stop:
            raise stop_error(stop)
        return run


def train_or_load(config: TrainConfig, folder: str | Path, data: ImageData | None = None, progress: bool = True) -> Run:
    """The finished run of these settings: read from the folder, or trained, or resumed.

    The parameters are those of `train`. FileExistsError is raised if `folder` holds a run of other settings or of other
    images than `data`; the images of a finished run are not loaded to compare them.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists():
        name = full_name(config.dataset) if data is None else data.name
        settings_to_resume(folder)  # a damaged file is a ValueError, not another run
        try:
            status = _status_if_same(folder, replace(config, dataset=name), data)
        except ValueError as error:
            raise FileExistsError(f"{error}: remove it or choose another folder") from error
        if status == "finished":
            return Run.load(folder)
    return train(config, folder, data, progress, resume=True)


def new_run(config: TrainConfig, folder: Path, data: ImageData, encoder: Any = None, views: Any = None) -> Run:
    """A run with initialized networks; its metadata describe the data and the machine."""
    images, device, features = data.train.images, pick_device(config.device), {}
    if encoder is not None:  # layers that take their widths from the first images draw their weights here
        with setup.torch_seed(config.seed, device):
            features = {"features": extract_features(encoder.float(), images[:2]).shape[1]}
    networks = setup.make_networks(config, images.shape[1], encoder, features.get("features"))
    metadata = {
        "channels": images.shape[1], "train_images": sum(map(len, data.trained_on)), "pictures": data.fingerprint,
        "source": data.source, "judged": data.judged,
        "device": str(device), "hardware": hardware(device), "precision": resolved_precision(config.precision, device),
        "views": "by name" if views is None else "custom", "processes": world_size(),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    return Run(folder, config, *networks, metadata=metadata | features)


def _status_if_same(folder: Path, config: TrainConfig, data: ImageData | None, views: Any = None) -> str:
    """The status of the run in the folder, "" without one; ValueError unless it has these settings, images and views.

    FileExistsError if there are files of a run, or folders, but no settings: they may be all that somebody has.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: a run needs a folder")
    kept = sorted(p.name for p in folder.glob("[!.]*") if p.name in (*FILES, MONITOR) or p.is_dir())
    if not (folder / SETTINGS).exists():  # looked for last: another process writes it first
        if kept:
            raise FileExistsError(f"{folder} holds {', '.join(kept)} without {SETTINGS}: choose another folder")
        return ""
    stored, status, metadata, _ = settings_to_resume(folder)
    there, here = asdict(stored), asdict(config)
    if different := {name: (there[name], here[name]) for name in here if there[name] != here[name]}:
        words = "; ".join(f"{name} {old!r}, not {new!r}" for name, (old, new) in different.items())
        raise ValueError(f"{folder} holds a run with other settings ({words}), with which it can be resumed")
    if data is not None:
        setup.check_same_images(metadata, data, f"the run in {folder}")
    if "views" in metadata and (metadata["views"] == "custom") != (views is not None):
        raise ValueError(f"{folder} holds a run with{'out' * (views is not None)} views of its own: give the same")
    return status


def _warn_of_changes(folder: Path, metadata: dict[str, Any]) -> None:
    """Warn if the run in the folder goes on under other conditions, which change the last bits or more."""
    old, names = settings_to_resume(folder)[2], ("device", "hardware", "precision", "processes", "threads", "torch")
    kinds = {name: [str(one.get(name)).partition(":")[0] for one in (old, metadata)] for name in names if name in old}
    if changed := {name: pair for name, pair in kinds.items() if pair[0] != pair[1]}:
        what = "the result is not that of an uninterrupted training"
        warnings.warn(f"{folder} is resumed under other conditions (before, now), {changed}: {what}", stacklevel=3)
