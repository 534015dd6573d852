# %% [markdown]
# # Reading a cross-correlation matrix
#
# The cross-correlation matrix $C$ shows whether self-supervised training went well. Read four things:
#
# * **the diagonal**: do the views agree?
# * **the sum of the squared off-diagonal entries**, compared with what chance gives: do features repeat each other?
# * **the spectrum** (the singular values): how many different directions are there?
# * **the sum of all entries**: do the branches (the networks that see view A and view B) oppose each other?
#
# This notebook shows each of them on matrices with known faults, and then on trained encoders.
#
# **What you will see**
#
# 1. Five matrices from data with known properties, and the values that distinguish them.
# 2. How large the entries of $C$ are for unrelated features.
# 3. The training of two real encoders in the `CorrelationExplorer`.
# 4. Four encoders whose views share a digit, a position, a color or a background: the features keep what the views share.
# 5. A linear training that you can predict: it learns one direction at a time.
#
# **What you need**: [notebook 00](00_quickstart.ipynb), or at least its matrix, and two to ten minutes. If `make demo` has trained
# the two encoders, the notebook reads them from `runs/demo/`. Otherwise it trains them. The explorer is interactive on the page of
# this notebook in the documentation, and in JupyterLab once you have run the cells. Until then, and on GitHub, you see an image of it. If
# you read "model not found", run the cells again.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes and steps, for a quick check
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
DEMO_EPOCHS, DEMO_CHANGES = (1, {"snapshots": 2, "width": 8}) if FAST else (14, {})
EPOCHS, WIDTH = (5, 8) if FAST else (10, 16)
SIZES = {"n_train": 1000, "n_test": 500} if FAST else {"n_train": 2000}

# %% [markdown]
# The next cell holds the imports and a drawing function. It is folded, as are the cells with checks and solutions.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import numpy as np
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
from hsic_lab.training import Run, TrainConfig, train, train_or_load

set_theme()
PALETTE = plt.rcParams["axes.prop_cycle"].by_key()["color"]


def plot_modes(times, eigenvalues, loss, predicted, steps):
    """Draw the eigenvalues of C against time with their prediction, and the loss with its plateaus."""
    (top, bottom) = plt.subplots(2, 1, figsize=(8.4, 5.4), sharex=True, layout="constrained")[1]
    for j, color in enumerate(PALETTE[: len(steps)]):
        top.plot(times, eigenvalues[:, j], color=color, linewidth=3, alpha=0.5, label=f"eigenvalue {j + 1}")
        top.plot(times, predicted[:, j], ":", color="0.1", linewidth=1.5)
    top.plot([], [], ":", color="0.1", label="predicted")
    bottom.plot(times, loss, color="0.2")
    for ax in (top, bottom):
        for step, color in zip(steps, PALETTE, strict=False):
            ax.axvline(step, color=color, linestyle="--", linewidth=1)
    top.set(ylabel="eigenvalues of $C$")
    bottom.set(xlabel="time $t$ (dashed: the predicted steps)", ylabel="loss", yticks=range(len(steps) + 1))
    top.legend(loc="center right", fontsize="small")

# %% [markdown]
# ## Five matrices with known properties
#
# Two views of $n$ images give two matrices with $n$ rows and $d$ columns. A column is a **feature**. Standardize every column to mean
# 0 and variance 1, call the results $X$ and $Y$, and let $C = X^\top Y / n$. Then $C_{ij}$ is the correlation of feature $i$ of view A
# with feature $j$ of view B.
#
# There is no network here. The cells draw features from a part $s$ that the views share and from noise of each view:
#
# * **healthy**: $d$ unrelated features. Feature $i$ is $s_i$ plus noise, so that the two views have the correlation 0.8;
# * **dimensional collapse**: 8 such features, mixed into 64. Each feature looks healthy, but there are only 8 different ones;
# * **complete collapse**: every image is mapped to nearly the same point. Only unrelated noise of size $10^{-6}$ is left;
# * **redundant**: 16 features, each copied four times, in random order;
# * **opposed sums**: if the sum of all features of an image is large in view A, it is small in view B. A section below explains it.

# %%
n, d, agreement = 2048, 64, 0.8
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def two_views(width):
    """Draw unrelated features that have the correlation `agreement` between the views."""
    shared = normal(n, width)
    noise = (1 - agreement) ** 0.5
    return tuple(agreement**0.5 * shared + noise * normal(n, width) for _ in range(2))



# %%
mix, shuffle = normal(8, d), torch.randperm(d, generator=generator)
views = {
    "healthy": two_views(d),
    "dimensional collapse": tuple(z @ mix for z in two_views(8)),
    "complete collapse": tuple(5 + 1e-6 * normal(n, d) for _ in range(2)),
    "redundant": tuple(z.repeat(1, 4)[:, shuffle] for z in two_views(d // 4)),
}


# %% [markdown]
# For the last pair, the differences between features agree across the views and the sums of all features have opposite signs. $r$ is the
# correlation of two features of one view. (This is the minimum of HSIC_SSL if both views have free features, see
# [notebook 01](01_barlow_twins_is_hsic.ipynb), section 6.)
#
# In the heatmaps red is a positive and blue a negative correlation. Above each stand the mean of the diagonal and the root mean square
# (rms) of the other entries.

# %% alt=["Three heatmaps of C. Healthy: a diagonal of 0.8 on an empty matrix. Dimensional collapse: the diagonal and strong entries everywhere. Complete collapse: empty.", "Two heatmaps of C. Redundant: the diagonal and scattered strong entries. Opposed sums: a weaker diagonal on an evenly negative matrix."]
r = (d**2 - 8 * d + 4) / (5 * d**2 - 8 * d + 4)
s = normal(n, d)
sums = s.mean(dim=1, keepdim=True).expand(n, d)
contrasts, sums = (1 - r) ** 0.5 * (s - sums), (1 + (d - 1) * r) ** 0.5 * sums
views["opposed sums"] = contrasts + sums, contrasts - sums

matrices = {name: cross_correlation(*pair) for name, pair in views.items()}
compare_cross_correlations({name: matrices[name] for name in list(matrices)[:3]})
compare_cross_correlations({name: matrices[name] for name in list(matrices)[3:]});

# %% [markdown]
# The heatmaps show some of the differences, for example a missing diagonal. The other differences need a few numbers:
#
# * **diagonal**, the mean of the diagonal: do the views agree? It is about 0.8 by construction, except in the last matrix and after
#   complete collapse.
# * **off²**, the sum of the squared off-diagonal entries: do features repeat each other? Compare it with **expected**, its expected
#   value for unrelated features.
# * **total** $= \mathbf 1^\top C\, \mathbf 1$, the sum of all entries ($\mathbf 1$ is the column of $d$ ones): do the two branches agree on
#   the sum of the features? Far below 0 the sums are opposed. Near 0 they are unrelated, as after complete collapse, or they hardly vary,
#   which is what HSIC_SSL asks for ([notebook 07](07_the_minus_one_target.ipynb), section 3).
# * **rank**: how many different directions are there? It counts the singular values of $C$ above $10^{-4}$ of the largest one.
#
# `CorrelationSummary` computes all of them but the rank. `SHORT` shortens its names.

# %%
SHORT = {"mean_diagonal": "diagonal", "off_diagonal_squared_norm": "off²",
         "expected_squared_norm": "expected"}


def summaries(matrices, n):
    """Return a row of summary values for each matrix."""
    rows = {name: asdict(CorrelationSummary.from_matrix(c, n)) for name, c in matrices.items()}
    return pd.DataFrame(rows).T.rename(columns=SHORT)


table = summaries(matrices, n)
table["rank"] = [int((spectrum(c) > 1e-4 * spectrum(c)[0]).sum()) for c in matrices.values()]
table[[*SHORT.values(), "total", "rank"]].round(1)

# %% [markdown]
# You can learn two things from this table, and a third one from the heatmap of the redundant features.
#
# **The diagonal does not show dimensional collapse and redundancy.** Both have the same 0.8 as the healthy features. Their squared norm is
# far above the expected value, and their rank is 8 and 16 in place of 64.
#
# **Standardizing hides complete collapse.** The features vary by a millionth only, and $C$ looks like that of any two unrelated views.
# Also look at the variance before you standardize.
#
# **The order of the features can hide structure.** The copies of the redundant features are in random positions. If you order the
# features by clustering, the copies form blocks of four, as the explorer below the next cell shows.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
expected = expected_squared_norm(n, d)
assert (table.loc[["healthy", "dimensional collapse", "redundant"], "diagonal"] - agreement).abs().max() < 0.02
assert abs(table.loc["healthy", "off²"] / expected - 1) < 0.1 and table.loc["healthy", "rank"] == d
assert table.loc["dimensional collapse", "rank"] == 8 and table.loc["dimensional collapse", "off²"] > 50 * expected
assert abs(table.loc["complete collapse", "diagonal"]) < 0.02
assert abs(table.loc["complete collapse", "off²"] / expected - 1) < 0.1
assert table.loc["redundant", "rank"] == d // 4
assert table.loc["opposed sums", "total"] < 0 < table.loc[["healthy", "dimensional collapse", "redundant"], "total"].min()

# %% [markdown]
# The explorer draws $C$, histograms of its diagonal and off-diagonal entries, and its spectrum (the singular values $\sigma$ divided by the
# largest). The gray part of the second histogram is what unrelated features give.

# %% alt="Still image of the explorer: C of the healthy and of the redundant features, ordered by clustering. The redundant features form 16 blocks of four on the diagonal. Beside them are histograms of the entries and the spectra; the redundant spectrum ends after 16 values."
order = feature_order(matrices["redundant"], "cluster")
arranged = matrices["redundant"][order][:, order]
blocks = torch.block_diag(*[torch.ones(4, 4)] * (d // 4)).bool()
assert arranged[blocks].min() > 0.7 and arranged[~blocks].abs().max() < 0.2

clustered = CorrelationExplorer({name: views[name] for name in ("healthy", "redundant")})
clustered.order = "cluster"
display(clustered)

# %% [markdown]
# ### Opposed sums
#
# HSIC_SSL, the loss of Tsai et al. (2021), asks for $-1$ off the diagonal. If one branch sees both views, and both are distorted in the
# same way, then $\mathbf 1^\top C\, \mathbf 1 \ge 0$ on average. With a diagonal of 1 the mean off-diagonal entry is then at least
# $-1/(d-1)$ ([notebook 01](01_barlow_twins_is_hsic.ipynb), section 6).
#
# Two *different* branches can go below this bound. They agree on the differences between features and have opposite signs in the sum
# of the features. The HSIC_SSL loss *falls* to about 0.8 per feature, where $C = I$ costs about 1, and the correlation of each feature
# between the views falls to about 0.6. So HSIC_SSL prefers the worse features. Barlow Twins, which asks for 0, does not: its loss is
# smallest at $C = I$.

# %%
ideal = torch.linalg.qr(s - s.mean(dim=0)).Q  # exactly uncorrelated, so that C = I
pairs = {"C = I": (ideal, ideal), "opposed sums": views["opposed sums"]}
costs = pd.DataFrame({
    type(loss).__name__: {name: float(loss(*pair)) / d for name, pair in pairs.items()}
    for loss in (HSICSSLLoss(), BarlowTwinsLoss(lambda_param=None))
}).T.rename_axis("loss per feature")
assert np.allclose(costs.loc["HSICSSLLoss"], [1, 0.8], atol=0.05)
assert costs.loc["BarlowTwinsLoss", "opposed sums"] > costs.loc["BarlowTwinsLoss", "C = I"]
costs.round(3) + 0.0

# %% [markdown]
# The entries of $C$ for opposed sums have a closed form:

# %%
diagonal, off = (d - 2 - 2 * (d - 1) * r) / d, -(2 + (d - 2) * r) / d  # theory
found = table.loc["opposed sums"]
print(f"mean diagonal      {found['diagonal']:.3f}, theory {diagonal:.3f}")
print(f"mean off-diagonal {found['mean_off_diagonal']:.3f}, theory {off:.3f}")
print(f"one branch: at least {found['lower_bound']:.3f}")
assert abs(found["diagonal"] - diagonal) < 0.02 and abs(found["mean_off_diagonal"] - off) < 0.02
assert found["mean_off_diagonal"] < found["lower_bound"] == -1 / (d - 1)

# %% [markdown]
# ## What to expect for unrelated features
#
# In a sample, unrelated features are not exactly uncorrelated. An off-diagonal entry has mean 0 and variance $1/(n-1)$, so the squares
# of all $d(d-1)$ entries sum to $d(d-1)/(n-1)$ on average. This is the expected value under independence. The table compares it with the
# healthy features, in batches of $n$ images.

# %%
counts = [16, 32, 64, 128, 256, 512]
measured = []
for count in counts:
    parts = zip(*(z.split(count) for z in views["healthy"]), strict=True)
    matrices_of_parts = {k: cross_correlation(*part) for k, part in enumerate(parts)}
    measured.append(summaries(matrices_of_parts, count)["off²"].mean())
chance = [expected_squared_norm(count, d) for count in counts]
assert np.allclose(measured, chance, rtol=0.1)
assert round(expected_squared_norm(256, 8192), -3) == 263_000
pd.DataFrame({"n": counts, "measured": measured, "d(d-1)/(n-1)": chance}).set_index("n").round(1)

# %% [markdown]
# The figure shows the same features for three batch sizes. The off-diagonal entries at $n = 32$ are large, and all of them are due to
# chance.

# %% alt="Three heatmaps of C of the healthy features for n = 32, 256 and 2048. The noise off the diagonal falls as n grows."
compare_cross_correlations({
    f"healthy, n = {m}": cross_correlation(*(z[:m] for z in views["healthy"]))
    for m in (32, 256, n)
});

# %% [markdown]
# Compare with this expected value before you call a matrix redundant. For a batch of 256 images and $d = 8192$ features it is 263 000.
#
# ## Two trained encoders
#
# These are the runs of [notebook 00](00_quickstart.ipynb). The views share a digit and nothing else. One encoder was trained with
# Barlow Twins, the other with HSIC_SSL. Each run stored $C$ on the same 2048 pairs of test scenes at several training steps. In
# JupyterLab, and on this page of the documentation, you can
#
# * **move the slider** through the training steps;
# * **order the features by clustering**;
# * **lower the color limit**;
# * **zoom** into a region by dragging a box;
# * **click an entry** $(i, j)$. A scatter plot then shows feature $i$ of view A against feature $j$ of view B, one dot for each pair of
#   scenes, and the scenes at both ends. What do the digits at the two ends have in common?

# %% alt="Still image of the explorer: C of Barlow Twins and HSIC_SSL after training, both with a strong diagonal and large off-diagonal entries. The spectra fall steeply after about ten values."
data = load("digit_scenes", **SIZES) if FAST else load("digit_scenes")
runs = {
    title: train_or_load(
        replace(demo_config(loss, DEMO_EPOCHS), **DEMO_CHANGES), RUNS / loss, data, progress=not FAST
    )
    for loss, title in TITLES.items()
}
pairs = DigitScenes("test").pairs(1024, 3, shared=("digit",))
explorer = CorrelationExplorer(runs, images=pairs)
display(explorer)

# %%
last = {title: run.snapshots[max(run.snapshots)] for title, run in runs.items()}
found = summaries(last, 2048)
assert (found["off²"] > (1 if FAST else 100) * found["expected"]).all()
assert FAST or np.allclose(found["diagonal"], 0.8, atol=0.1)
assert FAST or abs(found["total"]["HSIC_SSL"]) < 5 < 100 < found["total"]["Barlow Twins"]
found[[*SHORT.values(), "total"]].round(2)

# %% [markdown]
# The mean diagonal is about 0.8: the views agree. The off-diagonal entries are more than 100 times the expected value for unrelated
# features. This is not surprising: the views share only a digit, so 128 features must be redundant. The spectrum shows the same. It
# falls steeply after about ten singular values. The total is not below 0: both views pass through one network, so the sums are not
# opposed. That of HSIC_SSL is near 0, because this loss has removed the variance of the sum.

# %%
falling = pd.DataFrame({title: spectrum(c) / spectrum(c)[0] for title, c in last.items()}).T
falling.columns += 1
if not FAST:
    assert (falling[20] < 0.05).all() and (found["total"] > 0).all()
falling[[1, 10, 20]].rename_axis(columns="singular value").round(4)

# %% [markdown]
# ## The features keep what the views share
#
# The factors of variation of a scene are known: the class of the digit, its position $x, y$ and size, its color, and the part of the
# photograph behind it. The next cells train four small encoders with Barlow Twins. The views of each encoder share *one* of these
# factors. In JupyterLab the explorer below shows each snapshot of $C$ as soon as it exists. (A static page shows the last ones only, in
# the heatmaps after it.)

# %%
live = CorrelationExplorer()
display(live)

# %% alt="Four heatmaps of C for encoders whose views share the digit, the position, the color or the background. Each has a strong diagonal."
SHARED = {"digit": ["class"], "position": ["x", "y"], "color": ["red", "green", "blue"],
          "background": ["photograph", "crop_x", "crop_y"]}
spelled = {"color": "colour"}  # as `DigitScenes` spells it
scenes = load("digit_scenes", **SIZES)
folder = Path(tempfile.mkdtemp())
settings = replace(demo_config("barlow_twins", EPOCHS), width=WIDTH, projector=(128, 32),
                   batch_size=128, learning_rate=2e-3, snapshots=2 if FAST else 4)
trained, newest = {}, {}
for shared in SHARED:
    config = replace(settings, shared=(spelled.get(shared, shared),))
    run = train(config, folder / shared, scenes, progress=False, callbacks=[live.callback])
    trained[shared], newest[f"shared: {shared}"] = run, run.snapshots[max(run.snapshots)]
compare_cross_correlations(newest);

# %% [markdown]
# The matrices show *that* the views agree. To find out on *what* they agree, compare the projections of single test scenes with
# every known factor by HSIC on the scale of a correlation. This is unbiased linear **CKA**,
# $\mathrm{HSIC}(Z, f)/\sqrt{\mathrm{HSIC}(Z, Z)\,\mathrm{HSIC}(f, f)}$ ([notebook 02](02_hsic_from_scratch.ipynb), section 10). It is near 0 if the
# features $Z$ and the factor $f$ are independent. Classes are compared with the kernel `Delta` (equal or not), numbers with a
# Gaussian kernel. `crop_x` and `crop_y` say which part of the photograph is the background.

# %% alt="Heatmap of CKA between the features of four encoders (rows) and the factors of the scenes (columns). The high values are where the factor is the one that the views shared."
factors = [column for columns in SHARED.values() for column in columns]
kept = {}
for shared, run in trained.items():
    network = torch.nn.Sequential(run.encoder, run.projector)
    projections = extract_features(network, scenes.test.images)
    frame = factor_dependence(projections, scenes.test.factors[factors])
    kept[shared] = frame.set_index("factor")["cka"]
kept = pd.DataFrame(kept).T
look = {"cmap": "viridis", "vmin": 0, "annot": True, "fmt": ".2f", "cbar_kws": {"label": "CKA"}}
ax = sns.heatmap(kept.round(2) + 0.0, **look)
ax.set(xlabel="factor of the scene", ylabel="what the views share");

# %%
by_factor = pd.DataFrame({name: kept[columns].mean(axis=1) for name, columns in SHARED.items()})
for name in SHARED:
    assert by_factor[name].idxmax() == name  # highest for the encoder whose views shared it
by_factor.round(3) + 0.0

# %% [markdown]
# Read heatmap and table by columns. For every factor, the encoder whose views shared it has the highest value. No encoder was told about
# the digit, the position or the color. **The features keep what the views have in common**, so by the choice of augmentations (the random
# changes that make two views of an image) you choose the features.
#
# This is one seed and a short training: trust the pattern, not the second decimal. A factor that was not shared, such as the position,
# can leave traces until training is longer.
#
# ## One direction at a time
#
# In a *linear* training the rank of $C$ grows in steps, and you can predict when. Let the features be $z = Wx$ with a matrix $W$ that
# starts close to 0, and let $\Gamma$ be the covariance of the inputs of one view with those of the other. Then $C = W \Gamma W^\top$, and
# for $\lambda = 1$ the loss of Barlow Twins without standardizing is $\lVert C - I \rVert_F^2$.
#
# Let $\gamma_1 > \gamma_2 > \dots$ be the eigenvalues of $\Gamma$. Simon et al. (2023, arXiv 2303.15438) show that small steps of gradient
# descent learn **one eigenvector after the other**: first the direction on which the views agree best. If the time $t$ is the
# number of steps times the learning rate, eigenvalue $j$ of $C$ is
#
# $$\frac{1}{1 + \bigl(\frac{1}{s_j^2 \gamma_j} - 1\bigr) e^{-8 \gamma_j t}}, \qquad \text{and passes } \tfrac12 \text{ near }
# t_j = -\frac{\log (s_j^2 \gamma_j)}{8 \gamma_j} .$$
#
# $s_j$ is the size of the start in direction $j$: the $j$-th diagonal entry, without sign, of the triangular matrix in the QR
# decomposition of $W$ at the start. The cell trains with $\gamma = (1, 0.5, 0.25, 0.12)$, and compares with the prediction: the eigenvalues
# rise one after the other at the predicted times (dashed lines), and at each of them the loss falls by 1.

# %% alt="Above: four eigenvalues of C rise from 0 to 1 one after the other, each along its predicted curve, at times near 3, 7, 16 and 30. Below: the loss falls from 4 to 0 in four steps at the same times, with plateaus at 3, 2 and 1."
gamma = torch.tensor([1.0, 0.5, 0.25, 0.12], dtype=torch.float64)
rate, count = 0.002, 22_500
start = 1e-6 * torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
w, path = start.clone(), []
for step in range(count):
    c = (w * gamma) @ w.T
    if step % 50 == 0:
        path.append(c)
    w = w - rate * 4 * (c - torch.eye(4)) @ w * gamma  # the gradient of the loss
path, times = torch.stack(path), rate * 50 * np.arange(len(path))
eigenvalues = torch.linalg.eigvalsh(path).flip(1).numpy()
size = (torch.linalg.qr(start).R.diagonal().square() * gamma).numpy()  # s_j^2 gamma_j
predicted = 1 / (1 + (1 / size - 1) * np.exp(-8 * gamma.numpy() * times[:, None]))
steps = -np.log(size) / (8 * gamma.numpy())
plot_modes(times, eigenvalues, (path - torch.eye(4)).square().sum(dim=(1, 2)), predicted, steps)

# %%
measured = times[(eigenvalues > 0.5).argmax(axis=0)]
loss = (path - torch.eye(4)).square().sum(dim=(1, 2)).numpy()
middles = np.concatenate([[0], (steps[1:] + steps[:-1]) / 2, [times[-1]]])
plateaus = [loss[np.abs(times - middle).argmin()] for middle in middles]
assert np.allclose(measured, steps, rtol=0.03)
assert np.allclose(plateaus, [4, 3, 2, 1, 0], atol=0.01)
assert np.median(abs(eigenvalues - predicted)) < 1e-5
rows = {"predicted time": steps, "measured time": measured, "loss after it": plateaus[1:]}
pd.DataFrame(rows, index=[f"step {j}" for j in range(1, 5)]).T.round(2) + 0.0

# %% [markdown]
# The explorer shows the same training. Move its slider: $C$ is empty, then a matrix of rank 1 appears, then rank 2, 3 and 4, until
# $C$ is the identity. The eigenvectors are mixtures of the features, so an entry of $C$ can rise and fall again. The slider counts
# steps of gradient descent; 500 of them are one unit of time.

# %% alt="Still image of the explorer at step 10000 of the linear training: C, four by four, is not yet the identity, and its spectrum has three equal values and one that is almost 0."
every = 10  # a snapshot for each unit of time
network = torch.nn.Identity()
linear = Run(Path("linear"), TrainConfig(projector=(4,)), network, network, "finished", {})
for place in range(0, len(path), every):
    linear.snapshots[50 * place] = path[place].float()
assert len(linear.snapshots) == 45
moving = CorrelationExplorer({"linear training": linear})
moving.step = 10_000  # where the slider starts: three of four directions are learned
display(moving)

# %% [markdown]
# Deep networks are not linear, but their spectra often grow in such steps too. If a run has a low rank, it may not be finished: the
# directions on which the views agree less come later. [Notebook 11](11_what_barlow_twins_converges_to.ipynb) shows where a linear
# training ends if the features are standardized.
#
# ## Summary
#
# | matrix | diagonal | $\sum_{i \ne j} C_{ij}^2$ against $d(d-1)/(n-1)$ | spectrum | $\mathbf 1^\top C\,\mathbf 1$ |
# |---|---|---|---|---|
# | healthy | high | equal | flat | $> 0$ |
# | dimensional collapse | high | far above | falls steeply | $\ge 0$ |
# | redundant | high | above; blocks after clustering | falls steeply | $> 0$ |
# | complete collapse, or untrained on difficult pairs | near 0 | equal | that of noise | near 0 |
# | opposed sums | lower than possible | above | flat, one large value | $< 0$ |
# | trained with HSIC_SSL | high | far above | falls steeply | near 0 |
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. Give the explorer `{"view A with itself": (z_a, z_a), "across": (z_a, z_b)}` for `z_a, z_b = views["healthy"]`. Which redundancy is
#    larger, and why?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# They are nearly equal: the features are unrelated, and chance gives d (d - 1) / (n - 1) in both.
z_a, z_b = views["healthy"]
redundancies = {
    name: CorrelationSummary.from_matrix(cross_correlation(z_a, other), n).off_diagonal_squared_norm
    for name, other in {"view A with itself": z_a, "across": z_b}.items()
}
for name, value in (redundancies | {"expected": expected}).items():
    print(f"{name}: {value:.2f}")
assert all(abs(value / expected - 1) < 0.15 for value in redundancies.values())

# %% [markdown]
# 2. Move step by step from `contrasts + sums` to `contrasts - sums` in one branch, with a factor before `sums`. At which factor is the
#    loss of HSIC_SSL smallest?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# It falls all the way to -1, where the sums are opposed.
factors_of_sums = torch.linspace(1, -1, 9).tolist()
costs = [HSICSSLLoss()(contrasts + sums, contrasts + f * sums).item() / d for f in factors_of_sums]
assert factors_of_sums[int(np.argmin(costs))] < 0 and costs[-1] < costs[0]
pd.DataFrame({"factor": factors_of_sums, "loss per feature": costs}).set_index("factor").round(3)

# %% [markdown]
# 3. In the linear training, multiply the start by 1000. Which step moves most, and by how much?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# s_j^2 grows by 10^6, so step j comes earlier by log(10^6) / (8 gamma_j): the last one moves most.
earlier = steps - -np.log(size * 1e6) / (8 * gamma.numpy())
for j, time in enumerate(earlier, start=1):
    print(f"step {j} comes earlier by {time:.2f}")
assert np.allclose(earlier, np.log(1e6) / (8 * gamma.numpy())) and earlier.argmax() == 3

# %% [markdown]
# **Next:** [05 Ablation: batch size](05_ablation_batch_size.ipynb) asks which losses need large batches. To explore embeddings of your own,
# use `CorrelationExplorer(z_a, z_b, images)`.
