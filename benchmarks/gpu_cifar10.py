"""CIFAR-10 with a ResNet-18 against the clock: Barlow Twins and HSIC_SSL, seconds to an accuracy, and what it ends at.

    python benchmarks/gpu_cifar10.py runs/gpu --minutes 9      call it again until it says that all is done
    python benchmarks/gpu_cifar10.py runs/smoke --smoke        the same at toy size on a CPU

Every call trains until its minutes are over and goes on at the next one, from the checkpoint of the last two epochs.
The clock is the run's own `seconds`, monitors included. The target, 84.2 % by weighted kNN, is lightly's published
figure for Barlow Twins, ResNet-18, 200 epochs at batch 128 (k = 200, temperature 0.1, test split, best epoch); here
the monitor on held-out training labels (10 000 images vote on 2 000 others, temperature 0.5) says after how many
seconds the target was reached, and the test split is read once, after the last step.
Results go to `data/results/gpu_cifar10.csv` with hardware, command, seed, split and protocol.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, load
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.training import Run, TrainConfig, recipe, train
from hsic_lab.training._config import pick_device
from hsic_lab.training._run import SETTINGS, read_settings

TARGET = 0.842


def plans(epochs: int, seeds: int) -> dict[str, TrainConfig]:
    """The runs by name: both losses, lambda = 1/d, at every seed."""
    base = recipe(
        "solo",
        loss_scale=1.0,
        lambda_param=None,
        batch_size=256,
        projector=(2048, 2048),
        epochs=epochs,
        warmup_epochs=min(5.0, epochs / 4),
        monitor="knn",
        device="cuda",
        compile=True,
        snapshots=2,
        checkpoint_every=2,
        monitor_every=2,
    )
    return {
        f"{loss}_{epochs}_seed{seed}": replace(base, loss=loss, seed=seed)
        for seed in range(seeds)
        for loss in ("barlow_twins", "hsic_ssl")
    }


def smoke_plans() -> dict[str, TrainConfig]:
    config = TrainConfig(
        dataset="digits",
        width=2,
        projector=(16, 8),
        epochs=2,
        device="cpu",
        precision="float32",
        monitor="knn",
        monitor_every=1,
        snapshots=2,
    )
    return {f"{loss}_smoke": replace(config, loss=loss) for loss in ("barlow_twins", "hsic_ssl")}


def seconds_to(target: float, run: Run) -> float:
    """The training's own clock at the first logged step after the monitor reached the target, NaN if it never did."""
    reached = run.monitor.loc[run.monitor["accuracy"] >= target, "step"]
    if reached.empty:
        return float("nan")
    return run.history.loc[run.history["step"] >= reached.iloc[0], "seconds"].iloc[0]


def row_of(name: str, run: Run, data: ImageData) -> dict[str, object]:
    """The one look at the test split, and everything that names the figures."""
    run.encoder.to(pick_device(run.config.device))
    train_x, test_x = (extract_features(run.encoder, split.images) for split in (data.train, data.test))
    labels = data.train.labels, data.test.labels
    k = min(200, len(train_x))
    return {
        "run": name,
        "loss": run.config.loss,
        "seed": run.config.seed,
        "epochs": run.config.epochs,
        "split": f"{data.name} test, {len(test_x)} images, read once after training",
        "knn": knn_accuracy(train_x, labels[0], test_x, labels[1], k=k, temperature=0.1),
        "knn_protocol": f"weighted, k = {k}, temperature 0.1",
        "linear": linear_probe(train_x, labels[0], test_x, labels[1]).accuracy,
        "linear_protocol": "logistic regression on frozen features, penalty chosen on a part of the training split",
        f"seconds to {TARGET}, monitor": seconds_to(TARGET, run),
        "seconds": run.history["seconds"].iloc[-1],
        "hardware": run.metadata["hardware"],
        "torch": run.metadata["torch"],
        "command": " ".join(["python", *sys.argv]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("data/results/gpu_cifar10.csv"))
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    data = load("digits" if arguments.smoke else "cifar10")
    output = arguments.folder / "results.csv" if arguments.smoke else arguments.output
    rows = pd.read_csv(output).to_dict("records") if output.exists() else []

    def stop(event) -> None:
        if event.kind == "step" and time.monotonic() > deadline:
            raise SystemExit(f"{event.step} steps done, time is over: call again to go on")

    for name, config in (smoke_plans() if arguments.smoke else plans(arguments.epochs, arguments.seeds)).items():
        folder = arguments.folder / name
        if any(row["run"] == name for row in rows):
            continue
        finished = (folder / SETTINGS).exists() and read_settings(folder)[1] == "finished"
        run = Run.load(folder) if finished else train(config, folder, data, resume=True, callbacks=[stop])
        print(run.monitor.to_string(index=False))
        if time.monotonic() > deadline - (0 if arguments.smoke else 120):
            raise SystemExit(f"{name} is trained; call again to evaluate it")
        rows.append(row_of(name, run, data))
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, lambda path: pd.DataFrame(rows).to_csv(path, index=False))
    print(pd.DataFrame(rows).T.to_string())
    print(f"All is done: {output}")


if __name__ == "__main__":
    main()
