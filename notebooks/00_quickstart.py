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
# You train two encoders to recognize handwritten digits without labels. One uses the *Barlow Twins* loss. The other uses the loss
# that Tsai et al. (2021, arXiv 2104.13712) derived from the *Hilbert-Schmidt Independence Criterion* (HSIC). Both losses are
# functions of one matrix: the cross-correlation $C$ between two views of a batch.
#
# **What you will do**
#
# 1. Draw $C$ before and after training.
# 2. Check that the sum of its squared entries is the HSIC of the trained features.
# 3. Measure with a linear classifier what the two encoders have learned.
#
# **What you need**: a first course in machine learning. If `make demo` has trained the encoders, the notebook reads them from
# `runs/demo/` and takes about a minute. Otherwise it trains them first (about two minutes on two CPU cores).

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes and steps, for a quick check
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
EPOCHS, SIZES = (9, {"n_train": 2000, "n_test": 500}) if FAST else (14, {})

# %%
import torch
from IPython.display import display

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes, load
from hsic_lab.demo import demo_config, demo_probe
from hsic_lab.evaluation import probe_summary
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.hsic import hsic
from hsic_lab.plots import compare_cross_correlations, history_figure, plot_pairs, plot_probe, set_theme
from hsic_lab.training import train_or_load
from hsic_lab.views import normalize

set_theme()

# %% [markdown]
# ## Pairs of views
#
# Self-supervised learning starts from pairs of images that have something in common. Here each image is a *scene*: a real
# handwritten digit, colored, scaled and placed on a part of a photograph.
#
# The two views of a pair share the digit and nothing else. Color, position, size and background are drawn anew for each view. An
# encoder that finds what the views share must therefore find the digit. Training and test scenes use different digits.
#
# The table below the images lists the factors of variation of the first training scenes.

# %% alt="Ten pairs of scenes. The two views of a pair show the same handwritten digit in other colors, sizes and positions on other backgrounds."
data = load("digit_scenes", **SIZES)
view_a, view_b = data.scenes.pairs(10, 7, shared=("digit",))
plot_pairs(view_a, view_b, n=10)
data.train.factors.head(4)

# %% [markdown]
# ## Two encoders, two losses
#
# An encoder maps an image to 256 features. A projector maps these to $d = 128$ features. A batch of $n$ pairs gives two
# $n \times d$ matrices, one for each view. *Standardize* them: shift and scale every column to mean 0 and variance 1. Call the
# results $X$ (view A) and $Y$ (view B). The cross-correlation matrix and the two losses are
#
# $$C = \frac{1}{n} X^\top Y, \qquad
# L_\text{Barlow Twins} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2, \qquad
# L_\text{HSIC} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} (1 + C_{ij})^2 .$$
#
# $C_{ij}$ is the correlation of feature $i$ of view A with feature $j$ of view B. The weight $\lambda > 0$ balances the two sums.
#
# Both losses ask each feature to agree with itself across the views, $C_{ii} = 1$. For two different features Barlow Twins asks for
# the correlation 0, and the HSIC loss asks for $-1$. Both runs use $\lambda = 1/d$, as Tsai et al. (2021) do, and have all other
# settings in common.

# %%
titles = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}
runs = {
    title: train_or_load(demo_config(loss, EPOCHS), RUNS / loss, data, progress=False) for loss, title in titles.items()
}
for title, run in runs.items():
    print(f"{title}: {run.status}, {run.history['step'].iloc[-1]:.0f} steps on {run.metadata['device']}")

# %% [markdown]
# ## The matrix before and after training
#
# All four heatmaps use the same 2048 pairs of *test* scenes and the same color scale.
#
# Before training $C$ is close to 0: an untrained network computes nothing that agrees across views that share only a digit.
#
# After training the diagonal is close to 1. The off-diagonal entries have grown as well. All 128 features describe one digit, so
# they cannot all be unrelated, and with $\lambda = 1/d$ both losses accept this. Longer training or a larger $\lambda$ makes these
# entries smaller.

# %% alt="Heatmaps of C for Barlow Twins (top) and HSIC_SSL (bottom), before and after training. Before training all entries are near 0; after training the diagonal is near 1 and the other entries scatter around 0."
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
# The same matrices to explore: move the slider through the training, zoom, sort the features, and click an entry to see the
# samples and the scenes behind it. On a page without scripts you see a still image.

# %% alt="Explorer with C of both runs after training, side by side on one color scale, with histograms of the entries and the spectra."
display(CorrelationExplorer(runs))

# %% [markdown]
# ## During training
#
# The target $-1$ cannot be reached by all off-diagonal entries at once. If $d$ standardized features agree across the views, their
# mean correlation is at least $-1/(d-1)$, here $-0.008$. The two losses therefore ask for nearly the same matrix, and the curves
# below are nearly the same. The HSIC loss is larger by about $\lambda d (d-1) = d - 1$, the cost of the missed target.

# %% alt="Training curves of both losses. The loss per feature falls, the mean diagonal of C rises to about 0.8 for both losses, and the mean off-diagonal entry stays within 0.01 of 0."
history_figure({title: run.history for title, run in runs.items()}, d);

# %% [markdown]
# ## The sum of squares of C is HSIC
#
# HSIC measures how far a joint distribution is from the product of its marginal distributions. It is 0 if the variables are
# independent. Gretton et al. (2005) estimate it by $\operatorname{tr}(KHLH)/n^2$. Here $K$ and $L$ are the two $n \times n$ matrices
# of similarities between the samples of a view (*Gram matrices*), and $H = I - \frac1n \mathbf 1 \mathbf 1^\top$ subtracts means.
#
# The simplest similarity is the scalar product, $k(x, x') = \langle x, x' \rangle$. On standardized features it gives
# $K = XX^\top$ and $L = YY^\top$, and the estimate equals $\lVert C \rVert_F^2 = \sum_{ij} C_{ij}^2$. You can compute both on the
# trained features of 1024 test pairs.

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
# No negative pairs were drawn for this number. The matrix $H$ subtracts the mean over all permutations of the batch, and this mean
# takes the place of negative pairs. For this reason Tsai et al. (2021) call Barlow Twins *contrastive learning without negative
# samples*. Notebook 01 explains this step by step.
#
# ## What the encoders have learned
#
# A *linear probe* is the usual test of self-supervised features. Freeze the encoder, fit a linear classifier to its 256 features on
# labeled training scenes, and measure its accuracy on test scenes. The dots show three random halves of the training scenes. The
# penalty of the classifier is chosen on a validation part of each half.

# %% alt="Bar chart of linear-probe accuracy on test scenes. Raw pixels and the untrained encoder are little above chance; Barlow Twins and HSIC_SSL are far higher and close to each other."
table = demo_probe(runs, data, RUNS / "probe.csv")
plot_probe(table)
probe_summary(table).round(3)

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
# Raw pixels and the features of an untrained encoder say little about the digit. Both losses train an encoder that recognizes it
# without labels. Their accuracies are close to each other, as Tsai et al. (2021) report. One training seed for each loss does not
# show that they are equal.
#
# ## Exercises
#
# 1. Let the views share the background instead of the digit: `replace(demo_config("barlow_twins"), shared=("background",))` with
#    `from dataclasses import replace`. What accuracy does the probe on digits reach now, and why?
# 2. Pass `limit=0.3` to the heatmaps. What do you see better, and what is hidden?
# 3. Compute `cross_correlation` between view A of one encoder and view B of the other encoder. Does $C$ have a diagonal?
#
# **Next:** `01_barlow_twins_is_hsic` goes from the definition of HSIC to the loss and checks every step in code.
