"""Ten minutes of self-supervised training on two CPU cores: linear accuracy on CIFAR-10 against seconds.

    python benchmarks/cpu_speedrun.py runs/speed --seeds 5                        five losses and what needs no training
    python benchmarks/cpu_speedrun.py runs/one --rows barlow_twins untrained --threads 1  one loss on one core
    python benchmarks/cpu_speedrun.py runs/try --rows barlow_twins --validate --epochs 2 --set width=32 --output try.csv
                                                                              to choose settings, or see what one gives
    python benchmarks/cpu_speedrun.py runs/none --rows untrained --images 15360 --set width=32 --seeds 5 --threads 1 \\
        --output data/results/cpu_untrained.csv                               the encoder of the tuned CIFAR-10 grids
    python benchmarks/cpu_speedrun.py runs/none --rows untrained --images 2560 --set 'encoder="resnet18"' --seeds 3 \\
        --threads 1 --output data/results/cpu_untrained.csv                   that of the grid cifar10_resnet18

Every row is a whole training of the recipe "cpu_speedrun" for so many epochs, with its own learning rate schedule,
without labels, on all training images. The probe has the labels of the same images, chooses its penalty on a fifth of
them, and answers once: on the official test split or, with `--validate`, on 5 000 training images that neither the
training nor the probe has seen. "raw pixels" and "untrained", the encoder as it was initialized, need no training.
Rows are added to the table one by one; a second call goes on after an interruption and skips the rows that are there.
`seconds` is the clock of the training; `cpu_seconds` is the processor's time for it in all threads, which other
programs on the machine hardly change (empty if the training was interrupted).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, load
from hsic_lab.evaluation import extract_features, linear_probe
from hsic_lab.training import recipe, train_or_load
from hsic_lab.training._config import hardware
from hsic_lab.training._setup import make_networks

LOSSES = ["barlow_twins", "hsic_ssl", "vicreg", "ssl_hsic", "nt_xent"]
FIXED = ["untrained", "raw pixels"]
HELD_OUT = 5_000
KEY = ["encoder", "settings", "seed", "epochs", "threads", "split", "labels"]


def parts(validate: bool, images: int | None) -> tuple[ImageData, str]:
    """Images to train on and to answer on, and the name of the latter."""
    data = load("cifar10")
    start = HELD_OUT if validate else 0
    if images is not None and not 0 < images <= len(data.train) - start:
        raise ValueError(f"--images must be in 1..{len(data.train) - start}, got {images}")
    test, split = data.test, f"cifar10 test, {len(data.test)} images"
    if validate:
        test, split = data.train.subset(slice(HELD_OUT)), f"cifar10 train[:{HELD_OUT}]"
    elif images is None:
        return data, split
    end = None if images is None else start + images
    name = f"cifar10[{start or ''}:{end or ''}]"
    return ImageData(name, data.train.subset(slice(start, end)), test, data.class_names), split


def linear(encoder: nn.Module, data: ImageData) -> dict[str, Any]:
    """Accuracy of the probe, its C, and the seconds that it took."""
    started = time.perf_counter()
    train_x, asked_x = (extract_features(encoder, split.images) for split in (data.train, data.test))
    probe = linear_probe(train_x, data.train.labels, asked_x, data.test.labels, Cs=(1e-3, 1e-2, 1e-1))
    took = round(time.perf_counter() - started)
    return {"linear": probe.accuracy, "features": train_x.shape[1], "C": probe.C, "probe_seconds": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=[*LOSSES, *FIXED], choices=[*LOSSES, *FIXED])
    parser.add_argument("--epochs", type=int, nargs="+", help="left out: those of the recipe")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings, values as JSON")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--images", type=int, help="training images and labels, the first so many; left out: all")
    parser.add_argument("--output", type=Path, default=Path("data/results/cpu_speedrun.csv"))
    arguments = parser.parse_args()
    chosen = {one.partition("=")[0]: json.loads(one.partition("=")[2]) for one in arguments.set}
    torch.set_num_threads(arguments.threads)
    data, split = parts(arguments.validate, arguments.images)
    subset = [] if arguments.images is None else [f"images={arguments.images}"]
    table = pd.read_csv(arguments.output) if arguments.output.exists() else pd.DataFrame(columns=KEY)
    seeds, budgets = range(arguments.seeds), sorted(arguments.epochs or [recipe("cpu_speedrun").epochs])
    plan = [(row, seed, epochs) for seed in seeds for epochs in budgets for row in arguments.rows if row in LOSSES]
    plan += [("untrained", seed, 0) for seed in seeds if "untrained" in arguments.rows]
    plan += [("raw pixels", 0, 0)] * ("raw pixels" in arguments.rows)
    for name, seed, epochs in plan:
        settings = "" if name == "raw pixels" else " ".join(arguments.set)
        values = (name, settings or "recipe", seed, epochs, arguments.threads, split, len(data.train))
        key = dict(zip(KEY, values, strict=True))
        if (table[KEY] == pd.Series(key)).all(axis=1).any():
            continue
        row: dict[str, Any] = dict(key, pairs=0, seconds=0.0, cpu_seconds=0.0)
        if name == "raw pixels":
            encoder: nn.Module = nn.Flatten()
        elif name == "untrained":
            encoder, _ = make_networks(recipe("cpu_speedrun", seed=seed, **chosen), data.train.images.shape[1])
        else:
            changes = {"loss": name, "seed": seed, "epochs": epochs, "dataset": data.name, "device": "cpu"}
            if name != "barlow_twins":  # the weight of the recipe was chosen for Barlow Twins
                changes["lambda_param"] = None
            config = recipe("cpu_speedrun", **changes | chosen)
            folder = arguments.folder / "_".join([name, *arguments.set, *subset, f"epochs={epochs}", f"seed={seed}"])
            fresh, started = not folder.exists(), time.process_time()
            run = train_or_load(config, folder, data)
            last = run.history.iloc[-1]
            row["pairs"], row["seconds"] = int(last["step"]) * config.batch_size, round(float(last["seconds"]), 1)
            row["cpu_seconds"] = round(time.process_time() - started, 1) if fresh else None
            encoder = run.encoder
        row |= linear(encoder, data) | {"hardware": hardware(torch.device("cpu"))}
        row |= {"torch": torch.__version__, "command": " ".join(["python", *sys.argv])}
        table = pd.DataFrame([*table.to_dict("records"), row])
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(arguments.output, lambda path, rows=table: rows.to_csv(path, index=False))
        print({column: row[column] for column in (*KEY, "seconds", "linear", "C", "probe_seconds")}, flush=True)


if __name__ == "__main__":
    main()
