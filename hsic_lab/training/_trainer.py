"""The training loop: steps, snapshots of C, checkpoints, monitors, callbacks, and an orderly stop on a signal."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cache, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm.auto import tqdm

from hsic_lab._distributed import across_processes, all_gather_rows, any_process, barrier, own_parts, rank, world_size
from hsic_lab._io import progress_options
from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import ImageData
from hsic_lab.evaluation import NEIGHBORS, extract_features, knn_accuracy, knn_protocol, linear_probe
from hsic_lab.losses._off_diagonal import split_squared_norm
from hsic_lab.training import _run as files
from hsic_lab.training import _setup as setup
from hsic_lab.training._config import TrainConfig, resolved_precision

BANK, QUERIES = 10_000, 2_000  # limits that keep a monitor cheaper than the training
SNAPSHOT_PART = 512  # images that pass through the network at once for a snapshot
PROGRESS = "epoch {epoch:.1f}, loss {loss:.2f}, diagonal {diagonal:.3f}, off-diagonal {off_diagonal:+.4f}"
Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Event:
    """What a callback receives: its kind is "step" (a logged step), "snapshot" (a new C) or "monitor" (an evaluation).

    `values` is a copy of the new row of the history or of the monitor. `run.history` is updated at snapshots.
    """

    kind: str
    step: int
    values: dict[str, Any]
    run: files.Run


Callback = Callable[[Event], None]


class TensorBoardLogger:
    """Callback that writes every number of an event to the logs of TensorBoard in a folder."""

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("TensorBoardLogger needs tensorboard: pip install tensorboard") from error
        self.writer = cache(partial(SummaryWriter, str(folder)))  # made by process 0 once the folder is that of a run

    def __call__(self, event: Event) -> None:
        for name, value in event.values.items():
            if isinstance(value, int | float) and name != "step":
                self.writer().add_scalar(f"{event.kind}/{name}", value, event.step)
        self.writer().flush()


def make_monitor(kind: str, data: ImageData) -> Callable[[nn.Module], dict[str, Any]] | None:
    """A function from an encoder to a row with its accuracy, protocol and split; None for the kind "none".

    The training images are split once, stratified by class: `BANK` of them have labels, `QUERIES` are classified.
    """
    if kind == "none":
        return None
    if not data.class_names:
        raise ValueError(f"monitor must be 'none' for images without labels, those of {data.name!r}; got {kind!r}")
    labels, seed = data.train.labels.cpu().numpy(), 0
    n, queries = len(labels), min(QUERIES, max(1, len(labels) // 5))
    sizes = {"train_size": min(BANK, n - queries), "test_size": queries}
    try:  # classes that are too small are an error before the training, not during it
        bank, asked = train_test_split(np.arange(n), **sizes, stratify=labels, random_state=seed)
        if kind == "linear":
            linear_probe(torch.zeros(len(bank), 1), labels[bank], torch.zeros(1, 1), labels[asked[:1]], seed=seed)
    except ValueError as error:
        raise ValueError(f"monitor {kind!r} cannot divide the training images of {data.name!r}: {error}") from error
    k = min(NEIGHBORS, len(bank))
    protocol = {
        "protocol": knn_protocol(k) if kind == "knn" else "linear probe",
        "split": "training images, labels of the bank only", "n_bank": len(bank), "n_queries": len(asked),
        "split_seed": seed,
    }  # fmt: skip

    def features(encoder: nn.Module, part: np.ndarray) -> Tensor:
        blocks = torch.from_numpy(part).split(512)  # all images at once may not fit into memory
        return torch.cat([extract_features(encoder, data.train.images[block]) for block in blocks])

    def monitor(encoder: nn.Module) -> dict[str, Any]:
        try:
            parts = features(encoder, bank), labels[bank], features(encoder, asked), labels[asked]
            accuracy = knn_accuracy(*parts, k=k) if kind == "knn" else linear_probe(*parts, seed=seed).accuracy
        except ValueError as error:  # features may collapse while the training goes on
            warnings.warn(f"the monitor cannot evaluate the features: {error}", stacklevel=2)
            accuracy = float("nan")
        return {"accuracy": accuracy} | protocol

    return monitor


class Trainer:
    """One training: its networks, optimizer and history, and the number of updates so far."""

    def __init__(self, run: files.Run, pairs: setup.TrainingPairs, monitor: Any = None, callbacks: Any = ()) -> None:
        config, device = run.config, pairs.device
        self.run, self.config, self.pairs, self.device = run, config, pairs, device
        self.monitor, self.callbacks, self.writes = monitor, callbacks, rank() == 0  # one process writes the files
        online = setup.OnlineNetwork(run.encoder, run.projector, setup.make_predictor(config))
        self.online = across_processes(online, device).to(device, memory_format=torch.channels_last)
        run.encoder, run.projector = self.online.encoder, self.online.projector
        self.network: Any = self.online
        if world_size() > 1:  # it sends the weights of process 0; a user's own encoder may have weights without use
            own = config.encoder == "custom"
            self.network = nn.parallel.DistributedDataParallel(self.online, find_unused_parameters=own)
        self.target = setup.TargetNetwork(self.online, config.target_momentum) if config.target == "momentum" else None
        self.loss = setup.make_loss(config)
        targets = {} if self.target is None else {"target": self.target}
        self.networks = nn.ModuleDict({"online": self.online, "loss": self.loss} | targets)  # what a checkpoint holds
        self.optimizer = setup.make_optimizer(config, self.online)
        self.forward = torch.compile(self.network) if config.compile else self.network
        bfloat16 = resolved_precision(config.precision, device) == "bfloat16"
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
        self.step_count, self.seconds, self.steps = 0, 0.0, config.epochs * len(pairs)
        self.snapshot_steps = set(np.linspace(0, self.steps, config.snapshots).round().astype(int).tolist())
        self.check_folder: Callable[[], None] = lambda: None  # raises if the folder is no longer that of this process
        self.rows: list[dict[str, float]] = []
        self.monitor_rows: list[dict[str, Any]] = []

    def fit(self, held_out: Sequence[Tensor], stop: Sequence[int], progress: bool) -> None:
        """Make the updates that are left. A signal noted in `stop` ends the training after the present step."""
        if self.step_count == 0:
            self.keep_snapshot(held_out)
            self.keep_checkpoint()  # the initial weights of a user's own encoder are stored nowhere else
        started, done, config = time.perf_counter() - self.seconds, self.step_count, self.config
        options = progress_options(self.steps)
        with tqdm(total=self.steps, initial=done, desc=config.loss, disable=not progress, **options) as bar:
            while self.step_count < self.steps:
                epoch, skip = divmod(self.step_count, len(self.pairs))
                for views in self.pairs.epoch(epoch, skip):
                    row = self.step(*views)
                    self.seconds = time.perf_counter() - started
                    if row:
                        self.rows.append(row | {"seconds": self.seconds})
                        bar.set_postfix_str(PROGRESS.format(**row), refresh=False)
                        self.tell("step", self.rows[-1])
                    bar.update()
                    if self.step_count in self.snapshot_steps:
                        self.keep_snapshot(held_out)
                    if self.step_count % len(self.pairs) == 0:
                        self.end_epoch(epoch + 1)
                    if any_process(bool(stop), self.device) and self.step_count < self.steps:
                        self.keep_checkpoint()
                        raise stop_error(stop)

    def step(self, *views: Tensor) -> dict[str, float] | None:
        """One update. Returns the row of the history if this step is logged."""
        self.online.train()  # a callback may have left it in evaluation mode
        step = self.step_count + 1
        setup.set_learning_rate(self.optimizer, self.config, self.step_count, len(self.pairs))
        statistics = [buffer.clone() for buffer in self.online.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        terms, z_a, z_b = self.backward(*views)
        gradient = nn.utils.get_total_norm(p.grad for p in self.online.parameters() if p.grad is not None)
        *values, norm = torch.stack([*terms.values(), gradient]).tolist()  # one transfer, because each waits
        named = dict(zip(terms, values, strict=True))
        if not math.isfinite(sum(values) + norm):
            # Batch normalization has already averaged the bad batch into its running statistics.
            for buffer, before in zip(self.online.buffers(), statistics, strict=True):
                buffer.copy_(before)
            bad = f"step {step} of {self.steps}: the loss is {sum(values)} ({named}), the norm of its gradient {norm}."
            advice = f"Look for NaN in the images, or lower learning_rate ({self.config.learning_rate})."
            raise FloatingPointError(f"{bad} The weights are those before the step. {advice}")
        self.optimizer.step()
        if self.target is not None:
            self.target.ema_update(self.online, step / self.steps)
        self.step_count = step
        if step % self.config.log_every and step not in (1, self.steps):
            return None
        # Entries of C over all processes, by the cheaper route; rounding may make a sum of squares negative.
        diagonal, squares, total = split_squared_norm(*(standardize(all_gather_rows(z)) for z in (z_a, z_b)))
        others = max(1, len(diagonal) * (len(diagonal) - 1))
        row = {"step": step, "epoch": step / len(self.pairs), "loss": reduce(torch.add, terms.values()).item(), **named}
        row |= {"diagonal": float(diagonal.mean()), "off_diagonal": float(total / others)}
        row |= {"rms_off_diagonal": float((squares / others).clamp(min=0).sqrt())}
        return row | {"gradient_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def backward(self, *views: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Compute the gradients. Returns the named terms of the loss and the first two projections, detached."""
        sizes = [len(rows) for rows in own_parts(self.config.batch_size, self.config.parts)]
        parts = setup.split_views(views, sizes)
        terms: dict[str, Tensor] = {}

        def forward(i: int) -> Outputs:
            # All views are one batch for batch normalization. Dropout can be resumed: its seed depends on the step.
            seed = setup.seed_of(self.config.seed, self.step_count, i, rank(), 1)
            with setup.torch_seed(seed, self.device), self.autocast:
                p, z = self.forward(*parts[i])
                if self.target is None:
                    return p, z
                # The second pass over parts, the one with a graph, needs no target: the first pass has compared it.
                return p, z, z.detach() if len(parts) > 1 and torch.is_grad_enabled() else self.target(*parts[i])

        def loss(outputs: Sequence[Outputs]) -> Tensor:
            columns = [setup.join_views(column, len(views)) for column in zip(*outputs, strict=True)]
            terms.update(setup.loss_terms(self.loss, self.config, columns[0], columns[-1]))
            return reduce(torch.add, terms.values())

        if len(parts) == 1:
            loss(outputs := [forward(0)]).backward()
        else:
            outputs = backward_in_parts(self.network, forward, len(parts), loss)
        z_a, z_b, *_ = setup.join_views([part[1] for part in outputs], len(views))
        return {name: value.detach() for name, value in terms.items()}, z_a.detach(), z_b.detach()

    @torch.no_grad()
    def keep_snapshot(self, held_out: Sequence[Tensor]) -> None:
        if self.writes:
            self.online.eval()
            with self.autocast:
                z_a, z_b = (torch.cat([self.online(x)[1] for x in view.split(SNAPSHOT_PART)]) for view in held_out)
            self.run.snapshots[self.step_count] = cross_correlation(z_a.float(), z_b.float()).cpu()
            kept = [standardize(z.float())[: setup.KEPT_SAMPLES].half().cpu() for z in (z_a, z_b)]
            self.run.samples[self.step_count] = torch.stack(kept)
            self.save_run()
            self.tell("snapshot", {})

    def end_epoch(self, epoch: int) -> None:
        if self.monitor and (epoch % self.config.monitor_every == 0 or epoch == self.config.epochs):
            if self.writes:
                row = {"step": self.step_count, "epoch": epoch} | self.monitor(self.online.encoder)
                self.monitor_rows.append(row)
                self.tell("monitor", row)
            barrier()
        if epoch % self.config.checkpoint_every == 0 and epoch < self.config.epochs:
            self.keep_checkpoint()

    def tell(self, kind: str, values: dict[str, Any]) -> None:
        for callback in self.callbacks if self.writes else ():
            callback(Event(kind, self.step_count, dict(values), self.run))

    def save_run(self) -> None:
        self.run.history, self.run.monitor = pd.DataFrame(self.rows), pd.DataFrame(self.monitor_rows)
        if self.writes:
            self.check_folder()
            self.run.save()

    def keep_checkpoint(self) -> None:
        if self.writes:
            self.check_folder()
            values = {"seconds": self.seconds, "history": self.rows, "monitor": self.monitor_rows}
            values |= {"config": asdict(self.config), "facts": self.run.metadata}  # whose it is
            tensors = files.training_tensors(self.networks, self.optimizer)
            files.save_checkpoint(self.run.folder / files.FOLDER, files.Checkpoint(self.step_count, tensors, values))

    def resume(self) -> None:
        """Continue from the newest undamaged checkpoint of the folder; without one, start from the beginning."""
        folder = self.run.folder
        if (checkpoint := files.load_checkpoint(folder / files.FOLDER)) is not None:
            kept = {"config": asdict(self.config), "facts": self.run.metadata} | checkpoint.values  # 0.1 kept neither
            others = kept["facts"]["pictures"] != self.run.metadata["pictures"]
            if others or TrainConfig.from_json(kept["config"]) != self.config:
                raise ValueError(f"{folder / files.FOLDER} is of a run with other settings or images: move it away")
            try:
                files.restore_training(checkpoint.tensors, self.networks, self.optimizer)
            except RuntimeError as error:
                raise ValueError(f"{folder / files.FOLDER} does not fit the encoder: {error}") from error
            self.step_count, self.seconds = checkpoint.step, checkpoint.values["seconds"]
            self.rows, self.monitor_rows = checkpoint.values["history"], checkpoint.values["monitor"]
            digests = files.settings_to_resume(folder)[3]
            for name, by_step in ((files.SNAPSHOTS, self.run.snapshots), (files.SAMPLES, self.run.samples)):
                try:
                    found = files.read_snapshots(folder, digests, name)
                    by_step.update({step: one for step, one in found.items() if step <= checkpoint.step})
                except files.DamagedRun as error:
                    warnings.warn(f"{name} until step {checkpoint.step} is lost: {error}", stacklevel=2)
        if self.writes:
            print(f"Resuming {folder} after step {self.step_count} of {self.steps}", flush=True)


def backward_in_parts(network: nn.Module, forward: Callable, parts: int, loss: Callable) -> list[Any]:
    """Outputs of a whole batch; the gradient of its loss is computed with one part in memory at a time.

    Gradient caching, Gao et al. (2021), arXiv:2101.06983: every part runs without a graph, the loss is differentiated
    with respect to all outputs, and each part runs again with a graph. `forward(i)` must return the same both times.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad():
        outputs = [forward(i) for i in range(parts)]
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    leaves = [tuple(output.detach().requires_grad_() for output in part) for part in outputs]
    loss(leaves).backward()
    no_sync = getattr(network, "no_sync", nullcontext)  # DistributedDataParallel exchanges gradients once, at the end
    for i in range(parts):
        with no_sync() if i < parts - 1 else nullcontext():
            pairs = zip(forward(i), leaves[i], strict=True)
            used = [(output, leaf.grad) for output, leaf in pairs if output.requires_grad and leaf.grad is not None]
            torch.autograd.backward([output for output, _ in used], [gradient for _, gradient in used])
    return outputs


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Within the block a first SIGINT or SIGTERM is only noted in the list; a second one acts at once."""
    noted: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # other threads cannot catch signals

    def note(number: int, frame: object) -> None:
        if noted:
            raise stop_error(noted)
        noted.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_error(noted: Sequence[int]) -> BaseException:
    """KeyboardInterrupt for Ctrl-C, for SIGTERM SystemExit with the exit code 128 + signal, as in a shell."""
    return SystemExit(128 + noted[0]) if noted and noted[0] != signal.SIGINT else KeyboardInterrupt()
