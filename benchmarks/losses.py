"""Barlow Twins forward and backward: ours beside the formulas of lightly 1.6 and solo-learn, time and extra memory.

Interleaved minima and medians on two threads, two repetitions of long steps; ratios to lightly are printed beside the
time that the matrix products alone take at the measured speed. Writes data/results/losses_<device>.csv and, with
--figure, the ratio of the minima over n and d.
Combinations whose estimated matrices or times exceed the limits are written as skipped. Memory is what a step adds to
the peak resident set (Linux) or to the peak of CUDA's allocator. With --several it prints other comparisons instead:
SIGReg over all directions and over 1024, contrastive losses and their plain formulas, and losses of several views in
one pass and pair by pair.

    python benchmarks/losses.py --figure
    python benchmarks/losses.py --device cuda
    python benchmarks/losses.py --several
"""

import argparse
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from hsic_lab.losses import BarlowTwinsLoss, NTXentLoss, SIGRegLoss, SpectralContrastiveLoss, VICRegLoss
from hsic_lab.training._config import hardware

RESULTS = Path(__file__).parent.parent / "data" / "results"
ROWS = (64, 256, 1024, 4096)
WIDTHS = (64, 128, 1024, 2048, 8192, 16384)
BYTES_LIMIT = 6 * 2**30


def lightly(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The operations of lightly 1.6, lightly/loss/barlow_twins_loss.py (its package needs torchvision to import)."""
    x, y = (F.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
    c = (x.T @ y).div_(len(z_a))
    invariance = torch.diagonal(c).add_(-1).pow_(2).sum()
    d = len(c)
    off_diagonal = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()
    return invariance + 5e-3 * off_diagonal.pow_(2).sum()


def solo_learn(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The operations of solo-learn, solo/losses/barlow.py, without its final factor of 0.025."""
    norm = torch.nn.BatchNorm1d(z_a.shape[1], affine=False).to(z_a.device)
    c = torch.einsum("bi,bj->ij", norm(z_a), norm(z_b)) / len(z_a)
    identity = torch.eye(len(c), device=c.device)
    difference = (c - identity).pow(2)
    difference[~identity.bool()] *= 5e-3
    return difference.sum()


LOSSES = {"hsic_lab": BarlowTwinsLoss(), "lightly": lightly, "solo_learn": solo_learn}
PEER_MATRICES = 5  # of d x d, alive at once


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def step(loss: Callable[..., Tensor], *views: Tensor) -> None:
    for z in views:
        z.grad = None
    loss(*views).backward()
    synchronize(views[0].device.type)


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def extra_bytes(call: Callable[[], None], device: str) -> float:
    """Peak memory during the call less that before it; NaN where the system does not tell."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not sys.platform.startswith("linux"):
        return math.nan
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def measure(n: int, d: int, device: str, seconds: float, limit: float, expected: dict[str, float]) -> list[dict]:
    """One row for each loss: median milliseconds and extra MiB, or why it was skipped."""
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(n, d, generator=generator).to(device).requires_grad_() for _ in range(2))
    skipped = {}
    for name in LOSSES.keys() - {"hsic_lab"}:
        if PEER_MATRICES * 4 * d**2 > BYTES_LIMIT:
            skipped[name] = f"needs more than {BYTES_LIMIT / 2**30:g} GiB"
        elif expected.get(name, 0.0) > limit:
            skipped[name] = f"a step is expected to take more than {limit:g} s"
    if len(skipped) == len(LOSSES) - 1:
        skipped["hsic_lab"] = "nothing to compare with"
    losses = {name: loss for name, loss in LOSSES.items() if name not in skipped}
    # No warm-up: the allocator would keep its memory and a second step seem to need none. Ours, first, pays for it.
    memory = {name: extra_bytes(lambda loss=loss: step(loss, z_a, z_b), device) for name, loss in losses.items()}
    times = {name: [] for name in losses}
    start, repetition = time.perf_counter(), 0
    while losses and (repetition < 2 or (time.perf_counter() - start < seconds and repetition < 1000)):
        repetition += 1
        for name, loss in losses.items():
            begin = time.perf_counter()
            step(loss, z_a, z_b)
            times[name].append(time.perf_counter() - begin)
    rows = []
    for name in LOSSES:
        row = {"n": n, "d": d, "loss": name, "skipped": skipped.get(name, "")}
        if name in losses:
            row |= {
                "milliseconds": round(1e3 * statistics.median(times[name]), 4),
                "best_milliseconds": round(1e3 * min(times[name]), 4),
                "extra_mib": round(memory[name] / 2**20, 2),
                "repetitions": len(times[name]),
            }
        rows.append(row)
    return rows


def nt_xent(z_a: Tensor, z_b: Tensor) -> Tensor:
    """NT-Xent at temperature 0.5 in the fewest operations."""
    z = F.normalize(torch.cat([z_a, z_b]))
    logits = (z @ z.T / 0.5).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(z_a)))


def spectral(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The spectral contrastive loss in the fewest operations, with the pairs of one image left out before squaring."""
    x, y = (z / z.norm(dim=1, keepdim=True).clamp_min(1) for z in (z_a, z_b))
    products, n = x @ y.T, len(x)
    others = products - products.diagonal().diag()
    return -2 * products.diagonal().mean() + others.square().sum() / (n * (n - 1))


def by_pairs(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *views: torch.stack([loss(x, y) for x, y in combinations(views, 2)]).mean()


def several(device: str, seconds: float) -> pd.DataFrame:
    """Processor milliseconds of a step, on CUDA wall time: a loss, the same loss in another way, and their ratio."""
    cases: list[tuple] = [("SIGReg, all directions / 1024", 2, 256, 128, SIGRegLoss(), SIGRegLoss(slices=1024))]
    for size in ((2, 64, 128), (2, 256, 128), (2, 256, 1024), (2, 1024, 128)):
        cases += [("NT-Xent / plain formula", *size, NTXentLoss(), nt_xent)]
        cases += [("spectral / plain formula", *size, SpectralContrastiveLoss(), spectral)]
    for loss in (BarlowTwinsLoss(), VICRegLoss(), NTXentLoss()):
        sizes = ((3, 256, 128), (8, 256, 128), (3, 256, 2048), (8, 256, 2048))
        cases += [(f"{type(loss).__name__}, one pass / pairs", *size, loss, by_pairs(loss)) for size in sizes]
    clock, rows = time.perf_counter if device == "cuda" else time.process_time, []
    for name, count, n, d, *losses in cases:
        generator = torch.Generator().manual_seed(0)
        views = [torch.randn(n, d, generator=generator).to(device).requires_grad_() for _ in range(count)]
        times: tuple[list[float], list[float]] = [], []
        start = time.perf_counter()
        while len(times[0]) < 3 or time.perf_counter() - start < seconds:
            for taken, loss in zip(times, losses, strict=True):
                begin = clock()
                step(loss, *views)
                taken.append(1e3 * (clock() - begin))
        first, second = map(min, times)
        rows.append({"losses": name, "views": count, "n": n, "d": d, "first": first, "second": second})
    return pd.DataFrame(rows).assign(ratio=lambda table: table["second"] / table["first"]).round(2)


def achieved_flops(device: str) -> float:
    """Floating-point operations per second of a product of two matrices, as a measure of the machine."""
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device)
    times = []
    for _ in range(5):
        synchronize(device)
        begin = time.perf_counter()
        a @ a
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / statistics.median(times)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Time of lightly's formula over ours, a cell for each n and d."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import seaborn as sns

    wide = table.pivot(index=["n", "d"], columns="loss", values="best_milliseconds")
    ratio = (wide["lightly"] / wide["hsic_lab"]).unstack("d")
    labels = ratio.map(lambda r: f"{r:.0f}" if r >= 10 else f"{r:.1f}" if r >= 2 else f"{r:.2f}")
    labels = labels.where(ratio.notna(), "not run")
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    sns.heatmap(
        ratio.fillna(1.0).map(math.log10),
        annot=labels,
        fmt="",
        cmap="RdBu",
        center=0,
        vmin=-1.8,
        vmax=1.8,
        ax=axes,
        linewidths=1,
        cbar=False,
        annot_kws={"size": 12},
    )
    axes.set(xlabel="projector width d", ylabel="batch n", title="Barlow Twins, times faster than lightly 1.6")
    axes.tick_params(rotation=0)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="measuring time for each combination")
    parser.add_argument("--limit", type=float, default=8.0, help="skip what is estimated to take longer, in seconds")
    parser.add_argument("--figure", action="store_true", help="draw data/results/losses_ratio.png")
    parser.add_argument("--several", action="store_true", help="print the other comparisons")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.several:
        print(several(args.device, args.seconds).to_string(index=False))
        return
    flops = achieved_flops(args.device)
    rows = []
    for n in ROWS:
        expected = {}
        for d, wider in zip(WIDTHS, (*WIDTHS[1:], math.inf), strict=True):
            rows += measure(n, d, args.device, args.seconds, args.limit, expected)
            # The peers' cost grows as d^2 where it is more than the cost of calls; the skipped stays skipped.
            expected = {
                row["loss"]: row["milliseconds"] / 1e3 * (wider / d) ** 2 if "milliseconds" in row else math.inf
                for row in rows[-3:]
                if d >= 1024
            }
            ours, other = rows[-3:-1]
            fields = ("best_milliseconds", "milliseconds")
            if ours["skipped"]:
                continue
            ratios = [f"{other[f] / ours[f]:.2f}" if f in other else "not run" for f in fields]
            products = 2 * min(3 * n * d**2, 4 * n**2 * d) / flops  # multiplications and additions of both routes
            print(
                f"{n} x {d}: lightly / ours {' (best), '.join(ratios)} (median); ours {ours[fields[0]]:.3f} ms,",
                end=" ",
            )
            print(f"its products alone {1e3 * products:.3f} ms", flush=True)
    table = pd.DataFrame(rows)
    cpu = f"{hardware(torch.device('cpu'))}, {args.threads} threads"
    machine = torch.cuda.get_device_name() if args.device == "cuda" else cpu
    load = f", load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    table["hardware"] = f"{machine}, {flops / 1e9:.0f} GFLOP/s in float32{load}"
    table["versions"] = f"Python {platform.python_version()}, torch {torch.__version__}, formulas of lightly 1.6.0"
    table["command"] = " ".join(["python benchmarks/losses.py", *sys.argv[1:]])
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / f"losses_{args.device}.csv", index=False)
    if args.figure:
        draw(table, RESULTS / "losses_ratio.png")


if __name__ == "__main__":
    main()
