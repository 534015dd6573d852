# %% [markdown]
# # Barlow Twins is a statement about HSIC
#
# The Barlow Twins loss (Zbontar et al. 2021, arXiv 2103.03230) trains a network on pairs of distorted images. It correlates every
# feature of one view with every feature of the other view, and pulls the matrix of these correlations towards the identity.
#
# HSIC, the Hilbert-Schmidt Independence Criterion (Gretton et al. 2005), is a number from statistics. It measures how strongly two
# samples depend on each other. **In its simplest form HSIC is the sum of the squared entries of $C$, the matrix of correlations that
# Barlow Twins looks at.** So the loss can be written with HSIC.
#
# HSIC also explains why Barlow Twins needs no *negative pairs*, views of two different images that other methods push apart one by one.
# Here the subtraction of a mean does this for all of them at once.
#
# **What you will see**
#
# 1. The cross-correlation matrix $C$ of two views.
# 2. HSIC as the mean of a matrix of image pairs, and as the sum of the squared entries of $C$.
# 3. Why HSIC compares real pairs with *all* permutations of them, so that no negative pairs are needed.
# 4. The Barlow Twins loss written with HSIC, and which terms it maximizes and minimizes.
# 5. HSIC_SSL, the variant with the off-diagonal target $-1$.
# 6. Why the target $-1$ cannot be reached, and what is reached instead.
# 7. How to compute the exact loss without the $d \times d$ matrix, with timings.
#
# **What you need**: a first course in machine learning (correlation, gradient, matrix product). Nothing is downloaded. The code
# asserts every identity in double precision with a tolerance of $10^{-10}$. Folded cells hold drawing code, helper functions
# (`minimize`, `descend`, `value_and_gradient`) and solutions.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # smaller problems for a quick check

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes
from hsic_lab.hsic import hsic
from hsic_lab.kernels import Gaussian, Linear
from hsic_lab.losses import BarlowTwinsLoss, HSICSSLLoss
from hsic_lab.plots import compare_cross_correlations, plot_cross_correlation, plot_pairs, set_theme
from hsic_lab.views import normalize

set_theme()
PALETTE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
close = partial(torch.allclose, rtol=1e-10, atol=1e-10)  # the tolerance of every identity


def show_matrices(panels, xlabel, ylabel, label="entry", size=3.0):
    """Draw matrices side by side, each on its own color scale centered at 0: red is positive, blue is negative."""
    figure, axes = plt.subplots(1, len(panels), figsize=(size * len(panels) + 0.6, size), layout="constrained")
    for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
        limit = matrix.abs().quantile(0.99).item()
        image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(title, fontsize="medium")
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.locator_params(nbins=5, integer=True)
        figure.colorbar(image, ax=ax, shrink=0.5).set_label(label, fontsize="small")
    return axes


def plot_two_clouds(x, y, m):
    """Draw m real pairs, and all pairs of these rows."""
    axes = plt.subplots(1, 2, figsize=(8.6, 4.2), sharex=True, sharey=True, layout="constrained")[1]
    axes[0].plot(x[:m, 0], y[:m, 0], ".", color=PALETTE[0])
    axes[0].set(title=f"{m} real pairs $(x_b, y_b)$", xlabel="feature 0 of view A", ylabel="feature 0 of view B")
    axes[1].plot(x[:m, 0].repeat_interleave(m), y[:m, 0].repeat(m), ".", color=PALETTE[3], alpha=0.35, markersize=3)
    axes[1].set(title=f"all {m * m} permuted pairs $(x_b, y_c)$", xlabel="feature 0 of view A")


def plot_paths(paths):
    """Draw paths in the plane of alignment and dependence, above the region that cannot be reached."""
    ax = plt.subplots(figsize=(8.4, 4.2), layout="constrained")[1]
    alignment = np.linspace(0.4, 1, 100)
    ax.fill_between(alignment, alignment**2, color="0.9", label="impossible: HSIC < (tr C)² / d")
    for (label, path), color in zip(paths.items(), PALETTE, strict=False):
        ax.plot(path[:, 0], path[:, 1], color=color, label=label)
    ax.plot(*path[0], "o", color="0.2", markersize=8, label="start: the random layer")
    ax.plot(1, 1, "*", color="0.2", markersize=14, label="C = I")
    ax.set(xlabel="alignment  tr C / d", ylabel="dependence  HSIC / d", xlim=(0.4, 1.03), ylim=(0, None))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def plot_arrows(ax, count, title):
    """Draw vectors in the plane, or from the center of a tetrahedron, at the largest possible angles; return their cosines."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(min(count, 3)) / min(count, 3)
    vectors = arrows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if count == 4:  # a tetrahedron, seen from one side
        vectors = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
        side = np.linalg.qr(np.array([[1.0, 0.25, 0.1], [-0.25, 1.0, 0.4], [0.1, -0.5, 1.0]]))[0]
        arrows = vectors @ side[:, :2]
    for (u, v), color in zip(arrows, PALETTE, strict=False):
        ax.annotate("", (u, v), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5})
    ax.set(title=title, xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    ax.axis("off")
    return vectors @ vectors.T


def plot_bound(table):
    """Draw the bound of the mean off-diagonal entry and of the loss against d, with the values found by the search."""
    widths = np.arange(2, 65)
    left, right = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")[1]
    left.plot(widths, -1 / (widths - 1), color=PALETTE[0], label="−1/(d−1)")
    left.plot(table.index, table["mean off-diagonal found"], "o", color=PALETTE[3], label="found by the search")
    left.axhline(-1, color="0.4", linestyle="--", label="target −1 (HSIC_SSL)")
    left.axhline(0, color="0.4", linestyle=":", label="target 0 (Barlow Twins)")
    left.set(xlabel="number of features d", ylabel="mean off-diagonal of C", title="mean off-diagonal entry")
    left.legend(loc="center right")
    right.plot(widths, lower_bound(widths) / widths, color=PALETTE[0], label="lower bound")
    right.plot(table.index, table["loss found"] / table.index, "o", color=PALETTE[3], label="found by the search")
    right.plot(widths, (widths - 1) / widths, color=PALETTE[1], label="C = I")
    right.set(xlabel="number of features d", ylabel="HSIC_SSL loss / d", title="loss at the minimum")
    right.legend(loc="lower right")


def plot_timings(timings, batch, switch):
    """Draw the time of one step and the size of the matrices against d; a line marks where "auto" changes its route."""
    left, right = plt.subplots(1, 2, figsize=(9.8, 4.6), layout="constrained")[1]
    styles = {"usual formula": ("s-", PALETTE[3]), 'route="primal"': ("--", PALETTE[1]),
              'route="dual"': ("--", PALETTE[2]), 'route="auto"': ("o-", PALETTE[0])}
    for name, (style, color) in styles.items():
        left.plot(timings.index, 1e3 * timings[name], style, color=color, label=name, markersize=6)
    right.plot(timings.index, timings.index**2 * 4 / 2**20, "--", color=PALETTE[1], label="C  (primal, usual formula)")
    right.plot(timings.index, np.full(len(timings), 2 * batch**2 * 4 / 2**20), "--", color=PALETTE[2], label="two Grams  (dual)")
    left.set(title=f"time of one step, n = {batch}", ylabel="milliseconds")
    right.set(title="size of the matrices", ylabel="MiB (single precision)")
    for ax in (left, right):
        ax.axvline(switch, color="0.6", linewidth=1, label=f'"auto" changes, d = {switch}')
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="number of features d")
        ax.set_xticks(timings.index, [str(d) for d in timings.index])
        ax.tick_params(axis="x", labelsize="small")
        ax.legend(fontsize="small")


def minimize(loss, *views, steps=400):
    """Minimize a loss over the features by L-BFGS: over one view that both branches share, or over two views."""
    views = [view.clone().requires_grad_() for view in views]
    optimizer = torch.optim.LBFGS(
        views, max_iter=steps, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(views[0], views[-1])
        value.backward()
        return value

    optimizer.step(closure)
    with torch.no_grad():
        return cross_correlation(views[0], views[-1]), loss(views[0], views[-1]).item()


def descend(loss, steps):
    """Minimize a loss over the features; return (tr C / d, HSIC / d) at every step."""
    a, b = z_a.clone().requires_grad_(), z_b.clone().requires_grad_()
    optimizer = torch.optim.Adam([a, b], lr=0.01)
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(a, b).backward()
        now = cross_correlation(a, b).detach()
        path.append((now.trace() / d, now.square().sum() / d))
        optimizer.step()
    return torch.tensor(path)


def noise(d):
    return torch.randn(8 * d, d, dtype=torch.float64, generator=generator)


def value_and_gradient(loss, z):
    z = z.clone().requires_grad_()
    value = loss(z, z_b)
    return value.detach(), torch.autograd.grad(value, z)[0]


# %% [markdown]
# ## 1. Two views and the matrix between them
#
# Each column below is a pair: two views of one scene. The views of a pair share the handwritten digit and the background. Position,
# size and color of the digit are drawn anew for each view. A good representation keeps what the views share.

# %% alt="Nine pairs of scenes. The two views of a pair show the same digit on the same background, in other colors, sizes and positions."
n, d = 256, 16
image_a, image_b = DigitScenes("train").pairs(n, 0, shared=("digit", "background"))
plot_pairs(image_a, image_b, n=9);

# %% [markdown]
# A network maps an image to $d$ numbers, its **features**. Here an untrained network is enough: one random layer on a shrunken
# image, the same layer for both views. It gives two matrices, $Z_a$ for view A and $Z_b$ for view B. They have $n = 256$ rows, one for
# each image, and $d = 16$ columns, one for each feature. Row $b$ of both matrices belongs to the same pair.
#
# To **standardize** a column over the batch, subtract its mean and divide by its standard deviation (with $1/n$ in the variance).
# Call the standardized matrices $X$ and $Y$. The **cross-correlation matrix** is their product,
#
# $$C = \tfrac1n X^\top Y, \qquad C_{ij} = \text{correlation of feature } i \text{ of view A with feature } j
# \text{ of view B}.$$
#
# The cell computes the features and $C$. The next cell draws them.

# %%
generator = torch.Generator().manual_seed(1)
layer = torch.randn(3 * 8 * 8, d, generator=generator, dtype=torch.float64) / 192**0.5


def untrained_features(images):
    shrunk = torch.nn.functional.avg_pool2d(normalize(images), 4)
    return torch.tanh(shrunk.flatten(1).double() @ layer)


z_a, z_b = untrained_features(image_a), untrained_features(image_b)

x, y = standardize(z_a), standardize(z_b)
c = cross_correlation(z_a, z_b)
assert close(c, x.T @ y / n)

# %% alt="Left: scatter plot of feature 0 of view A against feature 0 of view B, close to a rising line. Right: heatmap of the 16 by 16 matrix C with a red diagonal and many colored entries beside it."
figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained")
left.plot(x[:, 0], y[:, 0], ".", color=PALETTE[0], alpha=0.6)
left.set(title=f"one entry: $C_{{00}}$ = {c[0, 0]:.2f}")
left.set(xlabel="feature 0 of view A", ylabel="feature 0 of view B")
plot_cross_correlation(c, right, title="all of C");

# %% [markdown]
# The left plot shows the data behind one entry of the right plot, one dot for each image. In the heatmap red is a positive and blue a
# negative correlation.
#
# The diagonal of $C$ says how well the views agree, feature by feature. The off-diagonal entries say whether different features carry
# the same information. In this untrained network many do. Barlow Twins pulls the diagonal to 1 and the other entries to 0.
#
# ## 2. HSIC: are images that are similar in one view similar in the other view?
#
# A **kernel** $k$ is a function that says how similar two inputs are. Compare all $n$ images of view A with each other. The result is
# an $n \times n$ matrix of similarities, the **Gram matrix** $K$ with entries $K_{bc} = k(x_b, x_c)$, where $x_b$ is row $b$ of $X$.
# View B gives a second Gram matrix $L$ with a kernel $l$.
#
# If the views depend on each other, images that are similar in A tend to be similar in B. The two Gram matrices then have similar
# patterns.
#
# To compare patterns and not overall levels, **center** both matrices: make every row and column sum to zero. In matrix notation
# this is $HKH$ with $H = I - \frac1n \mathbf 1 \mathbf 1^\top$, where $I$ is the identity and $\mathbf 1$ the column of $n$ ones.
# Multiplication by $H$ subtracts a mean. Then multiply the two centered matrices entry by entry and take the mean:
#
# $$\mathrm{HSIC} = \frac1{n^2}\sum_{b,c} (HKH)_{bc}\,(HLH)_{bc} = \frac1{n^2}\,\mathrm{tr}(K H L H).$$
#
# The **trace** $\mathrm{tr}$ is the sum of the diagonal. The two forms are equal because $\sum_{b,c} A_{bc} B_{bc} = \mathrm{tr}(AB)$ for
# symmetric matrices, and because centering twice is the same as centering once, $HH = H$.
#
# The heatmaps show the two centered matrices and their product. The images are sorted so that similar ones stand next to each other.
# Red is positive, blue is negative, and colors beyond the ends of a scale are cut off.

# %% alt="Three heatmaps over pairs of images: the centered Gram matrices of view A and view B, which have similar patterns of red and blue blocks, and their product, which is mostly red."
h = torch.eye(n, dtype=torch.float64) - 1 / n
order = torch.linalg.svd(x, full_matrices=False).U[:, 0].argsort()  # similar images together
gram_a, gram_b = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
agreement = gram_a * gram_b

axes = show_matrices(
    {"view A:  $HKH$": gram_a[order][:, order], "view B:  $HLH$": gram_b[order][:, order],
     "product, entry by entry": agreement[order][:, order]},
    "image", "image",
)

# %%
print(f"mean of the third heatmap: {agreement.mean():.10f}")
print(f"hsic(x, y) of the library: {hsic(x, y):.10f}")
assert close(agreement.mean(), hsic(x, y))
assert close(agreement.mean(), torch.trace(x @ x.T @ h @ y @ y.T @ h) / n**2)

# %% [markdown]
# A red entry in the third heatmap is a pair of scenes for which both views agree: they are more similar than average in both views,
# or less similar than average in both. HSIC is the mean of this heatmap. Red outweighs blue, so HSIC is positive.
#
# Now shuffle the rows of one view, so that the pairs no longer belong together. HSIC falls to a small value:

# %%
shuffled = y[torch.randperm(n, generator=generator)]
print(f"real pairs: HSIC = {hsic(x, y):.2f}     shuffled pairs: HSIC = {hsic(x, shuffled):.2f}")
assert hsic(x, shuffled) < 0.1 * hsic(x, y)

# %% [markdown]
# ### With the linear kernel HSIC is a function of $C$
#
# The simplest kernel is the scalar product, $k(x, x') = x^\top x'$, as in the heatmaps above. Then $K = XX^\top$ and $L = YY^\top$.
# The columns of $X$ and $Y$ have mean zero, so $H$ changes nothing. The trace of a product stays the same if you move its
# last factor to the front. Therefore
#
# $$\frac1{n^2}\mathrm{tr}(XX^\top\, YY^\top) = \frac1{n^2}\mathrm{tr}(Y^\top X\, X^\top Y)
# = \mathrm{tr}(C^\top C) = \sum_{i,j} C_{ij}^2 = \lVert C \rVert_F^2 ,$$
#
# where $\lVert C \rVert_F$ is the Frobenius norm of $C$, the root of the sum of its squared entries. The **mean** over the $n \times n$
# pairs of *images* equals the **sum** over the $d \times d$ squared correlations between *features*. In the titles $\circ$ is the product
# entry by entry.

# %% alt="Left: heatmap of the entrywise product of the centered Gram matrices, 256 by 256 images. Right: heatmap of the squared entries of C, 16 by 16 features."
both = {"images:  $HKH \\circ HLH$": agreement[order][:, order],
        "features:  $C \\circ C$": c.square()}
axes = show_matrices(both, "image", "image", size=3.8)
axes[1].set(xlabel="feature of view B", ylabel="feature of view A");

# %%
print(f"mean, left:    {agreement.mean():.10f}\nsum, right:    {c.square().sum():.10f}")
assert close(agreement.mean(), c.square().sum())
assert close(hsic(x, y, route="dual"), hsic(x, y, route="primal"))  # the library offers both ways

# %% [markdown]
# With the linear kernel HSIC measures correlation only. It can be 0 for variables that depend on each other without any linear
# trend (exercise 1). With other kernels, such as the Gaussian $k(x, x') = e^{-\lVert x - x'\rVert^2 / 2\sigma^2}$, HSIC detects every
# kind of dependence ([notebook 02](02_hsic_from_scratch.ipynb)). Barlow Twins, as published, is the linear case.
#
# ## 3. Where the negative pairs are
#
# *Contrastive* methods pull *positive* pairs (two views of one scene) together and push *negative* pairs (views of different scenes)
# apart. Barlow Twins forms no negative pairs. HSIC explains why it can still be called contrastive.
#
# The left plot shows the $n$ real pairs. The right plot shows all $n^2$ **permuted pairs**: every image of view A with every image
# of view B. If the views were independent, the real pairs would look like this.

# %% alt="Two scatter plots. The 64 real pairs lie along a rising line. The 4096 permuted pairs fill a grid without any trend."
plot_two_clouds(x, y, m=64)

# %% [markdown]
# The **maximum mean discrepancy** (MMD) measures how far apart the two point clouds are. Map every point to a vector, average the
# vectors of each cloud, and take the squared distance between the two averages. As
# $\lVert u - v\rVert^2 = u^\top u - 2u^\top v + v^\top v$, you need scalar products only, and a kernel can take their place. For two
# pairs $(x, y)$ and $(x', y')$ take $k(x, x')\,l(y, y')$:
#
# $$\mathrm{MMD}^2 = \operatorname{mean}\,(\text{real, real}) - 2\,\operatorname{mean}\,(\text{real, permuted})
# + \operatorname{mean}\,(\text{permuted, permuted}) .$$
#
# For example, "real, permuted" compares every real pair with every permuted pair. The next cell computes this directly from all
# permuted pairs of 48 images, for two kernels. The result equals HSIC.

# %%
m = 24 if FAST else 48
numbers = torch.arange(m)
real, permuted = numbers.repeat(2, 1), torch.cartesian_prod(numbers, numbers).T  # rows of A, of B


def similarity(gram_x, gram_y, these, those):
    """Return the similarities of pairs: the product of the similarities in A and in B."""
    return gram_x[these[0]][:, those[0]] * gram_y[these[1]][:, those[1]]


# %%
for name, kernel in {"linear": Linear(), "Gaussian": Gaussian(bandwidth=4.0)}.items():
    between = partial(similarity, kernel(x[:m]), kernel(y[:m]))
    mmd2 = between(real, real).mean() - 2 * between(real, permuted).mean()
    mmd2 += between(permuted, permuted).mean()
    direct = hsic(x[:m], y[:m], kernel, kernel)
    print(f"{name:>8} kernel:  MMD² {mmd2:.12f}   HSIC {direct:.12f}")
    assert close(mmd2, direct)

# %% [markdown]
# HSIC does not need the list of $n^2$ permuted pairs, because their mean factorizes: the mean of $x_b y_c^\top$ over *all* $b$ and
# $c$ is the mean of $x$ times the mean of $y$. Standardizing subtracts the two means, and so it subtracts the mean of all permuted
# pairs at once. (The division by the standard deviation only changes units.) **Centering takes the place of the negative pairs.**
#
# The heatmaps show this for the features before standardizing, each on its own color scale.

# %% alt="Three heatmaps over pairs of features: the mean product of real pairs, the mean product of all permuted pairs, and their difference, which has the pattern of C."
mean_of_pairs = z_a.T @ z_b / n
mean_of_negatives = torch.stack([torch.outer(a, b) for a in z_a[:m] for b in z_b[:m]]).mean(dim=0)
assert close(mean_of_negatives, torch.outer(z_a[:m].mean(dim=0), z_b[:m].mean(dim=0)))

# Pairs minus negatives, in units of standard deviations, is C.
contrast = mean_of_pairs - torch.outer(z_a.mean(dim=0), z_b.mean(dim=0))
deviations = (z.std(dim=0, correction=0) for z in (z_a, z_b))
assert close(contrast / torch.outer(*deviations), c)

show_matrices(
    {"pairs": mean_of_pairs,
     "negatives (all permuted pairs)": torch.outer(z_a.mean(dim=0), z_b.mean(dim=0)),
     "pairs − negatives": contrast},
    "feature of view B", "feature of view A", "mean product",
);

# %% [markdown]
# ## 4. The Barlow Twins loss from HSIC
#
# The Barlow Twins loss with a weight $\lambda > 0$ is
#
# $$L_{BT} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2 .$$
#
# The second sum runs over the off-diagonal entries. Over *all* entries the sum of squares is
# $\lVert C\rVert_F^2 = \mathrm{HSIC}(X, Y)$. Therefore
#
# $$L_{BT} = \sum_i (1 - C_{ii})^2 + \lambda \Bigl(\mathrm{HSIC}(X, Y) - \sum_i C_{ii}^2\Bigr).$$
#
# The diagonal does not need the full matrix: $C_{ii}$ is the mean over the rows of column $i$ of $X$ times column $i$ of $Y$. The
# next cell checks the value of the loss and its gradient.

# %%
weight = 5e-3  # the value of the Barlow Twins paper


def barlow_twins_from_hsic(z_a, z_b):
    x, y = standardize(z_a), standardize(z_b)
    diagonal = (x * y).mean(dim=0)
    return (1 - diagonal).square().sum() + weight * (hsic(x, y) - diagonal.square().sum())


library, gradient = value_and_gradient(BarlowTwinsLoss(weight), z_a)
rebuilt, rebuilt_gradient = value_and_gradient(barlow_twins_from_hsic, z_a)
print(f"BarlowTwinsLoss {library:.12f}\nfrom HSIC       {rebuilt:.12f}")
assert close(library, rebuilt) and close(gradient, rebuilt_gradient)

# %% [markdown]
# ### What the loss maximizes and minimizes
#
# Barlow Twins does not maximize HSIC between the views. The case $\lambda = 1$ shows this. Expand the square and use
# $\frac1n\lVert X - Y\rVert_F^2 = 2d - 2\,\mathrm{tr}\,C$, which holds because every column of $X$ and $Y$ has the squared length $n$:
#
# $$L_{BT}\big|_{\lambda = 1} = \mathrm{HSIC}(X, Y) + \tfrac1n \lVert X - Y \rVert_F^2 - d .$$
#
# HSIC has a plus sign, so it is **penalized**. The loss maximizes the alignment $\mathrm{tr}\,C$, the sum of the diagonal.
#
# The two terms are linked, because alignment requires some dependence:
# $\mathrm{HSIC} = \lVert C \rVert_F^2 \ge \sum_i C_{ii}^2 \ge (\mathrm{tr}\,C)^2 / d$. HSIC reaches this bound only if $C$ is a multiple
# of the identity. Barlow Twins asks for full alignment with the least dependence that allows it.
#
# The next cells check the formulas, minimize the loss over the features themselves (without a network) and draw the path for three
# values of $\lambda$. To the right the views agree better, and upwards they depend more strongly on each other.

# %%
distance = (x - y).square().sum() / n
assert close(distance, 2 * d - 2 * c.trace())
assert close(BarlowTwinsLoss(1.0)(z_a, z_b), hsic(x, y) + distance - d)


# %% alt="Curves in the plane of alignment and dependence for three values of lambda. All lead from the random layer to C = I, above the gray region that cannot be reached."
paths = {f"λ = {name}": descend(BarlowTwinsLoss(w), 150 if FAST else 600)
         for name, w in {"1": 1.0, f"1/{d}": 1 / d, "0.005": 5e-3}.items()}
plot_paths(paths)
for path in paths.values():
    assert (path[:, 1] >= path[:, 0] ** 2 - 1e-10).all()
    assert FAST or (path[-1] - 1).abs().max() < 0.05  # at the star
# Up or down at first: (alignment, dependence).
moves = {name: (path[5] - path[0]).sign().tolist() for name, path in paths.items()}
assert moves["λ = 1"] == [-1, -1] and moves["λ = 0.005"] == [1, 1]

# %% [markdown]
# Every path starts at the untrained features and ends at $C = I$. There the alignment is full and HSIC is as small as full alignment
# allows. With $\lambda = 1$ the dependence falls first, at the cost of some alignment. With $\lambda = 0.005$ the alignment rises first,
# and the dependence with it.
#
# Barlow Twins does maximize *another* dependence: that between the features and the **scene** they show. Stack both views into one
# matrix of $2n$ rows. Make a second matrix that says which scene each row shows: a one in column $b$ for scene $b$, and zeros elsewhere.
# With linear kernels the HSIC of these two matrices is $\frac{d + \mathrm{tr}\,C}{2n}$. It depends on the alignment only. Another method,
# SSL-HSIC (Li et al. 2021, arXiv 2106.08320), maximizes this dependence.
#
# In short: Barlow Twins makes the features depend on *which* scene they show, and keeps the features from repeating each other.

# %%
identity = torch.eye(n, dtype=torch.float64).repeat(2, 1)
with_identity = hsic(torch.cat([x, y]), identity)
print(f"HSIC(features, identity) {with_identity:.12f}")
print(f"(d + tr C) / 2n          {(d + c.trace()) / (2 * n):.12f}")
assert close(with_identity, (d + c.trace()) / (2 * n))

# %% [markdown]
# ## 5. HSIC_SSL: the same matrix with another target
#
# Tsai et al. (2021, arXiv 2104.13712) start from HSIC. Maximizing $\sum C_{ij}^2$ alone would allow $C_{ij} = +1$ everywhere, which
# means that all features are the same. They therefore fix the signs: $+1$ on the diagonal and $-1$ elsewhere,
#
# $$L_{HSIC} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i\ne j} (1 + C_{ij})^2, \qquad \lambda = \tfrac1d .$$
#
# Barlow Twins has the off-diagonal target 0, HSIC_SSL has the target $-1$. Expand $(1 + C_{ij})^2 = 1 + 2 C_{ij} + C_{ij}^2$ to see
# the complete difference:
#
# $$L_{HSIC} - L_{BT} = \lambda\bigl[\, d(d-1) + 2\,(\mathbf 1^\top C\, \mathbf 1 - \mathrm{tr}\,C)\,\bigr].$$
#
# This is a constant plus a linear function of $C$. Here $\mathbf 1$ is the column of $d$ ones, and $\mathbf 1^\top C\, \mathbf 1$ is
# the sum of all entries of $C$. It equals $\frac1n \sum_b s_b s'_b$, where $s_b$ is the *sum of all features* of image $b$ in view A
# and $s'_b$ the same sum in view B. So, apart from $\mathrm{tr}\,C$, the additional term depends only on the covariance of these two
# sums.

# %%
weight = 1 / d
barlow_twins, hsic_ssl = BarlowTwinsLoss(weight)(z_a, z_b), HSICSSLLoss(weight)(z_a, z_b)
feature_sums = (x.sum(dim=1) * y.sum(dim=1)).mean()
print(f"HSIC_SSL − Barlow Twins  {hsic_ssl - barlow_twins:.10f}")
assert close(feature_sums, c.sum())
assert close(hsic_ssl - barlow_twins, weight * (d * (d - 1) + 2 * (c.sum() - c.trace())))


# %% [markdown]
# The heatmaps show the derivative of each loss by the entries of $C$, and the difference of the two derivatives. Gradient descent makes
# red entries of $C$ smaller and blue entries larger.

# %% alt="Three heatmaps of the derivative of the loss by C: Barlow Twins, HSIC_SSL, and their difference, which is 0 on the diagonal and constant elsewhere."
def gradient_of_c(target):
    """Derivative of the loss with respect to each entry of C."""
    entries = c.clone().requires_grad_()
    off = entries - entries.diagonal().diag_embed()
    missed = (off - target).square().sum() - d * target**2  # the diagonal does not count
    ((1 - entries.diagonal()).square().sum() + weight * missed).backward()
    return entries.grad


pull_bt, pull_hsic = gradient_of_c(target=0), gradient_of_c(target=-1)
assert close(pull_hsic - pull_bt, 2 * weight * (1 - torch.eye(d, dtype=torch.float64)))
pulls = {"Barlow Twins": pull_bt, "HSIC_SSL": pull_hsic, "difference": pull_hsic - pull_bt}
show_matrices(pulls, "feature of view B", "feature of view A", "∂L / ∂C");

# %% [markdown]
# The two derivatives differ by the same $2\lambda = 0.125$ in every off-diagonal entry, and they are equal on the diagonal.
#
# ## 6. The target $-1$ cannot be reached
#
# Two vectors can point in opposite directions, with cosine $-1$. Three vectors cannot all be opposite to each other. The best they
# can do is an angle of $120°$, with cosine $-\frac12$. Correlations are cosines between columns, so the same holds for $d$ features:

# %% alt="Two opposite arrows, three arrows at angles of 120 degrees, and four arrows from the center to the corners of a tetrahedron."
axes = plt.subplots(1, 3, figsize=(8.6, 3.0), layout="constrained")[1]
titles = ("2: cosine −1", "3: cosine −1/2", "4: cosine −1/3")
for ax, count, title in zip(axes, (2, 3, 4), titles, strict=True):
    cosines = plot_arrows(ax, count, title)
    assert np.allclose(cosines[~np.eye(count, dtype=bool)], -1 / (count - 1))

# %% [markdown]
# The general rule follows from a variance. Suppose that both views give the same features, $X = Y$. Over the batch, the sum of all
# features of an image has the variance $\mathbf 1^\top C\,\mathbf 1$, and a variance is not negative. With ones on the diagonal,
#
# $$0 \le \mathbf 1^\top C\,\mathbf 1 = d + \sum_{i\neq j} C_{ij} \quad\Longrightarrow\quad
# \text{mean off-diagonal} \ge -\frac1{d-1} .$$
#
# For a given mean, a sum of squares is smallest if all entries are equal. So the loss is smallest when all off-diagonal entries equal
# this bound, which a batch of at least $d$ images allows. The features then form a **regular simplex**: all angles between them are equal, as for the arrows above. The loss is
#
# $$\lambda\, d\, (d-1)\Bigl(1 - \frac1{d-1}\Bigr)^2 = \lambda\, \frac{d\,(d-2)^2}{d-1} .$$
#
# The next cell checks the formula on features that form a simplex, with $\lambda = 1/d$. The cell after it searches for the minimum
# by gradients, without using the formula.

# %%
def simplex_features(n, d):
    """Return (n, d) features whose correlations are exactly -1/(d-1)."""
    z = torch.randn(n, d, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(z - z.mean(dim=0)).Q @ (torch.eye(d, dtype=torch.float64) - 1 / d)


def lower_bound(d):
    return (d - 2) ** 2 / (d - 1)  # with lambda = 1/d


for width in (3, 8, 32):
    z = simplex_features(8 * width, width)
    off = cross_correlation(z, z)[~torch.eye(width, dtype=torch.bool)]
    assert close(off, torch.full_like(off, -1 / (width - 1)))
    assert close(HSICSSLLoss()(z, z), torch.tensor(lower_bound(width), dtype=torch.float64))


# %%
rows = []
for width in (4, 8, 16) if FAST else (4, 8, 16, 32):
    found, value = minimize(HSICSSLLoss(), noise(width))
    off = (found.sum() - found.trace()).item() / (width * (width - 1))
    rows.append((width, value, lower_bound(width), off, -1 / (width - 1), width - 1))
    assert abs(value - lower_bound(width)) < 1e-4 and abs(off + 1 / (width - 1)) < 1e-4
columns = ["d", "loss found", "lower bound", "mean off-diagonal found", "-1/(d-1)",
           "loss at C = I"]
table = pd.DataFrame(rows, columns=columns).set_index("d")
table.round(5)

# %% alt="Left: the lower bound -1/(d-1) of the mean off-diagonal entry rises towards 0 as d grows, and the values found by the search lie on it. Right: the loss per feature at the bound, at C = I, and found by the search."
plot_bound(table)

# %% [markdown]
# The dots are the minima that the search found. They lie on the formulas. Networks have hundreds of features, and then $-\frac1{d-1}$ is
# close to 0: the entries of $C$ at the minimum of HSIC_SSL differ from those at $C = I$, the minimum of Barlow Twins, by $\frac1{d-1}$
# only. This is one reason why the two losses perform about equally well, as Tsai et al. (2021) report.
#
# ### Two different branches can go below the bound
#
# The bound assumes $X = Y$. (It also holds on average if one network sees both views, and both are distorted in the same way.) If each
# view has free features of its own, $\mathbf 1^\top C\,\mathbf 1$ is the covariance of two different sums and can be negative. HSIC_SSL
# then falls below its bound: if the sum of the features is large in one view, it is small in the other, and the alignment gets worse.
#
# Barlow Twins does not have this problem. Its minimum is 0 at $C = I$, whether the two branches are shared or free.

# %% alt="Heatmaps of C with 8 features. HSIC_SSL with shared branches has a diagonal of 1 and slightly negative other entries; with free branches the diagonal is lower and the other entries are more negative; Barlow Twins gives the identity."
width = 8
shared, shared_loss = minimize(HSICSSLLoss(), noise(width))
free, free_loss = minimize(HSICSSLLoss(), noise(width), noise(width), steps=2000)
plain, plain_loss = minimize(BarlowTwinsLoss(1 / width), noise(width), noise(width), steps=2000)
compare_cross_correlations(
    {"HSIC_SSL, shared": shared, "HSIC_SSL, free": free, "Barlow Twins, free": plain}
);

# %% [markdown]
# For free branches the minimum has a closed form too. [Notebook 07](07_the_minus_one_target.ipynb), section 3, derives it. The cell
# compares it with the search. Its diagonal and off-diagonal entries follow from $r$, the correlation of two features within one view.

# %%
r = (width**2 - 8 * width + 4) / (5 * width**2 - 8 * width + 4)
on, off = (width - 2 - 2 * (width - 1) * r) / width, -(2 + (width - 2) * r) / width
closed_form = width * (1 - on) ** 2 + (width - 1) * (1 + off) ** 2
print(f"HSIC_SSL, shared:   loss {shared_loss:.5f}  1'C1 = {abs(shared.sum()):+.3f}\n"
      f"HSIC_SSL, free:     loss {free_loss:.5f}  1'C1 = {free.sum():+.3f}\n"
      f"    closed form:    loss {closed_form:.5f}\n"
      f"Barlow Twins, free: loss {plain_loss:.5f}  1'C1 = {plain.sum():+.3f}")
assert abs(shared.sum()) < 1e-4  # a variance, 0 but for rounding
assert free_loss < lower_bound(width) and abs(free_loss - closed_form) < 1e-4
assert plain_loss < 1e-4 and abs(free.trace() / width - on) < 1e-3
assert close(HSICSSLLoss().terms(z_a, z_b)["feature_sum"], 2 / d * (c.sum() - c.trace()))

# %% [markdown]
# If you train HSIC_SSL with two different networks, or distort the two views in different ways, watch $\mathbf 1^\top C\,\mathbf 1$.
# A clearly negative value shows that the training uses this weakness. `feature_sum_covariance` of `hsic_lab.diagnostics` computes it.
#
# The loss contains it, too: the term `HSICSSLLoss().terms(z_a, z_b)["feature_sum"]` is the linear part of section 5,
# $2\lambda\,(\mathbf 1^\top C\,\mathbf 1 - \mathrm{tr}\,C)$. Do not watch the sign of this *term*, because it also contains
# $-\mathrm{tr}\,C$. At $C = I$ the sum of all entries is $d$ and the term is 0. With shared branches it can go down to
# $-2\lambda\,\mathrm{tr}\,C$, and below this only if $\mathbf 1^\top C\,\mathbf 1 < 0$.
#
# ## 7. A faster way to compute the loss
#
# The Barlow Twins paper uses $d = 8192$ features, and the usual code forms all $8192^2$ correlations. Sections 2 and 4 show that this is
# not necessary: the off-diagonal sum is HSIC minus the squared diagonal, and HSIC can be computed in two ways.
#
# | route | forms | multiplications | numbers in the matrices |
# |---|---|---|---|
# | primal (features) | $C$, once | $n\,d^2$ | $d^2$ |
# | dual (images) | $XX^\top$ and $YY^\top$ | $2\,n^2 d$ | $2\,n^2$ |
#
# So the dual route needs fewer multiplications for the loss if $d > 2n$. Training also needs the gradient. With it the primal route
# takes $3\,n\,d^2$ multiplications and the dual route $4\,n^2 d$, and the dual route needs fewer if $d > \frac43 n$. The results are the
# same up to rounding.
#
# `route="auto"`, the default of the library, takes the faster route. It counts $3\,n\,d^2$ multiplications for the primal route, and
# $4\,n^2 d + 200\,n\,d$ for the dual route. The last term stands for the other work of the dual route: about 200 multiplications for each of
# the $n\,d$ entries of a view. So it takes the dual route if $3d > 4n + 200$. The cells check this and that both routes agree, and measure
# their time.

# %%
for loss in (BarlowTwinsLoss, HSICSSLLoss):
    primal, primal_gradient = value_and_gradient(loss(route="primal"), z_a)
    dual, dual_gradient = value_and_gradient(loss(route="dual"), z_a)
    assert close(primal, dual) and close(primal_gradient, dual_gradient)


def usual_formula(z_a, z_b, weight=5e-3):
    """Compute Barlow Twins as it is commonly written: form C, square its off-diagonal entries."""
    n, d = z_a.shape
    c = standardize(z_a).T @ standardize(z_b) / n
    off = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]
    return (1 - c.diagonal()).square().sum() + weight * off.square().sum()


# %%
def seconds(loss, n, d, budget=0.1 if FAST else 0.5):
    """Return the shortest CPU time of a forward and backward pass in single precision."""
    views = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]
    taken = []
    while len(taken) < 2 or sum(taken) < budget:
        start = time.process_time()  # of this process, so that other programs matter less
        torch.autograd.grad(loss(*views), views)
        taken.append(time.process_time() - start)
    return min(taken)


# %% tags=["hide-input"] jupyter={"source_hidden": true}
torch.set_num_threads(1)
batch = 64 if FAST else 256
switch = (4 * batch + 200) // 3  # the largest d of the primal route
assert FAST or switch == 408
for width, route in ((switch, "primal"), (switch + 1, "dual")):
    views = [torch.randn(batch, width, generator=generator).requires_grad_() for _ in range(2)]
    given = {r: torch.autograd.grad(BarlowTwinsLoss(route=r)(*views), views)[0] for r in ("auto", "primal", "dual")}
    assert torch.equal(given["auto"], given[route])  # the same down to the last digit
    assert not torch.equal(given["primal"], given["dual"])

losses = {
    "usual formula": usual_formula,
    'route="primal"': BarlowTwinsLoss(route="primal"),
    'route="dual"': BarlowTwinsLoss(route="dual"),
    'route="auto"': BarlowTwinsLoss(),
}
timings = pd.DataFrame(
    [{"d": d, "formula": name, "seconds": seconds(loss, batch, d)}
     for d in ([64, 128, 256, 512] if FAST else [128, 256, 512, 1024, 2048, 4096, 8192])
     for name, loss in losses.items()]
).pivot(index="d", columns="formula", values="seconds")[list(losses)]

# %% alt="Left: time of one step of the loss against the number of features d on logarithmic axes; the usual formula and the primal route grow fastest. The automatic route follows the primal route to the left of a vertical line at d = 408, and the dual route to its right. Right: size of the matrices; C grows with d squared, the two Gram matrices stay constant."
plot_timings(timings, batch, switch)

# %%
largest = timings.iloc[-1]
speedup = largest["usual formula"] / largest['route="auto"']
print(f"d = {timings.index[-1]}, n = {batch}, one CPU thread:")
print(f"the automatic route is {speedup:.0f} times as fast as the usual formula")

# %%
timings.map(lambda t: f"{1e3 * t:.2f} ms")

# %% [markdown]
# Both axes are logarithmic. The vertical line marks $d = 408$: up to there `"auto"` takes the primal route, and beyond it the dual route.
# For large $d$ the usual formula is the slowest, because its cost grows with $d^2$ and that of the dual route with $d$. The times are CPU
# times of one thread. They depend on the computer: read the trend. The values and gradients are the same on both routes.
#
# ## Summary
#
# * With standardized features and linear kernels, $\mathrm{HSIC} = \lVert C\rVert_F^2$: a mean over pairs of images is a sum over
#   pairs of features.
# * HSIC compares real pairs with all permuted pairs. Centering the batch takes the place of negative pairs.
# * Barlow Twins maximizes the alignment $\mathrm{tr}\,C$ and *penalizes* HSIC between the views.
# * HSIC_SSL adds one linear term. Its target $-1$ cannot be reached. At its minimum for equal views
#   ($n \ge d$) the off-diagonal entries are $-\frac1{d-1}$.
# * The exact loss costs $n \cdot d \cdot \min(n, d)$ multiplications, up to a small factor.
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. **Nonlinear dependence.** Let `x = torch.linspace(-1, 1, 500)[:, None]` and `y = x**2`. Compare HSIC of the real pairs with
#    HSIC of shuffled pairs, with the linear and with the Gaussian kernel. What does this say about the features that Barlow Twins
#    can decorrelate?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The linear kernel does not tell the pairs from shuffled ones: y depends on x, but not along a line. The Gaussian kernel
# does. So features that Barlow Twins has decorrelated can still depend on each other.
u = torch.linspace(-1, 1, 500, dtype=torch.float64)[:, None]
v, ratios = standardize(u**2), {}
for name, kernel in {"linear": None, "Gaussian": Gaussian()}.items():
    shuffles = [hsic(u, v[torch.randperm(500, generator=generator)], kernel, kernel) for _ in range(50)]
    ratios[name] = (hsic(u, v, kernel, kernel) / torch.stack(shuffles).mean()).item()
for name, ratio in ratios.items():
    print(f"{name} kernel: {ratio:.1f} times the mean of the shuffled pairs")
assert ratios["Gaussian"] > 20 and ratios["linear"] < 1e-10

# %% [markdown]
# 2. **Expected value under independence.** For independent features the mean of $\mathrm{HSIC} = \sum C_{ij}^2$ in a batch is $d^2/(n-1)$.
#    Check this for $n = 128$, $d = 32$ over 200 draws. Then pass `estimator="unbiased"` to `hsic`. What is the mean now?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The mean of the biased estimator follows the formula; that of the unbiased one is near 0.
values = {"biased": [], "unbiased": []}
for _ in range(200):
    u, v = (standardize(torch.randn(128, 32, generator=generator, dtype=torch.float64)) for _ in range(2))
    for estimator, found in values.items():
        found.append(hsic(u, v, estimator=estimator).item())
for name, found in values.items():
    print(f"{name:8} mean {np.mean(found):.3f}, standard error {np.std(found) / 200**0.5:.3f}")
print(f"formula       {32**2 / 127:.3f}")
assert abs(np.mean(values["biased"]) - 32**2 / 127) < 4 * np.std(values["biased"]) / 200**0.5
assert abs(np.mean(values["unbiased"])) < 0.05 * np.mean(values["biased"])

# %% [markdown]
# 3. **Another target.** `HSICSSLLoss(off_diagonal_target=t)` takes any off-diagonal target. Which $t$ can be reached exactly if
#    $X = Y$? Predict the lower bound for $t = +0.5$ and $t = -0.5$ with $d = 8$, then run `minimize`.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Every t from -1/(d-1) to 1. For a lower t the mean entry stays at -1/(d-1), and each entry misses by the rest.
for target in (0.5, -0.5):
    predicted = 7 * (max(target, -1 / 7) - target) ** 2  # lambda = 1/d, d (d - 1) entries
    found = minimize(HSICSSLLoss(off_diagonal_target=target), noise(8))[1]
    print(f"t = {target:+}: predicted {predicted:.5f}, found {found:.5f}")
    assert abs(found - predicted) < 1e-4

# %% [markdown]
# 4. **Free branches with many features.** Which values do the diagonal and the off-diagonal of $C$ approach as $d$ grows? Use the closed
#    form of section 6.

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# r tends to 1/5, so the diagonal tends to 3/5 and the off-diagonal to -1/5.
d_large = 10_000
r = (d_large**2 - 8 * d_large + 4) / (5 * d_large**2 - 8 * d_large + 4)
limits = (d_large - 2 - 2 * (d_large - 1) * r) / d_large, -(2 + (d_large - 2) * r) / d_large
print(f"d = {d_large}: diagonal {limits[0]:.4f}, off-diagonal {limits[1]:.4f}")
assert abs(limits[0] - 0.6) < 1e-3 and abs(limits[1] + 0.2) < 1e-3

# %% [markdown]
# 5. **Multiplications.** At which $d$ do the two routes need the same number of multiplications for a batch of $n$, without and with the
#    gradient? Where do the measured times of section 7 cross?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# n d^2 = 2 n^2 d at d = 2 n, and 3 n d^2 = 4 n^2 d at d = 4 n / 3. The measured times have the gradient in them, and
# contain other work, too: matrix products of different shapes run at different speeds.
def equal(primal, dual):
    return next(d for d in range(1, 4 * batch) if primal * batch * d**2 >= dual * batch**2 * d)


print(f"n = {batch}: equal at d = {equal(1, 2)} without the gradient, and {equal(3, 4)} with it")
primal_slower = timings['route="primal"'] > timings['route="dual"']
print("measured: primal faster for d =", *timings.index[~primal_slower])
print("measured: dual faster for d =", *timings.index[primal_slower])
assert equal(1, 2) == 2 * batch and equal(3, 4) == -(-4 * batch // 3)

# %% [markdown]
# **Next:** [02 HSIC from scratch](02_hsic_from_scratch.ipynb) shows what HSIC detects that correlation misses, and when it is significant.
