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
# # HSIC from scratch
#
# Correlation asks one question: do two variables rise and fall along a straight line? Two variables can be tied together
# tightly and answer no. The *Hilbert-Schmidt Independence Criterion* (HSIC; Gretton et al. 2005) asks the general
# question, *are pairs that are alike in $x$ also alike in $y$?*, and its answer is 0 for independent variables only.
#
# **What you will see**
#
# 1. Four shapes with correlation 0 that are anything but independent, and HSIC noticing all four.
# 2. HSIC built by hand: similarities, a table of them, centring, one product. Then where in the plane the evidence lies.
# 3. What the bandwidth of a kernel does, with a slider, and what is left in the limits 0 and $\infty$.
# 4. Estimators with and without bias; null distributions; p-values; how often four tests are right.
# 5. Choosing bandwidths honestly; tests within groups; fast approximations.
# 6. HSIC at work on networks: which feature knows which cause, and CKA between two trained encoders.
#
# **What you need**: mean, variance, correlation, the matrix product; a little patience with one formula. Nothing is
# downloaded. Claims are asserted where they are made, so that a page with a wrong one could not have been built. Where a
# claim is about chance, it is checked on many draws and may miss by at most four standard errors.

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer draws and smaller samples, for a quick check: same cells
DRAWS = 200 if FAST else 500  # simulated samples where one costs a millisecond
POWER_DRAWS, POWER_ROWS = (12, (25, 50, 100)) if FAST else (30, (25, 50, 100, 200))
RUNS = Path(tempfile.mkdtemp() if FAST else os.environ.get("HSIC_LAB_RUNS", "../runs")) / "hsic_from_scratch"
EPOCHS = 4 if FAST else 8

# %%
import math
from functools import partial

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from hsic_lab.cka import MinibatchCKA, cka
from hsic_lab.compare import compare_models
from hsic_lab.datasets import DigitScenes, ImageData
from hsic_lab.evaluation import extract_features
from hsic_lab.hsic import hsic, hsic_matrix
from hsic_lab.hsic._estimators import center
from hsic_lab.independence import aggregated_test, block_test, gamma_test, permutation_test, spectral_test
from hsic_lab.kernels import Gaussian, InverseMultiquadric, Laplace, Linear, factor, median_distance
from hsic_lab.plots import plot_cka, plot_pairs, set_theme
from hsic_lab.plots._canvas import DIVERGING, PALETTE, SEQUENTIAL
from hsic_lab.training import TrainConfig, train_or_load
from hsic_lab.training._networks import make_networks

set_theme()
torch.set_num_threads(1)  # thousands of tiny problems follow: threads would spend their time waiting for one another
close = partial(torch.allclose, rtol=1e-10, atol=1e-12)  # "equal", on this page
plain = partial(torch.randn, dtype=torch.float64)  # standard normal numbers


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## 1. Dependence that correlation misses
#
# Four ways to draw a point $(x, y)$: on a wave, on a circle, on a parabola, and in a square that stands on its corner
# (two independent sources, rotated by 45 degrees: the mixture that *independent component analysis* takes apart). Every
# coordinate has variance 1, then a little round noise is added. In all four the correlation of $x$ and $y$ is exactly 0,
# because mirroring $x \to -x$ leaves the image as it is. A fifth family is independent, for comparison.

# %%
def sample(family, n, seed, noise=0.1, frequency=2):
    """n points of a family: x and y, both (n, 1), of variance 1 + noise^2."""
    generator = seeded(seed)
    u, v = 2 * torch.rand(2, n, 1, generator=generator, dtype=torch.float64) - 1  # uniform on [-1, 1]
    x, y = {
        "wave": (3**0.5 * u, 2**0.5 * torch.cos(frequency * math.pi * u)),
        "circle": (2**0.5 * torch.cos(math.pi * u), 2**0.5 * torch.sin(math.pi * u)),
        "parabola": (3**0.5 * u, (45 / 4) ** 0.5 * (u**2 - 1 / 3)),
        "rotated": (1.5**0.5 * (u + v), 1.5**0.5 * (u - v)),
        "independent": (3**0.5 * u, 3**0.5 * v),
    }[family]
    return x + noise * plain(n, 1, generator=generator), y + noise * plain(n, 1, generator=generator)


def correlation(x, y):
    return float(torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1])


DEPENDENT = ("wave", "circle", "parabola", "rotated")
COLORS = dict(zip((*DEPENDENT, "independent"), PALETTE, strict=False))

figure, axes = plt.subplots(1, 5, figsize=(13.5, 3.1), sharex=True, sharey=True, layout="constrained")
for ax, family in zip(axes, COLORS, strict=True):
    x, y = sample(family, 400, seed=0)
    found = permutation_test(x, y)  # its kernel, if none is given, is Gaussian
    ax.plot(x, y, ".", color=COLORS[family], alpha=0.6)
    ax.set(title=f"{family}\ncorrelation {correlation(x, y):+.2f}\np-value of HSIC {found.pvalue:.3f}", xlabel="$x$")
    assert (found.pvalue < 0.01) == (family != "independent")
axes[0].set_ylabel("$y$");

# %% [markdown]
# The p-value is the probability that independent variables would look at least as dependent as these (section 5 derives it);
# 0.001 is the smallest that this test can give. It is tiny for all four shapes and not for the fifth; section 3 shows why the wave
# is the hardest of them. That the correlation is 0 is a fact about the families, so it should hold on average over samples:

# %%
for family in DEPENDENT:
    r = torch.tensor([correlation(*sample(family, 100, seed)) for seed in range(DRAWS)])
    standard_error = r.std() / DRAWS**0.5
    print(f"{family:9} mean correlation {r.mean():+.4f} +- {standard_error:.4f}")
    assert abs(r.mean()) < 4 * standard_error

# %% [markdown]
# ## 2. HSIC by hand
#
# **A kernel is a rule of similarity.** The Gaussian kernel gives $k(x, x') = \exp(-(x - x')^2 / 2\sigma^2)$: 1 for equal
# points, less the further apart they are, and nearly 0 beyond three **bandwidths** $\sigma$. Comparing all $n$ points with
# one another gives the **Gram matrix** $K$, $K_{ij} = k(x_i, x_j)$. The $y$-coordinates of the same points give a second
# one, $L$, with a bandwidth of its own.
#
# **Centring.** Overall levels say nothing about dependence. $HKH$ with $H = I - \frac1n \mathbf 1 \mathbf 1^\top$
# ($I$ the identity, $\mathbf 1$ the column of $n$ ones) is the table with row and column means subtracted.
#
# **HSIC is the inner product of the two centered tables**: multiply cell by cell and take the mean over all $n^2$ cells,
#
# $$\mathrm{HSIC} = \frac1{n^2}\sum_{i,j} (HKH)_{ij}\,(HLH)_{ij} = \frac1{n^2}\,\mathrm{tr}(KHLH).$$

# %%
def hsic_from_scratch(x, y, sigma_x, sigma_y):
    n = len(x)
    k = torch.exp(-((x - x.T) ** 2) / (2 * sigma_x**2))
    l = torch.exp(-((y - y.T) ** 2) / (2 * sigma_y**2))
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    return torch.trace(k @ h @ l @ h) / n**2


for family in COLORS:
    x, y = sample(family, 400, seed=0)
    by_hand, by_library = hsic_from_scratch(x, y, 0.5, 0.8), hsic(x, y, Gaussian(0.5), Gaussian(0.8))
    print(f"{family:12} by hand {by_hand:.12f}   library {by_library:.12f}")
    assert close(by_hand, by_library)

# %% [markdown]
# Here are the tables for the parabola, points sorted by $x$. Neighbors in $x$ lie along the diagonal. In $y$ a point is alike
# with its neighbors *and* with those at $-x$: an X. Red in the last two images is a pair of points whose likeness, or
# unlikeness, in $x$ is confirmed in $y$; the mean of the image is HSIC. With $y$ shuffled, the pattern dissolves.

# %%
x, y = sample("parabola", 200, seed=0)
order = x[:, 0].argsort()
x, y = x[order], y[order]
kernel = Gaussian(0.5)
shuffled = y[torch.randperm(200, generator=seeded(1))]
gram_x, gram_y, gram_shuffled = center(kernel(x)), center(kernel(y)), center(kernel(shuffled))

figure, axes = plt.subplots(1, 5, figsize=(13.5, 3.1), sharey=True, layout="constrained")
panels = {
    "$K$: alike in $x$?": kernel(x), "$HKH$": gram_x, "$HLH$": gram_y,
    f"product, mean {(gram_x * gram_y).mean():.4f}": gram_x * gram_y,
    f"$y$ shuffled, mean {(gram_x * gram_shuffled).mean():.4f}": gram_x * gram_shuffled,
}
for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
    limit = 0.25 if "mean" in title else 1
    ax.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set(title=title, xlabel="point, sorted by $x$", xticks=[], yticks=[])
assert close((gram_x * gram_y).mean(), hsic(x, y, kernel, kernel))
assert hsic(x, shuffled, kernel, kernel) < 0.1 * hsic(x, y, kernel, kernel)

# %% [markdown]
# ### Where the evidence lies
#
# There is a second image of the same number, in the plane of the data. Put a bump $k(x, \cdot)\, l(y, \cdot)$ on every
# observed pair, and take away the mean of the bumps on *all permutations* $(x_i, y_j)$, which is what independence would
# look like. What is left is the **witness function**
#
# $$w(s, t) = \frac1n \sum_i k(x_i, s)\, l(y_i, t) - \frac1n \sum_i k(x_i, s) \cdot \frac1n \sum_j l(y_j, t),$$
#
# red where there are more pairs than independence would put there, blue where there are fewer. Its mean over the observed pairs
# minus its mean over all permutations is again HSIC: nobody had to draw negative examples, the permutations are in the formula.

# %%
def witness(x, y, kernel_x, kernel_y, s, t):
    """w at every (s_a, t_b): (a, b)."""
    k, l = kernel_x.fit(x)(s, x), kernel_y.fit(y)(t, y)
    return k @ l.T / len(x) - k.mean(dim=1)[:, None] * l.mean(dim=1)


def draw_witness(ax, x, y, kernel_x, kernel_y, title):
    at = torch.linspace(-2.4, 2.4, 60, dtype=torch.float64)[:, None]
    w = witness(x, y, kernel_x, kernel_y, at, at)
    limit = w.abs().max()
    ax.imshow(w.T, cmap=DIVERGING, vmin=-limit, vmax=limit, origin="lower", extent=(-2.4, 2.4, -2.4, 2.4))
    ax.plot(x, y, ".", color="black", markersize=2, alpha=0.5)
    ax.set(title=title, xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[])


figure, axes = plt.subplots(1, 5, figsize=(13.5, 3), layout="constrained")
for ax, family in zip(axes, COLORS, strict=True):
    x, y = sample(family, 400, seed=0)
    draw_witness(ax, x, y, kernel, kernel, family)
    w = witness(x, y, kernel, kernel, x, y)  # (n, n): its diagonal holds the observed pairs
    assert close(w.diagonal().mean() - w.mean(), hsic(x, y, kernel, kernel))

# %% [markdown]
# ### Which kernels see everything
#
# The linear kernel $k(x, x') = x x'$ sees straight lines only: HSIC with it is the squared covariance. A kernel is called
# **characteristic** if a distribution can be told from its mean bump. The Gaussian, Laplace and inverse multiquadric
# kernels are, and for them HSIC, in the limit of many points, is 0 *if and only if* $x$ and $y$ are independent.

# %%
x, y = sample("wave", 300, seed=2)
covariance = ((x - x.mean()) * (y - y.mean())).mean()
assert close(hsic(x, y, Linear(), Linear()), covariance**2)

kernels = {
    "linear": Linear(), "Gaussian": Gaussian(0.5), "Laplace": Laplace(0.5),
    "inverse multiquadric": InverseMultiquadric(0.5),
}
pvalues = pd.DataFrame(
    {
        name: {family: permutation_test(*sample(family, 300, seed=4), k, k).pvalue for family in COLORS}
        for name, k in kernels.items()
    }
)
characteristic = pvalues.drop(columns="linear")
assert (characteristic.loc[list(DEPENDENT)] <= 0.01).all(axis=None) and (pvalues.loc["independent"] > 0.05).all()
assert (pvalues["linear"] > 0.05).all()
pvalues.style.format("{:.3f}").set_caption("p-value of the permutation test, 300 points, bandwidth 0.5")

# %% [markdown]
# ## 3. The bandwidth
#
# The bandwidth $\sigma$ says what counts as near. The customary choice is the **median rule**: the median distance
# between two different points, for $x$ and for $y$ separately. It puts the kernel on the scale of the data, and it is a
# rule of thumb, not an optimum. Both ends can be worked out.
#
# * $\sigma \to \infty$: everything is near, $k \approx 1 - (x - x')^2 / 2\sigma^2$. Centring removes whatever
#   depends on one point alone, $x x' / \sigma^2$ remains: the linear kernel.
#   So $\sigma_x^2\, \sigma_y^2\, \mathrm{HSIC} \to \mathrm{HSIC}_\text{linear}$, and the test goes blind in the way of correlation.
# * $\sigma \to 0$: nothing is near but a point to itself, $K = L = I$, and $\mathrm{HSIC} \to (n-1)/n^2$ whatever the data are.

# %%
x, y = sample("parabola", 200, seed=3)
y = y + 0.5 * x  # a slope, so that the linear limit is not 0
linear = hsic(x, y, Linear(), Linear())
for sigma in (1, 10, 100, 1000):
    scaled = sigma**4 * hsic(x, y, Gaussian(float(sigma)), Gaussian(float(sigma)))
    print(f"sigma = {sigma:4}   sigma^4 HSIC / linear HSIC = {scaled / linear:.6f}")
assert abs(scaled / linear - 1) < 1e-4
assert close(hsic(x, y, Gaussian(1e-7), Gaussian(1e-7)), torch.tensor(199 / 200**2, dtype=torch.float64))

# %% [markdown]
# HSIC values at different bandwidths cannot be compared as they are. What can be compared is how far HSIC lies above
# what shuffled pairs would give, in standard deviations of the shuffled values; both moments are known exactly.
# The curves below show this $z$ over the bandwidth, in multiples of the median rule.

# %%
def z_score(x, y, scale, kernel=Gaussian):
    """(HSIC - mean) / standard deviation of HSIC under all n! shuffles of y, at `scale` times the median rule."""
    kernel_x, kernel_y = (kernel(scale * kernel().fit(v).bandwidth) for v in (x, y))
    found = gamma_test(x, y, kernel_x, kernel_y)
    return (found.statistic - found.distribution.mean()) / found.distribution.std()


scales = np.logspace(-2, 2, 33)
figure, ax = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
best = {}
for family in COLORS:
    x, y = sample(family, 400, seed=0)
    z = np.array([z_score(x, y, scale) for scale in scales])
    best[family] = scales[z.argmax()]
    ax.plot(scales, z, color=COLORS[family], label=family)
    assert z[-1] < 4  # blind, whatever the shape
    if family != "independent":
        assert z.max() > 6 and z[0] < z.max() / 2  # a bandwidth in between is best
ax.axvline(1, color="0.4", linewidth=1, linestyle=":")
ax.set(xscale="log", xlabel=r"bandwidth $\sigma$ / median distance (dotted: the median rule)", ylabel="$z$")
ax.set_yscale("symlog", linthresh=5)
ax.set_ylim(-1.5, 200)
ax.set_yticks([0, 5, 10, 20, 50, 100], [0, 5, 10, 20, 50, 100])
ax.legend()
print("best bandwidth / median:", {family: round(float(best[family]), 2) for family in DEPENDENT})
assert 2 * best["wave"] < best["rotated"] < 1

# %% [markdown]
# No bandwidth is best for all: the wave asks for a quarter of the median distance, the rotated square for twice as much. In a live notebook
# the next cell has three controls; on a printed page the stills below it show the same. Watch the witness: small bandwidths see every point for itself, large ones only the grand trend.

# %%
KERNELS = {"Gaussian": Gaussian, "Laplace": Laplace, "inverse multiquadric": InverseMultiquadric}


def explore(family, kernel, scale):
    """One shape, one kernel, one bandwidth: the tables, the witness, and what the test says."""
    x, y = sample(family, 200, seed=4, noise=0.2)
    order = x[:, 0].argsort()
    x, y = x[order], y[order]
    kernel_x, kernel_y = (KERNELS[kernel](scale * KERNELS[kernel]().fit(v).bandwidth) for v in (x, y))
    axes = plt.subplots(1, 3, figsize=(8.4, 3), layout="constrained")[1]
    for ax, title, gram in zip(axes, ("$HKH$", "$HLH$"), (kernel_x(x), kernel_y(y)), strict=False):
        gram = center(gram)
        limit = gram.abs().max()
        ax.imshow(gram, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    draw_witness(axes[2], x, y, kernel_x, kernel_y, f"$z$ = {z_score(x, y, scale, KERNELS[kernel]):.1f}")
    plt.show()


display(
    widgets.interactive(
        explore, family=list(COLORS), kernel=list(KERNELS),
        scale=widgets.FloatLogSlider(1, base=10, min=-2, max=2, continuous_update=False, readout_format=".2f"),
    )
)

# %%
stills = (0.05, 0.2, 1, 5, 50)
figure, axes = plt.subplots(4, len(stills), figsize=(12, 9.8), layout="constrained")
for row, family in zip(axes, DEPENDENT, strict=True):
    x, y = sample(family, 200, seed=4, noise=0.2)
    for ax, scale in zip(row, stills, strict=True):
        kernel_x, kernel_y = (Gaussian(scale * median_distance(v)) for v in (x, y))
        draw_witness(ax, x, y, kernel_x, kernel_y, f"{scale} x median, $z$ = {z_score(x, y, scale):.1f}")
    row[0].set_ylabel(family)

# %% [markdown]
# ## 4. Bias: independent data do not give 0
#
# In $\mathrm{tr}(KHLH)/n^2$ every point is also compared with itself, $K_{ii} = 1$. That makes HSIC positive even for
# independent variables, by an amount that is known: if $m_x$ is the mean of $k(x, x')$ over independent $x, x'$,
#
# $$E[\mathrm{HSIC}] = \frac{n-1}{n^2}\,(1 - m_x)(1 - m_y) \qquad \text{at independence, } k(x, x) = 1.$$
#
# For standard normal variables and $\sigma = 1$, $m_x = 1/\sqrt 3$. The **unbiased** estimator (Song et al. 2012) leaves the
# diagonals out and corrects for it; its mean is right at every $n$, which is 0 at independence, so that it is often negative.

# %%
unit = Gaussian(1.0)
rows = []
for n in (8, 16, 32, 64, 128):
    for name, slope in (("independent", 0.0), ("dependent", 0.7)):
        pairs = []
        for seed in range(DRAWS):
            a, b = plain(2, n, 1, generator=seeded(1000 * n + seed))
            pairs.append((a, slope * a + (1 - slope**2) ** 0.5 * b))
        for estimator in ("biased", "unbiased"):
            values = torch.stack([hsic(x, y, unit, unit, estimator) for x, y in pairs])
            rows.append((n, name, estimator, values.mean().item(), values.std().item() / DRAWS**0.5, values))
table = pd.DataFrame(rows, columns=["n", "data", "estimator", "mean", "standard_error", "values"])
table = table.set_index(["data", "estimator"]).sort_index()

biased, unbiased = table.loc[("independent", "biased")], table.loc[("independent", "unbiased")]
theory = (biased["n"] - 1) / biased["n"] ** 2 * (1 - 3**-0.5) ** 2
assert ((biased["mean"] - theory).abs() < 4 * biased["standard_error"]).all()
assert (unbiased["mean"].abs() < 4 * unbiased["standard_error"]).all()
truth = table.loc[("dependent", "unbiased")]
assert ((truth["mean"] - truth["mean"].iloc[-1]).abs() < 4 * truth["standard_error"]).all()  # the same at every n
negative = (unbiased["values"].iloc[2] < 0).double().mean()
assert 0.4 < negative < 0.8

figure, axes = plt.subplots(1, 3, figsize=(13.5, 3.6), layout="constrained")
for ax, name in zip(axes, ("independent", "dependent"), strict=False):
    for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
        means = table.loc[(name, estimator)]
        ax.errorbar(means["n"], means["mean"], 4 * means["standard_error"], fmt="o", color=color, label=estimator)
    ax.axhline(0, color="0.4", linewidth=1)
    ax.set(xscale="log", xticks=means["n"], xticklabels=means["n"], xlabel="$n$", title=f"{name}: mean, 4 s.e.")
    ax.minorticks_off()
axes[0].plot(biased["n"], theory, color="0.4", linestyle=":", label="formula")
axes[0].legend()
for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
    values = table.loc[("independent", estimator)]["values"].iloc[2]
    axes[2].hist(values, bins=40, color=color, alpha=0.6)
axes[2].locator_params(axis="x", nbins=5)
axes[2].set(title=f"independent, $n$ = 32: {negative:.0%} of the unbiased < 0", xlabel="HSIC", ylabel="samples");

# %% [markdown]
# For a measurement that is compared between sample sizes take the unbiased estimator, and leave negative values alone: cutting them off at 0 would
# bring the bias back. For a loss or a test statistic the biased one is fine: it is never negative, and a test compares
# it with what chance gives at the same $n$.
#
# ## 5. How large is large? Null distributions and p-values
#
# A test needs the distribution of HSIC if $x$ and $y$ were independent, the **null distribution**. Three ways to it:
#
# * **Permutation**: if they are independent, any shuffle of $y$ would have been as likely. Shuffle $B$ times and look. Exact at every $n$.
# * **Gamma**: the gamma distribution with the same mean and variance as all $n!$ shuffles, which have formulas. No shuffling.
# * **Spectral**: for large $n$, $n\,\mathrm{HSIC}$ at independence is distributed like $\sum_{ij} a_i b_j N_{ij}^2$ with
#   independent standard normal $N_{ij}$ and $a_i, b_j$ the eigenvalues of $HKH/n$ and $HLH/n$; draw from that.

# %%
x, y = sample("circle", 100, seed=5, noise=0.3)
generator = torch.Generator().manual_seed(0)
kernels = Gaussian().fit(x), Gaussian().fit(y)
null = np.array([hsic(x, y[torch.randperm(100, generator=generator)], *kernels) for _ in range(1999)])
observed = float(hsic(x, y, *kernels))
pvalue = (1 + (null >= observed).sum()) / 2000
gamma, spectral = gamma_test(x, y), spectral_test(x, y, draws=5000)

figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
bins = np.linspace(0, 1.4 * max(np.quantile(null, 0.998), observed), 70)
ax.hist(null, bins, density=True, color="0.8", label=f"permutation, p = {pvalue:.4f}")
ax.hist(spectral.null, bins, density=True, histtype="step", color=PALETTE[1], label=f"spectral, p = {spectral.pvalue:.4f}")
ax.plot(bins[1:], gamma.distribution.pdf(bins[1:]), color=PALETTE[0], label=f"gamma, p = {gamma.pvalue:.4f}")
ax.axvline(observed, color=PALETTE[3], linewidth=2, label="observed")
ax.set(xlabel="HSIC", ylabel="density", title="noisy circle, 100 points")
ax.legend()

quantiles = np.array([np.quantile(null, 0.95), np.quantile(spectral.null, 0.95), gamma.distribution.ppf(0.95)])
print("95 % quantiles:", quantiles.round(5))
assert np.ptp(quantiles) < 0.1 * quantiles[0]
assert abs(null.mean() - gamma.distribution.mean()) < 4 * null.std() / 1999**0.5

# The library shuffles the unbiased estimator: the diagonal that it leaves out is noise to a test.
assert abs(permutation_test(x, y, *kernels, permutations=1999).pvalue - pvalue) < 0.02

# %% [markdown]
# ### Why a p-value is never 0
#
# With $B$ shuffles of which $\#$ score at least as high as the observed pairing, the p-value is
# $(1 + \#)/(1 + B)$. The ones are no cosmetics. At independence the observed pairing is *one more shuffle*: of $1 + B$ values it is equally
# likely to be the highest, the second highest and so on. So the probability of $p \le \alpha$ is at most $\alpha$, exactly.
# Without the ones, $\#/B$ is 0 once in $1 + B$ samples, an "impossible" event, and a test at level 5 % with $B = 20$ rejects in 2 of 21.

# %%
B = 20
found = [permutation_test(*plain(2, 15, 1, generator=seeded(seed)), permutations=B, seed=seed) for seed in range(DRAWS)]
right = np.array([test.pvalue for test in found])
naive = np.array([(test.null >= test.statistic).double().mean().item() for test in found])
print(f"rejected at 5 %: (1 + #)/(1 + B) {np.mean(right <= 0.05):.3f}, #/B {np.mean(naive <= 0.05):.3f}")


def is_share(hits, share):
    """Whether a share of hits is within 4 standard errors of what it should be."""
    return abs(np.mean(hits) - share) < 4 * (share * (1 - share) / len(hits)) ** 0.5


assert right.min() == 1 / (1 + B) and is_share(right <= 0.05, 1 / 21)
assert is_share(naive <= 0.05, 2 / 21) and is_share(naive == 0, 1 / 21)

# %% [markdown]
# ## 6. How often is a test right?
#
# A test at **level** 5 % may cry wolf in 5 % of independent samples; its **power** is how often it rejects a dependent one. Four tests:
# permutation and gamma as above; **block**, which averages the unbiased HSIC over small blocks of rows, so that it is quick on huge
# samples and wasteful on small ones; and **aggregated** (Schrab et al. 2022), which tries many bandwidths
# and corrects exactly for having tried. Each shape gets the noise that makes it a task of medium difficulty.

# %%
tests = {
    "permutation": partial(permutation_test, permutations=99),
    "gamma": gamma_test,
    "block": block_test,
    "aggregated": partial(aggregated_test, scales=(0.25, 1, 4), permutations=99),
}


NOISE = {"wave": 0.1, "circle": 0.3, "parabola": 0.8, "rotated": 0.1}


def rejections(family, n, draws, noise):
    samples = [sample(family, n, 100_000 + seed, noise) for seed in range(draws)]
    return {name: np.mean([test(x, y).pvalue <= 0.05 for x, y in samples]) for name, test in tests.items()}


level = rejections("independent", 50, 5 * POWER_DRAWS, noise=0)
print("level at n = 50:", {name: f"{share:.3f}" for name, share in level.items()})
for name, share in level.items():
    assert share <= 0.05 + 4 * (0.05 * 0.95 / (5 * POWER_DRAWS)) ** 0.5, name

# %%
power = pd.DataFrame(
    {(family, n): rejections(family, n, POWER_DRAWS, NOISE[family]) for family in DEPENDENT for n in POWER_ROWS}
)
figure, axes = plt.subplots(1, 4, figsize=(13.5, 3.4), sharey=True, layout="constrained")
for ax, family in zip(axes, DEPENDENT, strict=True):
    for name, color in zip(tests, PALETTE, strict=False):
        ax.plot(POWER_ROWS, power.loc[name, family], "o-", color=color, label=name)
    ax.axhline(0.05, color="0.4", linewidth=1, linestyle=":")
    ax.set(xscale="log", xticks=POWER_ROWS, xticklabels=POWER_ROWS, xlabel="$n$", title=family, ylim=(-0.03, 1.03))
    ax.minorticks_off()
axes[0].set_ylabel("share rejected")
axes[0].legend()
most = POWER_ROWS[-1]
assert power.loc["block"].mean() < power.loc["gamma"].mean()
assert abs(power.loc["gamma"] - power.loc["permutation"]).mean() < 0.1
assert power.loc["aggregated", ("wave", most)] > power.loc["permutation", ("wave", most)] + 0.2
assert power.loc["aggregated"].xs(most, level=1).min() > 0.4

# %% [markdown]
# Gamma follows permutation without shuffling; block pays for its speed. Where the median rule is far from the best bandwidth (the wave),
# aggregation is far ahead; where it is near, the correction costs a little.
# With this few draws a point has a standard error of up to 0.5 divided by the square root of the number of draws: do not read small gaps.
#
# ## 7. Choosing the bandwidth, honestly
#
# Trying ten bandwidths and reporting the best p-value is cheating: the smallest of ten p-values is small by chance. The aggregated test shuffles
# *the whole procedure*, the search for the best included. Here is a fast wave, where the median rule is far too wide in $x$.

# %%
x, y = sample("wave", 300, seed=6, frequency=4)
median_rule = permutation_test(x, y)
searched = (0.06, 0.12, 0.25, 0.5, 1, 2)
aggregated = aggregated_test(x, y, scales=searched)
grid = aggregated.components["pvalue"].to_numpy().reshape(6, 6)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.8), layout="constrained")
left.plot(x, y, ".", color=COLORS["wave"])
left.set(title=f"median rule: p = {median_rule.pvalue:.3f}\naggregated: p = {aggregated.pvalue:.3f}", xlabel="$x$", ylabel="$y$")
image = right.imshow(-np.log10(grid), cmap=SEQUENTIAL, vmin=0, vmax=3)
right.set(
    title="one pair of bandwidths at a time", xlabel="bandwidth of $y$ / median", ylabel="bandwidth of $x$ / median",
    xticks=range(6), xticklabels=searched, yticks=range(6), yticklabels=searched,
)
right.grid(False)
figure.colorbar(image, ax=right, label="$-\\log_{10}$ p")
assert aggregated.pvalue < 0.01 < median_rule.pvalue
assert grid[:2].mean() < grid[-2:].mean()  # narrow in x sees the wave, wide does not

# %%
candidates = [Gaussian(scale) for scale in searched[1::2]]  # of normal variables, whose median distance is about 1
cheating, honest = [], []
for seed in range(5 * POWER_DRAWS):
    x, y = plain(2, 30, 1, generator=seeded(seed))
    alone = (permutation_test(x, y, k, l, permutations=39) for k in candidates for l in candidates)
    cheating.append(min(test.pvalue for test in alone))
    honest.append(aggregated_test(x, y, scales=searched[1::2], permutations=39).pvalue)
cheating, honest = np.array(cheating), np.array(honest)
print(f"false alarms at 5 %: best of nine {np.mean(cheating <= 0.05):.2f}, aggregated {np.mean(honest <= 0.05):.2f}")
assert np.mean(honest <= 0.05) <= 0.05 + 4 * (0.05 * 0.95 / len(honest)) ** 0.5 and np.mean(cheating <= 0.05) > 0.1

# %% [markdown]
# ## 8. Given a group: conditional permutation
#
# Two variables can depend on each other only because both depend on a third. Say $x$ is a dose, $y$ a recovery time, and the
# **group** a hospital. With `groups=`, rows are shuffled within their group only: the test asks whether $x$ and $y$ depend *given* the group.
# (The tables are centered within groups, too: otherwise the dependence between hospitals would drown the one within.) The left data are independent within every group. On the right is **Simpson's paradox**: more is worse overall, and better in every single hospital.

# %%
def hospitals(n, seed, slope):
    """x and y rise from group to group; within a group y has the given slope in x."""
    generator = seeded(seed)
    group = torch.randint(3, (n, 1), generator=generator)
    within, noise = plain(2, n, 1, generator=generator)
    return 2 * group + within, 2 * group + slope * within + 0.6 * noise, group[:, 0]


figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained")
for ax, (title, slope) in zip(axes, {"common cause": 0.0, "Simpson's paradox": -0.6}.items(), strict=True):
    x, y, group = hospitals(240, 8, slope)
    overall, given = permutation_test(x, y), permutation_test(x, y, groups=group)
    for g in range(3):
        ax.plot(x[group == g], y[group == g], ".", color=PALETTE[g], label=f"hospital {g}")
    slopes = [correlation(x[group == g], y[group == g]) for g in range(3)]
    ax.set(title=f"{title}\np = {overall.pvalue:.3f} overall, {given.pvalue:.3f} given the hospital", xlabel="$x$", ylabel="$y$")
    assert overall.pvalue == 0.001 and correlation(x, y) > 0.5
    if slope:
        assert given.pvalue == 0.001 and max(slopes) < -0.3
    else:
        assert given.pvalue > 0.05
axes[0].legend();

# %%
pvalues = []
for seed in range(DRAWS // 2):
    x, y, group = hospitals(40, seed, slope=0.0)
    pvalues.append(permutation_test(x, y, groups=group, permutations=39, seed=seed).pvalue)
print(f"independent given the group: rejected at 5 % in {np.mean(np.array(pvalues) <= 0.05):.3f} of {len(pvalues)}")
assert is_share(np.array(pvalues) <= 0.05, 2 / 40)

# %% [markdown]
# HSIC has no sign: on the right it reports dependence overall and given the hospital, and leaves the directions to you.
# (The group must be discrete and each group hold several rows; a continuous third variable needs other tools.)
#
# ## 9. Large samples: low rank
#
# The Gram matrix of a million points has $10^{12}$ cells. But a Gaussian Gram matrix is nearly of low rank:
# $K \approx \Phi\Phi^\top$ with a thin table $\Phi$ of $D$ columns, and HSIC of the kernel is *linear* HSIC of
# the thin tables, at a cost that grows with $n D^2$ instead of $n^2$. **Random Fourier features** (Rahimi and Recht 2007) draw the columns blindly, the error is a
# Monte-Carlo error and falls as $D^{-1/2}$: a straight line of slope $-\frac12$ on logarithmic axes. **Incomplete Cholesky** chooses rows where the
# remaining error is largest, and on one-dimensional data like these falls off a cliff.

# %%
x, y = sample("wave", 500 if FAST else 1000, seed=9)
kernel = Gaussian(0.5)
exact = hsic(x, y, kernel, kernel)
columns, repeats = (8, 16, 32, 64, 128, 256, 512), 8 if FAST else 30
errors = {"random Fourier features": [], "incomplete Cholesky": []}
for d in columns:
    estimates = torch.stack(
        [
            hsic(factor(kernel, x, d, "fourier", seed=2 * r), factor(kernel, y, d, "fourier", seed=2 * r + 1))
            for r in range(repeats)
        ]
    )
    errors["random Fourier features"].append(((estimates / exact - 1) ** 2).mean().sqrt().item())
    if d <= 32:
        thin = [factor(kernel, v, d, "cholesky", tolerance=1e-12) for v in (x, y)]
        errors["incomplete Cholesky"].append(abs(hsic(*thin) / exact - 1).item())

slope = np.polyfit(np.log(columns), np.log(errors["random Fourier features"]), 1)[0]
figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for (name, values), color in zip(errors.items(), PALETTE, strict=False):
    ax.plot(columns[: len(values)], values, "o-", color=color, label=name)
guide = errors["random Fourier features"][0] * (np.array(columns) / columns[0]) ** -0.5
ax.plot(columns, guide, color="0.4", linestyle=":", label="slope -1/2")
ax.set(xscale="log", yscale="log", xlabel="columns $D$", ylabel="relative error of HSIC", xticks=columns, xticklabels=columns)
ax.set_title(f"random Fourier features: fitted slope {slope:.2f}")
ax.minorticks_off()
ax.legend()
assert abs(slope + 0.5) < 0.15 and errors["incomplete Cholesky"][-1] < 1e-6

# %% [markdown]
# ## 10. What do features know? HSIC as a table
#
# Now the scenes of the quickstart, drawn small: a digit, colored, scaled and placed on a photograph. We know the causes of every image, so we
# can ask for every feature of a network how strongly it depends on every cause. `hsic_matrix` computes the whole table, features by
# causes, scaled to lie between 0 and 1. We train two small encoders, with the two losses of notebook 01 and different
# random seeds, on pairs of views that share **the color of the digit and nothing else**.

# %%
scenes, held_out = DigitScenes("train", size=16), DigitScenes("test", size=16)
data = ImageData(
    "digit_scenes", scenes.sample(2048, 0), held_out.sample(512, 1), tuple(map(str, range(10))), scenes=scenes
)
plot_pairs(*scenes.pairs(10, 7, shared=("colour",)), n=10)

config = partial(
    TrainConfig, dataset="digit_scenes", shared=("colour",), width=8, projector=(256, 64), batch_size=128,
    epochs=EPOCHS, snapshots=2,
)
runs = {
    title: train_or_load(config(loss=loss, seed=seed), RUNS / loss, data, progress=False)
    for seed, (loss, title) in enumerate([("barlow_twins", "Barlow Twins"), ("hsic_ssl", "HSIC_SSL")])
}
torch.manual_seed(0)
untrained, _ = make_networks(runs["Barlow Twins"].config, channels=3)
for title, run in runs.items():
    c = run.snapshots[max(run.snapshots)]
    print(f"{title}: {run.status}, views agree on a feature with correlation {c.diagonal().mean():.2f}")
    assert c.diagonal().mean() > run.snapshots[0].diagonal().mean() + 0.3

# %%
causes = data.test.factors.drop(columns=["digit"]).rename(columns={"class": "digit"})
encoders = {"untrained": untrained} | {title: run.encoder for title, run in runs.items()}
tables = {
    title: hsic_matrix(extract_features(encoder, data.test.images), causes, Gaussian(), normalized=True)
    for title, encoder in encoders.items()
}
figure, axes = plt.subplots(3, 1, figsize=(11, 8), sharex=True, sharey=True, layout="constrained")
for ax, (title, table) in zip(axes, tables.items(), strict=True):
    order = table.argmax(dim=1).argsort(stable=True)  # features with the same strongest cause side by side
    image = ax.imshow(table[order].T, cmap=SEQUENTIAL, vmin=0, vmax=0.3, aspect="auto", interpolation="nearest")
    ax.set(title=title, yticks=range(len(causes.columns)), yticklabels=causes.columns)
    ax.grid(False)
axes[-1].set_xlabel("feature, by its strongest cause")
figure.colorbar(image, ax=axes, label="HSIC, normalized", extend="max", shrink=0.6)
knows = pd.DataFrame({title: table.mean(dim=0) for title, table in tables.items()}, index=causes.columns)
knows.style.format("{:.3f}").set_caption("mean over the features")

# %% [markdown]
# An untrained network passes on what is large in the image: the photograph. The losses are never told what color is. Still the rows
# of the color are lit after training, and the photograph, which the views do not share, is gone: maximizing the dependence between the views
# has kept what they have in common and dropped what they have not.

# %%
color, background = ["red", "green", "blue"], ["photograph", "crop_x", "crop_y", "crop_scale"]
for title in encoders:
    print(f"{title:13} color {knows.loc[color, title].mean():.3f}   background {knows.loc[background, title].mean():.3f}")
for title in runs:
    assert knows.loc[color, title].mean() > 5 * knows.loc[color, "untrained"].mean()
    assert knows.loc["photograph", title] < 0.5 * knows.loc["photograph", "untrained"]

# %% [markdown]
# ## 11. Are two networks alike? CKA
#
# Feature 7 of one network has nothing to do with feature 7 of another, and the widths may differ. But the tables of similarities over
# *the same images* can be compared. **Centered kernel alignment** (Kornblith et al. 2019) is HSIC put on the scale of a correlation,
#
# $$\mathrm{CKA}(x, y) = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\,\mathrm{HSIC}(y, y)}},$$
#
# where $x$ and $y$ are now the activations of two layers. With linear kernels it does not change if the features are rotated, shifted or scaled
# together: 1 means the same arrangement of the images, up to that.

# %%
features = {title: extract_features(encoder, data.test.images).double() for title, encoder in encoders.items()}
x, y = features["Barlow Twins"], features["HSIC_SSL"]
rotation = torch.linalg.qr(plain(x.shape[1], x.shape[1], generator=seeded(0))).Q
assert close(cka(x, y), hsic(x, y, estimator="unbiased") / (hsic(x, x, estimator="unbiased") * hsic(y, y, estimator="unbiased")).sqrt())
assert close(cka(3 * x @ rotation + 1, y), cka(x, y)) and close(cka(x, x), torch.tensor(1.0, dtype=torch.float64))

# %% [markdown]
# `compare_models` does it for every layer of one network with every layer of another. Left: Barlow Twins before and after training. Right:
# the two encoders, which differ in the loss, in the random weights that they started from, and in the pairs that they saw.

# %%
layers = {str(3 * i + 2): f"conv {i + 1}" for i in range(6)} | {"19": "features"}  # after each ReLU; the output
comparisons = {
    "Barlow Twins and its untrained self": (untrained, runs["Barlow Twins"].encoder),
    "Barlow Twins and HSIC_SSL": (runs["HSIC_SSL"].encoder, runs["Barlow Twins"].encoder),
}
figure, axes = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
alike = {}
for ax, (title, models) in zip(axes, comparisons.items(), strict=True):
    frame = compare_models(*models, data.test.images, layers=list(layers)).rename(index=layers, columns=layers)
    alike[title] = np.diagonal(frame)
    plot_cka(frame, ax)
    ax.set(title=title, xlabel="layer of Barlow Twins", ylabel="layer of " + ("HSIC_SSL" if "SSL" in title else "the untrained"))
before, across = alike.values()
print("same layer, untrained and trained:", before.round(2), "\nsame layer, the two losses:       ", across.round(2))
assert across[-1] > before[-1] + 0.3

# %% [markdown]
# The first layer hardly moves. The deep ones end far from where they started (CKA near 0) and much closer to the other encoder's: with another
# loss, random start and pairs, training has found much of the same arrangement of the images, though not all of it.
#
# ### Few images: use the unbiased estimator
#
# The bias of section 4 is worst here: with more features than images, *any* two layers look alike. Biased CKA of pure noise tends to 1 when
# the number of images is small beside the number of features; the unbiased one (Nguyen et al. 2021) stays near 0.
# For the two encoders it, too, is low by up to a tenth at the smallest $n$: a ratio of unbiased estimates is only nearly unbiased.

# %%
sizes = (8, 16, 32, 64, 128, 256)
rows = []
for n in sizes:
    for seed in range(20 if FAST else 100):
        drawn = torch.randperm(len(x), generator=seeded(seed))[:n]
        noise_x, noise_y = plain(2, n, 128, generator=seeded(seed))
        for estimator in ("biased", "unbiased"):
            rows.append((n, "noise", estimator, cka(noise_x, noise_y, estimator=estimator).item()))
            rows.append((n, "the two encoders", estimator, cka(x[drawn], y[drawn], estimator=estimator).item()))
drift = pd.DataFrame(rows, columns=["n", "data", "estimator", "cka"]).groupby(["data", "estimator", "n"])["cka"].mean()

figure, ax = plt.subplots(figsize=(8, 3.8), layout="constrained")
for name, line in (("noise", ":"), ("the two encoders", "-")):
    for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
        ax.plot(sizes, drift[name, estimator], f"o{line}", color=color, label=f"{name}, {estimator}")
ax.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="pictures", ylabel="CKA, mean over draws", ylim=(-0.1, 1.05))
ax.minorticks_off()
ax.legend(bbox_to_anchor=(1, 0.8))
assert drift["noise", "biased", 8] > 0.9 and drift["noise", "unbiased"].abs().max() < 0.05
assert np.ptp(drift["the two encoders", "unbiased"].loc[16:]) < 0.1

# %% [markdown]
# The same estimator makes CKA of data too large for one table: average the unbiased HSICs of batches, then take the ratio.

# %%
over_batches = MinibatchCKA()
for rows_x, rows_y in zip(x.split(64), y.split(64), strict=True):
    over_batches.update(rows_x, rows_y)
print(f"all {len(x)} images at once {cka(x, y):.3f}, in batches of 64 {over_batches.compute():.3f}")
assert abs(over_batches.compute() - cka(x, y)) < 0.05

# %% [markdown]
# ## Exercises
#
# 1. `sample("wave", ..., frequency=8)`: how many points does the median rule need to see it, how many the aggregated test? Which bandwidths win?
# 2. Write the unbiased estimator from its formula in the docstring of `hsic`, in five lines, and compare. Which of its terms removes the diagonal?
# 3. Make three variables that are pairwise independent but not jointly (two coins and whether they agree). What do `hsic` and
#    `hsic_lab.hsic._joint.dhsic` say?
# 4. In section 8 give `groups=` labels that have nothing to do with the data. Does the level stay? What happens to the power, and why?
# 5. In section 10 let the views share the digit instead of its color: `config(loss="barlow_twins", shared=("digit",))`, in a new folder. What lights up after 8 epochs, what after 50?
#
# **Next:** `03_between_two_families`: where Barlow Twins stands among the losses with and without negatives.
