"""Exact HSIC at sizes whose Grams do not fit in memory: time, extra memory, and the work that no route can avoid.

The bound beside each time is measured in the same run: for Gaussian HSIC the matrix products and exponentials of one
triangle of both Grams, in tiles; for linear HSIC the product X'Y alone; in the last rows two Grams as plainly written.
Memory is the growth of the peak resident set of a process of its own. hyppo is compared where `--hyppo-python` names
an interpreter that has it.

    python benchmarks/hsic.py [--rows 100000] [--stream-rows 1000000] [--threads 2] [--cpu] [--hyppo-python PATH]
"""

import argparse
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from hsic_lab.hsic import StreamingLinearHSIC, hsic
from hsic_lab.hsic._estimators import TILE_ROWS
from hsic_lab.kernels import Gaussian, factor

HYPPO = """
import json, resource, sys, time
import numpy as np
from hyppo.independence import Hsic
x, y = np.load(sys.argv[1]), np.load(sys.argv[2])
Hsic().statistic(x[:100], y[:100])  # numba compiles
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
clock = getattr(time, sys.argv[3])
before, start = peak(), clock()
value = Hsic().statistic(x, y)
print(json.dumps([clock() - start, float(value), peak() - before]))
"""


clock = time.perf_counter


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(call: Callable[[], object]) -> tuple[float, object]:
    start = clock()
    value = call()
    return clock() - start, value


def row(name: str, taken: float, bound: float, memory: float, value: float) -> None:
    print(f"{name:<44} {taken:>8.2f} {bound:>8.2f} {taken / bound:>6.1f} {memory:>6.0f}  {value:.4e}", flush=True)


def samples(n: int, p: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, p, generator=generator)
    return x, x * x.roll(1, dims=1) + torch.randn(n, p, generator=generator)


def gaussian_bound(n: int, p: int, pairs: int = 40) -> float:
    """Seconds for the products and exponentials of n (n+1) / 2 pairs and two kernels, from `pairs` tiles timed."""
    x = torch.randn(TILE_ROWS, p)
    product, tile = torch.empty(TILE_ROWS, TILE_ROWS), -torch.rand(TILE_ROWS, TILE_ROWS)
    result = torch.empty_like(tile)

    def work() -> None:
        for _ in range(pairs):
            torch.mm(x, x.T, out=product)
            torch.exp(tile, out=result)

    work()
    return seconds(work)[0] / pairs / TILE_ROWS**2 * n * (n + 1)


def gaussian(n: int, gradient: bool = False) -> None:
    x, y = samples(n, 16)
    kernel_x, kernel_y = Gaussian().fit(x), Gaussian().fit(y)
    x.requires_grad_(gradient)
    bound, before = gaussian_bound(n, 16), peak_mib()
    with torch.set_grad_enabled(gradient):
        taken, value = seconds(lambda: hsic(x, y, kernel_x, kernel_y, route="tiled"))
    if gradient:
        taken += seconds(value.backward)[0]
    name = "and its gradient" if gradient else "exact"
    row(f"Gaussian {name}, n={n}, p=q=16", taken, bound, peak_mib() - before, value.item())


def approximate(n: int) -> None:
    x, y = samples(n, 16)
    bound, before = gaussian_bound(n, 16), peak_mib()
    for method in ("fourier", "nystrom"):
        maps = (factor(Gaussian(), z, 256, method, seed=seed) for seed, z in enumerate((x, y)))
        taken, value = seconds(lambda maps=maps: hsic(*maps))
        row(f"  {method}, rank 256", taken, bound, peak_mib() - before, value.item())
    taken, value = seconds(lambda: hsic(x, y, Gaussian(), Gaussian(), "block", block_size=300))
    row("  unbiased, blocks of 300", taken, bound, peak_mib() - before, value.item())


def stream(n: int, d: int = 256, piece: int = 8192) -> None:
    """The rows come from a generator, as they would from a file; only what the accumulator does is timed."""
    x, y = samples(piece, d)
    bound = min(seconds(lambda: x.T @ y)[0] for _ in range(5)) * n / piece
    hsic_so_far, taken, before = StreamingLinearHSIC(), 0.0, peak_mib()
    generator = torch.Generator().manual_seed(1)
    for start in range(0, n, piece):
        x = torch.randn(min(piece, n - start), d, generator=generator)
        y = x + torch.randn(x.shape, generator=generator)
        taken += seconds(lambda x=x, y=y: hsic_so_far.update(x, y))[0]
    row(f"linear stream, n={n}, d={d}", taken, bound, peak_mib() - before, hsic_so_far.compute("unbiased").item())


def peers(python: str | None, n: int = 4000) -> None:
    x, y = samples(n, 5)
    bound, before = gaussian_bound(n, 5), peak_mib()
    taken, value = seconds(lambda: hsic(x.double(), y.double(), Gaussian(), Gaussian(), route="tiled"))
    row(f"Gaussian tiled float64, n={n}, p=q=5", taken, bound, peak_mib() - before, value.item())

    def plain() -> Tensor:
        k, l = (torch.exp(-(torch.cdist(z, z) ** 2) / (2 * s**2)) for z, s in zip(doubles, widths, strict=True))
        h = torch.eye(n, dtype=torch.float64) - 1 / n
        return torch.trace(k @ h @ l @ h) / n**2

    doubles, widths = (x.double(), y.double()), (Gaussian().fit(x).bandwidth, Gaussian().fit(y).bandwidth)
    taken, value = seconds(plain)
    row("  plain tr(KHLH) / n^2 with H", taken, bound, peak_mib() - before, value.item())
    if python is None:
        print("  hyppo: skipped, no --hyppo-python")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, z in (("x", x), ("y", y)):
            np.save(f"{folder}/{name}.npy", z.double().numpy())
        command = [python, "-c", HYPPO, f"{folder}/x.npy", f"{folder}/y.npy", clock.__name__]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        print(f"  hyppo: skipped, {python} fails: {result.stderr.strip().splitlines()[-1]}")
        return
    taken, value, memory = json.loads(result.stdout.splitlines()[-1])
    row("  hyppo Hsic().statistic (normalized)", taken, bound, memory, value)


def grams(n: int = 4000) -> None:
    """The bound is here two Grams as one writes them: norms, a product and an exponential, each a full array."""
    x, y = samples(n, 10)
    kernels = Gaussian().fit(x), Gaussian().fit(y)

    def plain() -> list[Tensor]:
        squares = [(z, z.square().sum(dim=1), k.bandwidth) for z, k in zip((x, y), kernels, strict=True)]
        return [torch.exp(-(a[:, None] + a - 2 * z @ z.T) / (2 * s**2)) for z, a, s in squares]

    calls = {"two Gaussian Grams": lambda: [k(z) for k, z in zip(kernels, (x, y), strict=True)]}
    for estimator, route in itertools.product(("biased", "unbiased"), ("dual", "tiled")):
        calls[f"{estimator} HSIC, {route}"] = lambda e=estimator, r=route: hsic(x, y, *kernels, e, r)
    bound, before = min(seconds(plain)[0] for _ in range(5)), peak_mib()
    for name, call in calls.items():
        row(f"{name}, n={n}, p=q=10", min(seconds(call)[0] for _ in range(5)), bound, peak_mib() - before, torch.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--stream-rows", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hyppo-python", help="an interpreter that can import hyppo")
    parser.add_argument("--cpu", action="store_true", help="CPU seconds, for one thread on a shared machine")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<44} {'seconds':>8} {'bound':>8} {'ratio':>6} {'MiB':>6}  HSIC", flush=True)
    cases = [
        (gaussian, (arguments.rows,)),
        (gaussian, (arguments.rows // 5, True)),
        (approximate, (arguments.rows,)),
        (stream, (arguments.stream_rows,)),
        (peers, (arguments.hyppo_python,)),
        (grams, ()),
    ]
    for case in cases:
        # A process each: a peak that another case left would hide this one's.
        job = (arguments.threads, arguments.cpu, *case)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=job)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def measure(threads: int, cpu: bool, case: Callable[..., None], arguments: tuple) -> None:
    global clock
    clock = time.process_time if cpu else time.perf_counter
    torch.set_num_threads(threads)
    with torch.no_grad():
        hsic(*samples(1200, 16), Gaussian(), Gaussian(), route="tiled")  # libraries load, pools start
        case(*arguments)


if __name__ == "__main__":
    main()
