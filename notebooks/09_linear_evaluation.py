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
# # Evaluating frozen features
#
# **Freeze the encoder, fit a classifier on its features with training labels only, and test it once.** This notebook shows
# how, and measures what four common mistakes cost.
#
# **What you will see.** You compare four ways to turn an image into numbers: its raw pixels, an untrained encoder, an
# encoder trained with Barlow Twins and one trained with HSIC_SSL.
#
# 1. A *linear probe* with few and with many labels per class.
# 2. *Nearest neighbors* and a confusion matrix.
# 3. Four mistakes, each made on purpose.
# 4. *Diagnostics*, which need no labels.
# 5. The layers from the encoder to the end of the projector, and why the projector is removed after training.
#
# There is one training (one seed) of each loss and one data set. So the numbers show how to measure. They do not say
# which loss is better.
#
# **What you need.** [Notebook 00](00_quickstart.ipynb), and a few minutes on two CPU cores. If `make demo` has trained
# the encoders, they are read from `runs/demo/`. Otherwise they are trained here, which takes two to ten minutes more.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer scenes, steps and labels, for a quick check
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs/demo"))
EPOCHS, SIZES = (1, {"n_train": 500, "n_test": 200}) if FAST else (14, {})
PER_CLASS, SEEDS = ((5, 10), 2) if FAST else ((10, 30, 100, 300), 5)

# %% [markdown]
# The next cell holds the imports. It is folded.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hsic_lab.datasets import DigitScenes, load
from hsic_lab.demo import demo_config
from hsic_lab.diagnostics import diagnose, factor_dependence, rankme
from hsic_lab.encoders import ConvEncoder
from hsic_lab.evaluation import (
    extract_features,
    extract_layers,
    few_label_curve,
    few_label_summary,
    knn_accuracy,
    linear_probe,
    probe_table,
)
from hsic_lab.plots import plot_diagnostics, plot_few_labels, set_theme
from hsic_lab.training import train_or_load
from hsic_lab.views import normalize

set_theme()

# %% [markdown]
# ## Four representations of one data set
#
# An image of `digit_scenes` shows a handwritten digit on a piece of a photograph. Color, place, size and background are
# random. Both encoders were trained without labels, on pairs of scenes that share the digit and nothing else.
#
# *Frozen* means that no weight of an encoder changes from here on. `extract_features` also switches the encoder to
# evaluation mode and back, so that the running averages of batch normalization do not change either.

# %%
data = load("digit_scenes", **SIZES)
titles = {"barlow_twins": "Barlow Twins", "hsic_ssl": "HSIC_SSL"}
runs = {
    title: train_or_load(demo_config(loss, EPOCHS), RUNS / loss, data, progress=not FAST)
    for loss, title in titles.items()
}
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    untrained = ConvEncoder(demo_config("barlow_twins").width)
encoders = {"untrained encoder": untrained} | {title: run.encoder for title, run in runs.items()}

# %% [markdown]
# The table has the numbers of images and of features.

# %%
train_y, test_y = data.train.labels, data.test.labels
splits = (data.train.images, data.test.images)
features = {"raw pixels": tuple(images.flatten(1).float() / 255 for images in splits)}
features |= {
    name: tuple(extract_features(encoder, images) for images in splits)
    for name, encoder in encoders.items()
}
shapes = {name: [len(a), len(b), a.shape[1]] for name, (a, b) in features.items()}
pd.DataFrame(shapes, index=["training images", "test images", "features"])

# %% [markdown]
# ## Few labels
#
# The *linear probe* is multinomial logistic regression on the frozen features. Image $i$ has the feature vector $x_i$
# and the class $y_i$. Each class $k$ has a weight vector $w_k$ (a row of $W$) and an offset $b_k$. The probe solves
#
# $$\min_{W, b}\; C \sum_{i} -\log p(y_i \mid x_i) + \tfrac12 \lVert W \rVert^2, \qquad p(k \mid x) \propto \exp(w_k^\top x + b_k) .$$
#
# Before, every feature is shifted and scaled to mean 0 and variance 1 over the training rows. The number $C$ (not the
# matrix $C$ of the other notebooks) weighs the data against the penalty on $W$. It is chosen on a part of the
# *training* rows.
#
# Each point of the plot is the mean over five random choices of the labeled images. The band is its 95 % confidence
# interval over these choices (Student's t). The table has the same numbers in percent: the mean, and after ± the half
# width of the interval.

# %% alt="Test accuracy of the linear probe against labeled images per class. Barlow Twins and HSIC_SSL rise together from about 54 to 77 percent; raw pixels and the untrained encoder stay between 10 and 20 percent, where chance is 10."
start = time.perf_counter()
small = {name: (a, b) for name, (a, b) in features.items() if name != "raw pixels"}
curve = few_label_curve(small, train_y, test_y, per_class=PER_CLASS, seeds=SEEDS)
pixels, fewer = {"raw pixels": features["raw pixels"]}, PER_CLASS[: 1 if FAST else 3]
of_pixels = few_label_curve(pixels, train_y, test_y, per_class=fewer, seeds=SEEDS)
curve = pd.concat([of_pixels, curve])
taken = time.perf_counter() - start
_ = plot_few_labels(curve)

# %%
print(f"{len(curve)} probes in {taken:.0f} s")
summary = few_label_summary(curve).set_index(["representation", "per_class"])
for trained in () if FAST else ("Barlow Twins", "HSIC_SSL"):
    for other in ("raw pixels", "untrained encoder"):
        highest = summary.loc[other, "high"]
        assert (summary.loc[trained, "low"][highest.index] > highest).all()  # no overlap

# %%
percent, half_width = 100 * summary["mean"], 50 * (summary["high"] - summary["low"])
cells = percent.map("{:.1f}".format) + " ± " + half_width.map("{:.1f}".format)
cells = cells.unstack("per_class").fillna("").loc[list(features)]
cells.rename_axis(index=None, columns="labels per class")

# %% [markdown]
# **The bands of the trained encoders lie above those of the other two, at every number of labels.** The pixels contain
# the digit, but a linear classifier does not find it there. (For the 3 072 pixels the curve stops at 100 labels, because
# these fits take most of the time.)
#
# The interval describes the choice of labeled images *only*, for one trained encoder of each loss. So the plot says
# nothing about the difference between the losses. To compare them, train several seeds of each and show the spread over
# *these*. Choose the learning rate of each loss, too: [notebook 05](05_ablation_batch_size.ipynb) shows why.
#
# ## Nearest neighbors and the confusion matrix
#
# The second measure has nothing to fit. Each test image looks for its $k = 200$ most similar training images by cosine
# similarity $s$. Each of these votes for its class with weight $\exp(s / \tau)$, where $\tau = 0.5$ is a temperature
# (Wu et al. 2018). The table has the share of test images whose class gets most votes.

# %%
k = 50 if FAST else 200
neighbors = pd.Series(
    {name: knn_accuracy(a, train_y, b, test_y, k=k) for name, (a, b) in features.items()},
    name=f"kNN, k = {k}",
)
trained, others = ["Barlow Twins", "HSIC_SSL"], ["raw pixels", "untrained encoder"]
assert FAST or neighbors[trained].min() > neighbors[others].max()
neighbors.to_frame().round(3)

# %% [markdown]
# The trained encoders are ahead in this measure, too. Their kNN accuracy is lower than that of the probe below. One
# reason is that kNN takes the features as they are, and cannot weigh some directions more than others.
#
# A single accuracy does not show which classes are confused. The confusion matrix does. It has a row for each true
# digit and a column for each predicted digit. Numbers and colors count test images. The diagonal has the correct
# predictions. The cell after it prints the most frequent errors.

# %% alt="Confusion matrix of the ten digits for the Barlow Twins encoder. Most counts lie on the diagonal. The next cell prints the most frequent errors."
train_x, test_x = features["Barlow Twins"]
probe = linear_probe(train_x, train_y, test_x, test_y)
assert FAST or probe.accuracy > neighbors["Barlow Twins"]
shown = ConfusionMatrixDisplay.from_predictions(test_y, probe.predictions, cmap="cividis", colorbar=False)
counts = pd.DataFrame(shown.confusion_matrix)
assert np.trace(counts) / counts.to_numpy().sum() == probe.accuracy
shown.ax_.grid(False)

# %%
off = counts.where(~np.eye(10, dtype=bool)).stack().sort_values(ascending=False)
most = ", ".join(f"{a}→{b}: {n:.0f}" for (a, b), n in off.head(4).items())
print("most frequent errors (true→predicted):", most)

# %% [markdown]
# ## What the linear probe computes
#
# `linear_probe` is scikit-learn's `LogisticRegression` behind a `StandardScaler`. With the same $C$ you get the same
# accuracy in one line.
#
# The objective above is strictly convex in $W$, so there is one optimal $W$, where the gradient is zero. You can check
# this by hand. Let $P$ be the predicted probabilities of the $n$ training images ($n \times 10$), $Y$ the true classes
# as zeros and ones, and $Z$ the standardized features. The gradient is $C\,(P - Y)^\top Z + W$ for $W$, and the column
# sums of $C\,(P - Y)$ for $b$. scikit-learn stops when no entry of the gradient, divided by $C n$, exceeds its tolerance
# of $10^{-4}$.

# %%
x, x_test = train_x.double().numpy(), test_x.double().numpy()
model = LogisticRegression(C=probe.C, max_iter=10_000)
reference = make_pipeline(StandardScaler(), model).fit(x, train_y)
accuracy, z = reference.score(x_test, test_y), reference[0].transform(x)
residual = probe.C * (model.predict_proba(z) - np.eye(10)[train_y])
gradient = np.concatenate([(residual.T @ z + model.coef_).ravel(), residual.sum(axis=0)])
largest = np.abs(gradient).max() / (probe.C * len(z))
print(f"accuracy for C = {probe.C:g}")
print(f"linear_probe        {probe.accuracy:.4f}\nLogisticRegression  {accuracy:.4f}")
print(f"largest entry of the gradient, divided by C n: {largest:.1e}")
assert abs(accuracy - probe.accuracy) <= 1.01 * max(0.001, 1 / len(test_y))  # or one image
assert largest < 2e-4

# %% [markdown]
# ## Mistake 1: an encoder that is not frozen
#
# In *training mode*, batch normalization uses the mean and variance of the present batch, and it updates its running
# averages. If you leave the encoder in training mode, the features of an image depend on the other images of the batch.
# Computing features also changes the encoder. The next cell computes the features of eight images, by themselves and in
# a batch of 256. The printed change is the norm of the difference of the features, relative to their norm.

# %%
encoder = runs["Barlow Twins"].encoder
saved = {name: value.clone() for name, value in encoder.state_dict().items()}
images = data.test.images[:256]
encoder.train()
with torch.no_grad():
    alone, among_others = encoder(normalize(images[:8])), encoder(normalize(images))[:8]
moved = sum(not torch.equal(value, saved[name]) for name, value in encoder.state_dict().items())
encoder.load_state_dict(saved)
change = (alone - among_others).norm() / among_others.norm()
print(f"training mode: the features change by {change:.0%}")
print(f"{moved} running averages and counters changed")

# %% [markdown]
# In *evaluation mode*, which `extract_features` sets, nothing of this happens.

# %%
frozen = extract_features(encoder, images[:8]), extract_features(encoder, images)[:8]
frozen_change = (frozen[0] - frozen[1]).norm() / frozen[1].norm()
print(f"evaluation mode: the features change by {frozen_change:.4%}")
assert moved > 0 and change > 0.05
torch.testing.assert_close(*frozen, rtol=1e-4, atol=1e-4)
assert all(torch.equal(value, saved[name]) for name, value in encoder.state_dict().items())

# %% [markdown]
# ## Mistake 2: choosing on the test split
#
# Suppose you try several values of $C$ (or epochs, layers, augmentations) and report the best test accuracy. Then you
# report the maximum of several noisy numbers, which is too high on average. The next cell measures this for labels drawn
# at random, 20 times, with 300 training and 100 test images. There is nothing to learn, so a correct accuracy is 10 % on
# average.

# %%
generator = np.random.default_rng(0)
few_x, few_test = train_x[:300], test_x[:100]
values_of_C = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
honest, chosen = [], []
for repetition in range(3 if FAST else 20):
    noise_y, noise_test = (generator.permutation(np.arange(m) % 10) for m in (300, 100))
    rows = few_x, noise_y, few_test, noise_test
    chosen.append(max(linear_probe(*rows, Cs=(C,)).accuracy for C in values_of_C))
    honest.append(linear_probe(*rows, Cs=values_of_C, seed=repetition).accuracy)

# %%
gain = np.subtract(chosen, honest)
error = gain.std(ddof=1) / len(gain) ** 0.5
print(f"C chosen on training rows: {np.mean(honest):.1%}")
print(f"best of 5 on the test rows: {np.mean(chosen):.1%}")
print(f"difference: {100 * gain.mean():.1f} points, standard error {100 * error:.1f}")
assert np.mean(chosen) > np.mean(honest) and (FAST or gain.mean() > 3 * error)

# %% [markdown]
# Five values of one setting are enough to raise the number, by more than three standard errors here. `linear_probe`
# uses the test rows once, after $C$ is chosen.
#
# ## Mistake 3: features on different scales
#
# The penalty treats all entries of $W$ alike. A feature with small numbers needs a large weight, so it is penalized
# more. The next cell multiplies every other feature of the encoder by a thousand, which leaves the information in them
# as it was. A probe that standardizes gives the same accuracy as before.
#
# Without standardizing, the optimum changes, and the solver needs many more iterations to reach it. The cell stops it
# after 20, and scikit-learn gives a `ConvergenceWarning`. `linear_probe` raises an error instead, because the result of
# an unfinished fit depends on the solver.

# %%
units = torch.where(torch.arange(train_x.shape[1]) % 2 == 0, 1.0, 1e3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plain = LogisticRegression(C=probe.C, max_iter=20).fit(train_x * units, train_y)
unconverged = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
unscaled = plain.score(test_x * units, test_y)
rescaled = linear_probe(train_x * units, train_y, test_x * units, test_y, Cs=(probe.C,)).accuracy
print(f"not standardized, 20 iterations: {unscaled:.3f}")
print(f"standardized: {rescaled:.3f}, before the change of scale: {probe.accuracy:.3f}")
assert unconverged and abs(rescaled - probe.accuracy) <= 1.01 / len(test_y)
assert FAST or unscaled < probe.accuracy - 0.05

# %% [markdown]
# ## Mistake 4: comparing online and offline numbers
#
# An *online* probe is trained beside the encoder, on augmented views, while the encoder still changes. It costs almost
# nothing and is useful for watching a run. It is not the accuracy of the *offline* probe of this notebook, which has
# fixed features, no augmentation, and is solved to the optimum.
#
# The next cell imitates one of these differences, the unfinished fit. On one frozen encoder it compares one pass of
# stochastic gradient descent (SGD, an untuned rate, features not standardized) with the optimum.

# %%
head = torch.nn.Linear(train_x.shape[1], 10)
with torch.random.fork_rng(devices=[]):
    torch.manual_seed(0)
    head.reset_parameters()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.05, momentum=0.9)
    for rows in torch.randperm(len(train_x)).split(256):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(train_x[rows]), train_y[rows]).backward()
        optimizer.step()
with torch.no_grad():
    online = float((head(test_x).argmax(dim=1) == test_y).double().mean())
print(f"one pass of SGD: {online:.3f}\noptimum:         {probe.accuracy:.3f}")
print(f"kNN:             {neighbors['Barlow Twins']:.3f}")
assert FAST or online < probe.accuracy

# %% [markdown]
# These are three accuracies of one encoder. So always say how an accuracy was measured, and compare only numbers that
# were measured in the same way.
#
# ## Evaluating without labels
#
# `diagnose` computes measures that need no labels, from the projections of both views. It gives a verdict where a rule
# exists. In this section $C$ is the cross-correlation matrix, $n$ the number of pairs and $d$ the number of features.
# Three of the measures are:
#
# * **RankMe** (Garrido et al. 2023), $\exp(-\sum_k p_k \log p_k)$ with $p_k = \sigma_k / \sum_j \sigma_j$, where
#   $\sigma_k$ are the singular values of the centered features: how many dimensions are used. If $r$ singular values are
#   equal and the others are 0, it is $r$. RankMe counts noise as dimensions, too. So `diagnose` judges **dimensional
#   collapse** by the directions above the noise: there is a fault if a few of them carry most of the variance.
# * **Redundancy**, $\sum_{i \ne j} C_{ij}^2 - d(d-1)/(n-1)$: how much different features repeat each other, minus what
#   chance alone gives.
# * **Feature sum covariance**, $\mathbf 1^\top C \mathbf 1$, the sum of all entries of $C$: clearly negative only if the
#   two branches oppose each other ([notebook 07](07_the_minus_one_target.ipynb), section 3).
#
# The column `meaning` of the result of `diagnose` explains the others; names that end in `_b` are those of view B. The
# table has the verdict, the three measures, the mean diagonal of $C$ and the number of constant features
# (`dead_features`). For comparison, its last column diagnoses projections that are constant.

# %%
n_pairs = 512 if FAST else 2048
views = DigitScenes("test").pairs(n_pairs, 5, shared=("digit",))
frames, projections = {}, {}
for title, run in runs.items():
    network = torch.nn.Sequential(run.encoder, run.projector)
    projections[title] = tuple(extract_features(network, view) for view in views)
    frames[title] = diagnose(*projections[title])
collapsed = torch.ones(n_pairs, 128)
frames["a constant"] = diagnose(collapsed, collapsed)

# %%
shown = ["rankme", "redundancy", "feature_sum_covariance", "mean_diagonal", "dead_features"]
columns = {
    title: {"verdict": frame.attrs["verdict"]}
    | frame.set_index("diagnostic").loc[shown, "value"].map("{:.4g}".format).to_dict()
    for title, frame in frames.items()
}
pd.DataFrame(columns)

# %% [markdown]
# The board shows all measures of one encoder, one a line: value, verdict and the rule behind it. A filled circle means
# that a rule is met. An empty one is no fault: no rule judges the value, or the verdict is only "redundant".

# %% alt="Board of the diagnostics of the Barlow Twins projections: a line each with its value, verdict and rule. All judged measures are healthy except the redundancy, so the overall verdict is redundant."
_ = plot_diagnostics(frames["Barlow Twins"])

# %%
z_a, z_b = projections["Barlow Twins"]
assert frames["a constant"].attrs["verdict"] == "complete collapse" and rankme(collapsed) == 0
assert frames["Barlow Twins"].set_index("diagnostic").loc["rankme", "value"] == rankme(z_a)
copied = [torch.cat([z, z], dim=1) for z in (z_a, z_b)]
assert rankme(copied[0]) < 1.001 * rankme(z_a)  # a copy of a feature is not a new dimension
assert diagnose(*copied).set_index("diagnostic").loc["redundancy", "verdict"] == "redundant"

# %% [markdown]
# **A verdict comes from a rule of thumb, and is not a grade.** These projections have 128 features, and the views share
# one of ten digits and nothing else. So you should expect a RankMe far below 128 and features that repeat each other.
#
# The scenes are drawn by a program, so you can ask one more question: *which* factor of variation do the features
# contain? CKA is HSIC on the scale of a correlation, at most 1 ([notebook 12](12_comparing_networks.ipynb)). A
# linear CKA near 0 means that the factor has no part in the directions of large variance. The table has a row for each
# factor: the digit (`class`), its place, size and red channel, the photograph behind it and the size of its crop.

# %%
factors = data.test.factors[["class", "x", "y", "scale", "red", "photograph", "crop_scale"]]
known = pd.DataFrame({
    name: factor_dependence(b, factors).set_index("factor")["cka"]
    for name, (_, b) in features.items()
})
for title in () if FAST else trained:
    assert known.loc["class", title] > 3 * known.loc["class", others].max()
    assert known.loc["photograph", title] < 0.05 < 0.5 < known.loc["photograph", "raw pixels"]
    assert known.loc[["x", "y"], title].min() > 0.05
known.round(3) + 0.0

# %% [markdown]
# **The digit, which the views shared, comes to the front**: the CKA of the trained encoders with it is more than three
# times that of the pixels and of the untrained encoder. The photograph differed between the views. It dominates the
# pixels (CKA above 0.5), and is below 0.05 in the trained encoders. (It is still there, in directions of small
# variance: see exercise 1.)
#
# The place of the digit (`x`, `y`) was not shared either, and the encoder's features still contain part of it. The loss
# acts on the projections, behind the projector, and not directly on these features.
#
# ## By depth: why the projector is removed
#
# The loss sees the images through the *projector*, a small network behind the encoder. `extract_layers` gives the
# encoder's features and the output of every layer of the projector. Here the projector has two layers, of 512 and 128
# features.
#
# For each layer you measure three things on the same test images:
#
# * the accuracy of the linear probe, fitted with 80 % of the training labels (so it differs a little from the one above);
# * CKA with the labels. It is $\mathrm{HSIC}(\text{layer}, \text{label})$ with linear kernels, normalized to at most 1;
# * RankMe, the number of dimensions in use.

# %%
tables = []
for title, run in runs.items():
    parts = [extract_layers(run.encoder, run.projector, images) for images in splits]
    pairs = {name: (parts[0][name], parts[1][name]) for name in parts[0]}
    tables.append(probe_table(pairs, train_y, test_y, splits=1, layers=True).assign(loss=title))
measures = ["accuracy", "cka_labels", "rankme"]
depth = pd.concat(tables).set_index(["loss", "representation"])[measures]
depth.round({"accuracy": 3, "cka_labels": 3, "rankme": 1})

# %% alt="Three plots against the layer, encoder, projector 1 and projector 2, for Barlow Twins and HSIC_SSL. The probe accuracy falls by two to three points, CKA with the labels rises from below 0.3 to above 0.4, and RankMe rises from about 100 to 200 and falls to about 35."
figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.1), layout="constrained")
names = ["accuracy of the linear probe", "CKA with the labels", "RankMe"]
for ax, column, name in zip(axes, measures, names, strict=True):
    for title, marker in zip(runs, "os", strict=True):
        ax.plot(depth.loc[title, column], marker=marker, label=title)
    ax.set(ylabel=name)
    ax.set_xticks(range(3), ["encoder", "projector\n1", "projector\n2"])
    ax.margins(x=0.15)
_ = axes[0].legend()

# %%
for title in () if FAST else runs:
    accuracy, similar, rank = (depth.loc[title, column] for column in measures)
    assert accuracy["encoder"] > accuracy["projector 2"] + 0.02
    assert similar.is_monotonic_increasing and similar["projector 2"] > 1.5 * similar["encoder"]
    assert rank["projector 1"] > 1.9 * rank["encoder"]
    assert rank["projector 2"] < rank["encoder"] / 2.5

# %% [markdown]
# **Along the projector the dependence on the label grows, and the accuracy of the probe falls.** How do the two measures
# go together?
#
# CKA weighs every direction by its variance. The loss makes the projections depend on what the views share, and that is
# the digit. So the digit takes a growing share of the variance: CKA at the last layer is more than 1.5 times that of the
# encoder.
#
# The probe standardizes the features and weighs the directions itself, so it can use information of small variance. The
# last layer keeps fewer directions: its RankMe is less than 1/2.5 of the encoder's. Its accuracy is more than two points
# lower, in both encoders.
#
# This is the usual reason to remove the projector: it takes over the loss of information that invariance asks for, and
# the encoder in front of it keeps more. Here are two encoders on one data set; `hsic-lab inspect RUN` makes this table
# for any run.
#
# ## Exercises
#
# Each solution is a folded cell below its question. Predict the answer before you open it.
#
# 1. Probe for `photograph` instead of the digit (`data.train.factors["photograph"]`). Which representation is the best
#    now?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The pixels and the untrained encoder: above 95 %. The trained encoders keep much of it, and lose some.
photograph = [split.factors["photograph"].to_numpy() for split in (data.train, data.test)]
found = pd.Series({
    name: linear_probe(a[:2000], photograph[0][:2000], b, photograph[1]).accuracy
    for name, (a, b) in features.items()
})
assert FAST or found[others].min() > 0.95 > found[trained].max() > 0.7
found.to_frame("accuracy for the photograph").round(3)

# %% [markdown]
# 2. By what factor should the bands of the few-label curve shrink with 20 seeds in place of 5? Check it at 10 labels per
#    class.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# By 2.65 for equal spreads s. Half the band is t s / sqrt(m): s is the spread over m seeds, t is Student's quantile at m - 1.
half = {m: student_t.ppf(0.975, m - 1) / m**0.5 for m in (5, 20)}
print(f"expected factor: {half[5] / half[20]:.2f}")
assert 2.6 < half[5] / half[20] < 2.7  # more than the square root of 4, because s is better known too
more = few_label_curve({"HSIC_SSL": features["HSIC_SSL"]}, train_y, test_y, per_class=[10], seeds=20)
for m, part in ((5, more[more["seed"] < 5]), (20, more)):
    band = few_label_summary(part).iloc[0]
    print(f"{m} seeds: {band['mean']:.3f} from {band['low']:.3f} to {band['high']:.3f}")
    np.testing.assert_allclose((band["high"] - band["low"]) / 2, half[m] * part["accuracy"].std())

# %% [markdown]
# 3. Damage the projections of view B: scale its features, add a constant of 50, or negate them. What is the verdict of
#    `diagnose`?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# C standardizes every feature, so scales and constants do not change the verdict. Opposed views are a fault.
damages = {"scaled": z_b * torch.linspace(0.1, 10, 128), "shifted": z_b + 50, "negated": -z_b}
verdicts = {name: diagnose(z_a, damaged).attrs["verdict"] for name, damaged in damages.items()}
for name, verdict in verdicts.items():
    print(f"{name}: {verdict}")
assert FAST or verdicts["scaled"] == verdicts["shifted"] == frames["Barlow Twins"].attrs["verdict"]
assert FAST or verdicts["negated"] == "branch anti-alignment"

# %% [markdown]
# **Next:** [10 Your own data](10_your_own_data.ipynb): your own images, embeddings, networks and training loops.
