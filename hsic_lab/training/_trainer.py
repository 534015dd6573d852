"""Ctrl-C and SIGTERM between two steps instead of within one."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hsic_lab._distributed import all_gather_rows, any_process, barrier, data_parallel, rank, world_size
from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.training._callbacks import Callback, Event
from hsic_lab.training._config import TrainConfig, resolved_precision
from hsic_lab.training._data import TrainingPairs, seed_of
from hsic_lab.training._networks import (
    OnlineNetwork,
    TargetNetwork,
    compare,
    make_optimizer,
    set_learning_rate,
    two_views,
)
from hsic_lab.training._run import FOLDER, Checkpoint, Run, restore_training, save_checkpoint, training_tensors


class StopRequest:
    """The first signal that asked for an end, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def error(self) -> BaseException:
        """What to raise for it: KeyboardInterrupt for Ctrl-C, else SystemExit with the shell's code, 128 + signal."""
        return KeyboardInterrupt() if self.signal in (None, signal.SIGINT) else SystemExit(128 + self.signal)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within the block a first SIGINT or SIGTERM only sets the yielded request; a second one acts at once.

    Outside the main thread signals cannot be caught: there the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: object) -> None:
        if request:
            raise request.error()
        request.signal = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


Outputs = tuple[Tensor, ...]


def backward_in_parts(
    network: nn.Module, forward: Callable[[int], Outputs], parts: int, loss: Callable[[Sequence[Outputs]], Tensor]
) -> tuple[Tensor, list[Outputs]]:
    """Add the gradient of `loss` to the network's parameters, one part of the batch in memory at a time.

    Gradient caching (Gao et al. 2021, arXiv 2101.06983): `forward(i)` returns part i's outputs, first for every part
    without a graph; the loss of all outputs is differentiated with respect to them; then `forward(i)` runs again,
    with a graph, and part i's share of that gradient is passed back. As d loss / d weights is the sum over rows of
    d loss / d output times d output / d weights, the result is the gradient of the whole batch, up to rounding, with
    the loss's statistics (C, variances, negatives) those of the whole batch. The price is a second forward pass.

    `forward` must return the same for the same i both times: reseed what is random in the network. Batch
    normalization inside the network is the exception to "exact": it uses and tracks the statistics of one part, as in
    any accumulation of gradients; a buffer moves in the second pass only. An output that does not require a gradient
    in the second pass (a target) is passed to the loss and left alone.

    Under DistributedDataParallel gradients are exchanged once, after the last part. Returns the loss, detached, and
    the outputs of all parts.
    """
    buffers = [buffer.clone() for buffer in network.buffers()]
    with torch.no_grad():
        outputs = [forward(i) for i in range(parts)]
        for buffer, before in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(before)
    leaves = [tuple(output.detach().requires_grad_() for output in part) for part in outputs]
    value = loss(leaves)
    value.backward()
    unsynchronized = getattr(network, "no_sync", None)  # DistributedDataParallel has it
    for i in range(parts):
        if unsynchronized is not None and i < parts - 1:
            with unsynchronized():
                _pass_back(forward(i), leaves[i])
        else:
            _pass_back(forward(i), leaves[i])
    return value.detach(), outputs


def _pass_back(outputs: Outputs, leaves: Outputs) -> None:
    wanted = [
        (output, leaf.grad)
        for output, leaf in zip(outputs, leaves, strict=True)
        if output.requires_grad and leaf.grad is not None
    ]
    torch.autograd.backward(*zip(*wanted, strict=True))


SNAPSHOT_PART = 512  # images that pass through the network at once for a snapshot


class Trainer:
    """A training's state between steps: networks, optimizer, history, the number of updates made."""

    def __init__(
        self,
        run: Run,
        online: OnlineNetwork,
        target: TargetNetwork | None,
        config: TrainConfig,
        pairs: TrainingPairs,
        monitor: Callable[[nn.Module], dict[str, Any]] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.run, self.online, self.target, self.config, self.pairs = run, online, target, config, pairs
        self.monitor, self.callbacks = monitor, callbacks
        self.device = pairs.device
        self.step_count, self.seconds = 0, 0.0
        self.steps = config.epochs * len(pairs)
        self.loss = config.make_loss()
        self.optimizer = make_optimizer(config, online)
        self.network = data_parallel(online)
        self.forward = torch.compile(self.network) if config.compile else self.network
        # The steps after which C is kept: evenly spaced, both ends included.
        self.snapshot_steps = set(np.linspace(0, self.steps, config.snapshots).round().astype(int).tolist())
        bfloat16 = resolved_precision(config.precision, self.device) == "bfloat16"
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)
        self.rows: list[dict[str, float]] = []
        self.monitor_rows: list[dict[str, Any]] = []

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return rank() == 0

    def fit(self, held_out: Sequence[Tensor], stop: StopRequest, progress: bool) -> None:
        """Make the updates that are left. A `stop` is heeded between two of them, after a checkpoint."""
        if self.step_count == 0:
            self.keep_snapshot(held_out)
            self.keep_checkpoint()  # an encoder of the caller's own is nowhere else as it was
        started = time.perf_counter() - self.seconds
        total, done = self.steps, self.step_count
        with tqdm(total=total, initial=done, desc=self.config.loss, disable=not progress, mininterval=0.5) as bar:
            while self.step_count < self.steps:
                epoch, skip = divmod(self.step_count, len(self.pairs))
                for views in self.pairs.epoch(epoch, skip):
                    row = self.step(*views)
                    self.seconds = time.perf_counter() - started
                    if row:
                        self.log(row, bar)
                    bar.update()
                    if self.step_count in self.snapshot_steps:
                        self.keep_snapshot(held_out)
                    if self.step_count % len(self.pairs) == 0:
                        self.end_epoch(epoch + 1)
                    if any_process(bool(stop), self.device) and self.step_count < self.steps:
                        self.keep_checkpoint()
                        raise stop.error()

    def end_epoch(self, epoch: int) -> None:
        if self.monitor and (epoch % self.config.monitor_every == 0 or epoch == self.config.epochs):
            if self.writes:
                row = {"step": self.step_count, "epoch": epoch} | self.monitor(self.online.encoder)
                self.monitor_rows.append(row)
                self.tell("monitor", row)
            barrier()
        if epoch % self.config.checkpoint_every == 0 and epoch < self.config.epochs:
            self.keep_checkpoint()

    def step(self, view_a: Tensor, view_b: Tensor) -> dict[str, float] | None:
        """One update; what to log of it."""
        self.online.train()  # a callback may have left it in eval mode
        step = self.step_count + 1
        set_learning_rate(self.optimizer, self.config, self.step_count, len(self.pairs))
        learning_rate = self.optimizer.param_groups[0]["lr"]
        statistics = [buffer.clone() for buffer in self.online.buffers()]
        self.optimizer.zero_grad(set_to_none=True)
        terms, z_a, z_b = self.backward(view_a, view_b)
        gradient = nn.utils.get_total_norm(p.grad for p in self.online.parameters() if p.grad is not None)
        # One transfer for all numbers: each one waits for the device.
        *values, norm = torch.stack([*terms.values(), gradient]).tolist()
        if not math.isfinite(sum(values) + norm):
            # Batch normalization has already averaged the bad batch into its running statistics.
            for buffer, before in zip(self.online.buffers(), statistics, strict=True):
                buffer.copy_(before)
            raise FloatingPointError(
                f"step {step} of {self.steps}: the loss is {sum(values)} ({dict(zip(terms, values, strict=True))}), "
                f"its gradient's norm {norm}. The weights are those before the step. Look for NaN in the images, or "
                f"lower learning_rate ({self.config.learning_rate})."
            )
        self.optimizer.step()
        if self.target:
            self.target.follow(self.online, step / self.steps)
        self.step_count = step
        if step % self.config.log_every and step not in (1, self.steps):
            return None
        diagonal, off_diagonal = diagonal_and_rest(z_a, z_b)
        return {
            "step": step,
            "epoch": step / len(self.pairs),
            "loss": sum(terms.values()).item(),
            **dict(zip(terms, values, strict=True)),
            "diagonal": diagonal,
            "off_diagonal": off_diagonal,
            "gradient_norm": norm,
            "learning_rate": learning_rate,
        }

    def backward(self, view_a: Tensor, view_b: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Gradients of the batch's loss in the parameters; its named terms and the two projections, detached."""
        # The same number of parts in every process: batch normalization meets the others in each.
        most = -(-self.config.batch_size // world_size())
        count = -(-most // (self.config.micro_batch or most))
        halves = zip(view_a.tensor_split(count), view_b.tensor_split(count), strict=True)
        parts = [torch.cat(half) for half in halves]
        terms: dict[str, Tensor] = {}

        def forward(i: int) -> tuple[Tensor, ...]:
            # One pass for both views, so that batch normalization sees them as one batch of one law.
            with self.reseeded(i), self.autocast:
                p, z = self.forward(parts[i])
                if self.target is None:
                    return p, z
                # The second pass over parts, the one with a graph, passes back what the first has compared.
                again = len(parts) > 1 and torch.is_grad_enabled()
                return p, z, z.detach() if again else self.target(parts[i])

        def loss(outputs: Sequence[tuple[Tensor, ...]]) -> Tensor:
            columns = [two_views(column) for column in zip(*outputs, strict=True)]
            terms.update(compare(self.loss, self.config, columns[0], columns[-1]))
            return sum(terms.values())

        if len(parts) == 1:
            outputs = [forward(0)]
            loss(outputs).backward()
        else:
            _, outputs = backward_in_parts(self.network, forward, len(parts), loss)
        z_a, z_b = two_views([part[1] for part in outputs])
        return {name: value.detach() for name, value in terms.items()}, z_a.detach(), z_b.detach()

    @contextmanager
    def reseeded(self, part: int) -> Iterator[None]:
        """What is random in the networks (dropout) is a function of the seed, the step and the part of the batch."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            seed = seed_of(self.config.seed, self.step_count, part, rank(), 1)
            torch.random.default_generator.manual_seed(seed)
            if cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    @torch.no_grad()
    def keep_snapshot(self, held_out: Sequence[Tensor]) -> None:
        """C of the held-out pairs, in evaluation mode, and the run so far on disk."""
        if not self.writes:
            return
        self.online.eval()
        with self.autocast:
            z_a, z_b = (torch.cat([self.online(x)[1] for x in view.split(SNAPSHOT_PART)]) for view in held_out)
        self.run.snapshots[self.step_count] = cross_correlation(z_a.float(), z_b.float()).cpu()
        self.save_run()
        self.tell("snapshot", {})

    def save_run(self) -> None:
        """The folder's files, up to date."""
        self.run.history = pd.DataFrame(self.rows)
        self.run.monitor = pd.DataFrame(self.monitor_rows)
        if self.writes:
            self.run.save()

    def keep_checkpoint(self) -> None:
        """All that `resume` needs, on disk."""
        if self.writes:
            values = {"seconds": self.seconds, "history": self.rows, "monitor": self.monitor_rows}
            tensors = training_tensors(self.networks(), self.optimizer)
            save_checkpoint(self.run.folder / FOLDER, Checkpoint(self.step_count, tensors, values))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Stand where the checkpoint stood."""
        restore_training(checkpoint.tensors, self.networks(), self.optimizer)
        self.step_count, self.seconds = checkpoint.step, checkpoint.values["seconds"]
        self.rows, self.monitor_rows = checkpoint.values["history"], checkpoint.values["monitor"]

    def networks(self) -> dict[str, nn.Module]:
        """What a checkpoint holds beside the optimizer."""
        return {"online": self.online, "loss": self.loss} | ({"target": self.target} if self.target else {})

    def log(self, row: dict[str, float], bar: tqdm) -> None:
        self.rows.append(row | {"seconds": self.seconds})
        bar.set_postfix_str(
            f"epoch {row['epoch']:.1f}, loss {row['loss']:.2f}, "
            f"diagonal {row['diagonal']:.3f}, off-diagonal {row['off_diagonal']:+.4f}"
        )
        self.tell("step", self.rows[-1])

    def tell(self, kind: str, values: dict[str, Any]) -> None:
        if self.writes:
            for callback in self.callbacks:
                callback(Event(kind, self.step_count, values, self.run))


def diagonal_and_rest(z_a: Tensor, z_b: Tensor) -> tuple[float, float]:
    """Mean diagonal and mean off-diagonal entry of C over all processes in O(n d): neither needs the matrix."""
    x, y = standardize(all_gather_rows(z_a)), standardize(all_gather_rows(z_b))
    n, d = x.shape
    trace = (x * y).sum() / n
    total = x.sum(dim=1) @ y.sum(dim=1) / n
    return float(trace / d), float((total - trace) / max(1, d * (d - 1)))
