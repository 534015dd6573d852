"""Time and peak memory of `hsic-lab inspect` on two views of 50 000 x 2 048 with labels.

    python benchmarks/report.py [rows] [width] [views]

Peak memory includes the pages of the mapped files that were read. On a shared machine compare the CPU seconds.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES, LATENTS = 100, 200


def write(folder: Path, rows: int, width: int, views: int) -> list[Path]:
    """Write features of 200 latent factors, whose means depend on the class, with independent noise in each view."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, rows)
    np.save(folder / "labels.npy", labels)
    means = rng.standard_normal((CLASSES, LATENTS), np.float32)
    mixing = rng.standard_normal((LATENTS, width), np.float32) / LATENTS**0.5
    paths = [folder / f"view_{name}.npy" for name in "ab"[:views]]
    factors = means[labels] + rng.standard_normal((rows, LATENTS), np.float32)
    for path in paths:
        np.save(path, factors @ mixing + 0.5 * rng.standard_normal((rows, width), np.float32))
    return paths


def main() -> None:
    rows, width, views = (int(a) for a in sys.argv[1:4]) if len(sys.argv) > 3 else (50_000, 2048, 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write(folder, rows, width, views)
        program = [sys.executable, "-c", "from hsic_lab.cli import main; main()", "inspect", *map(str, files)]
        started = time.perf_counter()
        subprocess.run(
            [*program, "--labels", str(folder / "labels.npy"), "--output", str(folder / "page.html")], check=True
        )
        seconds = time.perf_counter() - started
        size = (folder / "page.html").stat().st_size
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts in bytes, Linux in KiB
    cpu = used.ru_utime + used.ru_stime
    print(
        f"{views} views of {rows} x {width}: {seconds:.0f} s ({cpu:.0f} s of CPU), peak {peak:.2f} GiB, "
        f"page of {size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main()
