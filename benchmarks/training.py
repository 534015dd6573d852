"""Pairs per second of a training: views alone, the update alone, and both together, with a profile.

    python benchmarks/training.py                              ConvEncoder, two cores
    python benchmarks/training.py --device cuda --batches 128 256 1024 --encoders resnet18 resnet50 --compile

The images are CIFAR-10 if it is there, else noise of its shape, which costs the same. On a CPU the columns "cpu" are
pairs per second from the processor time spent, divided by the threads: on a shared machine the wall clock also measures
other processes. Model-flop utilization counts the multiplications and additions of the forward and backward pass of
both views against `--peak` teraflops (990 for bfloat16 on an H100 or H200).
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, Images, load
from hsic_lab.training import TrainConfig
from hsic_lab.training._config import hardware, pick_device
from hsic_lab.training._setup import TrainingPairs
from hsic_lab.training._train import freed_memory_kept, new_run
from hsic_lab.training._trainer import Trainer


def images(n: int) -> ImageData:
    try:
        return load("cifar10")
    except FileNotFoundError:
        pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        split = Images(pixels, torch.arange(n) % 10)
        return ImageData("noise", split, split, tuple(map(str, range(10))))


def repeated(pairs: TrainingPairs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    epoch = 0
    while True:
        yield from pairs.epoch(epoch)
        epoch += 1


def seconds(call: Callable[[], object], repetitions: int, device: torch.device) -> tuple[float, float]:
    """Wall time of one call and, on a CPU, processor time divided by the threads."""
    for _ in range(3):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repetitions):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, (time.process_time() - cpu) / torch.get_num_threads()
    return wall / repetitions, cpu / repetitions


def measure(config: TrainConfig, data: ImageData, repetitions: int, peak: float, table: bool) -> dict[str, object]:
    device = pick_device(config.device)
    pairs = TrainingPairs(data, config, device, slice(None))
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(config, Path(folder), data)
    trainer = Trainer(run, pairs)
    trainer.online.train()
    stream = repeated(pairs)
    batch = next(stream)
    views, step = (lambda: next(stream)), (lambda: trainer.step(*batch))
    with FlopCounterMode(display=False) as counter:
        trainer.backward(*batch)
    both = lambda: trainer.step(*next(stream))  # noqa: E731
    times = {
        name: seconds(call, repetitions, device) for name, call in {"views": views, "step": step, "both": both}.items()
    }
    if table:
        kinds = [torch.profiler.ProfilerActivity.CPU]
        kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        with torch.profiler.profile(activities=kinds) as profile:
            for _ in range(5):
                trainer.step(*next(stream))
        key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(profile.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=40))
    row: dict[str, object] = {"encoder": config.encoder, "width": config.width, "batch": config.batch_size}
    row |= {f"{name} pairs/s": config.batch_size / wall for name, (wall, _) in times.items()}
    if device.type == "cpu":
        row |= {f"{name} cpu": config.batch_size / cpu for name, (_, cpu) in times.items()}
    row["views share"] = (
        times["views"][1] / times["both"][1] if device.type == "cpu" else (times["views"][0] / times["both"][0])
    )
    row["Tflop/s"] = counter.get_total_flops() / times["both"][0] / 1e12
    if device.type == "cuda":
        row["images/s"] = 2 * config.batch_size / times["both"][0]
        row["utilization"] = row["Tflop/s"] / peak
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoders", nargs="+", default=["conv"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--tries", type=int, default=1, help="rows for each setting, to show the noise of a shared machine"
    )
    parser.add_argument("--peak", type=float, default=990.0, help="teraflops of the device")
    parser.add_argument("--output", type=Path, help="a CSV file for the table")
    arguments = parser.parse_args()
    data = images(4 * max(arguments.batches))
    rows = []
    for encoder, number in product(arguments.encoders, range(arguments.tries)):
        for batch in arguments.batches:
            config = TrainConfig(
                dataset=data.name,
                encoder=encoder,
                width=arguments.width,
                batch_size=batch,
                device=arguments.device,
                precision=arguments.precision,
                compile=arguments.compile,
            )
            last = (encoder, batch, number) == (arguments.encoders[-1], arguments.batches[-1], arguments.tries - 1)
            with freed_memory_kept():  # as `train` does
                rows.append({"try": number} | measure(config, data, arguments.steps, arguments.peak, last))
    table = pd.DataFrame(rows)
    cpu = f"{hardware(torch.device('cpu'))}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    machine = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else cpu
    print(f"torch {torch.__version__}, {data.name}, {machine}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}" if value < 100 else f"{value:.0f}"))
    if arguments.output:
        table = table.assign(
            data=data.name,
            seed=0,
            precision=arguments.precision,
            compiled=arguments.compile,
            hardware=machine,
            torch=torch.__version__,
            command=" ".join(["python", *sys.argv]),
        )
        replace_file(arguments.output, lambda path: table.to_csv(path, index=False, float_format="%.5g"))


if __name__ == "__main__":
    main()
