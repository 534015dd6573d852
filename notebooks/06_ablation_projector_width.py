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
# # How many features should C compare?
#
# The *projector* is the network between the encoder and the loss. Its width $d$ is the number of features that the loss
# compares, so the cross-correlation matrix $C$ has $d^2$ entries. Zbontar et al. (2021) found that Barlow Twins profits
# from very wide projectors, $d = 8192$ and more. Tsai et al. (2021) saw no gain from width on small images. They name
# two possible reasons: the small data sets, and their rule $\lambda = 1/d$ for the weight of the redundancy term.
#
# > **These comparisons use one learning rate for all widths, depths, losses and values of λ. It was not tuned.** It is
# > 0.002, at a batch of 256. `05_ablation_batch_size` shows how much the rate matters: 8 to 26 points of accuracy
# > between untuned and tuned runs. So every comparison of accuracies below holds *at this learning rate*. The timings and the equality of
# > the two routes in section 1 do not depend on it.
#
# **What you will see**
#
# 1. The same loss computed through a $d \times d$ matrix of features or through $n \times n$ matrices of images, and
#    the time that each takes.
# 2. Accuracy against width and against depth of the projector, on scenes and on photographs, with five seeds each.
# 3. $\lambda$ crossed with width: the rule $1/d$ compared with a fixed $0.005$.
# 4. Whether width changes the encoder's features, which are what you use after training.
#
# **What you need**: `01_barlow_twins_is_hsic` for HSIC and its dual form, `05_ablation_batch_size` for how the tables
# are made and how differences are paired by seed.

# %% tags=["parameters"]
import os
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer and smaller widths to time
WIDTHS = (256, 1024, 2048) if FAST else (256, 1024, 2048, 4096, 8192)
REPETITIONS = 3
RESULTS = Path("../data/results")

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from hsic_lab.ablation import paired_difference, read_table, summarize
from hsic_lab.losses import BarlowTwinsLoss
from hsic_lab.plots import plot_ablation, plot_ablation_map, set_theme

set_theme()
NAMES = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}

# %% [markdown]
# ## 1. The cost of width
#
# Let $X, Y$ ($n \times d$) be the projections of the two views of $n$ images, with every column standardized. The
# redundancy term needs $\lVert C \rVert_F^2$, the sum of all squared entries of $C = X^\top Y / n$. That is HSIC with
# linear kernels:
#
# $$\lVert C \rVert_F^2 = \frac{1}{n^2} \langle XX^\top, YY^\top \rangle ,$$
#
# where $\langle A, B \rangle$ is the sum of all products $A_{ij} B_{ij}$. The left side (the *primal* route) forms one
# $d \times d$ matrix, the right side (the *dual* route) two $n \times n$ matrices. At a batch of 256 the matrices of
# the dual route are smaller as soon as $d > 256$. The next cell checks that value and gradient are equal, and times
# both routes.

# %% alt="Time of one forward and backward pass against projector width on log axes, batch 256. The route through the d by d matrix grows faster: it is slightly cheaper at width 256 and about 20 times slower at 8192."
n = 256
torch.set_num_threads(1)


def seconds(loss, z_a, z_b):
    """Processor time of the fastest of a few forward and backward passes, and the gradient."""
    best = float("inf")
    for _ in range(REPETITIONS):
        a, b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
        start = time.process_time()
        loss(a, b).backward()
        best = min(best, time.process_time() - start)
    return best, a.grad


rows = []
for d in WIDTHS:
    generator = torch.Generator().manual_seed(d)
    z_a, z_b = (torch.randn(n, d, generator=generator) for _ in range(2))
    gradients = {}
    for route in ("primal", "dual"):
        loss = BarlowTwinsLoss(lambda_param=None, route=route)
        duration, gradients[route] = seconds(loss, z_a, z_b)
        with FlopCounterMode(display=False) as counter:  # counts matrix products, so other processes do not matter
            loss(z_a.clone().requires_grad_(), z_b.clone().requires_grad_()).backward()
        gigaflop = counter.get_total_flops() / 1e9
        value = loss(z_a, z_b).item()
        rows.append({"d": d, "route": route, "milliseconds": 1e3 * duration, "Gflop": gigaflop, "value": value})
    scale = gradients["primal"].abs().max().item()
    assert torch.allclose(gradients["primal"], gradients["dual"], rtol=1e-3, atol=1e-6 * scale + 1e-9)
times = pd.DataFrame(rows)
values = times.pivot(index="d", columns="route", values="value")
assert ((values["dual"] / values["primal"] - 1).abs() < 1e-4).all()

ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")[1]
for i, (route, label) in enumerate({"primal": "d x d matrix C", "dual": "two n x n Gram matrices"}.items()):
    part = times[times["route"] == route]
    ax.plot(part["d"], part["milliseconds"], "o-", color=f"C{i}", label=label)
ax.set(xscale="log", yscale="log", xlabel="projector width d", title=f"Barlow Twins, batch of {n}")
ax.set_ylabel("forward and backward, ms of one core")
ax.set_xticks(WIDTHS, [str(d) for d in WIDTHS])
ax.minorticks_off()
ax.legend()
ratio = times.pivot(index="d", columns="route", values="milliseconds")
widest = max(WIDTHS)
work = times.pivot(index="d", columns="route", values="Gflop")
print(f"d = {widest}: the dual route is {ratio.loc[widest, 'primal'] / ratio.loc[widest, 'dual']:.0f} times faster")
assert (work["primal"] / work["dual"]).iloc[-1] > 0.5 * widest / n
work.round(2)

# %% [markdown]
# The table shows the arithmetic in Gflop (billions of operations). The default, `route="auto"`, takes the cheaper
# route. With it, most of the remaining cost of a wide projector is its last linear layer.
#
# ## 2. Does width help?
#
# Four grids in `data/grids` vary the projector: `width.toml` and `depth.toml` on the scenes, `cifar10_width.toml` and
# `cifar10_depth.toml` on photographs. All of them train two losses with $\lambda = 1/d$ and batch 256.
#
# * On the scenes the two views of a pair share the digit, and the linear probe is tested on digits that were not used
#   in training.
# * On CIFAR-10 the views are two crops of one image with changed colors. The grids use the first 10 240 training images
#   and the official test split.
#
# The probe reads the features of the *encoder*, never those of the projector.

# %% alt="Test accuracy of Barlow Twins and HSIC_SSL against projector width (left) and depth (right), on scenes (top) and CIFAR-10 (bottom). The two lines nearly coincide in every panel, and the 95 percent bands are wider than the changes along the axis in most of them."
figure, axes = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
factors = {"width": "d", "depth": "projector"}
tables = {}
for row, prefix in zip(axes, ("", "cifar10_"), strict=True):
    for ax, (name, factor) in zip(row, factors.items(), strict=True):
        table = tables[prefix + name] = read_table(RESULTS / f"ablation_{prefix}{name}.csv")
        table["method"] = table["loss"].map(NAMES)
        print(table.attrs["command"], "| seeds:", summarize(table, ["method", "projector"])["seeds"].min())
        assert (table["state"] == "finished").all() and table["seed"].nunique() == 5
        assert (table["learning_rate"] == 0.002).all()
        plot_ablation(table, factor, "method", ax=ax).set(title=f"{table['dataset'].iloc[0]}: {name}")
    row[0].set_xlabel("projector width d")
    row[1].set_xlabel("widths of the projector's layers")
for ax in axes.flat[1:]:
    ax.get_legend().remove()

# %% [markdown]
# Two kinds of paired differences follow. `gained` compares each width or depth with the first one of its grid, for each
# loss. `apart` compares the two losses at each width or depth.

# %%
gained, apart = {}, {}
for name, table in tables.items():
    factor = factors[name.removeprefix("cifar10_")]
    first, *others = table[factor].unique()
    for method, part in table.groupby("method", sort=False):
        for other in others:
            gained[name, method, other] = paired_difference(part, factor, first, other)
            print(f"{name}, {method}: {gained[name, method, other]}")
    for level, part in table.groupby(factor, sort=False):
        apart[name, level] = paired_difference(part, "loss", "barlow_twins", "hsic_ssl", names=tuple(NAMES.values()))
        print(f"{name} {level}: {apart[name, level]}")

# %%
means = summarize(tables["width"], ["loss", "d"]).pivot(index="loss", columns="d", values="mean")
assert (np.ptp(means[[512, 2048, 8192]], axis=1) < 0.015).all()
assert all(0.04 < one.mean < 0.055 for (name, _, level), one in gained.items() if name == "width" and level == 8192)
assert all(one.mean < -0.03 for (name, *_), one in gained.items() if name == "depth")
assert all(abs(one.mean) < 0.01 for (name, *_), one in gained.items() if name.startswith("cifar10"))
shown = [key for key, one in gained.items() if not one.low < 0 < one.high]
assert shown == [("depth", "HSIC_SSL", "256-128")]
assert all(abs(one.mean) < 0.01 for one in apart.values()) and len(apart) == 14
assert [key for key, one in apart.items() if not one.low < 0 < one.high] == [("cifar10_width", 512)]
assert round(100 * apart["cifar10_width", 512].mean, 1) == -0.3

# %% [markdown]
# **Width.** On the scenes the mean accuracy changes by less than 1.5 points from $d = 512$ on. From 64 to 8192 it rises
# by four to five points, but the 95 % interval of this difference contains 0. On CIFAR-10 no width is a point away from
# $d = 64$, and no interval leaves out 0. At this learning rate, for images this small and trainings this short, the
# observation of Tsai et al. (2021) holds.
#
# **Depth.** More layers do not help either at this learning rate. On the scenes a deeper projector loses at least three
# points on average, and one of the four intervals leaves out 0. On CIFAR-10 the three depths are within a point.
#
# **The two losses** are within a point of each other in all fourteen settings. One of the fourteen intervals leaves out
# 0: at $d = 512$ on CIFAR-10 Barlow Twins is 0.3 points ahead. Among fourteen 95 % intervals, one such case may well be
# chance.
#
# ## 3. Lambda and width
#
# If the views are independent, the redundancy sum $\sum_{i \ne j} C_{ij}^2$ grows like $d^2$, while the invariance sum
# $\sum_i (1 - C_{ii})^2$ grows like $d$. The same holds for the part that chance adds in a small batch. A fixed
# $\lambda = 0.005$ is therefore a different balance at every width: it equals $1/d$ at $d = 200$, is a third of $1/d$
# at $d = 64$, and ten times $1/d$ at $d = 2048$. The grid `data/grids/lambda.toml` crosses $\lambda$ with width.

# %% alt="Two heatmaps over four rules for lambda and widths 64, 128 and 2048: accuracy and mean diagonal of C. Along a row of a multiple of 1/d the mean diagonal changes little; for the fixed 0.005 it falls from 0.56 to 0.18."
table = read_table(RESULTS / "ablation_lambda.csv")
table["rule"] = table["lambda_times_d"].map(lambda c: "fixed 0.005" if pd.isna(c) else f"{c:g}/d")
assert (table["state"] == "finished").all() and (table["learning_rate"] == 0.002).all()
print(table.attrs["command"], "| seeds:", summarize(table, ["rule", "d"])["seeds"].min())
figure, axes = plt.subplots(1, 2, figsize=(11.5, 3.8), layout="constrained")
plot_ablation_map(table, "rule", "d", axes[0]).set_title("accuracy")
_ = plot_ablation_map(table, "rule", "d", axes[1], value="diagonal").set_title("mean diagonal of C, held-out pairs")

# %%
for d, part in table.groupby("d"):
    for rule in ("10/d", "fixed 0.005"):
        print(f"d = {d}: {paired_difference(part, 'rule', '1/d', rule)}")
accuracy = summarize(table, ["rule", "d"]).pivot(index="rule", columns="d", values="mean")
diagonal = summarize(table, ["rule", "d"], value="diagonal").pivot(index="rule", columns="d", values="mean")
assert (diagonal.loc["10/d"] < 0.6 * diagonal.loc["1/d"]).all()
assert np.ptp(diagonal.loc[["0.1/d", "1/d", "10/d"]], axis=1).max() < 0.1
assert abs(diagonal.loc["fixed 0.005", 2048] - diagonal.loc["10/d", 2048]) < 0.01
for d in (64, 128):
    assert diagonal.loc["fixed 0.005", d] > diagonal.loc["1/d", d]
assert (accuracy.loc["10/d"] < accuracy.loc["1/d"]).all() and (accuracy.loc["1/d"] < accuracy.loc["0.1/d"]).all()
assert accuracy.loc["fixed 0.005", 128] > accuracy.loc["1/d", 128]
assert accuracy.loc["fixed 0.005", 64] > accuracy.loc["1/d", 64]
assert accuracy.loc["fixed 0.005", 2048] < accuracy.loc["1/d", 2048]
assert (accuracy.loc["1/d"] - accuracy.loc["10/d"]).between(0.05, 0.08).all()
assert (accuracy.loc["0.1/d"] - accuracy.loc["1/d"]).between(0.01, 0.035).all()
intervals = {
    (d, rule): paired_difference(part, "rule", "1/d", rule)
    for d, part in table.groupby("d")
    for rule in ("0.1/d", "10/d", "fixed 0.005")
}
assert [key for key, one in intervals.items() if not one.low < 0 < one.high] == [(64, "10/d")]
assert intervals[64, "10/d"].high < 0

# %% [markdown]
# The right map gives the clear result: **a multiple of $1/d$ gives nearly the same mean diagonal of $C$ at every
# width.** With $10/d$ it is less than 60 % of that with $1/d$. The fixed $0.005$ gives more than $1/d$ at the two
# narrow widths. At $d = 2048$ it gives what $10/d$ gives. So the rule of Tsai et al. (2021) makes widths comparable.
#
# The left map shows the mean accuracy, at this learning rate. $10/d$ loses five to eight points against $1/d$ at every
# width, $0.1/d$ gains one to three and a half, and $0.005$ is ahead of $1/d$ at the narrow widths and behind it at
# 2048. With five seeds most of these differences are not shown: only the interval for $10/d$ at $d = 64$ leaves out 0.
#
# A comparison of widths with a fixed $\lambda$ therefore also compares different balances of the two sums.
#
# On CIFAR-10 the same rules were compared at $d = 128$ (`data/grids/cifar10_lambda.toml`, the first 10 240 training
# images):

# %%
photographs = read_table(RESULTS / "ablation_cifar10_lambda.csv")
photographs["rule"] = photographs["lambda_times_d"].map(lambda c: "fixed 0.005" if pd.isna(c) else f"{c:g}/d")
print(photographs.attrs["command"], "| seeds:", photographs["seed"].nunique())
assert (photographs["state"] == "finished").all() and (photographs["learning_rate"] == 0.002).all()
moved = {rule: paired_difference(photographs, "rule", "1/d", rule) for rule in ("0.1/d", "10/d", "fixed 0.005")}
for difference in moved.values():
    print(difference)
assert moved["0.1/d"].high < 0 < moved["10/d"].low
summarize(photographs, ["rule"]).round(3)

# %% [markdown]
# **On CIFAR-10 the order is the opposite.** $10/d$ is ahead of $1/d$ and $0.1/d$ is behind it, and both intervals leave
# out 0. So $1/d$ is a good unit for $\lambda$ at any width, but the best multiple of it depends on the data. You have
# to try it, together with the learning rate.
#
# ## 4. What width does to the encoder's features
#
# RankMe estimates how many directions a set of features uses (`09_linear_evaluation` defines it). The encoder has 128
# features here, at every width of the projector, so RankMe lies between 1 and 128.

# %% alt="RankMe of the encoder's features against projector width for both losses. Both lines fall slightly, from 59 at width 64 to 53 at width 8192, inside wide 95 percent bands."
ranks = summarize(tables["width"], ["method", "d"], value="rankme")
ax = plot_ablation(tables["width"], "d", "method", value="rankme")
ax.set(ylabel="RankMe of the encoder's features", xlabel="projector width d")
assert ranks["mean"].between(1, 128).all()
ranks.round(1)

# %% [markdown]
# ## Exercises
#
# 1. Time the routes at $n = 2048$. Where do the curves cross now?
# 2. Add `[256, 4096]` to the grid's `projector` list and call `hsic-lab ablate data/grids/width.toml` twice. What is
#    trained the second time?
# 3. These trainings are short and the encoder is small. If you have a GPU, run `data/grids/gpu_cifar10_width.toml`.
#    Does width help a ResNet?
# 4. The column `energy` of the table holds the sum of the squared off-diagonal entries of $C$. Compare it with
#    $d(d-1)/(n-1)$ for $n = 2048$ held-out pairs. At which width is most of it chance?
#
# **Next:** `07_lambda_and_the_minus_one_target`.
