"""The main job on embedded data: two losses trained, probed and drawn."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, load
from hsic_lab.evaluation import extract_features, probe_summary, probe_table
from hsic_lab.plots import compare_cross_correlations, history_figure, plot_probe, set_theme
from hsic_lab.training import Run, TrainConfig, train_or_load
from hsic_lab.training._networks import build_networks
from hsic_lab.training._run import WEIGHTS

TITLES = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}
EPOCHS = 14


def demo_config(loss: str, epochs: int = EPOCHS) -> TrainConfig:
    """The demo's settings: lambda = 1/d, d = 128, batch 256, pairs of scenes that share the digit and nothing else."""
    return TrainConfig(dataset="digit_scenes", loss=loss, epochs=epochs)


def demo_runs(folder: Path, data: ImageData, epochs: int = EPOCHS) -> dict[str, Run]:
    """The runs of both losses by title, trained unless `folder` holds them finished."""
    return {title: train_or_load(demo_config(loss, epochs), folder / loss, data) for loss, title in TITLES.items()}


def demo_probe(
    runs: Mapping[str, Run], data: ImageData, path: Path | None = None, n_jobs: int | None = None
) -> pd.DataFrame:
    """Linear-probe accuracy on the digit's class over 3 splits of half the set: raw pixels, an untrained encoder, runs.

    `path` is a CSV file that keeps the table: read if it is newer than the runs' weights, else written.
    """
    trained = max((run.folder / WEIGHTS).stat().st_mtime for run in runs.values())
    if path is not None and path.exists() and path.stat().st_mtime > trained:
        return pd.read_csv(path)
    config = next(iter(runs.values())).config
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.seed)
        untrained, _ = build_networks(config, data.train.images.shape[1])
    encoders = {"untrained encoder": untrained} | {title: run.encoder for title, run in runs.items()}
    splits = (data.train.images, data.test.images)
    features = {"raw pixels": tuple(images.flatten(1).float() / 255 for images in splits)}
    features |= {
        title: tuple(extract_features(encoder, images) for images in splits) for title, encoder in encoders.items()
    }
    # Half of the rows: a fit of 3072 pixels takes most of the time, and knows no more from all of them.
    labels = data.train.labels
    table = probe_table(features, labels, data.test.labels, splits=3, n_train=len(labels) // 2, n_jobs=n_jobs)
    if path is not None:
        replace_file(path, lambda temporary: table.to_csv(temporary, index=False))
    return table


def demo_figures(runs: Mapping[str, Run], table: pd.DataFrame) -> dict[str, Figure]:
    """The images by file name: C before and after, the training curves, the probes."""
    panels = {
        title: {"before training": run.snapshots[0], "after training": run.snapshots[max(run.snapshots)]}
        for title, run in runs.items()
    }
    dimension = next(iter(runs.values())).config.projector[-1]
    return {
        "correlation.png": compare_cross_correlations(panels),
        "training.png": history_figure({title: run.history for title, run in runs.items()}, dimension),
        "probe.png": plot_probe(table).figure,
    }


def run_demo(folder: Path = Path("runs/demo"), epochs: int = EPOCHS) -> list[Path]:
    """Do all of it, print the table, and return the files left in `folder`.

    A second call trains nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = load("digit_scenes")
    runs = demo_runs(folder, data, epochs)
    print("Probing what the frozen encoders know ...", flush=True)
    table = demo_probe(runs, data, folder / "probe.csv", n_jobs=-1)
    print(f"\nLinear probe, accuracy on {len(data.test)} test scenes (digits never trained on), 3 probe splits:\n")
    print(probe_summary(table).map(lambda value: f"{value:.3f}" if isinstance(value, float) else value).to_string())
    set_theme()
    written = [folder / "probe.csv"]
    for name, figure in demo_figures(runs, table).items():
        replace_file(folder / name, lambda path, figure=figure: figure.savefig(path, dpi=150, format="png"))
        plt.close(figure)
        written.append(folder / name)
    return [*written, *(run.folder for run in runs.values())]
