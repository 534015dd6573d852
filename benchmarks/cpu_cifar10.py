"""CIFAR-10 on a CPU: linear accuracy of a ConvEncoder after 20 epochs of 20 000 images, and before them.

    python benchmarks/cpu_cifar10.py runs/cpu --seeds 3        test split; call it again to go on after an interruption
    python benchmarks/cpu_cifar10.py runs/try --validate       the training images after those, to choose settings on

The encoder trains without labels on the first `--images` of the training split. The probe has the labels of the same
images, its penalty chosen on a fifth of them, and answers once: on the official test split, or with `--validate` on
the next 10 000 training images. The row "untrained" is the same encoder as it was initialized. Accuracies go to
`data/results/cpu_cifar10.csv` with split, protocol, seed, settings, hardware and command.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, load
from hsic_lab.encoders import ConvEncoder
from hsic_lab.evaluation import extract_features, knn_accuracy, linear_probe
from hsic_lab.training import TrainConfig, train_or_load
from hsic_lab.training._config import hardware

VALIDATION = 10_000
PROTOCOL = "logistic regression on frozen features, penalty chosen on a fifth of the labelled training images"


def parts(images: int, validate: bool) -> ImageData:
    """The first images of the training split, and what the probe answers on."""
    data = load("cifar10")
    train = data.train.subset(slice(images))
    asked = data.train.subset(slice(images, images + VALIDATION)) if validate else data.test
    return ImageData(f"cifar10[:{images}]", train, asked, data.class_names)


def accuracies(encoder: torch.nn.Module, data: ImageData) -> dict[str, float]:
    train_x, asked_x = (extract_features(encoder, split.images) for split in (data.train, data.test))
    features = train_x, data.train.labels, asked_x, data.test.labels
    return {"linear": linear_probe(*features).accuracy, "knn": knn_accuracy(*features, k=200, temperature=0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=16, help="channels of the first convolution")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--loss", default="barlow_twins")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--lambda-param", type=float, help="left out: 1/d")
    parser.add_argument("--projector", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--output", type=Path, help="left out: data/results/cpu_cifar10.csv, or with --validate none")
    arguments = parser.parse_args()
    data = parts(arguments.images, arguments.validate)
    split = f"cifar10 train[{arguments.images}:][:{VALIDATION}]" if arguments.validate else "cifar10 test, 10000 images"
    rows = []
    for seed in range(arguments.seeds):
        config = TrainConfig(
            dataset=data.name,
            loss=arguments.loss,
            lambda_param=arguments.lambda_param,
            seed=seed,
            width=arguments.width,
            projector=tuple(arguments.projector),
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            device="cpu",
            snapshots=2,
        )
        run = train_or_load(config, arguments.folder / f"{arguments.loss}_seed{seed}", data)
        torch.manual_seed(seed)
        for name, encoder in {"untrained": ConvEncoder(arguments.width), arguments.loss: run.encoder}.items():
            rows.append(
                {
                    "encoder": name,
                    "seed": seed,
                    **accuracies(encoder, data),
                    "split": split,
                    "linear_protocol": f"{PROTOCOL}; {arguments.images} labels",
                    "knn_protocol": "weighted, k = 200, temperature 0.1",
                    "epochs": arguments.epochs,
                    "train_images": arguments.images,
                    "seconds": run.history["seconds"].iloc[-1],
                    "hardware": f"{hardware(torch.device('cpu'))}, {run.metadata['threads']} threads",
                    "torch": run.metadata["torch"],
                    "command": " ".join(["python", *sys.argv]),
                }
            )
            print({key: rows[-1][key] for key in ("encoder", "seed", "linear", "knn")}, flush=True)
    table = pd.DataFrame(rows)
    output = arguments.output or (None if arguments.validate else Path("data/results/cpu_cifar10.csv"))
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        replace_file(output, lambda path: table.to_csv(path, index=False))


if __name__ == "__main__":
    main()
