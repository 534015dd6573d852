"""The loop of one training: steps, what is logged of them, snapshots of C, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from hsic_lab.checkpoints import FOLDER, Checkpoint, restore_training, save_checkpoint, training_tensors
from hsic_lab.config import TrainConfig
from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.gradient_cache import backward_in_parts
from hsic_lab.hardware import resolved_precision
from hsic_lab.interrupts import StopRequest
from hsic_lab.optimizers import make_optimizer, set_learning_rate
from hsic_lab.pairs import TrainingPairs, seed_of
from hsic_lab.parallel import any_process, data_parallel, rank, wait_for_all
from hsic_lab.processes import all_rows, process_count
from hsic_lab.runs import Run
from hsic_lab.siamese import OnlineNetwork, TargetNetwork, compare, two_views

SNAPSHOT_PART = 512  # images that pass through the network at once for a snapshot


@dataclass(frozen=True)
class Event:
    """What a callback is told: `kind` is "step" (a logged one), "snapshot" or "monitor", `values` its row.

    `run` holds networks, snapshots and settings; `run.history` is brought up to date at snapshots.
    """

    kind: str
    step: int
    values: dict[str, Any]
    run: Run


Callback = Callable[[Event], None]


class Trainer:
    """A training's state between steps: networks, optimiser, history, the number of updates made."""

    def __init__(
        self, run: Run, online: OnlineNetwork, target: TargetNetwork | None, config: TrainConfig, pairs: TrainingPairs,
        monitor: Callable[[nn.Module], dict[str, Any]] | None = None, callbacks: Sequence[Callback] = (),
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
            wait_for_all()
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
            # Batch normalisation has already averaged the bad batch into its running statistics.
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
            "step": step, "epoch": step / len(self.pairs), "loss": sum(terms.values()).item(),
            **dict(zip(terms, values, strict=True)),
            "diagonal": diagonal, "off_diagonal": off_diagonal,
            "gradient_norm": norm, "learning_rate": learning_rate,
        }

    def backward(self, view_a: Tensor, view_b: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Gradients of the batch's loss in the parameters; its named terms and the two projections, detached."""
        # The same number of parts in every process: batch normalisation meets the others in each.
        most = -(-self.config.batch_size // process_count())
        count = -(-most // (self.config.micro_batch or most))
        halves = zip(view_a.tensor_split(count), view_b.tensor_split(count), strict=True)
        parts = [torch.cat(half) for half in halves]
        terms: dict[str, Tensor] = {}

        def forward(i: int) -> tuple[Tensor, ...]:
            # One pass for both views, so that batch normalisation sees them as one batch of one law.
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
        """What a checkpoint holds beside the optimiser."""
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
    x, y = standardize(all_rows(z_a)), standardize(all_rows(z_b))
    n, d = x.shape
    trace = (x * y).sum() / n
    total = x.sum(dim=1) @ y.sum(dim=1) / n
    return float(trace / d), float((total - trace) / max(1, d * (d - 1)))
