"""Error rates of the verdict "dimensional collapse" of `diagnose` on simulated and real features.

    python benchmarks/verdicts.py [--seeds 2] [--epochs 2]

A false alarm is this verdict on ordinary features, a miss is another verdict on collapsed ones, as `cases` defines
them. The table goes to data/results/verdicts.csv: how often each family got the verdict. Real data are the digits of
scikit-learn, the published sets that are in the data folder, and projections and features of two short runs.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from hsic_lab.datasets import load, status
from hsic_lab.diagnostics import diagnose
from hsic_lab.report import read_embeddings
from hsic_lab.training import TrainConfig, train

RESULTS = Path(__file__).parent.parent / "data" / "results"
ROWS, WIDTHS = (50, 200, 1000, 5000), (16, 64, 128, 512)
Case = tuple[str, str, Tensor]  # family, truth ("collapsed", "ordinary" or "neither"), features


def cases(n: int, d: int, seed: int) -> Iterator[Case]:
    """Simulated features (n, d).

    Low rank r with noise of standard deviation s is collapsed if r is at most a tenth of min(n - 1, d) and the r
    directions have 80 % of the variance or more, and ordinary if r is at least a quarter of min(n - 1, d). So is a
    curve (one latent number behind a ReLU network), except in 16 dimensions, where it needs several. Spectra k^-alpha
    with alpha up to 1.5, ReLU networks of 32 latent numbers or more, white noise and a large mean are ordinary.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    most, scale = min(n - 1, d), torch.arange(1, d + 1)
    for rank in sorted({1, 2, 4, 8, d // 8, d // 4, d // 2, d}):
        for noise in (0, 0.1, 0.3, 0.5, 1):
            few = rank <= most / 10 and rank / (rank + noise**2) >= 0.8
            truth = "collapsed" if few else "ordinary" if rank >= most / 4 else "neither"
            if rank <= d:
                yield f"rank {rank}, noise {noise}", truth, normal(n, rank) @ normal(rank, d) + noise * normal(n, d)
    means = normal(10, d)[torch.randint(10, (n,), generator=generator)]
    yield "10 classes", "collapsed" if most >= 90 else "neither", means + 0.3 * normal(n, d)
    for alpha in (0.25, 0.5, 1, 1.5, 2):
        rotation = torch.linalg.qr(normal(d, d))[0]
        spectrum = normal(n, d) * scale ** (-alpha / 2) @ rotation
        yield f"spectrum k^-{alpha}", "ordinary" if alpha < 2 else "neither", spectrum
        yield f"spectrum k^-{alpha}, mean 10", "ordinary" if alpha < 2 else "neither", spectrum + 10
    for latent in (1, 4, 32, 128):
        hidden = torch.relu(normal(n, latent) @ normal(latent, 4 * latent) / latent**0.5 + 0.3 * normal(4 * latent))
        features = torch.relu(hidden @ normal(4 * latent, d) / (4 * latent) ** 0.5 + 0.3 * normal(d))
        truth = "ordinary" if latent >= 32 else "collapsed" if latent == 1 and most > 16 else "neither"
        yield f"ReLU network, {latent} latent", truth, features


def real_cases(n: int, seed: int, runs: dict[str, tuple[Tensor, Tensor]]) -> Iterator[Case]:
    """At most n rows of pixels, and of the projections and features of runs."""
    generator = torch.Generator().manual_seed(seed)
    names = [name for name in ("fashion_mnist", "cifar10", "digit_scenes") if status(name) == "ready"]
    tables = {f"pixels of {name}": load(name).test.images.flatten(1) / 255 for name in names}
    tables["pixels of 8 x 8 digits"] = torch.from_numpy(load_digits().data)
    tables |= {f"encoder features of {name}": features for name, (_, features) in runs.items()}
    for name, table in tables.items():
        yield name, "ordinary", table[torch.randperm(len(table), generator=generator)[:n]]
    for name, (projections, _) in runs.items():
        yield f"projections of {name}", "neither", projections[:n]


def trained(epochs: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Projections and encoder features of short runs on digit scenes."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for loss in ("barlow_twins", "nt_xent"):
            train(TrainConfig(loss=loss, epochs=epochs), f"{folder}/{loss}")
            embeddings = read_embeddings(f"{folder}/{loss}")
            found[f"{loss}, {epochs} epochs"] = (embeddings.z_a, embeddings.features)
    return found


def collapsed(z: Tensor) -> bool:
    """Whether `diagnose` finds dimensional collapse."""
    return "dimensional collapse" in set(diagnose(z)["verdict"])


def measure(seeds: int, runs: dict[str, tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """Return the table of all cases."""
    rows = []
    for n in ROWS:
        for seed in range(seeds):
            for d in WIDTHS:
                rows += [(family, truth, n, d, collapsed(z)) for family, truth, z in cases(n, d, seed)]
            real = real_cases(n, seed, runs) if n <= 1000 else ()
            rows += [(family, truth, n, z.shape[1], collapsed(z)) for family, truth, z in real]
    table = pd.DataFrame(rows, columns=["family", "truth", "n", "d", "found"])
    return (
        table.groupby(["truth", "family", "n", "d"], sort=False)["found"].agg(seeds="size", found="sum").reset_index()
    )


def rates(table: pd.DataFrame) -> tuple[float, float]:
    """Rates of false alarm and of miss."""
    ordinary, low = (table[table["truth"] == truth] for truth in ("ordinary", "collapsed"))
    return ordinary["found"].sum() / ordinary["seeds"].sum(), 1 - low["found"].sum() / low["seeds"].sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    table = measure(options.seeds, trained(options.epochs))
    false_alarm, miss = rates(table)
    summary = f"false alarms {false_alarm:.2%}, misses {miss:.2%}"
    command = " ".join(["python benchmarks/verdicts.py", *sys.argv[1:]])
    with (RESULTS / "verdicts.csv").open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"# {command}\n# seeds 0 to {options.seeds - 1}; {summary}\n")
        table.to_csv(file, index=False)
    print(table.groupby(["truth", "n", "d"], sort=False)[["seeds", "found"]].sum().to_string(), summary, sep="\n")
    print("projections of the runs:", table[table["family"].str.startswith("projections")].to_string(), sep="\n")


if __name__ == "__main__":
    main()
