# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: two losses, one matrix
#
# Two encoders learn handwritten digits without labels, from pairs of views that share only the digit: one with *Barlow Twins*, one
# with *HSIC_SSL* (Tsai et al. 2021, arXiv 2104.13712). Both losses are functions of one matrix. Its entry $C_{ij}$ is the correlation
# of feature $i$ of view A with feature $j$ of view B.
#
# The runs are those of `make demo`; without them you train for two to ten minutes. Folded cells hold imports and checks.
#
# **Run all cells first** (menu Run). Until then the explorer below is an image. After a restart, or if you read "model not found", run
# them again.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes and steps, for a quick check
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
EPOCHS, SIZES = (9, {"n_train": 2000, "n_test": 500}) if FAST else (14, {})

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import torch
from IPython.display import display

from hsic_lab.correlation import CorrelationSummary, cross_correlation, standardize
from hsic_lab.datasets import DigitScenes, load
from hsic_lab.demo import demo_config, demo_probe
from hsic_lab.evaluation import probe_summary
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.hsic import hsic
from hsic_lab.plots import compare_cross_correlations, plot_pairs, plot_probe, set_theme
from hsic_lab.training import train_or_load
from hsic_lab.views import normalize

set_theme()

# %% alt="Ten pairs of scenes. The two views of a pair show the same handwritten digit in other colors, sizes and positions on other backgrounds."
data = load("digit_scenes", **SIZES)
view_a, view_b = data.scenes.pairs(10, 7, shared=("digit",))
plot_pairs(view_a, view_b, n=10);

# %% [markdown]
# ## C before and after training
#
# Both losses ask for $C_{ii} = 1$. Off the diagonal, Barlow Twins asks for 0 and HSIC_SSL for $-1$, which not all entries can reach.

# %% alt="Heatmaps of C for Barlow Twins (top) and HSIC_SSL (bottom), before and after training. Before training all entries are near 0; after training the diagonal is high and the other entries scatter around 0."
losses = {"Barlow Twins": "barlow_twins", "HSIC_SSL": "hsic_ssl"}
runs = {
    title: train_or_load(demo_config(loss, EPOCHS), RUNS / loss, data, progress=not FAST)
    for title, loss in losses.items()
}
ends = {"before training": min, "after training": max}
matrices = {
    title: {name: run.snapshots[end(run.snapshots)] for name, end in ends.items()}
    for title, run in runs.items()
}
compare_cross_correlations(matrices);

# %% [markdown]
# The diagonal rises. The other entries grow too: 128 features describe which of ten digits it is. Move through the training, sort
# the features, click an entry. [Notebook 04](04_reading_cross_correlation.ipynb) explains the numbers beside the heatmaps:

# %% alt="Explorer with C of both runs after training, side by side on one color scale, with histograms of the entries and the spectra."
display(CorrelationExplorer(runs))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
for title, pair in matrices.items():
    before, after = (CorrelationSummary.from_matrix(c, 2048) for c in pair.values())
    print(f"{title}: mean diagonal {before.mean_diagonal:.2f} -> {after.mean_diagonal:.2f}")
    print(f"{title}: off-diagonal rms {before.rms_off_diagonal:.3f} -> {after.rms_off_diagonal:.3f}")
    assert after.mean_diagonal > before.mean_diagonal + 0.2 and after.rms_off_diagonal > before.rms_off_diagonal

# %% [markdown]
# ## The sum of squares of C is HSIC
#
# HSIC, the Hilbert-Schmidt Independence Criterion, compares images with images. $C$ compares features with features. With linear
# kernels, on standardized features, both give the same number. (The explorer shows a slightly different one, because it uses 2048
# other pairs.)

# %%
run = runs["Barlow Twins"]
with torch.no_grad():
    z_a, z_b = (
        run.projector(run.encoder(normalize(view))).double()
        for view in DigitScenes("test").pairs(1024, 3, shared=("digit",))
    )
from_images = hsic(standardize(z_a), standardize(z_b), route="dual")
from_features = cross_correlation(z_a, z_b).square().sum()
print(f"HSIC = {from_images:.12f}\n||C||_F^2 = {from_features:.12f}")
assert abs(from_images - from_features) < 1e-10 * from_features

# %% [markdown]
# ## What the encoders have learned
#
# A linear classifier reads the digit from the frozen features of both encoders, but not from pixels or an untrained encoder.

# %% alt="Bar chart of linear-probe accuracy on test scenes. Raw pixels and the untrained encoder are little above chance; Barlow Twins and HSIC_SSL are far higher and close to each other."
table = demo_probe(runs, data, RUNS / "probe.csv")
plot_probe(table);

# %%
accuracy = probe_summary(table)["mean"]
trained, others = accuracy[list(losses)], accuracy[["raw pixels", "untrained encoder"]]
for name, value in accuracy.items():
    print(f"{name}: {value:.1%}")
assert trained.min() > others.max() + 0.1 and others.min() > table["chance"].max()
assert FAST or (trained.min() > 0.70 and trained.max() - trained.min() < 0.05)  # one seed of each

# %% [markdown]
# **Next:** [01 Barlow Twins is HSIC](01_barlow_twins_is_hsic.ipynb).
#
# ## Exercise
#
# Compute $C$ between view A of one encoder and view B of the *other* one. Does it have a diagonal? Is HSIC small?
#
# Solution (open the cell):

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
other = runs["HSIC_SSL"]
with torch.no_grad():
    view_b = DigitScenes("test").pairs(1024, 3, shared=("digit",))[1]
    mixed = cross_correlation(z_a, other.projector(other.encoder(normalize(view_b))).double())
print(f"mean diagonal {mixed.diagonal().mean():.3f}")
print(f"HSIC {mixed.square().sum():.1f}, for one encoder {from_features:.1f}")
# HSIC is as large as for one encoder: both see the digit. There is a diagonal too, though a weaker one, because both trainings
# started from the same random weights (one seed). The features of encoders with different seeds would have no common order.
assert FAST or (0.2 < mixed.diagonal().mean() < 0.7 and abs(mixed.square().sum() / from_features - 1) < 0.2)
