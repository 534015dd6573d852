"""Exact linear HSIC and CKA of a million rows that never lie in memory together: time and peak memory growth.

python benchmarks/cka.py [rows] [width]
"""

import resource
import sys
import time

import torch

from hsic_lab.cka import StreamingLinearCKA

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


def main() -> None:
    rows, width = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (1_000_000, 256)
    torch.set_num_threads(1)
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
