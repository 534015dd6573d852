"""Everything that needs a GPU, in calls of under ten minutes: call it again until it says that all is done.

    python benchmarks/gpu.py runs/gpu                what is finished is kept, an unfinished training goes on
    python benchmarks/gpu.py runs/smoke --smoke      the same at toy size on a CPU

In order: the tests that need CUDA (losses, batches, training); `training.py`, step time, model-flop utilisation and a
profile for ResNet-18 and ResNet-50 at batch 128, 256 and 1024; `gpu_cifar10.py`, seconds to 84.2 % kNN and the linear
accuracy. Every part leaves its output in FOLDER/NAME.log and is over once FOLDER/NAME.done is there; the speeds are
joined in `data/results/training_gpu.csv`, with `--smoke` in the folder.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from hsic_lab._io import replace_file

HERE = Path(os.path.relpath(Path(__file__).parent))  # tables quote the command, which names no place of this machine
LEAST = 60  # seconds that a part is started with


def parts(folder: Path, smoke: bool) -> dict[str, list[str]]:
    """The arguments of every part by its name."""
    tests = ["-m", "pytest", "-q", str(HERE.parent / "tests")]
    found = {"tests": [*tests, "-k", "where_the_images_lie"] if smoke else [*tests, "-m", "cuda"]}
    for encoder in ("conv",) if smoke else ("resnet18", "resnet50"):
        for batch in (16, 32) if smoke else (128, 256, 1024):
            options = ["--device", "cuda", "--compile"]
            if smoke:
                options = ["--device", "cpu", "--steps", "1", "--width", "2"]
            name = f"speed_{encoder}_{batch}"
            found[name] = [
                str(HERE / "training.py"),
                "--encoders",
                encoder,
                "--batches",
                str(batch),
                *options,
                "--output",
                str(folder / f"{name}.csv"),
            ]
    found["cifar10"] = [str(HERE / "gpu_cifar10.py"), str(folder / "cifar10"), *(["--smoke"] if smoke else [])]
    return found


def run(name: str, arguments: list[str], folder: Path, seconds: float) -> None:
    """Run a part and mark it as over. Raises SystemExit, saying what to do, if it is not over."""
    minutes = ["--minutes", f"{seconds / 60 - 0.5:.2f}"] if name == "cifar10" else []
    with (folder / f"{name}.log").open("a") as log:
        try:
            code = subprocess.run(
                [sys.executable, *arguments, *minutes], stdout=log, stderr=subprocess.STDOUT, timeout=seconds
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code:
        raise SystemExit(f"{name} is not over (exit code {code}, see {log.name}): call again to go on")
    (folder / f"{name}.done").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    folder, deadline = arguments.folder, time.monotonic() + 60 * arguments.minutes
    folder.mkdir(parents=True, exist_ok=True)
    todo = parts(folder, arguments.smoke)
    for name, options in todo.items():
        if not (folder / f"{name}.done").exists():
            left = deadline - time.monotonic()
            if left < LEAST:
                raise SystemExit(f"{name} waits for the next call")
            run(name, options, folder, left)
        print(f"{name} is over", flush=True)
    table = pd.concat([pd.read_csv(folder / f"{name}.csv") for name in todo if name.startswith("speed_")])
    output = (folder if arguments.smoke else HERE.parent / "data" / "results") / "training_gpu.csv"
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_file(output, lambda path: table.to_csv(path, index=False))
    print(f"All is done: {output}, {folder}/speed_*.log (profiles)")


if __name__ == "__main__":
    main()
