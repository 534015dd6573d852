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
# **What you will see.** Two encoders learn to recognize handwritten digits without ever being told a label. One is trained with
# *Barlow Twins*, the other with the loss that Tsai et al. (2021) derived by reading Barlow Twins as a statement about the
# *Hilbert-Schmidt Independence Criterion* (HSIC). Both losses look at one matrix, the cross-correlation $C$ of two views of a
# batch. We draw it before and after training, check on our own features that its size *is* HSIC, and ask a linear classifier
# what the two encoders know.
#
# **What you need.** A first course in machine learning, and a minute: the encoders are read from `runs/demo/` if
# `make demo` has trained them, else they are trained here (about two minutes on two CPU cores).

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes and steps, for a quick check that all of it runs
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
EPOCHS, SIZES = (9, {"n_train": 2000, "n_test": 500}) if FAST else (14, {})

# %%
import torch

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes, load
from hsic_lab.demo import demo_config, demo_probe
from hsic_lab.evaluation import probe_summary
from hsic_lab.hsic import hsic
from hsic_lab.plots import compare_cross_correlations, history_figure, plot_pairs, plot_probe, set_theme
from hsic_lab.training import train_or_load
from hsic_lab.views import normalize

set_theme()

# %% [markdown]
# ## Pairs of views
#
# Self-supervised learning starts from pairs of images that have something in common. Here we choose what that is: a scene
# shows a real handwritten digit, recolored, scaled and placed somewhere on a piece of a photograph, and **the two views of a
# pair share the digit and nothing else**. Color, place, size and background are drawn anew. An encoder that finds what the
# views share has to find the digit. Train and test scenes are made from different digits.

# %%
data = load("digit_scenes", **SIZES)
view_a, view_b = data.scenes.pairs(10, 7, shared=("digit",))
plot_pairs(view_a, view_b, n=10)
data.train.factors.head(4)

# %% [markdown]
# ## Two encoders, two losses
#
# An encoder turns a image into 256 features, a projector turns those into $d = 128$ numbers. For a batch of $n$ pairs this
# gives two $n \times d$ matrices; shift and scale every column to mean 0 and variance 1 and call them $X$ and $Y$. Then
#
# $$C = \frac{1}{n} X^\top Y, \qquad
# L_\text{Barlow Twins} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2, \qquad
# L_\text{HSIC} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} (1 + C_{ij})^2 .$$
#
# $C_{ij}$ is the correlation of feature $i$ of view A with feature $j$ of view B. Both losses want every feature to agree with
# itself across the views (diagonal 1). Barlow Twins wants different features to be uncorrelated (0), the HSIC loss asks for $-1$.
# Both runs use the report's rule $\lambda = 1/d$ and are otherwise alike.

# %%
titles = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}
runs = {
    title: train_or_load(demo_config(loss, EPOCHS), RUNS / loss, data, progress=False) for loss, title in titles.items()
}
for title, run in runs.items():
    print(f"{title}: {run.status}, {run.history['step'].iloc[-1]:.0f} steps on {run.metadata['device']}")

# %% [markdown]
# ## The matrix before and after
#
# All four panels come from the same 2048 pairs of *test* scenes, before the first training step and after the last one, on one
# color scale. Before, nothing that an untrained network computes agrees across views that share only a digit: $C$ is nearly 0.
# After, the diagonal stands out. The entries off it are no longer small, though: 128 features that all speak of one digit cannot be
# 128 different things, and with $\lambda = 1/d$ both losses accept that. (Longer training or a larger $\lambda$ pushes them down.)

# %%
compare_cross_correlations(
    {
        title: {"before training": run.snapshots[0], "after training": run.snapshots[max(run.snapshots)]}
        for title, run in runs.items()
    }
);

# %%
d = 128
off = ~torch.eye(d, dtype=torch.bool)
for title, run in runs.items():
    before, after = run.snapshots[0], run.snapshots[max(run.snapshots)]
    print(
        f"{title}: mean diagonal {before.diagonal().mean():.2f} -> {after.diagonal().mean():.2f}, "
        f"off-diagonal rms {before[off].square().mean().sqrt():.3f} -> {after[off].square().mean().sqrt():.3f}"
    )
    assert after.diagonal().mean() > before.diagonal().mean() + 0.2

# %% [markdown]
# ## While training
#
# The target $-1$ off the diagonal cannot be met: $d$ standardized features that agree across the views cannot all be opposed to
# one another, their mean correlation is at least $-1/(d-1)$, here $-0.008$. So the two losses ask for nearly the same matrix,
# and the curves show it. (The HSIC loss is larger by about $\lambda d (d-1) = d - 1$, the price of the target that cannot be met.)

# %%
history_figure({title: run.history for title, run in runs.items()}, d);

# %% [markdown]
# ## The size of C is HSIC
#
# HSIC measures how far a joint distribution is from the product of its marginals: it is 0 for independent variables. With the
# simplest kernel, $k(x, x') = \langle x, x' \rangle$, on standardized features, the estimator of Gretton et al. (2005) is
# $\operatorname{tr}(KHLH)/n^2$ with two $n \times n$ Gram matrices $K = XX^\top$, $L = YY^\top$, and this is
# $\lVert C \rVert_F^2 = \sum_{ij} C_{ij}^2$. We compute both on the trained features of 1024 test pairs.

# %%
run = runs["Barlow Twins"]
with torch.no_grad():
    z_a, z_b = (
        run.projector(run.encoder(normalize(view))).double()
        for view in DigitScenes("test").pairs(1024, 3, shared=("digit",))
    )
through_the_grams = hsic(standardize(z_a), standardize(z_b), route="dual")
through_c = cross_correlation(z_a, z_b).square().sum()
print(f"tr(KHLH)/n^2 = {through_the_grams:.12f}\n||C||_F^2    = {through_c:.12f}")
assert abs(through_the_grams - through_c) < 1e-10 * through_c

# %% [markdown]
# Nobody drew negative pairs to get this number: centring (the matrix $H$) puts all permutations of the batch in their place. That
# is the report's reading of Barlow Twins as *contrastive learning without negative samples*; notebook 01 takes it apart.
#
# ## What the encoders know
#
# The usual judge of self-supervised features is a *linear probe*: freeze the encoder, fit a linear classifier to its 256
# features on labelled training scenes, and measure accuracy on test scenes, whose digits no part of the system has seen. Dots are
# three random halves of the training scenes; the penalty is chosen on a validation part of the subset.

# %%
table = demo_probe(runs, data, RUNS / "probe.csv")
plot_probe(table)
probe_summary(table).style.format("{:.3f}", subset=["mean", "std"])

# %%
accuracy = probe_summary(table)["mean"]
chance = table["chance"].iloc[0]
assert accuracy["untrained encoder"] > chance
assert min(accuracy["Barlow Twins"], accuracy["HSIC_SSL"]) > accuracy["untrained encoder"] + 0.1
assert min(accuracy["Barlow Twins"], accuracy["HSIC_SSL"]) > accuracy["raw pixels"] + 0.1
if not FAST:
    assert min(accuracy["Barlow Twins"], accuracy["HSIC_SSL"]) > 0.70
    assert abs(accuracy["Barlow Twins"] - accuracy["HSIC_SSL"]) < 0.05
print(f"HSIC_SSL minus Barlow Twins: {100 * (accuracy['HSIC_SSL'] - accuracy['Barlow Twins']):+.1f} points, one training seed each")

# %% [markdown]
# Pixels and random features say little about the digit; both losses make an encoder that knows it, without a label, and they are
# close to each other, as the report claims. One seed each is no proof that they are equal.
#
# ## Exercises
#
# 1. Let the views share the background instead: `replace(demo_config("barlow_twins"), shared=("background",))` with
#    `from dataclasses import replace`. What does the probe on digits say now? Why?
# 2. Pass `limit=0.3` to the heatmaps. What does it show, what does it hide?
# 3. Correlate the view A of one encoder with the view B of the other: `cross_correlation` of projections from the two runs. Is there a diagonal?
#
# **Next:** `01_barlow_twins_is_hsic` goes from the definition of HSIC to the loss, every step a cell that checks it.
