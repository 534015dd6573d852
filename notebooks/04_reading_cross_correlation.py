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
# # Reading a cross-correlation matrix
#
# **What you will see.** One matrix, $C$, says whether self-supervised training went well, if one can read it. We make five
# matrices from data whose properties we chose (healthy, two kinds of collapse, redundant, and one that *games* a loss) and learn
# the signature of each; measure how much of a matrix is chance; walk through the training of two real encoders with the
# `CorrelationExplorer`; and let the views share a digit, a background, a place or a color to see that what they share is
# what the features keep.
#
# **What you need.** Notebook 00, or at least its matrix; about two minutes. The two encoders are read from `runs/demo/` if
# `make demo` has trained them, else they are trained here. The explorer is alive in JupyterLab; on a rendered page its still
# image stands in its place.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes and steps, for a quick check that all of it runs
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
DEMO_EPOCHS, DEMO_CHANGES = (1, {"snapshots": 2, "width": 8}) if FAST else (14, {})
EPOCHS, WIDTH, SIZES = (5, 8, {"n_train": 1000, "n_test": 500}) if FAST else (10, 16, {"n_train": 2000})

# %%
from dataclasses import asdict, replace

import pandas as pd
import seaborn as sns
import torch
from IPython.display import display

from hsic_lab.correlation import CorrelationSummary, cross_correlation, expected_squared_norm, feature_order, spectrum
from hsic_lab.datasets import DigitScenes, load
from hsic_lab.demo import TITLES, demo_config
from hsic_lab.diagnostics import factor_dependence
from hsic_lab.evaluation import extract_features
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.losses import BarlowTwinsLoss, HSICSSLLoss
from hsic_lab.plots import compare_cross_correlations, set_theme
from hsic_lab.plots._canvas import SEQUENTIAL
from hsic_lab.training import train, train_or_load

set_theme()

# %% [markdown]
# ## Five matrices with known properties
#
# Two views of $n$ images give two tables of $n$ rows and $d$ columns, one column a **feature**. With every column shifted and
# scaled to mean 0 and variance 1 they are called $X$ and $Y$, and $C = X^\top Y / n$: $C_{ij}$ is the correlation of feature $i$
# of view A with feature $j$ of view B. Here no network is involved: we draw $X$ and $Y$ ourselves, from a shared part $s$ and a
# part of their own.
#
# * **healthy**: $d$ unrelated features; each is $s_i$ plus noise of its own in each view, so that the views agree to 0.8;
# * **dimensional collapse**: 8 such features, mixed into 64: each looks fine, but there are only 8 different ones;
# * **complete collapse**: every image is mapped to nearly the same point; what is left is rounding, unrelated in the views;
# * **redundant**: 16 features, each copied four times, in random places;
# * **gamed**: the two branches can be told apart and the loss is cheated; more below.

# %%
n, d, agreement = 2048, 64, 0.8
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def two_views(width):
    """Unrelated features that correlate to `agreement` across the views."""
    shared = normal(n, width)
    return tuple(agreement**0.5 * shared + (1 - agreement) ** 0.5 * normal(n, width) for _ in range(2))


mix, shuffle = normal(8, d), torch.randperm(d, generator=generator)
views = {
    "healthy": two_views(d),
    "dimensional collapse": tuple(z @ mix for z in two_views(8)),
    "complete collapse": tuple(5 + 1e-6 * normal(n, d) for _ in range(2)),
    "redundant": tuple(z.repeat(1, 4)[:, shuffle] for z in two_views(d // 4)),
}

# The best that HSIC_SSL can reach when X and Y are free: all contrasts between features agree, the feature sums are opposed.
r = (d**2 - 8 * d + 4) / (5 * d**2 - 8 * d + 4)  # the correlation of two features of one view
s = normal(n, d)
sums = s.mean(dim=1, keepdim=True).expand(n, d)
contrasts, sums = (1 - r) ** 0.5 * (s - sums), (1 + (d - 1) * r) ** 0.5 * sums
views["gamed"] = contrasts + sums, contrasts - sums

matrices = {name: cross_correlation(*pair) for name, pair in views.items()}
compare_cross_correlations(matrices);

# %% [markdown]
# The eye sees some of it: no diagonal, no agreement. The rest is in a few numbers, most of them sums of
# entries:

# %%
table = pd.DataFrame({name: asdict(CorrelationSummary.from_matrix(c, n)) for name, c in matrices.items()}).T
table["rank"] = [int((spectrum(c) > 1e-4 * spectrum(c)[0]).sum()) for c in matrices.values()]
table.round(3)

# %% [markdown]
# * `mean_diagonal`: do the views agree? About 0.8 by construction, except where everything collapsed.
# * `off_diagonal_squared_norm`, the sum of the squares off the diagonal: do features repeat one another? Compare it with `expected_squared_norm`.
# * `rank`: how many directions are there? A singular value of $C$ counts if it is above $10^{-4}$ of the largest.
# * `total` $= \mathbf 1^\top C\, \mathbf 1$, the sum of all entries: do the two branches agree on the sum of the features?
#   Below 0 they are opposed.

# %%
floor = expected_squared_norm(n, d)
assert (table.loc[["healthy", "dimensional collapse", "redundant"], "mean_diagonal"] - agreement).abs().max() < 0.02
assert abs(table.loc["healthy", "off_diagonal_squared_norm"] / floor - 1) < 0.1 and table.loc["healthy", "rank"] == d
assert table.loc["dimensional collapse", "rank"] == 8 and table.loc["dimensional collapse", "off_diagonal_squared_norm"] > 50 * floor
assert abs(table.loc["complete collapse", "mean_diagonal"]) < 0.02
assert abs(table.loc["complete collapse", "off_diagonal_squared_norm"] / floor - 1) < 0.1
assert table.loc["redundant", "rank"] == d // 4
assert table.loc["gamed", "total"] < 0 < table.loc[["healthy", "dimensional collapse", "redundant"], "total"].min()

# %% [markdown]
# Three lessons. **Dimensional collapse and redundancy hide from the diagonal**: both have the healthy 0.8. **Standardizing hides
# complete collapse**: the features vary by a millionth, yet $C$ looks like that of any two unrelated views, so look at the
# variance before the standardization too. And **a matrix says nothing about order**: the copies of the redundant features stand
# in random places, where nobody sees them. Arranged by clustering they form blocks of four:

# %%
order = feature_order(matrices["redundant"], "cluster")
arranged = matrices["redundant"][order][:, order]
blocks = torch.block_diag(*[torch.ones(4, 4)] * (d // 4)).bool()
assert arranged[blocks].min() > 0.7 and arranged[~blocks].abs().max() < 0.2

redundant = CorrelationExplorer({name: views[name] for name in ("healthy", "redundant")})
redundant.order = "cluster"
display(redundant)

# %% [markdown]
# ### The gamed matrix
#
# HSIC_SSL asks for $-1$ off the diagonal. Two equal branches cannot oppose one another: with views of one law $C$ is positive
# semidefinite, $\mathbf 1^\top C\, \mathbf 1 \ge 0$, and the mean off-diagonal entry is at least $-1/(d-1)$. Two *different* branches
# can: they keep the contrasts between features and turn over the sum. The loss goes *down*, to about 0.8 a feature where the
# identity matrix costs 1, and the agreement of every single feature falls to about 0.6. The loss of Barlow Twins, which asks for 0,
# has no such hole.

# %%
gamed, ideal = views["gamed"], (torch.linalg.qr(s - s.mean(dim=0)).Q,) * 2  # ideal: exactly uncorrelated, so that C = I
for loss in (HSICSSLLoss(), BarlowTwinsLoss(lambda_param=None)):
    costs = {name: float(loss(*pair)) / d for name, pair in {"C = I": ideal, "gamed": gamed}.items()}
    print(type(loss).__name__, {name: round(cost, 3) for name, cost in costs.items()}, "a feature")
    assert (costs["gamed"] < costs["C = I"]) == (type(loss) is HSICSSLLoss)
least = -1 / (d - 1)
diagonal, off = (d - 2 - 2 * (d - 1) * r) / d, -(2 + (d - 2) * r) / d  # in closed form
print(f"diagonal {table.loc['gamed', 'diagonal']:.3f} (theory {diagonal:.3f}), "
      f"off-diagonal {table.loc['gamed', 'off_diagonal']:.3f} (theory {off:.3f}; equal branches: at least {least:.3f})")
assert abs(table.loc["gamed", "mean_diagonal"] - diagonal) < 0.02 and abs(table.loc["gamed", "off_diagonal"] - off) < 0.02
assert table.loc["gamed", "off_diagonal"] < least

# %% [markdown]
# ## What is chance
#
# Features that have nothing to do with one another are not quite uncorrelated in a sample. An entry off the diagonal has mean 0
# and variance $1/(n-1)$, so $d(d-1)$ of them square to $d(d-1)/(n-1)$ on average: the **noise floor**. The same healthy features
# in a batch of 32 look a mess, and all of it is chance.

# %%
counts = [16, 32, 64, 128, 256, 512]
measured = []
for count in counts:
    parts = [cross_correlation(a, b) for a, b in zip(*(z.split(count) for z in views["healthy"]), strict=True)]
    redundancy = [CorrelationSummary.from_matrix(c, count).off_diagonal_squared_norm for c in parts]
    measured.append({"n": count, "measured": sum(redundancy) / len(parts), "d(d-1)/(n-1)": expected_squared_norm(count, d)})
chance = pd.DataFrame(measured).set_index("n")
assert ((chance["measured"] / chance["d(d-1)/(n-1)"] - 1).abs() < 0.1).all()
compare_cross_correlations({f"healthy, n = {m}": cross_correlation(*(z[:m] for z in views["healthy"])) for m in (32, 256, n)})
chance.round(1)

# %% [markdown]
# Before calling a matrix redundant, compare with this column. Training with a batch of 256 and $d = 8192$ has a floor of 263 000.
#
# ## Two real encoders
#
# The runs of notebook 00: pairs of scenes that share a digit and nothing else, one encoder trained with Barlow Twins, one with
# HSIC_SSL. Each kept its $C$ on the same 2048 pairs of test scenes at several steps. In JupyterLab, **move the slider** from step 0
# on; **order the features by clustering**; **lower the color limit**; drag a box to **zoom**. **Click a cell** $(i, j)$: the
# scatter shows feature $i$ of view A against feature $j$ of view B, one dot a pair of scenes, with the scenes at both ends. What
# do the digits at the two ends have in common?

# %%
data = load("digit_scenes", **SIZES) if FAST else load("digit_scenes")
runs = {
    title: train_or_load(replace(demo_config(loss, DEMO_EPOCHS), **DEMO_CHANGES), RUNS / loss, data, progress=False)
    for loss, title in TITLES.items()
}
pairs = DigitScenes("test").pairs(1024, 3, shared=("digit",))
explorer = CorrelationExplorer(runs, images=pairs)
display(explorer)

# %%
last = {title: run.snapshots[max(run.snapshots)] for title, run in runs.items()}
found = pd.DataFrame({title: asdict(CorrelationSummary.from_matrix(c, 2048)) for title, c in last.items()}).T
assert (found["off_diagonal_squared_norm"] > (1 if FAST else 100) * found["expected_squared_norm"]).all()
found.round(3)

# %% [markdown]
# The diagonal has come up; the off-diagonal entries are far above chance: 128 features that can speak of one digit only are
# bound to be redundant, and the spectrum, which falls off a cliff after about ten values, says the same. $\mathbf 1^\top C\,
# \mathbf 1$ is not below 0: nobody gamed the loss, since both views pass through one network.

# %%
if not FAST:
    for title, c in last.items():
        values = spectrum(c)
        print(f"{title}: singular value 10 is {values[9] / values[0]:.3f} of the largest, number 20 {values[19] / values[0]:.4f}")
        assert values[19] < 0.05 * values[0] and CorrelationSummary.from_matrix(c, 2048).total > 0

# %% [markdown]
# ## What the views share is what is kept
#
# Scenes have known causes: the digit's class, its place $x, y$ and size, its color, and which piece of which photograph is behind
# it. We train four small encoders with Barlow Twins on pairs that share *one* of these, watching them live: the explorer below
# takes each snapshot of $C$ as it is made.

# %%
live = CorrelationExplorer()
display(live)

# %%
SHARED = {
    "digit": ["class"], "position": ["x", "y"], "colour": ["red", "green", "blue"],
    "background": ["photograph", "crop_x", "crop_y"],
}
scenes = load("digit_scenes", **SIZES)
folder = Path(tempfile.mkdtemp())
settings = replace(
    demo_config("barlow_twins", EPOCHS), width=WIDTH, projector=(128, 32), batch_size=128, snapshots=2 if FAST else 4
)
trained = {
    shared: train(
        replace(settings, shared=(shared,)), folder / shared, scenes, progress=False, callbacks=[live.callback]
    )
    for shared in SHARED
}
compare_cross_correlations({f"shared: {name}": run.snapshots[max(run.snapshots)] for name, run in trained.items()});

# %% [markdown]
# The matrices tell *that* the views agree. For *what* they agree on, we compare the projections of single test scenes with
# every known cause by HSIC, scaled to a correlation: unbiased linear **CKA**,
# $\mathrm{HSIC}(Z, f)/\sqrt{\mathrm{HSIC}(Z, Z)\,\mathrm{HSIC}(f, f)}$, which is near 0 where features $Z$ and the cause $f$ are independent.
# Classes are compared by equality (the kernel `Delta`), numbers by a Gaussian kernel.

# %%
causes = [column for columns in SHARED.values() for column in columns]
kept = {}
for shared, run in trained.items():
    projections = extract_features(torch.nn.Sequential(run.encoder, run.projector), scenes.test.images)
    frame = factor_dependence(projections, scenes.test.factors[causes])
    kept[shared] = frame.set_index("factor")["cka"]
kept = pd.DataFrame(kept).T
ax = sns.heatmap(kept.round(2) + 0.0, cmap=SEQUENTIAL, vmin=0, annot=True, fmt=".2f", cbar_kws={"label": "CKA"})
ax.set(xlabel="cause of the scene", ylabel="what the views share");

# %%
by_cause = pd.DataFrame({shared: kept[columns].mean(axis=1) for shared, columns in SHARED.items()})
for shared in SHARED:
    assert by_cause[shared].idxmax() == shared  # a cause is known best to the encoder whose views shared it
by_cause.round(3)

# %% [markdown]
# Read the table by columns: every cause is known best to the encoder whose views shared it, although nobody named the digit, the
# place or the color to any of the encoders. What the views have in common is what is kept, so that choosing the augmentations of
# a self-supervised method *is* choosing its features. (One seed and short training: read the pattern, not the digits. Causes
# that were not shared, such as the place where digits were, can leave traces until training is long.)
#
# ## At a glance
#
# | matrix | diagonal | $\sum_{i \ne j} C_{ij}^2$ against $d(d-1)/(n-1)$ | spectrum | $\mathbf 1^\top C\,\mathbf 1$ |
# |---|---|---|---|---|
# | healthy | high | equal | flat | $> 0$ |
# | dimensional collapse | high | far above | a cliff | any, $\ge 0$ |
# | redundant | high | above, in blocks once clustered | a cliff | $> 0$ |
# | complete collapse, or untrained on hard pairs | near 0 | equal | that of noise | near 0 |
# | gamed | lower than it could be | above | flat, one large value | $< 0$ |
#
# ## Exercises
#
# 1. Let the views share two causes: `shared=("digit", "colour")`. Does the encoder keep both? Which one first?
# 2. Give the explorer `{"view A with itself": (z_a, z_a), "across": (z_a, z_b)}` for one trained encoder. Which redundancy is larger, and why?
# 3. Make a *partly* gamed matrix: move from `contrasts + sums` to `contrasts - sums` by a factor. Where does HSIC_SSL start to fall?
#
# **Next:** `05_ablation_batch_size`: who needs large batches? (`CorrelationExplorer(z_a, z_b, images)` takes embeddings of your own.)
