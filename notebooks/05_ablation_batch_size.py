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
# # Does a loss need large batches?
#
# A contrastive loss such as SimCLR's compares each image with all other images of its batch. It is often said to need
# large batches. Barlow Twins compares *features* instead, and is said to work with small ones. Tsai et al. (2021) show
# one curve of accuracy against batch size for Barlow Twins and HSIC_SSL, without error bars. In this notebook you look
# at five losses, several seeds and confidence intervals.
#
# > **These comparisons use one learning rate for all losses. It was not tuned.** It is 0.002 at a batch of 256; section
# > 2 says how it changes with the batch size. The rate matters a lot. In a separate trial on the scenes (batch 32, one
# > seed), raising it from 0.0007 to 0.005 raised the accuracy of Barlow Twins from 43.3 % to 67.5 % and that of SimCLR
# > from 68.7 % to 81.2 %. So every result below holds *at this learning rate*. It does not say which loss is best, or
# > which batch size a loss needs, when each has a rate of its own.
#
# **What you will see**
#
# 1. How much a small batch changes the matrix $C$ by chance alone. A formula predicts it.
# 2. Accuracy against batch size, from a table of many trainings in `data/results/`, with confidence bands.
# 3. Differences paired by seed: is HSIC_SSL better or worse than Barlow Twins?
# 4. How to make such a table yourself from a grid of settings, and how to continue it after an interruption.
#
# **What you need**: `00_quickstart`. The notebook runs in about half a minute.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # a smaller live ablation
RUNS = Path(tempfile.mkdtemp())  # the live ablation keeps its runs here; use a folder of your own to continue it later
RESULTS = Path("../data/results")

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from hsic_lab.ablation import Grid, paired_difference, read_table, run_ablation, summarize
from hsic_lab.correlation import cross_correlation
from hsic_lab.plots import compare_cross_correlations, plot_ablation, set_theme

set_theme()
NAMES = {
    "barlow_twins": "Barlow Twins",
    "hsic_ssl": "HSIC_SSL",
    "vicreg": "VICReg",
    "nt_xent": "SimCLR (NT-Xent)",
    "ssl_hsic": "SSL-HSIC",
}

# %% [markdown]
# ## 1. What chance adds to C
#
# A network turns a batch of $n$ images into $n$ rows of $d$ features, once for each of the two views. The entry
# $C_{ij}$ of the cross-correlation matrix $C$ ($d \times d$) is the correlation over the batch between feature $i$ of
# view A and feature $j$ of view B. The Barlow Twins loss is
#
# $$\sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2 ,$$
#
# where $\lambda$ is the weight of the second sum, the *redundancy term*.
#
# Take perfect features: $d = 64$ independent ones, and two views that agree completely. Over infinitely many images $C$
# is the identity matrix. In a batch of $n$ images it is not, because two independent features are always a little
# correlated by chance. The redundancy term then penalizes features that are not redundant. Compare three batch sizes on
# one color scale.

# %% alt="Three heatmaps of C for perfect features, for batches of 32, 128 and 1024. The diagonal is 1 in all three, and the random entries off the diagonal fade as the batch grows."
d = 64
generator = torch.Generator().manual_seed(0)


def perfect_batch(n):
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return cross_correlation(z, z)


figure = compare_cross_correlations({f"batch of {n}": perfect_batch(n) for n in (32, 128, 1024)}, limit=0.5)

# %% [markdown]
# The expected size of this effect is known. Each off-diagonal entry has mean square $1/(n-1)$, so that
#
# $$\operatorname{E} \sum_{i \ne j} C_{ij}^2 = \frac{d(d-1)}{n-1} .$$
#
# With the rule $\lambda = 1/d$ the redundancy term therefore contains about $(d-1)/(n-1)$ by chance. With a fixed
# $\lambda$ this part grows with $d^2$. The next cell averages over 100 batches and compares the result with the
# formula.

# %%
for n in (32, 128, 1024):
    batches = (perfect_batch(n) for _ in range(100))
    squares = torch.stack([c.square().sum() - c.diagonal().square().sum() for c in batches])
    expected, error = d * (d - 1) / (n - 1), float(squares.std()) / 100**0.5
    print(f"n = {n:4d}: measured {squares.mean():7.2f} +- {error:.2f}, formula {expected:7.2f}")
    assert abs(squares.mean() - expected) < 4 * error

# %% [markdown]
# A constant in the loss has no gradient. The *variation* of this part from batch to batch does: a small batch gives a
# noisy gradient. Whether that changes the accuracy is a question for measurements.
#
# ## 2. Accuracy against batch size
#
# The table was made from the grid `data/grids/batch_size.toml` with the command that the next cell prints.
#
# * The data are `digit_scenes`: the two views of a pair are two scenes that show the same handwritten digit.
# * All runs see the same number of pairs. A larger batch therefore makes fewer updates of the weights.
# * The learning rate is proportional to the square root of the batch size, and the same for all losses.
# * Accuracy is that of a linear probe on the encoder's features, on scenes whose digits were not used in training.
# * Bands are 95 % confidence intervals over the seeds, from Student's t distribution.
#
# The panel on the right shows the formula of section 1: the sum of the squared off-diagonal entries of $C$ that chance
# alone gives. The dotted line is $d$, the largest value that the sum of the squared diagonal entries can reach.

# %% alt="Test accuracy against batch size for five losses, by linear probe and by nearest neighbors: all lines are lowest at 1024. On the right, the sum of squared off-diagonal entries expected by chance falls from 524 at batch 32 to 16 at batch 1024."
table = read_table(RESULTS / "ablation_batch_size.csv")
table["method"] = table["loss"].map(NAMES)
for name in ("command", "base", "data"):
    print(f"{name}: {table.attrs[name]}")
updates_made = table.groupby("batch_size")["steps"].first()
print("updates:", updates_made.to_dict())
assert len(set(updates_made * updates_made.index)) == 1  # all runs see the same number of pairs
assert updates_made[32] == 1024 and updates_made[1024] == 32
assert np.allclose(table["learning_rate"], 0.002 * (table["batch_size"] / 256) ** 0.5)  # one rate for all losses
seeds = summarize(table, ["method", "batch_size"])["seeds"].min()
print(f"hardware: {', '.join(table['hardware'].unique())}; seeds per point: {seeds}")
assert (table["state"] == "finished").all()

figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
plot_ablation(table, "batch_size", "method", axes[0]).set_title("linear probe")
plot_ablation(table, "batch_size", "method", axes[1], evaluation="knn").set_title("weighted nearest neighbors")
# Inside the axes the legend would hide the curves.
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES))
for ax in axes[:2]:
    ax.get_legend().remove()
sizes, d = updates_made.index.to_numpy(), int(table["d"].iloc[0])
axes[2].plot(sizes, d * (d - 1) / (sizes - 1), "o-", color="0.4")
axes[2].axhline(d, color="0.4", linestyle=":", linewidth=1)
place = {"xycoords": ("axes fraction", "data"), "xytext": (2, 0), "textcoords": "offset points", "va": "center"}
axes[2].annotate("d", (1, d), color="0.4", **place)
axes[2].set(xscale="log", yscale="log", xlabel="batch size", title=f"by chance alone, d = {d}")
axes[2].set_ylabel("sum of squared off-diagonal entries")
axes[2].set_xticks(sizes, [str(n) for n in sizes])
axes[2].set_yticks([20, 50, 100, 200, 500], [20, 50, 100, 200, 500])
axes[2].minorticks_off()

# %%
summary = summarize(table, ["method", "batch_size"])
means = summary.pivot(index="method", columns="batch_size", values="mean")
best = means.idxmax(axis=1)
smallest, largest = means.columns.min(), means.columns.max()
for method in means.index:
    print(
        f"{method}: best at {best[method]}, {means.loc[method].max():.1%}; "
        f"{smallest}: {means.loc[method, smallest] - means.loc[method].max():+.1%}, "
        f"{largest}: {means.loc[method, largest] - means.loc[method].max():+.1%}"
    )
assert (best <= 128).all()  # with the number of pairs fixed, the best batch is 32 or 128 for each loss
assert (means.max(axis=1) - means[largest] > 0.09).all()

# %% [markdown]
# With the number of pairs fixed and at this learning rate, **none of the five losses needs a large batch, not even
# SimCLR**. Each loss is best at one of the two smallest sizes, and loses more than nine points at the largest.
#
# Two things change along this axis, however. A batch of 1024 makes 32 updates here, and a batch of 32 makes 1024. To
# separate the two, fix the number of updates instead. The grid `data/grids/batch_size_updates.toml` makes 128 updates
# at every batch size, with one learning rate and the same share of the updates for the warm-up. One thing still changes
# with the batch size: a run with batch 1024 sees 32 times as many pairs as a run with batch 32.

# %% alt="Test accuracy against batch size with 128 updates everywhere. All five lines rise; from batch 128 on Barlow Twins and HSIC_SSL lie together below VICReg, SimCLR and SSL-HSIC."
updates = read_table(RESULTS / "ablation_batch_size_updates.csv")
updates["method"] = updates["loss"].map(NAMES)
seeds = summarize(updates, ["method", "batch_size"])["seeds"].min()
print(f"command: {updates.attrs['command']}; seeds per point: {seeds}")
assert (updates["state"] == "finished").all()
assert (updates["steps"] == 128).all() and (updates["learning_rate"] == 0.002).all()
_ = plot_ablation(updates, "batch_size", "method").set_title("128 updates at every batch size")

# %%
at = summarize(updates, ["method", "batch_size"]).pivot(index="method", columns="batch_size", values="mean")
assert (at.diff(axis=1).iloc[:, 1:] > 0).all(axis=None)  # with the updates fixed, every mean rises with the batch size

linear = updates[updates["evaluation"] == "linear"].pivot(
    index=["loss", "seed"], columns="batch_size", values="accuracy"
)
gains = (linear[1024] - linear[32]).rename("accuracy").reset_index().assign(evaluation="linear")
points = (100 * gains.groupby("loss")["accuracy"].mean()).round(1).rename(index=NAMES)
print(points.rename("points gained from 32 to 1024").to_string())
larger = {
    loss: paired_difference(gains, "loss", "barlow_twins", loss, names=("Barlow Twins", NAMES[loss]))
    for loss in NAMES
    if loss != "barlow_twins"
}
for difference in larger.values():
    print("gain from 32 to 1024:", difference)
assert larger["hsic_ssl"].low < 0 < larger["hsic_ssl"].high and gains.groupby("loss")["accuracy"].mean().min() > 0.2
others = ["vicreg", "nt_xent", "ssl_hsic"]
assert min(larger[loss].low for loss in others) > 0
two, three = [NAMES["barlow_twins"], NAMES["hsic_ssl"]], [NAMES[loss] for loss in others]
assert np.ptp(at[32]) < 0.04 and (at.loc[three, 128:].min() > at.loc[two, 128:].max()).all()

# %% [markdown]
# With the number of updates fixed the result is reversed: **all five losses gain at every step to a larger batch.
# VICReg, SimCLR and SSL-HSIC gain more than Barlow Twins and HSIC_SSL.** At batch 32 all five are within four points:
# none has learned much. From batch 128 on the two groups differ. This grid cannot say how much of the gain comes from
# the batch and how much from the additional pairs (exercise 1).
#
# The claim that Barlow Twins needs no large batches holds here in a weak form. At this learning rate no loss *needed* a
# large batch, and Barlow Twins and HSIC_SSL profit less from one than the other three. In these short trainings, with
# $\lambda = 1/d$, they are also behind the other three from batch 128 on.
#
# ## 3. Barlow Twins or HSIC_SSL?
#
# Two runs with the same seed start from the same weights and see the same images in the same order. The difference
# between them is more informative than a comparison of two averages, because what the seed does to both runs cancels.
# We say that a difference is shown when the 95 % interval of the paired differences does not contain 0.

# %%
for n, part in table.groupby("batch_size"):
    pair = paired_difference(part, "loss", "barlow_twins", "hsic_ssl", names=("Barlow Twins", "HSIC_SSL"))
    print(f"batch {n}: {pair}")
pooled = table[table["loss"].isin(["barlow_twins", "hsic_ssl"])]
pooled = pooled.groupby(["loss", "seed", "evaluation"], as_index=False)["accuracy"].mean()
everywhere = paired_difference(pooled, "loss", "barlow_twins", "hsic_ssl", names=("Barlow Twins", "HSIC_SSL"))
print(f"all batch sizes together: {everywhere}")
assert -0.02 < everywhere.low < 0 < everywhere.high < 0.02

# %% [markdown]
# Averaged over all batch sizes the interval lies within two points of 0. That is much less than the effect of the batch
# size, or of the choice between the two groups of losses. The intervals for single batch sizes are wider. When you read
# many intervals, remember that about one in twenty does not contain the true difference.
#
# Photographs give a narrower answer. The grid `data/grids/cifar10_batch_size.toml` uses the first 10 240 training
# images of CIFAR-10 and the official test split, again with a rate proportional to the square root of the batch size.

# %% alt="CIFAR-10 test accuracy against batch size 64, 256 and 1024. All five lines lie between 41 and 47 percent and are lowest at 1024; Barlow Twins and HSIC_SSL coincide below the other three."
photographs = read_table(RESULTS / "ablation_cifar10_batch_size.csv")
photographs["method"] = photographs["loss"].map(NAMES)
print(f"command: {photographs.attrs['command']}; seeds: {photographs['seed'].nunique()}")
at = summarize(photographs, ["method", "batch_size"]).pivot(index="method", columns="batch_size", values="mean")
print((100 * at).round(1).to_string())
assert (photographs["state"] == "finished").all()
assert np.allclose(photographs["learning_rate"], 0.002 * (photographs["batch_size"] / 256) ** 0.5)
plot_ablation(photographs, "batch_size", "method").set_title("CIFAR-10, small ConvEncoder, 8 passes")
for n, part in photographs.groupby("batch_size"):
    difference = paired_difference(part, "loss", "barlow_twins", "hsic_ssl", names=("Barlow Twins", "HSIC_SSL"))
    print(f"batch {n}: {difference}")
    assert -0.01 < difference.low < 0 < difference.high < 0.01 and abs(difference.mean) < 0.005
    for other in others:
        ahead = paired_difference(part, "loss", "barlow_twins", other, names=("Barlow Twins", NAMES[other]))
        print(f"batch {n}: {ahead}")
        assert 0.01 < ahead.mean < 0.04 and ahead.low > 0
assert (at.idxmax(axis=1) <= 256).all() and (at.max(axis=1) - at[1024]).between(0.01, 0.035).all()
assert means.loc[three, 32].min() - means.loc[two, 32].max() > 0.2  # on the scenes, section 2

# %% [markdown]
# Barlow Twins and HSIC_SSL differ by less than half a point at every batch size. This agrees with the theory:
# `07_lambda_and_the_minus_one_target` derives that the optima of the two losses are $O(1/d)$ apart.
#
# Again no loss needs a large batch at this learning rate. With the number of images fixed, each loss is best at 64 or
# 256 and is one to three points lower at 1024.
#
# The other three losses are one to four points ahead of Barlow Twins. On the scenes at batch 32 they were more than 20
# points ahead. How far apart losses stand depends on the data, and all of this was measured at one learning rate.

# %% [markdown]
# ## 4. Your own table
#
# A `Grid` lists the settings to be crossed and the seeds. `run_ablation` trains every run and stores it under the hash
# of its settings. If you call it again with more seeds or more batch sizes, it trains only what is missing. If you stop
# it, it continues at the last checkpoint. Two grids or two processes may share one folder. From a file and a command
# line the same is `hsic-lab ablate grid.toml --jobs -1`.

# %% alt="Test accuracy on handwritten digits of 8 by 8 pixels at batch 64 and 256. The lines of Barlow Twins and HSIC_SSL coincide, and the 95 percent bands of three seeds are very wide."
grid = Grid(
    "live",
    base={
        "dataset": "digits",
        "width": 4,
        "projector": [32],
        "epochs": 2 if FAST else 4,
        "learning_rate_rule": "sqrt",
        "snapshots": 2,
    },
    cross={"batch_size": [64, 256], "loss": ["barlow_twins", "hsic_ssl"]},
    seeds=1 if FAST else 3,
    evaluate=["linear"],
)
live = run_ablation(grid, RUNS, progress=False)
assert (live["state"] == "finished").all() and len(live) == len(grid.plan())
live["method"] = live["loss"].map(NAMES)
_ = plot_ablation(live, "batch_size", "method").set_title("handwritten digits of 8 x 8 pixels")

# %% [markdown]
# The second call below reads all results and trains nothing. In the table, `energy` is the sum of the squared
# off-diagonal entries of $C$ on held-out pairs, `steps` the number of updates and `seconds` the training time.

# %%
again = run_ablation(grid, RUNS, progress=False)  # nothing is missing, so nothing is trained
assert again["accuracy"].equals(live["accuracy"]) and again["seconds"].equals(live["seconds"])
live[["method", "batch_size", "seed", "accuracy", "steps", "energy", "seconds"]].head()

# %% [markdown]
# ## Exercises
#
# 1. Scenes are drawn anew in every epoch. On a set whose images repeat (`dataset = "digits"`), make the same number of
#    updates at batch 64 and 512. How much of the gain is left?
# 2. Set `learning_rate_rule` to "linear" and to "fixed", then set `learning_rate` to 0.005. Which conclusions of
#    section 2 still hold?
# 3. Add `"loss": ["spectral"]`. How does a contrastive loss without a temperature compare?
# 4. The unbiased HSIC estimator removes the chance part from the loss (`02_hsic_from_scratch`). Would you expect it to
#    change the curves?
#
# **Next:** `06_ablation_projector_width`: how many features should $C$ compare?
