"""CKA of all layers of two networks beside other packages, and CKA of a million rows: time and peak memory growth.

    python benchmarks/cka.py [rows] [width] [--output data/results/cka_cpu.csv]

pytorch-cka and torch-cka are compared where they are installed (`pip install --no-deps pytorch-cka torch-cka`); their
values are too. The million rows never lie in memory together.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hsic_lab._io import replace_file
from hsic_lab.cka import StreamingLinearCKA, cka
from hsic_lab.compare import compare_models
from hsic_lab.training._config import hardware

CHUNK = 8192


def chunks(rows: int, width: int):
    """`y` is a rotation of `x` plus as much noise, shifted by 100: the true CKA is 1/2."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    for start in range(0, rows, CHUNK):
        x = torch.randn(min(CHUNK, rows - start), width, generator=generator)
        noise = torch.randn(len(x), width, generator=generator)
        yield x + 100, x @ rotation + noise + 100


def peak_mib() -> float:
    """Peak resident memory of this process; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def network(seed: int, depth: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    blocks = ((nn.Conv2d(3 if i == 0 else 32, 32, 3, padding=1), nn.ReLU()) for i in range(depth // 2))
    return nn.Sequential(*(layer for block in blocks for layer in block)).eval()


def rows(n: int) -> tuple[Tensor, Tensor]:
    """Two samples whose variances fall off as those of activations do."""
    x, noise = torch.randn(2, n, 512, generator=torch.Generator().manual_seed(3)) / torch.arange(1, 513).sqrt()
    return x, x @ torch.linalg.qr(torch.randn(512, 512, generator=torch.Generator().manual_seed(4))).Q + noise


def ours(a: nn.Module, b: nn.Module, images: Tensor, layers: list[str], batch: int) -> Tensor:
    return torch.from_numpy(compare_models(a, b, images, layers, batch_size=batch).to_numpy())


def pytorch_cka(a: nn.Module, b: nn.Module, images: Tensor, layers: list[str], batch: int) -> Tensor:
    batches = DataLoader(TensorDataset(images), batch)
    return importlib.import_module("cka").compute_cka(a, b, batches, layers=layers, device="cpu", progress=False)[0]


def torch_cka(a: nn.Module, b: nn.Module, images: Tensor, layers: list[str], batch: int) -> Tensor:
    metric = importlib.import_module("torch_cka").CKA(a, b, "a", "b", layers, layers)
    metric.compare(DataLoader(TensorDataset(images), batch))
    return metric.export()["CKA"]


def features_of_pytorch_cka(x: Tensor, y: Tensor) -> Tensor:
    return importlib.import_module("cka").cka_from_features(x, y)


# Of each task: what is called with its arguments, by package and module.
LAYERS: dict[tuple[str, str], Callable] = {
    ("hsic_lab", "hsic_lab"): ours, ("pytorch-cka", "cka"): pytorch_cka, ("torch-cka", "torch_cka"): torch_cka,
}  # fmt: skip
FEATURES: dict[tuple[str, str], Callable] = {
    ("hsic_lab", "hsic_lab"): cka, ("pytorch-cka", "cka"): features_of_pytorch_cka,
}  # fmt: skip


def beside_peers(output: Path | None, repetitions: int = 5) -> None:
    """Unbiased linear CKA of 8 x 8 layers, the networks' passes included, and of one pair of samples."""
    # This folder would hide the package of the same name as this file.
    sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    a, b, images = network(0), network(1), torch.randn(512, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    layers = [str(i) for i in range(8)]
    tasks: list[tuple[str, dict[tuple[str, str], Callable], tuple]] = [
        (f"8 x 8 layers, 512 images of 16 x 16, batches of {batch}", LAYERS, (a, b, images, layers, batch))
        for batch in (128, 256)
    ]
    tasks += [(f"two samples of {n} x 512", FEATURES, rows(n)) for n in (512, 2048)]
    found: list[dict[str, object]] = []
    for task, packages, arguments in tasks:
        reference = torch.empty(0)
        for (name, module), call in packages.items():
            if find_spec(module) is None:
                print(f"{task}: {name} skipped, not installed")
                continue
            times = []
            with torch.no_grad(), warnings.catch_warnings(), open(os.devnull, "w") as quiet:
                warnings.simplefilter("ignore")
                with contextlib.redirect_stderr(quiet):  # progress bars
                    for _ in range(repetitions):
                        start = time.process_time()
                        value = call(*arguments)
                        times.append(time.process_time() - start)
            value = value.double().squeeze()
            reference = value if name == "hsic_lab" else reference
            version = importlib.metadata.version(name)
            found.append({"task": task, "package": name, "version": version, "seconds": round(min(times), 4)})
            found[-1]["largest_difference"] = f"{float((value - reference).abs().max()):.1e}"
    table = pd.DataFrame(found)
    table["times"] = (table["seconds"] / table.groupby("task")["seconds"].transform("first")).round(2)
    print(table.to_string(index=False))
    if output is not None:
        table["protocol"] = f"processor time of one thread, best of {repetitions}; times: of hsic_lab's, in one run"
        table["hardware"], table["torch"] = hardware(torch.device("cpu")), torch.__version__
        table["command"] = "python benchmarks/cka.py --output data/results/cka_cpu.csv"
        replace_file(output, lambda path: table.to_csv(path, index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=1_000_000, help="of the stream; 0 leaves it out")
    parser.add_argument("width", type=int, nargs="?", default=256)
    parser.add_argument("--output", type=Path, help="table of the comparison with other packages")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    beside_peers(arguments.output)
    if arguments.rows:
        stream_of_rows(arguments.rows, arguments.width)


def stream_of_rows(rows: int, width: int) -> None:
    stream, before = StreamingLinearCKA(), peak_mib()
    drawing = adding = 0.0
    clock = time.perf_counter()
    for x, y in chunks(rows, width):
        drawn = time.perf_counter()
        stream.update(x, y)
        drawing, adding, clock = drawing + drawn - clock, adding + time.perf_counter() - drawn, time.perf_counter()
    print(f"torch {torch.__version__}, one thread, {rows} rows, width {width}, chunks of {CHUNK}")
    print(f"drawing {drawing:.1f} s, streaming {adding:.1f} s, peak memory grew by {peak_mib() - before:.0f} MiB")
    print(f"CKA unbiased {stream.compute():.6f}, biased {stream.compute('biased'):.6f}, expected 0.5")


if __name__ == "__main__":
    main()
