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
# # Comparing networks
#
# CKA, centered kernel alignment, compares the layers of two networks. It is HSIC on the scale of a correlation. **Wide and
# deep networks can get a high score even if they have nothing in common. Permutations tell you how much of a score is
# chance.**
#
# **What you will see**
#
# 1. The biased CKA of networks that see *different* data grows with their width.
# 2. The best score of all pairs of layers grows with their depth.
# 3. A score that is calibrated by permutations is near 0 for them.
# 4. Nearest neighbors and Procrustes similarity, which ask the same question in other ways.
# 5. Two small networks that are trained on one task. Which of their layers agree?
#
# **What you need**: [notebook 02](02_hsic_from_scratch.ipynb) for HSIC and its two estimates, biased and unbiased. Nothing
# is downloaded. The notebook runs in about a minute.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer draws and steps, for a quick check that everything runs
DRAWS, PERMUTATIONS, STEPS = (3, 39, 60) if FAST else (10, 99, 300)

# %% [markdown]
# The next cell holds the imports and two helpers: `network` makes a random network of linear layers with ReLU, and
# `unrelated` draws two independent samples of 64 inputs. It is folded.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from collections import OrderedDict
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn

from hsic_lab.cka import cka
from hsic_lab.compare import compare_models, mutual_knn, procrustes
from hsic_lab.plots import plot_cka, set_theme

set_theme()


def network(seed, width, depth, inputs):
    """A random network of `depth` linear layers, each followed by a ReLU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = [inputs] + [width] * depth
        return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


def unrelated(seed, n=64, inputs=16):
    """Two samples of n rows that are independent of each other."""
    return torch.randn(2, n, inputs, generator=torch.Generator().manual_seed(seed))


# %% [markdown]
# ## 1. Wide networks look alike
#
# Let $X$ and $Y$ be the activations of two layers: a row for each of $n$ inputs, a column for each unit. With linear
# kernels
#
# $$\mathrm{CKA}(X, Y) = \frac{\mathrm{HSIC}(X, Y)}{\sqrt{\mathrm{HSIC}(X, X)\,\mathrm{HSIC}(Y, Y)}} .$$
#
# Take two networks of one layer with random weights, and give each of them its own random input. Row $i$ of the one
# input has nothing to do with row $i$ of the other. So $X$ and $Y$ ($n = 64$ rows each) are independent, and a measure of
# their similarity should be 0.
#
# The next cell changes the *width* of the networks, the number of columns of $X$ and $Y$. The table has the mean CKA of
# ten pairs of networks, with the biased and with the unbiased estimate of HSIC.

# %%
widths, rows = (4, 16, 64, 256, 4096), []
for width in widths:
    for seed in range(DRAWS):
        x, y = (network(2 * seed + side, width, 1, 16)(z).detach() for side, z in enumerate(unrelated(seed)))
        rows.append({"width": width} | {e: float(cka(x, y, estimator=e)) for e in ("biased", "unbiased")})
by_width = pd.DataFrame(rows).groupby("width").mean()
# In the extreme case the rows are orthogonal, in any order.
assert np.isclose(cka(np.eye(64), np.eye(64)[::-1].copy(), estimator="biased"), 1)
assert by_width["biased"].is_monotonic_increasing and 2 * by_width["biased"].iloc[0] < by_width["biased"].iloc[-1] < 0.5
assert by_width["unbiased"].abs().max() < 0.1
by_width.round(3)

# %% [markdown]
# **The biased CKA grows with the width, although all these networks are unrelated. The unbiased CKA stays near 0.**
#
# Why? Think of an extreme case: with very many unrelated columns all rows are orthogonal to each other and of one length. Then both
# Gram matrices are multiples of the identity, whatever the order of the rows. They agree perfectly: the biased CKA is 1.
# The agreement is on the diagonal: each row is similar to itself. The unbiased estimate corrects for the diagonal.
# (The columns of a layer are functions of the same inputs, so the biased CKA of these networks levels off below 1.)
#
# ## 2. Deep networks find a match
#
# A network of *depth* $D$ offers $D$ layers. If you compare all layers of two networks and report the best pair, you
# report the largest of $D^2$ noisy numbers.
#
# `compare_models` compares all layers. It gives one input to both networks, so the class `SeesHalf` lets each of them see
# its own half of the columns.


# %%
class SeesHalf(nn.Module):
    """A network that sees columns 0 to 15 or columns 16 to 31 only."""

    def __init__(self, side, width, depth, seed=0):
        super().__init__()
        self.side, self.body = side, network(2 * seed + side, width, depth, 16)

    def forward(self, x):
        return self.body(x[:, 16 * self.side : 16 * (self.side + 1)])


# %% [markdown]
# The next cell compares 40 pairs of networks of width 64 for each depth, with the unbiased CKA. The table has the mean over
# all pairs of layers and the best pair, each averaged over the 40.

# %%
depths, rows = (1, 4, 12), []
for depth in depths:
    names = [f"body.{2 * i + 1}" for i in range(depth)]  # the ReLU layers
    for seed in range(4 * DRAWS):
        sides = (SeesHalf(side, 64, depth, seed) for side in (0, 1))
        table = compare_models(*sides, torch.cat(list(unrelated(seed)), dim=1), names).to_numpy()
        rows.append({"depth": depth, "mean of all pairs": table.mean(), "best pair": table.max()})
by_depth = pd.DataFrame(rows).groupby("depth").mean()
assert by_depth["best pair"].is_monotonic_increasing and by_depth["best pair"].iloc[-1] > 0.02
assert by_depth["mean of all pairs"].abs().max() < 0.02
by_depth.round(3) + 0.0

# %% [markdown]
# **The mean over all pairs of layers is near 0 at every depth, as it should be. The best pair grows with the depth.** It is
# still small here, but it is not 0, and it looks like a finding if you do not know that it was selected.
#
# ## 3. Calibration by permutations
#
# A permutation of the rows of $Y$ destroys what $X$ and $Y$ share and keeps everything else: widths, depths, directions.
# `compare_models` with `permutations=K` computes all similarities again for $K$ permutations. One permutation serves all
# pairs of layers, so the largest value of all pairs can be compared, too.
#
# For one pair of layers let $s$ be the observed similarity, and $t$ the value that 95 % of the observed and permuted
# similarities do not exceed. The *calibrated score* is
#
# $$\max\left(0, \frac{s - t}{1 - t}\right).$$
#
# It is 0 for what chance reaches, and 1 for equal layers. The next cell compares two unrelated networks of width 128 and
# depth 3 with the *biased* CKA, 20 times. The pictures show the first comparison: a row for each layer of the one
# network, a column for each layer of the other (`body.1`, `body.3` and `body.5` are the ReLU layers). Left is CKA, right
# the calibrated score, where a dash means that chance reaches the value.


# %% alt="Two heatmaps of three by three layers of unrelated networks. Left: biased CKA, between 0.2 and 0.3 everywhere. Right: the calibrated score, with a dash in all or nearly all cells: nothing beyond chance."
def tested(seed):
    sides = (SeesHalf(side, 128, 3, seed) for side in (0, 1))
    names, inputs = ["body.1", "body.3", "body.5"], torch.cat(list(unrelated(seed)), dim=1)
    return compare_models(*sides, inputs, names, estimator="biased", permutations=PERMUTATIONS)


tests = [tested(seed) for seed in range(1, 21)]
axes = plt.subplots(1, 2, figsize=(8.5, 3.2), layout="constrained")[1]
plot_cka(tests[0].similarity, axes[0])
_ = plot_cka(tests[0], axes[1])

# %%
raw = min(test.similarity.to_numpy().min() for test in tests)
significant = sum((test.adjusted <= 0.05).to_numpy().any() for test in tests)
print(f"smallest CKA of all comparisons: {raw:.2f}")
print(f"comparisons with a significant pair: {significant} of 20")
assert raw > 0.15 and significant <= 4  # one is expected
assert max(test.calibrated.to_numpy().max() for test in tests) < 0.1
assert all(((test.calibrated > 0) <= (test.pvalue <= 0.05)).all(axis=None) for test in tests)
tests[0].adjusted.round(2)

# %% [markdown]
# **All CKA values are above 0.15, although the networks share nothing. No calibrated score reaches 0.1.** A calibrated
# score of one pair is above 0 by chance in about one of 20 cases, so one of the nine cells can show a small value.
#
# The table has the p-values of the drawn comparison, *adjusted* for the number of pairs. Of 20 comparisons of unrelated
# networks, one is expected to have an adjusted value of 0.05 or less.
#
# ## 4. Other measures, other weights
#
# Let the columns of $X$ and $Y$ be centered and each sample scaled to the Frobenius norm 1, and let $s_k$ be the singular
# values of $X^\top Y$.
#
# * **CKA** (biased, linear) is $\sum_k s_k^2$, divided by the geometric mean of the same sum for $X$ with itself and for
#   $Y$ with itself. The strongest directions decide.
# * **Procrustes similarity** is $\sum_k s_k$: how well a rotation turns one sample into the other.
# * **Mutual kNN** is the share of the 10 nearest neighbors of a row in $X$ that are also among its 10 nearest in $Y$. It
#   only looks at near rows.
#
# The next cell takes two unrelated samples of 300 rows and 20 columns. Then it adds one shared direction to both, which
# is much stronger than everything else.

# %%
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(2, 300, 20, generator=generator)
shared = torch.randn(300, 1, generator=generator)
values = {}
measures = {"CKA": cka, "Procrustes": procrustes, "mutual kNN": mutual_knn}
samples = {"unrelated": (x, y), "one shared direction": (x + 3 * shared, y + 3 * shared)}
for name, (a, b) in samples.items():
    values[name] = {word: float(measure(a, b)) for word, measure in measures.items()}
values = pd.DataFrame(values)
assert values.loc["CKA", "one shared direction"] > 0.95 and values.loc["mutual kNN", "one shared direction"] < 0.5
assert abs(values.loc["mutual kNN", "unrelated"] - 10 / 299) < 0.02
values.round(2)

# %% [markdown]
# **With the shared direction CKA is above 0.95: it sees the strong direction and little else.** Fewer than half of the
# nearest neighbors agree, because the other 19 directions also decide who is near.
#
# For unrelated samples the mutual kNN of $k$ neighbors is about $k / (n - 1) = 10 / 299$. Procrustes similarity, like the
# biased CKA, is not 0 for them.
#
# ## 5. Two trained networks
#
# Two small networks with different initial weights learn to read scikit-learn's handwritten digits (8 x 8 pixels). One is
# twice as wide as the other. Both see the same images now. Which of their layers agree, before and after the training?
# Layers are compared on 256 images that were not trained on. `body.1`, `body.3` and `body.5` are the three ReLU
# layers of a network.

# %%
digits = load_digits()
pixels, labels = torch.from_numpy(digits.data).float() / 8 - 1, torch.from_numpy(digits.target)
held_out = pixels[1300:1556]
names = ["body.1", "body.3", "body.5", "output"]  # the three ReLU layers and the output

# %% [markdown]
# The next cell defines the training: a linear layer on top of such a network tells the ten digits apart.


# %%
def trained(seed, width, steps):
    """Train a classifier with Adam on the first 1300 digits; return it with its accuracy on the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {"body": network(seed, width, 3, 64), "output": nn.Linear(width, 10)}
        model = nn.Sequential(OrderedDict(parts))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[:1300]), labels[:1300]).backward()
        optimizer.step()
    right = model(pixels[1300:]).argmax(dim=1) == labels[1300:]
    return model, float(right.float().mean())


# %% [markdown]
# The pictures show the calibrated mutual kNN of all pairs of layers, and the cell prints the test accuracy of both
# networks. After it, a table has three measures (not calibrated; CKA is unbiased) for pairs of layers at the same depth.

# %% alt="Two heatmaps of the mutual nearest neighbors of four layers of two networks. Before the training the values fall from about 0.8 for the first layers to about 0.3 for the outputs. After the training they lie between about 0.75 and 0.9, highest on the diagonal and for near layers."
found = {}
for when, steps in (("before", 0), ("after", STEPS)):
    (a, accuracy_a), (b, accuracy_b) = trained(0, 64, steps), trained(1, 128, steps)
    print(f"{when}: accuracy {accuracy_a:.2f} and {accuracy_b:.2f}")
    for measure in ("cka", "mutual_knn", "procrustes"):
        found[when, measure] = compare_models(a, b, held_out, names, measure=measure)
    found[when, "tests"] = compare_models(a, b, held_out, names, measure="mutual_knn", permutations=PERMUTATIONS)
axes = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")[1]
for ax, when in zip(axes, ("before", "after"), strict=True):
    plot_cka(found[when, "tests"], ax).set_title(f"{when} the training")

# %%
before, after = found["before", "cka"], found["after", "cka"]
assert found["before", "tests"].adjusted.to_numpy().max() <= 0.05
assert before.loc["body.1", "body.1"] > 0.7 and before.loc["output", "output"] < 0.5
if not FAST:
    assert after.loc["output", "output"] > 0.9 and after.to_numpy().min() > 0.85
    neighbors = found["after", "mutual_knn"]
    assert (np.diagonal(neighbors) > neighbors.to_numpy().max(axis=1) - 0.03).all()
    assert neighbors.loc["body.1", "output"] < neighbors.loc["body.1", "body.1"] - 0.08
words = {"cka": "CKA", "mutual_knn": "mutual kNN", "procrustes": "Procrustes"}
same_depth = {
    (word, when): np.diagonal(found[when, measure]) for measure, word in words.items() for when in ("before", "after")
}
pd.DataFrame(same_depth, names).T.round(2)

# %% [markdown]
# You can read three things from this pair of networks.
#
# **Untrained networks agree if they see the same images.** Their first layers have a CKA above 0.7, and the adjusted
# p-value of every pair of layers is at most 0.05: random layers keep part of the geometry of their input. So a high score
# is no evidence of learning. Compare with untrained networks.
#
# **Training makes the outputs agree.** Their CKA rises from below 0.5 to above 0.9. Both networks have learned the same
# ten classes.
#
# **After the training CKA hardly tells the layers apart.** All its values are above 0.85. Mutual kNN shows more: a layer
# agrees best, or within 0.03 of it, with the layer of the same depth in the other network.
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. How much does the biased CKA of unrelated networks of width 256 fall if there are 512 rows in place of 64?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# By a factor of about 6 here. For independent samples the biased CKA is of the order
# 1/n, which would be a factor of 8.
falls = {}
for n in (64, 512):
    x, y = (network(side, 256, 1, 16)(z).detach() for side, z in enumerate(unrelated(0, n)))
    falls[n] = float(cka(x, y, estimator="biased"))
for n, value in falls.items():
    print(f"CKA of {n} rows: {value:.3f}")
print(f"factor {falls[64] / falls[512]:.1f}")
assert 4 < falls[64] / falls[512] < 9

# %% [markdown]
# 2. Shuffle the images for the second network. What do `similarity` and `calibrated` say about the trained networks?


# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Row i is no longer the same image in both: the similarity is near 0 and the calibrated score is 0.
class Shuffled(nn.Module):
    """A network that sees the images of a batch in another order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x[torch.randperm(len(x), generator=torch.Generator().manual_seed(1))])


tests = compare_models(a, Shuffled(b), held_out, names, [f"model.{name}" for name in names], permutations=PERMUTATIONS)
assert tests.similarity.abs().to_numpy().max() < 0.1 and tests.adjusted.to_numpy().min() > 0.05
print(f"largest similarity {tests.similarity.abs().to_numpy().max():.2f}")
tests.calibrated.round(2)

# %% [markdown]
# This is the last notebook. The [guides](../docs/guides/index.md) of the documentation solve one task each, and
# [notebook 10](10_your_own_data.ipynb) shows how to use the library with your own data.
