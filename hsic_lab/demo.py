"""The demo: Barlow Twins and HSIC_SSL on digit scenes, trained, evaluated and drawn."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from hsic_lab._io import replace_file
from hsic_lab.datasets import ImageData, load
from hsic_lab.evaluation import extract_features, probe_summary, probe_table
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.plots import compare_cross_correlations, history_figure, set_theme
from hsic_lab.training import Run, TrainConfig, train_or_load
from hsic_lab.training._run import WEIGHTS
from hsic_lab.training._setup import make_networks

TITLES = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}
EPOCHS = 14
CAPTION = """Entries off the diagonal grow, too: the views share only the digit, one of ten.
So d = 128 features describe few common factors and must repeat one another."""


def demo_config(loss: str, epochs: int = EPOCHS) -> TrainConfig:
    """Return settings of the demo: lambda = 1/d, d = 128, batch 256; the two scenes of a pair share the digit only."""
    return TrainConfig(dataset="digit_scenes", loss=loss, epochs=epochs)


def demo_probe(runs: Mapping[str, Run], data: ImageData, path: Path, n_jobs: int | None = None) -> pd.DataFrame:
    """Return the probe accuracy of raw pixels, an untrained encoder and the runs; kept in `path` for equal inputs."""
    weights = (title.encode() + (run.folder / WEIGHTS).read_bytes() for title, run in runs.items())
    inputs = "sha256:" + hashlib.sha256(b"".join([data.fingerprint.encode(), *weights])).hexdigest()
    if path.exists():
        with suppress(ValueError):  # a damaged table is made again
            kept = pd.read_csv(path)
            if set(kept.get("inputs", ())) == {f"{inputs} {len(kept)} rows"}:
                return kept.drop(columns="inputs")
    config, splits = next(iter(runs.values())).config, (data.train.images, data.test.images)
    features: dict[str, Any] = {"raw pixels": tuple(images.flatten(1).float() / 255 for images in splits)}
    encoders = {"untrained encoder": make_networks(config, data.train.images.shape[1])[0]}
    for title, encoder in (encoders | {title: run.encoder for title, run in runs.items()}).items():
        features[title] = tuple(extract_features(encoder, images) for images in splits)
    labels, half = data.train.labels, len(data.train) // 2  # a fit of 3072 pixels gains nothing from all rows
    table = probe_table(features, labels, data.test.labels, splits=3, n_train=half, n_jobs=n_jobs)
    replace_file(path, partial(table.assign(inputs=f"{inputs} {len(table)} rows").to_csv, index=False))
    return table


def save_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write figures by file name into a folder, close them and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        replace_file(folder / name, partial(figure.savefig, dpi=150, format="png"))
        plt.close(figure)
    return [folder / name for name in figures]


def run_demo(folder: Path = Path("runs/demo"), epochs: int = EPOCHS) -> list[Path]:
    """Train, evaluate, draw, print the table and return the files in `folder`. A second call trains nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    data = load("digit_scenes")
    before = ", ".join(loss for loss in TITLES if (folder / loss).exists())
    runs = {title: train_or_load(demo_config(loss, epochs), folder / loss, data) for loss, title in TITLES.items()}
    print(f"Evaluating the frozen encoders{before and f' (trained before: {before})'} ...", flush=True)
    table = demo_probe(runs, data, folder / "probe.csv", n_jobs=-1)
    print(f"\nLinear probe, accuracy on {len(data.test)} test scenes (digits never trained on), 3 probe splits:\n")
    print(probe_summary(table).map(lambda value: f"{value:.3f}" if isinstance(value, float) else value).to_string())
    set_theme()
    whole = all(0 in run.snapshots for run in runs.values())  # a resumed run may have lost the first ones
    names = {"before training" if whole else "first snapshot": min, "after training": max}
    panels = {title: {n: r.snapshots[end(r.snapshots)] for n, end in names.items()} for title, r in runs.items()}
    curves = history_figure({title: run.history for title, run in runs.items()}, demo_config("hsic_ssl").projector[-1])
    (heatmaps := compare_cross_correlations(panels)).supxlabel(CAPTION, fontsize="small")
    figures = {"correlation.png": heatmaps, "training.png": curves}
    explorer = CorrelationExplorer(runs).save_html(folder / "explorer.html")
    return [explorer, folder / "probe.csv", *save_figures(figures, folder), *(run.folder for run in runs.values())]
