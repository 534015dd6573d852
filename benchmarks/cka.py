"""CKA of all layers of two networks beside other packages, and CKA of a million rows: time and peak memory growth.

python benchmarks/cka.py [rows] [width]

pytorch-cka and torch-cka are compared where they are installed (`pip install --no-deps pytorch-cka torch-cka`). The
million rows never lie in memory together.
"""

import contextlib
import importlib
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hsic_lab.cka import StreamingLinearCKA
from hsic_lab.compare import compare_models

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


def pytorch_cka(a: nn.Module, b: nn.Module, batches: DataLoader, layers: list[str]) -> Tensor:
    return importlib.import_module("cka").compute_cka(a, b, batches, layers=layers, device="cpu", progress=False)[0]


def torch_cka(a: nn.Module, b: nn.Module, batches: DataLoader, layers: list[str]) -> Tensor:
    metric = importlib.import_module("torch_cka").CKA(a, b, "a", "b", layers, layers)
    metric.compare(batches)
    return metric.export()["CKA"]


PEERS: dict[str, tuple[str, Callable]] = {"pytorch-cka": ("cka", pytorch_cka), "torch-cka": ("torch_cka", torch_cka)}


def layers_of_networks(n: int = 512, batch: int = 128) -> None:
    """Unbiased linear CKA of 8 x 8 layers, the networks' passes included; the best of three."""
    # This folder would hide the package of the same name as this file.
    sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != Path(__file__).resolve().parent]
    a, b, images = network(0), network(1), torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    batches, layers = DataLoader(TensorDataset(images), batch), [str(i) for i in range(8)]

    def best(call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        times, value = [], torch.empty(0)
        with torch.no_grad(), warnings.catch_warnings(), open(os.devnull, "w") as quiet:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(quiet):  # progress bars
                for _ in range(3):
                    start = time.perf_counter()
                    value = call()
                    times.append(time.perf_counter() - start)
        return min(times), value

    ours, table = best(lambda: torch.from_numpy(compare_models(a, b, images, layers, batch_size=batch).to_numpy()))
    print(f"8 x 8 layers, {n} images of 16 x 16, batches of {batch}: compare_models {ours:.2f} s")
    for name, (module, call) in PEERS.items():
        if find_spec(module) is None:
            print(f"  {name}: skipped, not installed")
            continue
        taken, value = best(lambda call=call: call(a, b, batches, layers))
        difference = (value.double() - table).abs().max()
        print(f"  {name} {taken:.2f} s, {taken / ours:.1f} times ours, largest difference {difference:.1e}")


def main() -> None:
    rows, width = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (1_000_000, 256)
    torch.set_num_threads(1)
    layers_of_networks()
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
