# %% [markdown]
# # HSIC from scratch
#
# Correlation measures one kind of dependence: do two variables rise and fall along a straight line? Two variables can depend
# strongly on each other and still have the correlation 0. The *Hilbert-Schmidt Independence Criterion* (HSIC; Gretton et al. 2005)
# measures dependence in general: *are pairs that are similar in $x$ also similar in $y$?* **A test with HSIC finds the dependence in four
# shapes that correlation misses, from 400 points, and rarely gives a false alarm on independent data.** How many points it needs
# depends on the *bandwidth*, the distance up to which two points count as similar.
#
# **What you will see**
#
# * Sections 1 to 3: four shapes that correlation misses; HSIC by hand; the bandwidth.
# * Sections 4 and 5: bias; p-values.
# * Sections 6 to 9, which you can skip at a first reading: four tests; the choice of the bandwidth; groups and time series; large samples.
# * Section 10: CKA, which compares networks.
#
# **What you need**: mean, variance, correlation and the matrix product. Nothing is downloaded. The code asserts the
# numbers. A number about random data is checked on many draws and may deviate by at most four standard errors. (The standard error of
# a mean is the standard deviation divided by the root of the number of draws.) Folded cells hold drawing code and checks.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer draws and smaller samples
DRAWS = 200 if FAST else 500  # simulated samples where one costs a millisecond
POWER_DRAWS, POWER_ROWS = (12, (25, 50, 100)) if FAST else (30, (25, 50, 100, 200))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import math
from functools import partial

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

from hsic_lab.cka import MinibatchCKA, cka
from hsic_lab.hsic import dhsic, hsic
from hsic_lab.independence import aggregated_test, block_test, gamma_test, permutation_test, shift_test, spectral_test
from hsic_lab.kernels import Delta, Gaussian, InverseMultiquadric, Laplace, Linear, factor, median_distance
from hsic_lab.plots import set_theme

set_theme()
PALETTE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
torch.set_num_threads(1)  # for thousands of small problems, several threads are slower than one
close = partial(torch.allclose, rtol=1e-10, atol=1e-12)  # the tolerance of every identity
normal = partial(torch.randn, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


DEPENDENT = ("wave", "circle", "parabola", "rotated")
COLORS = dict(zip((*DEPENDENT, "independent"), PALETTE, strict=False))


def sample(family, n, seed, noise=0.1, frequency=2):
    """Draw n points of a family: x and y of shape (n, 1) and variance 1 + noise^2."""
    generator = seeded(seed)
    u, v = 2 * torch.rand(2, n, 1, generator=generator, dtype=torch.float64) - 1  # uniform on [-1, 1]
    x, y = {
        "wave": (3**0.5 * u, 2**0.5 * torch.cos(frequency * math.pi * u)),
        "circle": (2**0.5 * torch.cos(math.pi * u), 2**0.5 * torch.sin(math.pi * u)),
        "parabola": (3**0.5 * u, (45 / 4) ** 0.5 * (u**2 - 1 / 3)),
        "rotated": (1.5**0.5 * (u + v), 1.5**0.5 * (u - v)),
        "independent": (3**0.5 * u, 3**0.5 * v),
    }[family]
    return x + noise * normal(n, 1, generator=generator), y + noise * normal(n, 1, generator=generator)


def correlation(x, y):
    return float(torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1])


def center(gram):
    """Subtract the means of the rows and columns: HKH."""
    return gram - gram.mean(dim=0) - gram.mean(dim=1, keepdim=True) + gram.mean()


def draw_witness(ax, x, y, kernel_x, kernel_y, title):
    at = torch.linspace(-2.4, 2.4, 60, dtype=torch.float64)[:, None]
    w = witness(x, y, kernel_x, kernel_y, at, at)
    limit = w.abs().max()
    ax.imshow(w.T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", extent=(-2.4, 2.4, -2.4, 2.4))
    ax.plot(x, y, ".", color="black", markersize=2, alpha=0.5)
    ax.set(title=title, xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[])


def z_score(x, y, scale, kernel=Gaussian):
    """Return z at `scale` times the median rule."""
    kernel_x, kernel_y = (kernel(scale * kernel().fit(v).bandwidth) for v in (x, y))
    found = gamma_test(x, y, kernel_x, kernel_y)
    return (found.statistic - found.distribution.mean()) / found.distribution.std()


KERNELS = {"Gaussian": Gaussian, "Laplace": Laplace, "inverse multiquadric": InverseMultiquadric}


def explore(family, kernel, scale):
    """Draw the Gram matrices and the witness function of one shape, kernel and bandwidth."""
    x, y = sample(family, 200, seed=4, noise=0.2)
    order = x[:, 0].argsort()
    x, y = x[order], y[order]
    kernel_x, kernel_y = (KERNELS[kernel](scale * KERNELS[kernel]().fit(v).bandwidth) for v in (x, y))
    axes = plt.subplots(1, 3, figsize=(8.4, 3), layout="constrained")[1]
    for ax, title, gram in zip(axes, ("$HKH$", "$HLH$"), (kernel_x(x), kernel_y(y)), strict=False):
        gram = center(gram)
        limit = gram.abs().max()
        ax.imshow(gram, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    draw_witness(axes[2], x, y, kernel_x, kernel_y, f"$z$ = {z_score(x, y, scale, KERNELS[kernel]):.1f}")
    plt.show()


def is_share(hits, share):
    """Return whether the observed share of hits is within 4 standard errors of the expected share."""
    return abs(np.mean(hits) - share) < 4 * (share * (1 - share) / len(hits)) ** 0.5


def hospitals(n, seed, slope):
    """Draw x and y that rise from group to group; within a group y has the given slope in x."""
    generator = seeded(seed)
    group = torch.randint(3, (n, 1), generator=generator)
    within, noise = normal(2, n, 1, generator=generator)
    return 2 * group + within, 2 * group + slope * within + 0.6 * noise, group[:, 0]


def series(seed, slope=0.0, steps=400):
    """Draw two autoregressive series; with a slope, the second depends on the first."""
    noise, values = normal(2, steps, generator=seeded(seed)), torch.zeros(2, steps, dtype=torch.float64)
    for t in range(1, steps):
        values[:, t] = 0.9 * values[:, t - 1] + noise[:, t]
    return values[0], values[1] + slope * values[0]


def family_axes(height, **options):
    """Return one axes for each of the five families."""
    return plt.subplots(1, 5, figsize=(9.8, height), layout="constrained", **options)[1]


def show_grams(panels):
    """Draw matrices over pairs of points; those whose title names a mean on a finer color scale."""
    axes = family_axes(2.5)
    for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
        limit = 0.25 if "mean" in title else 1
        ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])


def show_scales(curves):
    """Draw z against the bandwidth for each family."""
    ax = plt.subplots(figsize=(7.6, 3.4), layout="constrained")[1]
    for family, z in curves.items():
        ax.plot(scales, z, color=COLORS[family], label=family)
    ax.axvline(1, color="0.4", linewidth=1, linestyle=":")
    ax.set(xscale="log", xlabel=r"bandwidth $\sigma$ / median distance (dotted: the median rule)", ylabel="$z$")
    ax.set_yscale("symlog", linthresh=5)
    ax.set_ylim(-1.5, 200)
    ax.set_yticks([0, 5, 10, 20, 50, 100], [0, 5, 10, 20, 50, 100])
    ax.legend()


def show_bias(table, theory, negative):
    """Draw the means of both estimators against n, and their histograms at n = 32."""
    axes = plt.subplots(1, 3, figsize=(9.8, 3.7), layout="constrained")[1]
    for ax, name in zip(axes, ("independent", "dependent"), strict=False):
        for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
            means = table.loc[(name, estimator)]
            ax.errorbar(means["n"], means["mean"], 4 * means["standard_error"], fmt="o", color=color, label=estimator)
        ax.axhline(0, color="0.4", linewidth=1)
        ax.set(xscale="log", xticks=means["n"], xticklabels=means["n"], xlabel="$n$", title=f"{name}: mean HSIC")
        ax.minorticks_off()
    axes[0].plot(means["n"], theory, color="0.4", linestyle=":", label="formula")
    axes[0].legend()
    for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
        values = table.loc[("independent", estimator)]["values"].iloc[2]
        axes[2].hist(values, bins=40, color=color, alpha=0.6)
    axes[2].locator_params(axis="x", nbins=4)
    axes[2].set(title=f"$n$ = 32: {negative:.0%} below 0", xlabel="HSIC, independent", ylabel="samples")


def show_null(null, spectral, gamma, observed, pvalue):
    """Draw three null distributions and the observed value."""
    ax = plt.subplots(figsize=(7.4, 3.3), layout="constrained")[1]
    bins = np.linspace(0, 1.4 * max(np.quantile(null, 0.998), observed), 70)
    ax.hist(null, bins, density=True, color="0.8", label=f"permutation, p = {pvalue:.4f}")
    ax.hist(spectral.null, bins, density=True, histtype="step", color=PALETTE[1], label=f"spectral, p = {spectral.pvalue:.4f}")
    ax.plot(bins[1:], gamma.distribution.pdf(bins[1:]), color=PALETTE[0], label=f"gamma, p = {gamma.pvalue:.4f}")
    ax.axvline(observed, color=PALETTE[3], linewidth=2, label="observed")
    ax.set(xlabel="HSIC", ylabel="density", title="noisy circle, 100 points")
    ax.legend()


def show_shifts(gram, shift, all_shifts, direct):
    """Draw a Gram matrix before and after a shift with two circular diagonals, and the statistic of all shifts."""
    axes = plt.subplots(1, 3, figsize=(9.8, 3.7), layout="constrained")[1]
    i = torch.arange(len(gram))
    for ax, rows, title in ((axes[0], i, "$L_{ij}$"), (axes[1], (i + shift) % len(i), rf"$L_{{i+s,\,j+s}}$ with $s$ = {shift}")):
        ax.imshow(gram[rows][:, rows], cmap="Greys", interpolation="nearest")
        for k, color in ((2, PALETTE[0]), (7, PALETTE[1])):
            for place in range(len(i)):  # each number is the row of y at this place of the diagonal
                ax.text((place + k) % len(i), place, int(rows[place]), ha="center", va="center", color="white", fontsize=9,
                        bbox={"facecolor": color, "edgecolor": "none", "pad": 2})  # fmt: skip
        ax.set(title=title, xticks=[], yticks=[])
    axes[1].set_xlabel("numbers move along their diagonal")
    axes[2].bar(i, all_shifts, color="0.75", label="Fourier transforms")
    axes[2].plot(i, direct, "x", color=PALETTE[3], label="direct sums")
    axes[2].set(xlabel="shift $s$ ($s = 0$: observed)", title="$T(s)$", xticks=range(0, len(i), 2))
    axes[2].legend(fontsize="small")


def show_power(power):
    """Draw the share of rejected samples against n for each shape and test."""
    axes = plt.subplots(1, 4, figsize=(9.8, 3.6), sharey=True, layout="constrained")[1]
    for ax, family in zip(axes, DEPENDENT, strict=True):
        for name, color in zip(tests, PALETTE, strict=False):
            ax.plot(POWER_ROWS, power.loc[name, family], "o-", color=color, label=name)
        ax.axhline(0.05, color="0.4", linewidth=1, linestyle=":")
        ax.set(xscale="log", xticks=POWER_ROWS, xticklabels=POWER_ROWS, xlabel="$n$", title=family, ylim=(-0.03, 1.03))
        ax.minorticks_off()
    axes[0].set_ylabel("share rejected")
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def show_search(x, y, median_rule, aggregated, grid):
    """Draw the points of a fast wave and the p-value of each pair of bandwidths."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained")
    left.plot(x, y, ".", color=COLORS["wave"])
    left.set(title=f"median rule: p = {median_rule.pvalue:.3f}\naggregated: p = {aggregated.pvalue:.3f}", xlabel="$x$", ylabel="$y$")
    image = right.imshow(-np.log10(grid), cmap="viridis", vmin=0, vmax=3)
    right.set(
        title="one pair of bandwidths at a time", xlabel="bandwidth of $y$ / median", ylabel="bandwidth of $x$ / median",
        xticks=range(6), xticklabels=searched, yticks=range(6), yticklabels=searched,
    )
    figure.colorbar(image, ax=right, label=r"$-\log_{10}$ p")


def show_hospitals(ax, title, x, y, group, overall, given):
    """Draw the points of three groups, with the p-values overall and given the group."""
    for g in range(3):
        ax.plot(x[group == g], y[group == g], ".", color=PALETTE[g], label=f"hospital {g}")
    words = f"{title}\np = {overall.pvalue:.3f} overall, {given.pvalue:.3f} given the hospital"
    ax.set(title=words, xlabel="$x$", ylabel="$y$")


def show_series(shares):
    """Draw two independent series, and the share of pairs that each test rejects."""
    axes = plt.subplots(1, 2, figsize=(9.8, 3.7), layout="constrained")[1]
    for values, color in zip(series(1), PALETTE, strict=False):
        axes[0].plot(values, color=color)
    axes[0].set(title="two independent series", xlabel="$t$")
    axes[1].barh(list(shares), list(shares.values()), color=[PALETTE[3], PALETTE[0], PALETTE[2]])
    axes[1].axvline(0.05, color="0.4", linestyle=":")
    axes[1].invert_yaxis()
    axes[1].set(title=f"share rejected at 5 %, {pairs} pairs", xlim=(0, 1))


def show_rank(columns, errors, slope):
    """Draw the error of both approximations against the number of columns."""
    ax = plt.subplots(figsize=(7, 3.3), layout="constrained")[1]
    for (name, values), color in zip(errors.items(), PALETTE, strict=False):
        ax.plot(columns[: len(values)], values, "o-", color=color, label=name)
    guide = errors["random Fourier features"][0] * (np.array(columns) / columns[0]) ** -0.5
    ax.plot(columns, guide, color="0.4", linestyle=":", label="slope -1/2")
    ax.set(xscale="log", yscale="log", xlabel="columns $D$", ylabel="relative error of HSIC", xticks=columns, xticklabels=columns)
    ax.set_title(f"random Fourier features: fitted slope {slope:.2f}")
    ax.minorticks_off()
    ax.legend()


def show_drift(drift, sizes):
    """Draw CKA against the number of images for noise and for related features."""
    ax = plt.subplots(figsize=(8, 3.3), layout="constrained")[1]
    for name, line in (("noise", ":"), ("related features", "-")):
        for estimator, color in zip(("biased", "unbiased"), PALETTE, strict=False):
            ax.plot(sizes, drift[name, estimator], f"o{line}", color=color, label=f"{name}, {estimator}")
    ax.set(xscale="log", xticks=sizes, xticklabels=sizes, xlabel="images", ylabel="CKA, mean over draws", ylim=(-0.1, 1.05))
    ax.minorticks_off()
    ax.legend(bbox_to_anchor=(1, 0.8))


# %% [markdown]
# ## 1. Dependence that correlation misses
#
# The cell below draws points $(x, y)$ from four shapes: a wave, a circle, a parabola, and a square rotated by 45 degrees. Every
# coordinate has variance 1, and a little normal noise is added.
#
# In all four shapes the correlation of $x$ and $y$ is exactly 0, because the reflection $x \to -x$ does not change the distribution.
# A fifth family is independent, for comparison. Above each picture stands the correlation $r$ of the sample and the p-value $p$ of a test
# with HSIC.

# %% alt="Five scatter plots: wave, circle, parabola, rotated square and independent points. Each title gives a correlation near 0 and the p-value of HSIC, which is small for the four shapes and large for the independent points."
axes = family_axes(3, sharex=True, sharey=True)
for ax, family in zip(axes, COLORS, strict=True):
    x, y = sample(family, 400, seed=0)
    found = permutation_test(x, y)  # with Gaussian kernels by default
    ax.plot(x, y, ".", color=COLORS[family], alpha=0.6)
    ax.set(title=f"{family}\nr = {correlation(x, y):+.2f}\np = {found.pvalue:.3f}", xlabel="$x$")
    assert (found.pvalue < 0.01) == (family != "independent")
axes[0].set_ylabel("$y$");

# %% [markdown]
# The p-value is the probability that independent variables look at least as dependent as these (section 5). A small value is evidence of
# dependence. The p-value is below 0.01 for the four shapes and large for the independent family.
#
# The correlation of a sample is not exactly 0. Over many samples its mean differs from 0 by at most two or three standard errors (after
# `+-`):

# %% tags=["hide-input"] jupyter={"source_hidden": true}
for family in DEPENDENT:
    r = torch.tensor([correlation(*sample(family, 100, seed)) for seed in range(DRAWS)])
    standard_error = r.std() / DRAWS**0.5
    print(f"{family:9} mean correlation {r.mean():+.4f} +- {standard_error:.4f}")
    assert abs(r.mean()) < 4 * standard_error

# %% [markdown]
# ## 2. HSIC by hand
#
# **A kernel measures similarity.** The Gaussian kernel is $k(x, x') = \exp(-(x - x')^2 / 2\sigma^2)$. It is 1 for equal points and
# falls with the distance. Beyond three **bandwidths** $\sigma$ it is nearly 0. The similarities of all $n$ points form the **Gram
# matrix** $K$ with $K_{ij} = k(x_i, x_j)$. The $y$-coordinates of the same points give a second Gram matrix $L$, from a kernel $l$
# with its own bandwidth.
#
# **Centering.** Overall levels say nothing about dependence. Let $H = I - \frac1n \mathbf 1 \mathbf 1^\top$, where $I$ is the identity
# and $\mathbf 1$ the column of $n$ ones. Then $HKH$ is $K$ with row and column means subtracted.
#
# **HSIC is the mean product of the two centered matrices.** Multiply them entry by entry and take the mean over all $n^2$ entries:
#
# $$\mathrm{HSIC} = \frac1{n^2}\sum_{i,j} (HKH)_{ij}\,(HLH)_{ij} = \frac1{n^2}\,\mathrm{tr}(KHLH).$$

# %%
def hsic_from_scratch(x, y, sigma_x, sigma_y):
    n = len(x)
    k = torch.exp(-((x - x.T) ** 2) / (2 * sigma_x**2))
    l = torch.exp(-((y - y.T) ** 2) / (2 * sigma_y**2))
    h = torch.eye(n, dtype=x.dtype) - 1 / n
    return torch.trace(k @ h @ l @ h) / n**2


# %%
for family in COLORS:
    x, y = sample(family, 400, seed=0)
    by_hand = hsic_from_scratch(x, y, 0.5, 0.8)
    by_library = hsic(x, y, Gaussian(0.5), Gaussian(0.8))
    print(f"{family:12} by hand {by_hand:.12f}   library {by_library:.12f}")
    assert close(by_hand, by_library)
k, h = Gaussian(0.5)(x), torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
assert close(center(k), h @ k @ h)

# %% [markdown]
# The next heatmaps show these matrices for the parabola. Rows and columns are the 200 points, sorted by $x$. Points that are close in
# $x$ lie along the diagonal. In $y$ a point is similar to its neighbors and to the points near $-x$, which gives the shape of an X.
#
# Red is positive and blue is negative, from $-1$ to 1 in the first three heatmaps and from $-0.25$ to 0.25 in the last two. In the last
# two, a red entry is a pair of points that is more similar than average in both $x$ and $y$, or less similar in both. The mean of the
# entries is HSIC. With $y$ shuffled, red and blue nearly cancel.

# %% alt="Five heatmaps for the parabola over pairs of points sorted by x: K with a red band along the diagonal, HKH, HLH with an X, their product with a positive mean, and the product for shuffled y, where the pattern is gone." tags=["hide-input"] jupyter={"source_hidden": true}
x, y = sample("parabola", 200, seed=0)
order = x[:, 0].argsort()
x, y = x[order], y[order]
kernel = Gaussian(0.5)
shuffled = y[torch.randperm(200, generator=seeded(1))]
gram_x, gram_y, gram_shuffled = center(kernel(x)), center(kernel(y)), center(kernel(shuffled))

show_grams({
    "$K$": kernel(x), "$HKH$": gram_x, "$HLH$": gram_y,
    f"product,\nmean {(gram_x * gram_y).mean():.4f}": gram_x * gram_y,
    f"$y$ shuffled,\nmean {(gram_x * gram_shuffled).mean():.4f}": gram_x * gram_shuffled,
})
assert close((gram_x * gram_y).mean(), hsic(x, y, kernel, kernel))
assert hsic(x, shuffled, kernel, kernel) < 0.1 * hsic(x, y, kernel, kernel)

# %% [markdown]
# ### Where the dependence lies
#
# The same number can be shown in the plane of the data. Put a bump $k(x_i, s)\, l(y_i, t)$ on every observed pair, a function of the place
# $(s, t)$, and take the mean of the bumps. Subtract the mean of the bumps on *all permuted pairs* $(x_i, y_j)$, which is what you would
# see under independence. The difference is the **witness function**
#
# $$w(s, t) = \frac1n \sum_i k(x_i, s)\, l(y_i, t) - \frac1n \sum_i k(x_i, s) \cdot \frac1n \sum_j l(y_j, t) .$$
#
# It is red where there are more pairs than under independence, and blue where there are fewer. Each panel has its own color scale, so
# the colors behind the independent points are only noise. The mean of $w$ over the observed pairs minus its mean over all permuted
# pairs is again HSIC.

# %% alt="Five maps of the witness function behind the points of each shape: red along the shape and blue beside it; for independent points there is no clear pattern."
def witness(x, y, kernel_x, kernel_y, s, t):
    """Return w at every (s_a, t_b), as a matrix (a, b)."""
    k, l = kernel_x.fit(x)(s, x), kernel_y.fit(y)(t, y)
    return k @ l.T / len(x) - k.mean(dim=1)[:, None] * l.mean(dim=1)


axes = family_axes(2.4)
for ax, family in zip(axes, COLORS, strict=True):
    x, y = sample(family, 400, seed=0)
    draw_witness(ax, x, y, kernel, kernel, family)
    w = witness(x, y, kernel, kernel, x, y)  # (n, n), with the observed pairs on the diagonal
    assert close(w.diagonal().mean() - w.mean(), hsic(x, y, kernel, kernel))

# %% [markdown]
# ### Which kernels detect every dependence
#
# The linear kernel $k(x, x') = x x'$ detects straight lines only: HSIC with it is the squared covariance. A kernel is called
# **characteristic** if two different distributions always have different mean bumps. Three examples are the Gaussian kernel, the Laplace
# kernel $e^{-|x - x'|/\sigma}$ and the inverse multiquadric kernel $\sigma / \sqrt{\sigma^2 + (x - x')^2}$. With them, HSIC in the limit of
# many points is 0 *if and only if* $x$ and $y$ are independent (Gretton et al. 2005).
#
# The table shows p-values for 300 points and bandwidth 0.5. The linear kernel detects no shape, the other three detect all.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
x, y = sample("wave", 300, seed=2)
covariance = ((x - x.mean()) * (y - y.mean())).mean()
assert close(hsic(x, y, Linear(), Linear()), covariance**2)

kernels = {"linear": Linear(), "Gaussian": Gaussian(0.5), "Laplace": Laplace(0.5),
           "inverse multiquadric": InverseMultiquadric(0.5)}
pvalues = pd.DataFrame({
    name: {family: permutation_test(*sample(family, 300, seed=4), k, k).pvalue for family in COLORS}
    for name, k in kernels.items()
})
assert (pvalues.drop(columns="linear").loc[list(DEPENDENT)] <= 0.01).all(axis=None)
assert (pvalues.loc["independent"] > 0.05).all() and (pvalues["linear"] > 0.05).all()
pvalues.round(3)

# %% [markdown]
# ## 3. The bandwidth
#
# The bandwidth $\sigma$ sets which points count as similar. The usual choice is the **median rule**: the median distance between two
# different points, for $x$ and for $y$ separately. It adapts the kernel to the scale of the data. It is a rule of thumb, not an optimum.
#
# Both limits are known:
#
# * $\sigma \to \infty$: all points are similar, $k \approx 1 - (x - x')^2 / 2\sigma^2$. Centering removes every term that depends on
#   one point only, and $x x' / \sigma^2$ remains, the linear kernel. So
#   $\sigma_x^2\, \sigma_y^2\, \mathrm{HSIC} \to \mathrm{HSIC}_\text{linear}$ for the bandwidths $\sigma_x$ and $\sigma_y$ of the two
#   kernels, and the test detects only correlation.
# * $\sigma \to 0$: a point is similar only to itself, $K = L = I$, and $\mathrm{HSIC} \to (n-1)/n^2$ for all data without equal points.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
x, y = sample("parabola", 200, seed=3)
y = y + 0.5 * x  # a slope, so that the linear limit is not 0
linear = hsic(x, y, Linear(), Linear())
for sigma in (1, 10, 100, 1000):
    scaled = sigma**4 * hsic(x, y, Gaussian(float(sigma)), Gaussian(float(sigma)))
    print(f"sigma = {sigma:4}   sigma^4 HSIC / linear HSIC = {scaled / linear:.6f}")
assert abs(scaled / linear - 1) < 1e-4
assert close(hsic(x, y, Gaussian(1e-7), Gaussian(1e-7)), torch.tensor(199 / 200**2, dtype=torch.float64))

# %% [markdown]
# HSIC values at different bandwidths are not comparable. A comparable number is
# $z = (\mathrm{HSIC} - \text{mean}) / \text{standard deviation}$, where mean and standard deviation are those of HSIC over all
# shuffles of $y$. Both have exact formulas. The curves show $z$ against the bandwidth, in multiples of the median rule. High is good. The
# vertical axis is linear up to 5 and logarithmic above.

# %% alt="Curves of z against the bandwidth for five shapes on a logarithmic axis. Each dependent shape has a maximum at or below the median rule, and all curves are low at large bandwidths." tags=["hide-input"] jupyter={"source_hidden": true}
scales = np.logspace(-2, 2, 33)
curves = {}
for family in COLORS:
    x, y = sample(family, 400, seed=0)
    curves[family] = np.array([z_score(x, y, scale) for scale in scales])
best = {family: scales[z.argmax()] for family, z in curves.items()}
show_scales(curves)
for family, z in curves.items():
    assert z[-1] < 4  # no shape is detected
    assert family == "independent" or (z.max() > 6 and z[0] < z.max() / 2)  # the best bandwidth is in between
assert 2 * best["wave"] < best["rotated"] < 1
assert min(DEPENDENT, key=lambda family: curves[family][16]) == "wave"  # at the median rule

# %% tags=["hide-input"] jupyter={"source_hidden": true}
print("best bandwidth / median")
for family in DEPENDENT:
    print(f"{family:9} {best[family]:.2f}")

# %% [markdown]
# No single bandwidth is best for all shapes. For the rotated square the best is more than twice as wide as for the wave. At the median
# rule (the dotted line) the wave has the lowest $z$ of the four shapes. That is why it has the largest p-value of the four in section 1.
#
# In a live notebook the next cell has three controls: the family of the sample, the kernel, and the scale of its bandwidth. The static page shows its first state. The figure
# after it shows the witness function of the wave for five bandwidths. With a small bandwidth it follows single points, with a large
# bandwidth only the overall trend.

# %% alt="First state of the controls: the centered Gram matrices HKH and HLH of the wave with the median rule, and the witness function behind the points."
display(
    widgets.interactive(
        explore, family=list(COLORS), kernel=list(KERNELS),
        scale=widgets.FloatLogSlider(
            1, base=10, min=-2, max=2, continuous_update=False, readout_format=".2f"
        ),
    )
)

# %% alt="Witness function of the wave for five bandwidths from 0.05 to 50 times the median. Small bandwidths show single points, large ones only a smooth trend."
x, y = sample("wave", 200, seed=4, noise=0.2)
for ax, scale in zip(family_axes(2.4), (0.05, 0.2, 1, 5, 50), strict=True):
    kernel_x, kernel_y = (Gaussian(scale * median_distance(v)) for v in (x, y))
    title = f"{scale} x median\n$z$ = {z_score(x, y, scale):.1f}"
    draw_witness(ax, x, y, kernel_x, kernel_y, title)

# %% [markdown]
# ## 4. Bias: independent data do not give 0
#
# In $\mathrm{tr}(KHLH)/n^2$ every point is also compared with itself, and $K_{ii} = 1$. This makes HSIC positive even for independent
# variables. Let $m_x$ be the mean of $k(x, x')$ over independent $x, x'$, and $m_y$ the same for $y$ and $l$. Then
#
# $$E[\mathrm{HSIC}] = \frac{n-1}{n^2}\,(1 - m_x)(1 - m_y) \qquad \text{under independence, if } k(x, x) = l(y, y) = 1.$$
#
# For standard normal variables and $\sigma = 1$, $m_x = m_y = 1/\sqrt 3$. The **unbiased** estimator (Song et al. 2012) leaves the
# diagonals out and corrects for this. Its mean is right at every $n$. Under independence this mean is 0, so the estimate is often
# negative.
#
# The figure compares both estimators on normal variables, independent ones and ones with the correlation 0.7. A dot is the mean of 500
# samples, and a bar shows four standard errors to each side.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
unit = Gaussian(1.0)
rows = []
for n in (8, 16, 32, 64, 128):
    for name, slope in (("independent", 0.0), ("dependent", 0.7)):
        pairs = []
        for seed in range(DRAWS):
            a, b = normal(2, n, 1, generator=seeded(1000 * n + seed))
            pairs.append((a, slope * a + (1 - slope**2) ** 0.5 * b))
        for estimator in ("biased", "unbiased"):
            values = torch.stack([hsic(x, y, unit, unit, estimator) for x, y in pairs])
            rows.append((n, name, estimator, values.mean().item(), values.std().item() / DRAWS**0.5, values))
table = pd.DataFrame(rows, columns=["n", "data", "estimator", "mean", "standard_error", "values"])
table = table.set_index(["data", "estimator"]).sort_index()

# %% alt="Left and middle: mean of the biased and the unbiased estimator against n for independent and dependent data; the bias falls with n and follows the formula. Right: histograms of both estimators at n = 32; more than half of the unbiased values are negative." tags=["hide-input"] jupyter={"source_hidden": true}
biased, unbiased = table.loc[("independent", "biased")], table.loc[("independent", "unbiased")]
theory = (biased["n"] - 1) / biased["n"] ** 2 * (1 - 3**-0.5) ** 2
assert ((biased["mean"] - theory).abs() < 4 * biased["standard_error"]).all()
assert (unbiased["mean"].abs() < 4 * unbiased["standard_error"]).all()
truth = table.loc[("dependent", "unbiased")]
assert ((truth["mean"] - truth["mean"].iloc[-1]).abs() < 4 * truth["standard_error"]).all()  # the same at every n
negative = (unbiased["values"].iloc[2] < 0).double().mean()
assert 0.4 < negative < 0.8
show_bias(table, theory, negative)

# %% [markdown]
# To compare measurements between sample sizes, use the unbiased estimator and keep its negative values: replacing them by 0 would
# bring the bias back. For a loss or a test statistic the biased estimator is suitable. It is never negative, and a test compares it
# with its distribution under independence at the same $n$.
#
# ## 5. Null distributions and p-values
#
# A test needs the distribution of HSIC under independence, the **null distribution**. There are three ways to obtain it.
#
# * **Permutation**: under independence every shuffle of $y$ is equally likely. Shuffle $B$ times and compute HSIC each time. This is
#   correct at every $n$.
# * **Gamma**: take the gamma distribution (a standard distribution of positive numbers) with the mean and variance of HSIC over all $n!$
#   shuffles. Both have formulas, so no shuffle is needed.
# * **Spectral**: for large $n$, $n\,\mathrm{HSIC}$ is distributed under independence like $\sum_{ij} a_i b_j N_{ij}^2$. Here $N_{ij}$ are
#   independent standard normal variables, and $a_i, b_j$ are the eigenvalues of $HKH/n$ and $HLH/n$. Draw samples from this.

# %% alt="Null distribution of HSIC for a noisy circle: the histogram of permutations, the spectral approximation and the gamma density nearly agree. A vertical line marks the observed value in the right tail." tags=["hide-input"] jupyter={"source_hidden": true}
x, y = sample("circle", 100, seed=5, noise=0.3)
generator = torch.Generator().manual_seed(0)
kernels = Gaussian().fit(x), Gaussian().fit(y)
null = np.array([hsic(x, y[torch.randperm(100, generator=generator)], *kernels) for _ in range(1999)])
observed = float(hsic(x, y, *kernels))
pvalue = (1 + (null >= observed).sum()) / 2000
gamma, spectral = gamma_test(x, y), spectral_test(x, y, draws=5000)

show_null(null, spectral, gamma, observed, pvalue)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
quantiles = np.array([np.quantile(null, 0.95), np.quantile(spectral.null, 0.95), gamma.distribution.ppf(0.95)])
print("95 % quantile of the null distribution")
for name, quantile in zip(("permutation", "spectral", "gamma"), quantiles, strict=True):
    print(f"{name:11} {quantile:.5f}")
assert np.ptp(quantiles) < 0.1 * quantiles[0]
assert abs(null.mean() - gamma.distribution.mean()) < 4 * null.std() / 1999**0.5

# The library shuffles the unbiased estimator, because the diagonal adds only noise to a test.
assert abs(permutation_test(x, y, *kernels, permutations=1999).pvalue - pvalue) < 0.02

# %% [markdown]
# ### Why a p-value is never 0
#
# Let $R$ be the number of shuffles, out of $B$, whose HSIC is at least the observed value. The p-value is $(1 + R)/(1 + B)$. A test at the
# **level** $\alpha$, for example 5 %, *rejects* independence if $p \le \alpha$.
#
# The ones are necessary. Under independence the observed pairing is like one more shuffle. Among $1 + B$ values it is equally likely
# to be the largest, the second largest, and so on. So a false alarm has at most the probability $\alpha$. Such a test is called *exact*.
#
# Without the ones, $R/B$ is 0 with probability $1/(1 + B)$. At the level 5 % with $B = 20$ this test rejects 2 of 21 independent samples,
# nearly twice the level:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
B = 20
found = [permutation_test(*normal(2, 21, 1, generator=seeded(seed)), permutations=B, seed=seed) for seed in range(DRAWS)]
exact = np.array([test.pvalue for test in found])
naive = np.array([(test.null >= test.statistic).double().mean().item() for test in found])
print(f"rejected at 5 %, with (1 + R)/(1 + B): {np.mean(exact <= 0.05):.1%}")
print(f"rejected at 5 %, with R/B: {np.mean(naive <= 0.05):.1%}")

assert exact.min() == 1 / (1 + B) and is_share(exact <= 0.05, 1 / 21)
assert is_share(naive <= 0.05, 2 / 21) and is_share(naive == 0, 1 / 21)

# %% [markdown]
# ### All shifts at once
#
# You can skip this part. It explains why the test is fast, and why many p-values above are multiples of 1/1200.
#
# To score one permutation $\pi$, the sum $\sum_{ij} K_{ij} L_{\pi(i)\,\pi(j)}$ needs $n^2$ products. The library scores $n$ permutations
# with little more work: it *shifts* the rows of $y$ in a circle. Row $i$ of $x$ meets row $i + s$ of $y$, for $s = 0, \dots, n - 1$, all
# indices modulo $n$.
#
# A shift by $s$ moves each **circular diagonal** of $L$, the entries $L_{i,\,i+k}$ for one $k$, along itself by $s$ places:
#
# $$T(s) = \sum_{ij} K_{ij}\, L_{i+s,\,j+s} = \sum_k \Big[ \sum_i K_{i,\,i+k}\; L_{i+s,\,i+s+k} \Big].$$
#
# The fast Fourier transform computes the bracket for all $s$ together, in about $n \log n$ steps instead of $n^2$. The cell does this in
# two lines and compares with the direct sums. In the figure two diagonals of $L$ are colored, and each number is a row of $y$.

# %% alt="Left: a Gram matrix of 12 points in gray with two of its circular diagonals in color; each runs off the right edge and comes in again on the left. Middle: the matrix after a shift by 3 rows and columns, with the same colors on the same diagonals, moved along them. Right: the statistic of all 12 shifts as bars, with crosses of the direct sums on the ends of the bars."
n, shift = 12, 3
x, y = sample("parabola", n, seed=1)
gram_x, gram_y = center(Gaussian(0.8)(x)), center(Gaussian(0.8)(y))
i = torch.arange(n)
diagonal_x = torch.stack([gram_x[i, (i + k) % n] for k in range(n)])
diagonal_y = torch.stack([gram_y[i, (i + k) % n] for k in range(n)])

spectra_x, spectra_y = torch.fft.fft(diagonal_x), torch.fft.fft(diagonal_y)  # for each diagonal
all_shifts = torch.fft.ifft((spectra_x.conj() * spectra_y).sum(dim=0)).real

direct = torch.stack([(gram_x * gram_y[(i + s) % n][:, (i + s) % n]).sum() for s in range(n)])
assert close(all_shifts, direct) and all_shifts.argmax() == 0  # largest: the observed pairing

show_shifts(gram_y, shift, all_shifts, direct)

# %% [markdown]
# A test with these permutations is exact: a shift of a shift is a shift, so under independence the observed pairing could as well be any
# of the $n$ shifted ones. For more than $n - 1$ permutations the library takes the rows in further random orders. 400 points with
# `permutations=999`, the default, give three orders and 1200 values:

# %%
x, y = sample("circle", 400, seed=0)
found = permutation_test(x, y)
print(f"HSIC {found.statistic:.6f}\np-value {found.pvalue:.5f}, that is 1 of {found.out_of}")
assert found.out_of == 1200 and found.pvalue == 1 / 1200

# %% [markdown]
# ## 6. Level and power of four tests
#
# A test at the level 5 % may reject at most 5 % of independent samples. Its **power** is the share of dependent samples that it
# rejects. The cells compare four tests at the level 5 %:
#
# * permutation and gamma, as above;
# * **block**, which averages the unbiased HSIC over small blocks of rows. It is fast on very large samples and loses power on small ones;
# * **aggregated** (Schrab et al. 2022), which tries many bandwidths and corrects exactly for this search.
#
# The noise of each shape is chosen so that the task has medium difficulty. The first cell measures the level on independent samples. In
# the figure, each dot is the power over 30 samples of $n$ points, and the dotted line is 5 %.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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
print("rejected at n = 50")
for name, share in level.items():
    print(f"{name:11} {share:.1%}")
    assert share <= 0.05 + 4 * (0.05 * 0.95 / (5 * POWER_DRAWS)) ** 0.5, name

# %% alt="Share of rejected samples against n for four shapes and four tests. Power rises with n; the block test is lowest, and the aggregated test is far ahead on the wave." tags=["hide-input"] jupyter={"source_hidden": true}
power = pd.DataFrame({(family, n): rejections(family, n, POWER_DRAWS, NOISE[family])
                      for family in DEPENDENT for n in POWER_ROWS})
show_power(power)
most = POWER_ROWS[-1]
assert power.loc["block"].mean() < power.loc["gamma"].mean()
assert abs(power.loc["gamma"] - power.loc["permutation"]).mean() < 0.1
assert power.loc["aggregated", ("wave", most)] > power.loc["permutation", ("wave", most)] + 0.2
assert power.loc["aggregated"].xs(most, level=1).min() > 0.4
wide = power.loc[:, ["parabola", "rotated"]].mean(axis=1)  # here the best bandwidth is near the median rule
assert FAST or wide["permutation"] - 0.2 < wide["aggregated"] < wide["permutation"]

# %% [markdown]
# Gamma gives nearly the power of permutation without shuffles. Block has the lowest power. Where the median rule is far from the best
# bandwidth (the wave), the aggregated test has much more power. Where it is near (the parabola and the rotated square), the correction
# costs a little power. A share of 30 samples has a standard error of up to $0.5/\sqrt{30} = 0.09$, so do not interpret small differences.
#
# ## 7. How to choose the bandwidth
#
# If you try ten bandwidths and report the smallest p-value, the result is invalid: the smallest of ten p-values is often small by
# chance. The aggregated test shuffles *the whole procedure*, including the search for the best bandwidth.
#
# The next example is a fast wave, for which the median rule is much too wide in $x$. The heatmap on the right shows the p-value of each
# pair of bandwidths. Yellow is a p-value of at most 0.001, dark blue a large one.

# %% alt="Left: scatter plot of a fast wave, with the p-values of the median rule and of the aggregated test. Right: heatmap of the p-values for six bandwidths of x and y; narrow bandwidths of x give the small p-values." tags=["hide-input"] jupyter={"source_hidden": true}
x, y = sample("wave", 300, seed=6, frequency=4)
median_rule = permutation_test(x, y)
searched = (0.06, 0.12, 0.25, 0.5, 1, 2)
aggregated = aggregated_test(x, y, scales=searched)
grid = aggregated.components["pvalue"].to_numpy().reshape(6, 6)

show_search(x, y, median_rule, aggregated, grid)
assert aggregated.pvalue < 0.01 < median_rule.pvalue
assert grid[:2].mean() < grid[-2:].mean()  # a narrow bandwidth in x detects the wave, a wide one does not

# %% [markdown]
# The aggregated test finds the fast wave, the median rule does not. On independent data the smallest of nine p-values gives far too many
# false alarms (more than 10 % in place of 5 %), and the aggregated test does not:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
candidates = [Gaussian(scale) for scale in searched[1::2]]  # the median distance of normal variables is about 1
smallest, corrected = [], []
for seed in range(5 * POWER_DRAWS):
    x, y = normal(2, 30, 1, generator=seeded(seed))
    alone = (permutation_test(x, y, k, l, permutations=39) for k in candidates for l in candidates)
    smallest.append(min(test.pvalue for test in alone))
    corrected.append(aggregated_test(x, y, scales=searched[1::2], permutations=39).pvalue)
smallest, corrected = np.array(smallest), np.array(corrected)
print("rejected at 5 % under independence")
print(f"smallest of nine {np.mean(smallest <= 0.05):.1%}\naggregated       {np.mean(corrected <= 0.05):.1%}")
assert np.mean(corrected <= 0.05) <= 0.05 + 4 * (0.05 * 0.95 / len(corrected)) ** 0.5 and np.mean(smallest <= 0.05) > 0.1

# %% [markdown]
# ## 8. Tests within groups, and for time series
#
# Two variables can depend on each other only because both depend on a third one. For example, let $x$ be a dose, $y$ a recovery time,
# and the **group** a hospital. With `groups=`, rows are shuffled only within their group: the test asks whether $x$ and $y$ are
# dependent *given* the group. The Gram matrices are centered within groups as well; otherwise the dependence between hospitals would
# hide the dependence within them.
#
# The left data are independent within every group. The right data show **Simpson's paradox**: the trend is positive overall and
# negative in every hospital. The cell after the figure checks the level on many samples like those on the left.

# %% alt="Two scatter plots of three hospitals. On both sides the hospitals lie along a rising line. Within each hospital there is no trend on the left and a falling trend on the right." tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained")
for ax, (title, slope) in zip(axes, {"common cause": 0.0, "Simpson's paradox": -0.6}.items(), strict=True):
    x, y, group = hospitals(240, 8, slope)
    overall, given = permutation_test(x, y), permutation_test(x, y, groups=group)
    show_hospitals(ax, title, x, y, group, overall, given)
    slopes = [correlation(x[group == g], y[group == g]) for g in range(3)]
    assert overall.pvalue == 1 / overall.out_of and correlation(x, y) > 0.5
    if slope:
        assert given.pvalue == 1 / given.out_of and max(slopes) < -0.3
    else:
        assert given.pvalue > 0.05
axes[0].legend();

# %% tags=["hide-input"] jupyter={"source_hidden": true}
pvalues = []
for seed in range(DRAWS // 2):
    x, y, group = hospitals(40, seed, slope=0.0)
    pvalues.append(permutation_test(x, y, groups=group, permutations=39, seed=seed).pvalue)
share = np.mean(np.array(pvalues) <= 0.05)
chance = (0.05 * 0.95 / len(pvalues)) ** 0.5
print(f"independent given the group: {share:.1%} of {len(pvalues)} samples rejected at 5 %, expected 5 +- {chance:.1%}")
assert is_share(np.array(pvalues) <= 0.05, 2 / 40)

# %% [markdown]
# HSIC has no sign: on the right it does not show the direction. Each group must have several rows, so a continuous third variable needs
# other methods.
#
# ### Time series
#
# Each row of a time series depends on the row before it. Shuffled rows lose this memory, so a shuffled pair does not look like an
# observed one, even if the two series have nothing to do with each other.
#
# The next cell draws pairs of independent series $x_t = 0.9\, x_{t-1} + \varepsilon_t$ with new normal noise $\varepsilon_t$ at each time $t$.
# The permutation test rejects most of them: a false alarm. `shift_test` keeps the rows in the order of time and shifts one whole series
# against the other. Its memory stays intact, and only the pairing changes. `guard=` leaves out shifts shorter than the memory.

# %% alt="Left: two independent series that rise and fall slowly and at times together. Right: share of pairs rejected at 5 percent. The permutation test rejects most independent pairs, the shift test about 5 percent; of dependent pairs the shift test rejects most." tags=["hide-input"] jupyter={"source_hidden": true}
pairs = 40 if FAST else 150
shuffled = [permutation_test(*series(seed), permutations=99, seed=seed).pvalue <= 0.05 for seed in range(pairs)]
shifted = [shift_test(*series(seed), guard=40).pvalue <= 0.05 for seed in range(pairs)]
dependent = [shift_test(*series(seed, slope=1.0), guard=40).pvalue <= 0.05 for seed in range(pairs)]
shares = {
    "independent,\npermutation test": np.mean(shuffled), "independent,\nshift test": np.mean(shifted),
    "dependent,\nshift test": np.mean(dependent),
}
show_series(shares)
assert np.mean(shuffled) > 0.5 and np.mean(dependent) > 0.7
assert np.mean(shifted) < 0.05 + 4 * (0.05 * 0.95 / pairs) ** 0.5

# %% [markdown]
# The level of the shift test is approximate. The series must be stationary (of the same distribution at all times) and long compared with
# their memory. A shift also joins the end of a series to its start, which do not belong together.
#
# ## 9. Large samples: low rank
#
# The Gram matrix of a million points has $10^{12}$ entries. But a Gaussian Gram matrix has nearly low rank: $K \approx \Phi\Phi^\top$
# with an $n \times D$ matrix $\Phi$ and a small $D$. HSIC of the kernel is then *linear* HSIC of these matrices. The cost grows with
# $n D^2$ instead of $n^2$. The library has two ways to compute $\Phi$.
#
# * **Random Fourier features** (Rahimi and Recht 2007) draw the columns at random: cosines and sines of $x$ with random frequencies. The
#   error falls as $D^{-1/2}$, a straight line of slope $-\frac12$ on logarithmic axes.
# * **Incomplete Cholesky** takes one point after the other, each time the one where the error is largest. On one-dimensional data like
#   these its error falls much faster.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
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

# %% alt="Relative error of HSIC against the number of columns D on logarithmic axes. Random Fourier features follow a line of slope -1/2; incomplete Cholesky falls to 1e-12 at 32 columns."
slope = np.polyfit(np.log(columns), np.log(errors["random Fourier features"]), 1)[0]
show_rank(columns, errors, slope)
assert abs(slope + 0.5) < 0.15 and errors["incomplete Cholesky"][-1] < 1e-6

# %% [markdown]
# ## 10. HSIC on the scale of a correlation: CKA
#
# HSIC has no natural unit. **Centered kernel alignment** (CKA; Kornblith et al. 2019) divides it by its largest possible value,
#
# $$\mathrm{CKA}(x, y) = \frac{\mathrm{HSIC}(x, y)}{\sqrt{\mathrm{HSIC}(x, x)\,\mathrm{HSIC}(y, y)}} .$$
#
# It compares the features of two networks on *the same images*. With linear kernels CKA does not change if you rotate the features, shift
# them, or scale all of them by one factor. The value 1 means that the two arrangements of the images are equal up to such changes.

# %%
x = normal(256, 64, generator=seeded(0))
y = x + normal(256, 64, generator=seeded(1))  # half of the variance of y is x
rotation = torch.linalg.qr(normal(64, 64, generator=seeded(2))).Q
unbiased = partial(hsic, estimator="unbiased")
ratio = unbiased(x, y) / (unbiased(x, x) * unbiased(y, y)).sqrt()
print(f"CKA {cka(x, y):.3f}")
assert close(cka(x, y), ratio) and close(cka(3 * x @ rotation + 1, y), cka(x, y))
assert close(cka(x, x), torch.tensor(1.0, dtype=torch.float64))

# %% [markdown]
# The bias of section 4 matters most here. If there are more features than images, *any* two sets of features look similar: the biased
# CKA of pure noise tends to 1. The unbiased CKA (Nguyen et al. 2021) of noise stays near 0, and that of related features hardly depends
# on the number of images.

# %% alt="CKA against the number of images. For noise the biased estimator is close to 1 at few images and the unbiased one stays at 0. For related features the biased estimator falls from near 1 towards the unbiased one." tags=["hide-input"] jupyter={"source_hidden": true}
sizes = (16, 32, 64, 128, 256)
rows = []
for n in sizes:
    for seed in range(20 if FAST else 60):
        drawn = torch.randperm(len(x), generator=seeded(seed))[:n]
        noise_x, noise_y = normal(2, n, 64, generator=seeded(seed))
        for estimator in ("biased", "unbiased"):
            rows.append((n, "noise", estimator, cka(noise_x, noise_y, estimator=estimator).item()))
            rows.append((n, "related features", estimator, cka(x[drawn], y[drawn], estimator=estimator).item()))
drift = pd.DataFrame(rows, columns=["n", "data", "estimator", "cka"]).groupby(["data", "estimator", "n"])["cka"].mean()
show_drift(drift, sizes)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
assert drift["noise", "biased", 16] > 0.75 and drift["noise", "unbiased"].abs().max() < 0.05
assert drift["related features", "biased", 16] > drift["related features", "unbiased", 16] + 0.2
assert np.ptp(drift["related features", "unbiased"].loc[32:]) < 0.1
over_batches = MinibatchCKA()  # averages the unbiased HSIC of batches, then takes the ratio
for rows_x, rows_y in zip(x.split(64), y.split(64), strict=True):
    over_batches.update(rows_x, rows_y)
assert abs(over_batches.compute() - cka(x, y)) < 0.05

# %% [markdown]
# For data that do not fit into memory, `MinibatchCKA` averages the unbiased HSIC of batches.
# [Notebook 12](12_comparing_networks.ipynb) compares networks layer by layer. [Notebook 04](04_reading_cross_correlation.ipynb) measures
# which factors of an image the features of a network depend on.
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. Take `sample("wave", 300, seed=6, frequency=8)`. Does the median rule detect it, and does the aggregated test? Which bandwidths give the
#    smallest p-values?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Only narrow bandwidths of x detect the fast wave, so the aggregated test needs small scales.
x, y = sample("wave", 300, seed=6, frequency=8)
searched_fast = (0.015, 0.03, 0.06, 0.12, 0.25, 0.5)
fast_wave = aggregated_test(x, y, scales=searched_fast)
by_x = fast_wave.components["pvalue"].to_numpy().reshape(6, 6).min(axis=1)
print(f"p-value, median rule: {permutation_test(x, y).pvalue:.3f}")
print(f"p-value, aggregated:  {fast_wave.pvalue:.3f}")
for scale, smallest_pvalue in zip(searched_fast, by_x, strict=True):
    print(f"bandwidth of x {scale:5.3f} x median: smallest p-value {smallest_pvalue:.3f}")
assert fast_wave.pvalue < 0.05 < permutation_test(x, y).pvalue and by_x[:3].min() < by_x[-1]

# %% [markdown]
# 2. Write the unbiased estimator of Song et al. (2012), and compare it with `hsic`. Which step removes the diagonal? With the Gram
#    matrices $\tilde K$, $\tilde L$ whose diagonals are set to 0, it is
#    $$\frac{1}{n (n-3)} \Bigl[\mathrm{tr}\, \tilde K \tilde L + \frac{\mathbf 1^\top \tilde K \mathbf 1\; \mathbf 1^\top \tilde L
#    \mathbf 1}{(n-1)(n-2)} - \frac{2}{n-2} \mathbf 1^\top \tilde K \tilde L \mathbf 1\Bigr] .$$

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The diagonals are set to 0 first; the last two terms correct the centering for it.
x, y = sample("circle", 50, seed=0)
k, l = (Gaussian(0.5)(v) for v in (x, y))
k, l = (gram - gram.diagonal().diag() for gram in (k, l))
n = len(k)
total = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(dim=0) * l.sum(dim=0)).sum()
print(f"by hand {total / (n * (n - 3)):.12f}")
assert close(total / (n * (n - 3)), hsic(x, y, Gaussian(0.5), Gaussian(0.5), "unbiased"))

# %% [markdown]
# 3. Make three variables that are pairwise independent but not jointly: two coins, and whether they agree. What do `hsic` and
#    `hsic_lab.hsic.dhsic` say?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# hsic of each pair is near 0, and dhsic of all three is not.
coins = torch.randint(2, (2, 400, 1), generator=seeded(0)).double()
three = (coins[0], coins[1], (coins[0] == coins[1]).double())
pairs_of_coins = [hsic(three[a], three[b], Delta(), Delta()).item() for a, b in ((0, 1), (0, 2), (1, 2))]
joint = dhsic(*three, kernels=[Delta()] * 3).item()
for name, value in zip(("two coins", "coin 1 and agreement", "coin 2 and agreement"), pairs_of_coins, strict=True):
    print(f"hsic of {name}: {value:.5f}")
print(f"dhsic of all three: {joint:.5f}")
assert joint > 10 * max(pairs_of_coins)

# %% [markdown]
# 4. In section 8 pass labels to `groups=` that have nothing to do with the data. Does the level stay the same? What happens to the power?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The level stays. The power changes little, because the groups are still large.
def rejected(slope, groups, draws=DRAWS // 4):
    found = []
    for seed in range(draws):
        a, b = normal(2, 60, 1, generator=seeded(seed))
        labels = torch.randint(3, (60,), generator=seeded(seed + 1)) if groups else None
        found.append(permutation_test(a, slope * a + b, groups=labels, permutations=39, seed=seed).pvalue <= 0.05)
    return found


for slope, word in ((0.0, "independent"), (0.4, "dependent")):
    without, with_groups = (np.mean(rejected(slope, groups)) for groups in (False, True))
    print(f"{word}: rejected {without:.1%} without groups, {with_groups:.1%} with groups")
assert is_share(rejected(0.0, True), 2 / 40) and abs(np.mean(rejected(0.4, True)) - np.mean(rejected(0.4, False))) < 0.25

# %% [markdown]
# **Next:** [03 Objectives](03_objectives.ipynb) places Barlow Twins among the losses with and without negative pairs.
