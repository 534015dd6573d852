"""Independence tests measured: their level, their power and speed beside hyppo 0.5.2.

    python benchmarks/independence.py level  [--draws 2000]
    python benchmarks/independence.py calibration [--draws 1000]
    python benchmarks/independence.py power  [--hyppo /path/to/python] [--draws 100]
    python benchmarks/independence.py speed  [--hyppo /path/to/python] [--large 20000]

Tables (and the figure of power) go to data/results/. hyppo is run as a subprocess by the Python that `--hyppo` names,
one of an environment of its own (`pip install hyppo==0.5.2`), on data saved as .npz; without it its rows are left out.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.signal import lfilter

from hsic_lab.hsic import hsic
from hsic_lab.independence import (
    aggregated_test,
    block_test,
    dhsic_test,
    gamma_test,
    permutation_test,
    shift_test,
    spectral_test,
)
from hsic_lab.kernels import Gaussian, median_distance
from hsic_lab.plots import set_theme
from hsic_lab.training._config import hardware

RESULTS = Path(__file__).parent.parent / "data" / "results"
CPU = torch.device("cpu")

HYPPO = """
import sys, time, warnings
import numpy as np
from hyppo.independence import Hsic
warnings.simplefilter("ignore")
data = np.load(sys.argv[1])
reps = int(data["reps"])
x, y = data["x"], data["y"]
Hsic().test(x[0][:50], y[0][:50], reps=2, auto=False)  # compiles
permutation, chi2, single = [], [], []
for a, b in zip(x, y):
    start = time.process_time()
    chi2.append(Hsic().test(a, b, auto=True).pvalue)
    single.append(time.process_time() - start)
start = time.process_time()
for a, b in zip(x, y):
    permutation.append(Hsic().test(a, b, reps=reps, workers=1, auto=False).pvalue)
seconds = time.process_time() - start
np.savez(sys.argv[2], permutation=permutation, chi2=chi2, seconds=seconds, single=min(single))
"""


def samples(family: str, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Independent x and y."""
    match family:
        case "normal":
            return rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
        case "heavy-tailed":  # Cauchy and t with 2 degrees of freedom
            return rng.standard_cauchy((n, 1)), rng.standard_t(2, (n, 1))
        case "discrete":
            return rng.poisson(2.0, (n, 1)).astype(float), rng.integers(0, 6, (n, 2)).astype(float)
        case "tied":
            return rng.integers(0, 2, (n, 1)).astype(float), rng.normal(size=(n, 1)).round(1)
        case "sorted":
            return np.sort(rng.normal(size=(n, 1)), axis=0), rng.exponential(size=(n, 1))
        case "unequal-scale":
            return rng.normal(size=(n, 2)) * [1e-4, 1e-3], 1e4 * rng.normal(size=(n, 3)) + 1e6
    raise ValueError(f"unknown family {family!r}")


def dependent(family: str, n: int, noise: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Dependent x and y, uncorrelated or nearly so; the dependence fades as `noise` grows from 0."""
    u, e = rng.uniform(-1, 1, (n, 1)), rng.normal(size=(n, 2))
    match family:
        case "sine":
            return u, np.sin(2 * np.pi * u) + noise * e[:, :1]
        case "circle":
            return np.cos(np.pi * u) + noise * e[:, :1], np.sin(np.pi * u) + noise * e[:, 1:]
        case "parabola":
            return u, u**2 + noise * e[:, :1]
        case "rotated ICA":  # two independent uniform sources, rotated by an angle that shrinks from 45 degrees
            v, angle = rng.uniform(-1, 1, (n, 1)), np.pi / 4 * (1 - noise)
            return np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v
    raise ValueError(f"unknown family {family!r}")


def calibration(draws: int) -> None:
    tests: dict[str, Callable] = {
        "permutation": lambda x, y, i: permutation_test(x, y, permutations=99, seed=i),
        "permutation, groups": lambda x, y, i: permutation_test(
            x, y, permutations=99, groups=np.arange(len(x)) % 4, seed=i
        ),
        "aggregated": lambda x, y, i: aggregated_test(x, y, permutations=199, scales=(0.5, 1.0, 2.0), seed=i),
        "gamma": lambda x, y, i: gamma_test(x, y),
        "spectral": lambda x, y, i: spectral_test(x, y, draws=299, seed=i),
        "block": lambda x, y, i: block_test(x, y, seed=i),
    }
    rows = []
    for n in (20, 100):
        for family in ("normal", "heavy-tailed", "discrete", "unequal-scale"):
            data = [samples(family, n, np.random.default_rng([1, n, i])) for i in range(draws)]
            for name, test in tests.items():
                found = np.array(
                    [test(torch.from_numpy(x), torch.from_numpy(y), i).pvalue for i, (x, y) in enumerate(data)]
                )
                for level in (0.05, 0.01):
                    low, high = stats.binom.interval(0.99, draws, level)
                    rate = int((found <= level + 1e-12).sum()) / draws
                    low, high = low / draws, high / draws
                    rows.append(
                        {
                            "test": name,
                            "n": n,
                            "family": family,
                            "draws": draws,
                            "level": level,
                            "rate": rate,
                            "low": low,
                            "high": high,
                            "inside": low <= rate <= high,
                        }
                    )
                print(n, family, name, *(row["rate"] for row in rows[-2:]), flush=True)
    write(pd.DataFrame(rows), "calibration", "data default_rng([1, n, i]), test seed i, i < draws")


def level(draws: int) -> None:
    """Rejections of the exact tests for few and many rows of all kinds of samples, beside 99 % binomial bounds."""
    rows = []
    for n in (5, 8, 20, 100):
        for family in ("normal", "heavy-tailed", "discrete", "tied", "sorted", "unequal-scale"):
            found = {"shifts": [], "shifts, groups": [], "joint": []}
            for i in range(draws):
                x, y = map(torch.from_numpy, samples(family, n, np.random.default_rng([4, n, i])))
                found["shifts"].append(permutation_test(x, y, permutations=99, seed=i).pvalue)
                if i % 4 == 0:  # slower
                    options = {"permutations": 99, "seed": i}
                    found["shifts, groups"].append(permutation_test(x, y, groups=np.arange(n) % 2, **options).pvalue)
                    found["joint"].append(dhsic_test(x, y, **options).pvalue)
            for name, pvalues in found.items():
                for a in (0.01, 0.05, 0.1):
                    rate, count = float((np.array(pvalues) <= a + 1e-12).mean()), len(pvalues)
                    low, high = (bound / count for bound in stats.binom.interval(0.99, count, a))
                    rows.append([name, n, family, count, a, rate, low, high, "below" if rate < low else rate <= high])
            print(n, family, *((row[0], row[4], row[5], row[8]) for row in rows[-9:]), flush=True)
    for phi in (0.0, 0.5, 0.9):
        found = {"permutation_test": [], "shift_test": []}
        for i in range(draws // 4):
            noise = np.random.default_rng([5, i]).normal(size=(2, 500))
            series = lfilter([1], [1, -phi], noise)
            found["permutation_test"].append(permutation_test(*series, permutations=99, seed=i).pvalue)
            found["shift_test"].append(shift_test(*series, guard=50).pvalue)
        for name, pvalues in found.items():
            low, high = (bound / len(pvalues) for bound in stats.binom.interval(0.99, len(pvalues), 0.05))
            rate = float((np.array(pvalues) <= 0.05).mean())
            rows.append([name, 500, f"AR(1), {phi}", len(pvalues), 0.05, rate, low, high, low <= rate <= high])
            print(*rows[-1])
    columns = ["test", "n", "family", "draws", "level", "rate", "low", "high", "inside"]
    write(pd.DataFrame(rows, columns=columns), "level", "data default_rng([4, n, i]), test seed i, i < draws")


def power(hyppo: str | None, draws: int) -> None:
    n, permutations, rows = 80, 199, []
    noises = {
        "sine": (0.5, 1.0, 1.5, 2.0),
        "circle": (0.1, 0.3, 0.4, 0.5),
        "parabola": (0.2, 0.4, 0.6, 0.8),
        "rotated ICA": (0.0, 0.3, 0.5, 0.7),
    }
    for f, (family, levels) in enumerate(noises.items()):
        for noise in levels:
            data = [
                dependent(family, n, noise, np.random.default_rng([2, f, int(100 * noise), i])) for i in range(draws)
            ]
            # hyppo applies the bandwidth of x to y: with both medians 1 its kernels are ours.
            data = [tuple(z / median_distance(torch.from_numpy(z)) for z in pair) for pair in data]
            pairs = [tuple(map(torch.from_numpy, pair)) for pair in data]
            found = {
                "permutation": [
                    permutation_test(*p, permutations=permutations, seed=i).pvalue for i, p in enumerate(pairs)
                ],
                "independent permutations": [independent(*p, permutations, i) for i, p in enumerate(pairs)],
                "gamma": [gamma_test(*p).pvalue for p in pairs],
                "aggregated": [
                    aggregated_test(*p, permutations=permutations, seed=i).pvalue for i, p in enumerate(pairs)
                ],
            }
            if hyppo:
                theirs = run_hyppo(hyppo, *map(np.stack, zip(*data, strict=True)), permutations)
                found |= {"hyppo permutation": theirs["permutation"], "hyppo chi2": theirs["chi2"]}
            for name, pvalues in found.items():
                rate = float((np.array(pvalues) <= 0.05 + 1e-12).mean())
                rows.append(
                    {
                        "family": family,
                        "noise": noise,
                        "n": n,
                        "test": name,
                        "draws": draws,
                        "power": rate,
                        "standard_error": (rate * (1 - rate) / draws) ** 0.5,
                    }
                )
            print(family, noise, {row["test"]: row["power"] for row in rows[-len(found) :]}, flush=True)
    frame = pd.DataFrame(rows)
    write(frame, "power", f"data default_rng([2, family, 100 noise, i]), test seed i, {permutations} permutations")
    draw_power(frame)


def draw_power(frame: pd.DataFrame) -> None:
    """The figure of the table of power: a panel for each family, a line for each test."""
    set_theme()
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.4), sharey=True, layout="constrained")
    for ax, (family, rows) in zip(axes.flat, frame.groupby("family", sort=False), strict=True):
        for name, part in rows.groupby("test", sort=False):
            style = "--" if name.startswith("hyppo") else "-"
            ax.errorbar(part["noise"], part["power"], part["standard_error"], label=name, linestyle=style, capsize=2)
        ax.set(title=family, xlabel="1 - angle / 45°" if family == "rotated ICA" else "noise", ylim=(0, 1.02))
        ax.axhline(0.05, color="0.6", linewidth=0.8)
    for ax in axes[:, 0]:
        ax.set_ylabel(f"power at 5 %, n = {frame['n'].iloc[0]}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(RESULTS / "independence_power.png", dpi=110)


def independent(x: torch.Tensor, y: torch.Tensor, permutations: int, seed: int) -> float:
    """p-value of independently drawn permutations, one by one: what the shifts replace."""
    kernels, generator = (Gaussian().fit(x), Gaussian().fit(y)), torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(x), generator=generator) for _ in range(permutations)]
    null = torch.stack([hsic(x, y[order], *kernels, "unbiased") for order in orders])
    return (1 + int((null >= hsic(x, y, *kernels, "unbiased")).sum())) / (1 + permutations)


def speed(hyppo: str | None, large: int) -> None:
    """Times of one call, each beside the bound that its parts set: two Grams, their exponentials, their transforms."""
    n, width, rows = 4000, 5, []
    last = large_sample(large)  # before all others, which could hold more memory
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, width))
    y = rng.normal(size=(n, width)) + 0.02 * x**2
    pair = torch.from_numpy(x), torch.from_numpy(y)
    single = [z.float() for z in pair]
    kernels = [Gaussian().fit(z) for z in pair]
    grams = best(lambda: [kernel(z) for kernel, z in zip(kernels, single, strict=True)])
    half = torch.rand(n // 2, n, dtype=torch.float64)
    exponentials, transforms = (
        2 * best(lambda: half.exp()),
        2 * best(lambda: [torch.fft.rfft(part) for part in half.split(65)]),
    )
    rows.append({"what": "two Gram matrices, float32", "seconds": grams})
    rows.append({"what": "exponentials of the half Grams, float64", "seconds": exponentials})
    rows.append({"what": "Fourier transforms of their diagonals, float64", "seconds": transforms})
    test = best(lambda: permutation_test(*pair))
    rows.append({"what": f"permutation_test, {n - 1} permutations", "seconds": test, "bound": 4 * grams})
    if hyppo:
        few, many = (run_hyppo(hyppo, x[None], y[None], reps) for reps in (2, 12))
        theirs = float(many["seconds"] - few["seconds"]) / 10
        rows.append({"what": "hyppo, one statistic and its chi-square", "seconds": float(many["single"])})
        rows.append({"what": "hyppo: a permutation", "seconds": theirs})
        rows.append({"what": "permutation_test: a permutation", "seconds": test / (n - 1), "bound": theirs / 1000})
    groups = np.arange(n) % 10
    rows.append(
        {"what": "permutation_test, 10 groups", "seconds": best(lambda: permutation_test(*pair, groups=groups))}
    )
    rows.append({"what": "aggregated_test, 25 pairs of kernels", "seconds": best(lambda: aggregated_test(*pair))})
    rows.append({"what": "gamma_test", "seconds": best(lambda: gamma_test(*pair))})
    rows.append({"what": "block_test", "seconds": best(lambda: block_test(*pair))})
    rows.append(last)
    frame = pd.DataFrame(rows)
    print(frame.to_string())
    write(frame, "speed", f"n = {n}, p = q = {width}, default_rng(3), last row default_rng(4); seconds by the clock")


def large_sample(n: int) -> dict[str, object]:
    """Time of one permutation test of n rows, and how far it raised the peak of the memory of this process."""
    rng = np.random.default_rng(4)
    pair = [torch.from_numpy(rng.normal(size=(n, 16))) for _ in range(2)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    result = permutation_test(*pair)
    seconds = time.perf_counter() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    what = f"n = {n}, p = 16, out of {result.out_of}: {memory:.2f} GiB more than before (bound 1)"
    return {"what": what, "seconds": seconds, "bound": 300}


def best(call: Callable[[], object], repetitions: int = 5) -> float:
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def run_hyppo(python: str, x: np.ndarray, y: np.ndarray, reps: int) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(given, x=x, y=y, reps=reps)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        subprocess.run([python, "-c", HYPPO, given, found], check=True, env=os.environ | threads)
        return dict(np.load(found))


def write(frame: pd.DataFrame, name: str, seeds: str) -> None:
    """The table, with the command, the seeds and the machine as comment lines above it."""
    path = RESULTS / f"independence_{name}.csv"
    words = ["PYTHON" if before == "--hyppo" else word for before, word in pairwise(sys.argv)]  # not the local path
    header = [
        " ".join(["python benchmarks/independence.py", *words]),
        seeds,
        f"{hardware(CPU)}, {torch.get_num_threads()} thread of {os.cpu_count()} cores, torch {torch.__version__}",
    ]
    part = path.with_suffix(".part")
    part.write_text("".join(f"# {line}\n" for line in header) + frame.to_csv(index=False, float_format="%.6g"))
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("level", "calibration", "power", "speed"))
    parser.add_argument("--hyppo", help="a Python that can import hyppo")
    parser.add_argument("--draws", type=int)
    parser.add_argument("--large", type=int, default=20_000, help="rows of the largest sample of `speed`")
    options = parser.parse_args()
    torch.set_num_threads(2 if options.what == "speed" else 1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.what in ("power", "speed") and not options.hyppo:
        print("no --hyppo: hyppo is left out", file=sys.stderr)
    if options.what == "level":
        level(options.draws or 2000)
    elif options.what == "calibration":
        calibration(options.draws or 1000)
    elif options.what == "power":
        power(options.hyppo, options.draws or 100)
    else:
        speed(options.hyppo, options.large)


if __name__ == "__main__":
    main()
