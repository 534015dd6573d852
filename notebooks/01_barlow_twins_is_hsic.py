# %% [markdown]
# # Barlow Twins is a statement about HSIC
#
# Barlow Twins trains a network on pairs of distorted images. It correlates every feature of one view with every
# feature of the other and pushes that matrix towards the identity. HSIC, the Hilbert-Schmidt Independence Criterion,
# is a number from statistics that says how strongly two samples depend on each other. This notebook shows, step by
# step, that the first is built from the second, and what follows.
#
# **What you will see**
#
# 1. HSIC as the average of a image, and the same number as the squared entries of the cross-correlation matrix $C$.
# 2. Why HSIC compares real pairs with *all* permutations, so that negative examples come for free.
# 3. Barlow Twins taken apart into HSIC pieces, and which of them it pushes up and which down.
# 4. HSIC_SSL, the variant with the target $-1$: what is different, why $-1$ is out of reach, what is reached instead.
# 5. A practical gain: the exact Barlow Twins loss without ever forming the $d \times d$ matrix, timed.
#
# **What you need**: a first course in machine learning (mean, variance, correlation, gradient, matrix product).
# Nothing is downloaded. Every identity below is also a line of code that asserts it, in double precision, to
# $10^{-10}$: if a formula on this page were wrong, the page would not have been built.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # smaller problems for a quick check: same cells, same assertions

# %%
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes
from hsic_lab.hsic import hsic
from hsic_lab.kernels import Gaussian
from hsic_lab.losses import BarlowTwinsLoss, HSICSSLLoss
from hsic_lab.plots import compare_cross_correlations, plot_cross_correlation, plot_pairs, set_theme
from hsic_lab.plots._canvas import DIVERGING, PALETTE
from hsic_lab.views import normalize

set_theme()
close = partial(torch.allclose, rtol=1e-10, atol=1e-10)  # "equal", on this page


def show_matrices(panels, xlabel, ylabel, size=3.5):
    """Matrices side by side, each on its own color scale centered at 0: red is positive, blue is negative."""
    figure, axes = plt.subplots(1, len(panels), figsize=(size * len(panels) + 0.6, size), layout="constrained")
    for ax, (title, matrix) in zip(axes, panels.items(), strict=True):
        limit = matrix.abs().quantile(0.99).item()
        image = ax.imshow(matrix, cmap=DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(title, fontsize="medium")
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.locator_params(nbins=5, integer=True)
        figure.colorbar(image, ax=ax, shrink=0.5)
    return axes


# %% [markdown]
# ## 1. Two views, and the matrix between them
#
# Each column below is a pair: two views of one scene. A pair shares its handwritten digit and its background;
# position, size and color of the digit are drawn anew. What a good representation should keep is what the two share.

# %%
n, d = 256, 16
image_a, image_b = DigitScenes("train").pairs(n, 0, shared=("digit", "background"))
plot_pairs(image_a, image_b, n=9);

# %% [markdown]
# A network turns a image into $d$ numbers, its **features**. Here an untrained one will do: one random layer on a
# shrunken image, the
# same for both views. The result is two tables, $Z_a$ for view A and $Z_b$ for view B, with $n$ rows (one a image)
# and $d$ columns (one a feature). Row $b$ of both tables belongs to the same pair.
#
# **Standardizing** a column over the batch means subtracting its mean and dividing by its standard deviation (with
# $1/n$). Call the standardized tables $X$ and $Y$. The **cross-correlation matrix** is then a single product,
#
# $$C = \tfrac1n X^\top Y, \qquad C_{ij} = \text{correlation of feature } i \text{ of view A with feature } j
# \text{ of view B}.$$

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

figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained")
left.plot(x[:, 0], y[:, 0], ".", color=PALETTE[0], alpha=0.6)
left.set(title=f"one entry: $C_{{00}}$ = {c[0, 0]:.2f}", xlabel="feature 0 of view A", ylabel="feature 0 of view B")
plot_cross_correlation(c, right, title="all of C");

# %% [markdown]
# The left image is one pixel of the right one. The diagonal asks whether the views *agree*, feature by feature. The
# rest asks whether different features tell *the same* story; in an untrained network many do. Barlow Twins wants the
# diagonal at 1 and the rest at 0.
#
# ## 2. HSIC: are similar images similar in the other view, too?
#
# Forget features for a moment. A **kernel** $k$ is a rule that says how similar two images are. Compare all $n$
# images of view A with one another and you get an $n \times n$ table of similarities, the **Gram matrix** $K$, with
# $K_{bc} = k(x_b, x_c)$. View B gives a second one, $L$. If the views depend on each other, then images that are
# alike in A tend to be alike in B: the two tables have the same pattern.
#
# To compare patterns and not overall levels, make every row and column of both tables sum to zero. In matrices that is
# $HKH$ with $H = I - \frac1n \mathbf 1 \mathbf 1^\top$, where $\mathbf 1$ is the column of $n$ ones: multiplying by $H$
# subtracts a mean. Then multiply the two images pixel by pixel and take the average:
#
# $$\mathrm{HSIC} = \frac1{n^2}\sum_{b,c} (HKH)_{bc}\,(HLH)_{bc} = \frac1{n^2}\,\mathrm{tr}(K H L H).$$

# %%
h = torch.eye(n, dtype=torch.float64) - 1 / n
order = torch.linalg.svd(x, full_matrices=False).U[:, 0].argsort()  # similar images next to each other: for the eye
gram_a, gram_b = h @ (x @ x.T) @ h, h @ (y @ y.T) @ h
agreement = gram_a * gram_b

axes = show_matrices(
    {"view A:  $HKH$": gram_a[order][:, order], "view B:  $HLH$": gram_b[order][:, order],
     "product, pixel by pixel": agreement[order][:, order]},
    "image", "image",
)
print(f"average of the third image: {agreement.mean():.10f}\nhsic(x, y) of the library:    {hsic(x, y):.10f}")
assert close(agreement.mean(), hsic(x, y))
assert close(agreement.mean(), torch.trace(x @ x.T @ h @ y @ y.T @ h) / n**2)

# %% [markdown]
# Red in the third image: two scenes whose likeness (or unlikeness) in view A is confirmed by view B. It is mostly
# red, so HSIC is positive. Shuffle the rows of one view, so that nothing belongs together any more, and the agreement
# is gone:

# %%
shuffled = y[torch.randperm(n, generator=generator)]
print(f"real pairs: HSIC = {hsic(x, y):.2f}     shuffled pairs: HSIC = {hsic(x, shuffled):.2f}")
assert hsic(x, shuffled) < 0.1 * hsic(x, y)

# %% [markdown]
# ### The linear kernel turns HSIC into $C$
#
# The simplest similarity is the dot product, $k(x, x') = x^\top x'$, as in the images above. Then $K = XX^\top$ and
# $L = YY^\top$; and since the columns of $X$ and $Y$ have mean zero already, $H$ changes nothing. A trace
# does not care where a product begins, so
#
# $$\frac1{n^2}\mathrm{tr}(XX^\top\, YY^\top) = \frac1{n^2}\mathrm{tr}(Y^\top X\, X^\top Y)
# = \mathrm{tr}(C^\top C) = \sum_{i,j} C_{ij}^2 = \lVert C \rVert_F^2 .$$
#
# The **average** over the $n \times n$ agreements between *images* is the **sum** over the $d \times d$ squared
# correlations between *features*. It is one number, looked at from two sides.

# %%
axes = show_matrices(
    {"images:  $HKH \\circ HLH$": agreement[order][:, order], "features:  $C \\circ C$": c.square()}, "", "", size=3.8
)
axes[0].set(xlabel="image", ylabel="image")
axes[1].set(xlabel="feature of view B", ylabel="feature of view A")
print(f"average, left: {agreement.mean():.10f}\nsum, right:    {c.square().sum():.10f}")

assert close(agreement.mean(), c.square().sum())
assert close(hsic(x, y, route="dual"), hsic(x, y, route="primal"))  # the library knows both sides

# %% [markdown]
# A word of care. With the linear kernel HSIC sees correlation only: it can be 0 for variables that depend on each
# other in a way that no straight line shows. Kernels such as the Gaussian see every dependence. Barlow Twins, as
# published, is the linear case.
#
# ## 3. Where the negatives are
#
# Contrastive methods show a network *positive* pairs (two views of one scene) and *negative* pairs (views of different
# scenes). Barlow Twins never forms a negative pair. HSIC explains why it may still be called contrastive.
# Left, the $n$ real pairs. Right, all $n^2$ **permutations**: every image of view A with every image of view B,
# which is what the pairs would look like if the views were independent.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 4.2), sharex=True, sharey=True, layout="constrained")
m = 64
axes[0].plot(x[:m, 0], y[:m, 0], ".", color=PALETTE[0])
axes[0].set(title=f"{m} real pairs $(x_b, y_b)$", xlabel="feature 0 of view A", ylabel="feature 0 of view B")
axes[1].plot(x[:m, 0].repeat_interleave(m), y[:m, 0].repeat(m), ".", color=PALETTE[3], alpha=0.35, markersize=3)
axes[1].set(title=f"all {m * m} permutations $(x_b, y_c)$", xlabel="feature 0 of view A");

# %% [markdown]
# How far apart are the two clouds? The **maximum mean discrepancy** (MMD) answers with a kernel: map every point into
# a space of features, average each cloud there, and take the squared distance between the two averages. For a pair,
# the natural similarity is the product $k(x, x')\,l(y, y')$. Written out with averages over
# all members of each cloud (the *V-statistic*),
#
# $$\mathrm{MMD}^2 = \underbrace{\operatorname{mean}\,(\text{real, real})}_{\text{pairs among themselves}}
# - 2\,\underbrace{\operatorname{mean}\,(\text{real, permuted})}_{\text{pairs against negatives}}
# + \underbrace{\operatorname{mean}\,(\text{permuted, permuted})}_{\text{negatives among themselves}} .$$
#
# The next cell computes this by brute force, with all $n^2$ permutations listed one by one, for two kernels. It is
# HSIC, exactly, whatever the kernel.

# %%
m = 24 if FAST else 48
real = torch.arange(m).repeat(2, 1)  # which row of A, which row of B
repaired = torch.cartesian_prod(torch.arange(m), torch.arange(m)).T


def similarity(gram_x, gram_y, these, those):
    """Kernel between the pairs `these` and the pairs `those`: the product of the similarities in A and in B."""
    return gram_x[these[0]][:, those[0]] * gram_y[these[1]][:, those[1]]


for name, kernel in {"linear": lambda z: z @ z.T, "Gaussian": Gaussian(bandwidth=4.0)}.items():
    between = partial(similarity, kernel(x[:m]), kernel(y[:m]))
    mmd2 = between(real, real).mean() - 2 * between(real, repaired).mean() + between(repaired, repaired).mean()
    chosen = None if name == "linear" else kernel
    direct = hsic(x[:m], y[:m], chosen, chosen)
    print(f"{name:>8}:  MMD² over {m} pairs and {m * m} permutations {mmd2:.12f}   HSIC {direct:.12f}")
    assert close(mmd2, direct)

# %% [markdown]
# HSIC needs none of the $n^2$ permutations, because their average factorises: the mean of $x_b y_c^\top$ over *all* $b$
# and $c$ is the mean of $x$ times the mean of $y$. Standardizing subtracts the means (the rest is a change of units),
# and with them it subtracts every negative at once.
# **Centring supplies the negatives.**

# %%
pairs_on_average = z_a.T @ z_b / n
negatives_on_average = torch.stack([torch.outer(a, b) for a in z_a[:m] for b in z_b[:m]]).mean(dim=0)
assert close(negatives_on_average, torch.outer(z_a[:m].mean(dim=0), z_b[:m].mean(dim=0)))

# Pairs minus negatives, in units of standard deviations, is C.
contrast = pairs_on_average - torch.outer(z_a.mean(dim=0), z_b.mean(dim=0))
assert close(contrast / torch.outer(z_a.std(dim=0, correction=0), z_b.std(dim=0, correction=0)), c)

show_matrices(
    {"pairs": pairs_on_average,
     "negatives (all permutations)": torch.outer(z_a.mean(dim=0), z_b.mean(dim=0)),
     "pairs − negatives": contrast},
    "feature of view B", "feature of view A",
);

# %% [markdown]
# ## 4. Barlow Twins, rebuilt from HSIC
#
# The Barlow Twins loss, with a weight $\lambda > 0$:
#
# $$L_{BT} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \neq j} C_{ij}^2 .$$
#
# The second sum runs over the off-diagonal. Over *all* entries it would be $\lVert C\rVert_F^2 = \mathrm{HSIC}$; so
#
# $$L_{BT} = \sum_i (1 - C_{ii})^2 + \lambda \Bigl(\mathrm{HSIC}(X, Y) - \sum_i C_{ii}^2\Bigr).$$
#
# The diagonal needs no matrix: $C_{ii}$ is the average of one column of $X$ times one column of $Y$. The cell checks
# the value and the gradient, which is what training uses.

# %%
weight = 5e-3  # the value of the Barlow Twins paper


def barlow_twins_from_hsic(z_a, z_b):
    x, y = standardize(z_a), standardize(z_b)
    diagonal = (x * y).mean(dim=0)
    return (1 - diagonal).square().sum() + weight * (hsic(x, y) - diagonal.square().sum())


def value_and_gradient(loss, z):
    z = z.clone().requires_grad_()
    value = loss(z, z_b)
    return value.detach(), torch.autograd.grad(value, z)[0]


library, gradient = value_and_gradient(BarlowTwinsLoss(weight), z_a)
rebuilt, rebuilt_gradient = value_and_gradient(barlow_twins_from_hsic, z_a)
print(f"BarlowTwinsLoss {library:.12f}\nfrom HSIC       {rebuilt:.12f}")
assert close(library, rebuilt) and close(gradient, rebuilt_gradient)

# %% [markdown]
# ### What goes up, what goes down
#
# It is tempting to say that Barlow Twins maximizes HSIC between the views. It does not, and at $\lambda = 1$ one line
# shows it. Expanding the square and using $\frac1n\lVert X - Y\rVert_F^2 = 2d - 2\,\mathrm{tr}\,C$,
#
# $$L_{BT}\big|_{\lambda = 1} = \mathrm{HSIC}(X, Y) + \tfrac1n \lVert X - Y \rVert_F^2 - d .$$
#
# HSIC stands there with a plus: it is **penalized**. What is maximized is the alignment $\mathrm{tr}\,C$, the sum of
# the diagonal. The two interact: agreement forces some dependence, because
# $\mathrm{HSIC} = \lVert C \rVert_F^2 \ge \sum_i C_{ii}^2 \ge (\mathrm{tr}\,C)^2 / d$, with equality only where $C$
# is a multiple of the identity. Barlow Twins asks for full alignment, and for no more dependence than that takes.

# %%
distance = (x - y).square().sum() / n
assert close(distance, 2 * d - 2 * c.trace())
assert close(BarlowTwinsLoss(1.0)(z_a, z_b), hsic(x, y) + distance - d)


def descend(loss, steps):
    """Gradient descent on the features themselves; (tr C / d, HSIC / d) along the way."""
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


paths = {f"λ = {name}": descend(BarlowTwinsLoss(w), 150 if FAST else 600)
         for name, w in {"1": 1.0, "1/16": 1 / d, "0.005": 5e-3}.items()}

figure, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
alignment = np.linspace(0.4, 1, 100)
ax.fill_between(alignment, alignment**2, color="0.9", label="impossible: HSIC < (tr C)² / d")
for (label, path), color in zip(paths.items(), PALETTE, strict=False):
    ax.plot(path[:, 0], path[:, 1], color=color, label=label)
    assert (path[:, 1] >= path[:, 0] ** 2 - 1e-10).all()
ax.plot(*path[0], "o", color="0.2", markersize=8, label="start: the random layer")
ax.plot(1, 1, "*", color="0.2", markersize=14, label="C = I")
ax.set(xlabel="alignment  tr C / d", ylabel="dependence  HSIC / d", xlim=(0.4, 1.03), ylim=(0, None),
       title="where Barlow Twins takes the features")
ax.legend(loc="upper left", bbox_to_anchor=(1, 1));

# %% [markdown]
# Every path begins at the untrained features and heads for $C = I$, the one corner where alignment is full and HSIC as
# small as it can be there. With
# $\lambda = 1$ dependence is shed first, even at the price of some alignment; a small $\lambda$ aligns first.
#
# So in which sense is dependence *raised*? Between the features and the **identity** of the scene. Put both views
# into one table of $2n$ rows, and beside it a table that says which scene each row shows (a one in column $b$ for
# scene $b$). With linear kernels the HSIC of these two tables is $\frac{d + \mathrm{tr}\,C}{2n}$: it grows with the
# alignment and with nothing else. This is the dependence that SSL-HSIC (Li et al. 2021, arXiv 2106.08320) maximizes.
# Barlow Twins makes the features depend on *which* scene they show, while the features repeat each other as little as
# possible.

# %%
identity = torch.eye(n, dtype=torch.float64).repeat(2, 1)
about_identity = hsic(torch.cat([x, y]), identity)
print(f"HSIC(features, identity) {about_identity:.12f}   (d + tr C) / 2n {(d + c.trace()) / (2 * n):.12f}")
assert close(about_identity, (d + c.trace()) / (2 * n))

# %% [markdown]
# ## 5. HSIC_SSL: the same matrix, another target
#
# Tsai, Bai, Morency and Salakhutdinov (2021, arXiv 2104.13712) start from HSIC. Making
# $\sum C_{ij}^2$ large alone would accept $C_{ij} = +1$ everywhere, all features the same. They fix the signs: $+1$
# on the diagonal and $-1$ elsewhere,
#
# $$L_{HSIC} = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i\ne j} (1 + C_{ij})^2, \qquad \lambda = \tfrac1d .$$
#
# Barlow Twins asks for 0 off the diagonal, HSIC_SSL for $-1$. Expanding $(1 + C_{ij})^2 = 1 + 2 C_{ij} + C_{ij}^2$
# shows the whole difference:
#
# $$L_{HSIC} - L_{BT} = \lambda\bigl[\, d(d-1) + 2\,(\mathbf 1^\top C\, \mathbf 1 - \mathrm{tr}\,C)\,\bigr].$$
#
# A constant, and one linear function of $C$. Here $\mathbf 1^\top C \mathbf 1 = \frac1n \sum_b s_b s'_b$, where $s_b$
# is the *sum of all features* of image $b$ in view A and $s'_b$ the same in view B: of all $d^2$ entries,
# only the covariance of these two numbers matters (the matrix $\mathbf 1\mathbf 1^\top$ it is read with has rank one).

# %%
weight = 1 / d
barlow_twins, hsic_ssl = BarlowTwinsLoss(weight)(z_a, z_b), HSICSSLLoss(weight)(z_a, z_b)
feature_sums = (x.sum(dim=1) * y.sum(dim=1)).mean()
print(f"HSIC_SSL − Barlow Twins  {hsic_ssl - barlow_twins:.10f}")
assert close(feature_sums, c.sum())
assert close(hsic_ssl - barlow_twins, weight * (d * (d - 1) + 2 * (c.sum() - c.trace())))


def gradient_of_c(target):
    """Derivative of the loss with respect to each entry of C."""
    entries = c.clone().requires_grad_()
    off = entries - entries.diagonal().diag_embed()
    away = (off - target).square().sum() - d * target**2  # the diagonal of `off` is 0 and does not count
    ((1 - entries.diagonal()).square().sum() + weight * away).backward()
    return entries.grad


pull_bt, pull_hsic = gradient_of_c(target=0), gradient_of_c(target=-1)
assert close(pull_hsic - pull_bt, 2 * weight * (1 - torch.eye(d, dtype=torch.float64)))
show_matrices({"Barlow Twins:  ∂L/∂C": pull_bt, "HSIC_SSL:  ∂L/∂C": pull_hsic, "difference": pull_hsic - pull_bt},
              "feature of view B", "feature of view A");

# %% [markdown]
# The two gradients differ by the same $2\lambda$ in every off-diagonal entry and by nothing on the diagonal.
#
# ## 6. The target $-1$ cannot be met
#
# Two arrows can point in opposite directions (cosine $-1$). Three cannot all oppose one another: the best they can do
# is $120°$, cosine $-\frac12$. Correlations are cosines between columns, so the same holds for $d$ features:

# %%
figure, axes = plt.subplots(1, 3, figsize=(8.6, 3.0), layout="constrained")
for ax, count, title in zip(axes, (2, 3, 4), ("2: cosine −1", "3: cosine −1/2", "4: cosine −1/3"), strict=True):
    angles = np.pi / 2 + 2 * np.pi * np.arange(min(count, 3)) / min(count, 3)
    arrows = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if count == 4:  # a tetrahedron, seen from one side
        tetrahedron = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
        assert np.allclose(tetrahedron @ tetrahedron.T, np.eye(4) * 4 / 3 - 1 / 3)
        side = np.linalg.qr(np.array([[1.0, 0.25, 0.1], [-0.25, 1.0, 0.4], [0.1, -0.5, 1.0]]))[0]
        arrows = tetrahedron @ side[:, :2]
    else:
        cosines = arrows @ arrows.T
        assert np.allclose(cosines[~np.eye(count, dtype=bool)], -1 / (count - 1))
    for (u, v), color in zip(arrows, PALETTE, strict=False):
        ax.annotate("", (u, v), (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2.5})
    ax.set(title=title, xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
    ax.axis("off")

# %% [markdown]
# The rule behind the images: suppose both views give the same features ($X = Y$). The sum of all features of a
# image has a variance, variances are not negative, and that variance is $\mathbf 1^\top C\mathbf 1$. With ones on
# the diagonal,
#
# $$0 \le \mathbf 1^\top C\,\mathbf 1 = d + \sum_{i\neq j} C_{ij} \quad\Longrightarrow\quad
# \text{mean off-diagonal} \ge -\frac1{d-1} .$$
#
# The loss is convex in $C$ and treats all features alike, so it is least when all off-diagonal entries are equal, at
# this bound. The arrows of the image then form a **regular simplex**, and the loss has the floor
#
# $$\lambda\, d\, (d-1)\Bigl(1 - \frac1{d-1}\Bigr)^2 = \lambda\, \frac{d\,(d-2)^2}{d-1} .$$
#
# First the formula, on features built to be a simplex; then a numerical search that knows nothing of it.

# %%
def simplex_features(n, d):
    """(n, d) features whose correlations are exactly -1/(d-1)."""
    z = torch.randn(n, d, dtype=torch.float64, generator=generator)
    orthonormal = torch.linalg.qr(z - z.mean(dim=0)).Q
    return orthonormal @ (torch.eye(d, dtype=torch.float64) - 1 / d)


def floor(d):
    return (d - 2) ** 2 / (d - 1)  # with lambda = 1/d


for width in (3, 8, 32):
    z = simplex_features(8 * width, width)
    off = cross_correlation(z, z)[~torch.eye(width, dtype=torch.bool)]
    assert close(off, torch.full_like(off, -1 / (width - 1)))
    assert close(HSICSSLLoss()(z, z), torch.tensor(floor(width), dtype=torch.float64))


# %%
def minimize(loss, *views, steps=400):
    """L-BFGS on the features themselves. Give one view to share it, two to let them differ."""
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


def noise(d):
    return torch.randn(8 * d, d, dtype=torch.float64, generator=generator)


rows = []
for width in (4, 8, 16) if FAST else (4, 8, 16, 32):
    found, value = minimize(HSICSSLLoss(), noise(width))
    off = (found.sum() - found.trace()).item() / (width * (width - 1))
    rows.append((width, value, floor(width), off, -1 / (width - 1), width - 1))
    assert abs(value - floor(width)) < 1e-4 and abs(off + 1 / (width - 1)) < 1e-4
columns = ["d", "loss found", "floor", "mean off-diagonal found", "-1/(d-1)", "loss at C = I"]
table = pd.DataFrame(rows, columns=columns).set_index("d")
table.round(5)

# %%
widths = np.arange(2, 65)
figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
left.plot(widths, -1 / (widths - 1), color=PALETTE[0], label="−1/(d−1)")
left.plot(table.index, table["mean off-diagonal found"], "o", color=PALETTE[3], label="found by the search")
left.axhline(-1, color="0.4", linestyle="--", label="target −1 (HSIC_SSL)")
left.axhline(0, color="0.4", linestyle=":", label="target 0 (Barlow Twins)")
left.set(xlabel="number of features d", ylabel="mean off-diagonal of C", title="what is reached")
left.legend(loc="center right")
right.plot(widths, floor(widths) / widths, color=PALETTE[0], label="floor")
right.plot(table.index, table["loss found"] / table.index, "o", color=PALETTE[3], label="found by the search")
right.plot(widths, (widths - 1) / widths, color=PALETTE[1], label="C = I")
right.set(xlabel="number of features d", ylabel="HSIC_SSL loss / d", title="what it costs")
right.legend(loc="lower right");

# %% [markdown]
# For the hundreds of features that networks have, $-\frac1{d-1}$ is hard to tell from 0: the optimum of HSIC_SSL is
# within $O(1/d)$ of the identity, the optimum of Barlow Twins. The report finds that the two losses perform about
# alike; this is a reason why they should.
#
# ### A hole, if the branches may differ
#
# The bound rests on $X = Y$ (or, on average, on one network and one law of distortions for both views). Give the two
# views free features of their own and $\mathbf 1^\top C\mathbf 1$ is a *co*variance, which may be negative. HSIC_SSL
# then gets below its floor by letting the feature sums of the two views disagree, and gives up alignment for it.
# Barlow Twins has no such hole: its least value, 0, is at $C = I$ whether the branches are shared or not.

# %%
width = 8
shared, shared_loss = minimize(HSICSSLLoss(), noise(width))
free, free_loss = minimize(HSICSSLLoss(), noise(width), noise(width), steps=2000)
plain, plain_loss = minimize(BarlowTwinsLoss(1 / width), noise(width), noise(width), steps=2000)

r = (width**2 - 8 * width + 4) / (5 * width**2 - 8 * width + 4)  # correlation of two features within one view
on, off = (width - 2 - 2 * (width - 1) * r) / width, -(2 + (width - 2) * r) / width
closed_form = width * (1 - on) ** 2 + (width - 1) * (1 + off) ** 2
print(f"HSIC_SSL  shared: loss {shared_loss:.5f}  1'C1 = {shared.sum():+.3f}\n"
      f"HSIC_SSL  free:   loss {free_loss:.5f}  1'C1 = {free.sum():+.3f}   (closed form: {closed_form:.5f})\n"
      f"Barlow Twins free: loss {plain_loss:.5f}  1'C1 = {plain.sum():+.3f}")
assert free_loss < floor(width) and abs(free_loss - closed_form) < 1e-4 and plain_loss < 1e-4
assert abs(free.trace() / width - on) < 1e-3
compare_cross_correlations({"HSIC_SSL, shared": shared, "HSIC_SSL, free": free, "Barlow Twins, free": plain});

# %% [markdown]
# If you train with HSIC_SSL and two different networks, or distort the two views by different laws, watch
# $\mathbf 1^\top C\mathbf 1$: `HSICSSLLoss().terms(z_a, z_b)["feature_sum"]` carries it. A negative value is the sign
# of this exploit.
#
# ## 7. The theory pays for itself
#
# Barlow Twins likes wide features: its paper uses $d = 8192$, and the usual code forms all $8192^2$ correlations.
# Section 2 said that this is a choice. The off-diagonal sum is HSIC minus the diagonal, and HSIC has two sides:
#
# | route | forms | multiplications | numbers in the matrices |
# |---|---|---|---|
# | primal (features) | $C$, once | $n\,d^2$ | $d^2$ |
# | dual (images) | $XX^\top$ and $YY^\top$ | $2\,n^2 d$ | $2\,n^2$ |
#
# With a batch smaller than the width the dual side is the cheaper one, for the same loss to the last digit that
# rounding leaves. `route="auto"`, the library's default, takes whichever needs fewer multiplications.

# %%
for loss in (BarlowTwinsLoss, HSICSSLLoss):
    primal, primal_gradient = value_and_gradient(loss(route="primal"), z_a)
    dual, dual_gradient = value_and_gradient(loss(route="dual"), z_a)
    assert close(primal, dual) and close(primal_gradient, dual_gradient)


def usual_formula(z_a, z_b, weight=5e-3):
    """Barlow Twins as it is commonly written: form C, square its entries off the diagonal."""
    n, d = z_a.shape
    c = standardize(z_a).T @ standardize(z_b) / n
    off = c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]
    return (1 - c.diagonal()).square().sum() + weight * off.square().sum()


def seconds(loss, n, d, budget=0.1 if FAST else 0.5):
    """Forward and backward pass of a loss in single precision: the best of at least two, until the budget is spent."""
    views = [torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2)]
    taken = []
    while len(taken) < 2 or sum(taken) < budget:
        start = time.perf_counter()
        torch.autograd.grad(loss(*views), views)
        taken.append(time.perf_counter() - start)
    return min(taken)


batch = 64 if FAST else 256
losses = {
    "usual formula": usual_formula,
    'route="primal"': BarlowTwinsLoss(route="primal"),
    'route="dual"': BarlowTwinsLoss(route="dual"),
    'route="auto"': BarlowTwinsLoss(),
}
timings = pd.DataFrame(
    [{"d": d, "way": name, "seconds": seconds(loss, batch, d)}
     for d in ([64, 128, 256, 512] if FAST else [128, 256, 512, 1024, 2048, 4096, 8192])
     for name, loss in losses.items()]
).pivot(index="d", columns="way", values="seconds")[list(losses)]

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
styles = {"usual formula": ("s-", PALETTE[3]), 'route="primal"': ("--", PALETTE[1]),
          'route="dual"': ("--", PALETTE[2]), 'route="auto"': ("o-", PALETTE[0])}
for name, (style, color) in styles.items():
    left.plot(timings.index, 1e3 * timings[name], style, color=color, label=name, markersize=6)
right.plot(timings.index, timings.index**2 * 4 / 2**20, "--", color=PALETTE[1], label="C  (primal, usual formula)")
right.plot(timings.index, np.full(len(timings), 2 * batch**2 * 4 / 2**20), "--", color=PALETTE[2],
           label="two Grams  (dual)")
left.set(title=f"time of one step of the loss, n = {batch}", ylabel="milliseconds")
right.set(title="size of the matrices", ylabel="MiB (single precision)")
for ax in (left, right):
    ax.axvline(batch, color="0.8", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="number of features d")
    ax.set_xticks(timings.index, [str(d) for d in timings.index])
    ax.legend()

widest = timings.iloc[-1]
speedup = widest["usual formula"] / widest['route="auto"']
print(f"d = {timings.index[-1]}, n = {batch}, {torch.get_num_threads()} CPU threads: "
      f"the automatic route is {speedup:.0f} times as fast as the usual formula")
timings.map(lambda t: f"{1e3 * t:.2f} ms")

# %% [markdown]
# The vertical line marks $d = n$. To its right the usual formula grows with $d^2$ and the dual route with $d$; the
# routes change places near the line, and "auto" follows the lower one. Nothing was approximated. A formula found by
# asking *what does this loss mean?* also turned out to be the fast way to compute it.
#
# ## What to take along
#
# * With standardized features and linear kernels, $\mathrm{HSIC} = \lVert C\rVert_F^2$: an average over pairs of
#   images is a sum over pairs of features.
# * HSIC compares real pairs with all permutations. Centring the batch takes the place of negative examples.
# * Barlow Twins maximizes alignment $\mathrm{tr}\,C$ and *penalizes* HSIC between the views at given alignment.
# * HSIC_SSL adds one linear term. Its target $-1$ is out of reach; its optimum is a simplex, within $O(1/d)$ of $C =
#   I$.
# * The exact loss costs $n \cdot d \cdot \min(n, d)$, up to a small factor.
#
# ## Exercises
#
# 1. **Invisible dependence.** Draw `x = torch.randn(500, 1)` and `y = x**2`. Compare `hsic(standardize(x),
#    standardize(y))` with the same under `Gaussian()` kernels, and each with its value after shuffling `y`. What does
#    this say about what Barlow Twins can decorrelate?
# 2. **Chance.** For independent `x` and `y` the population HSIC is 0, yet in a batch $\mathrm{HSIC} = \sum C_{ij}^2 >
#    0$; its mean is $d^2/(n-1)$. Check it for $n = 128$, $d = 32$ over 200 draws. Then use `estimator="unbiased"`:
#    where is its mean?
# 3. **A third target.** `HSICSSLLoss(off_diagonal_target=t)` takes any off-diagonal target. For $X = Y$, which $t$ can be met
#    exactly? Predict the floor for $t = +0.5$ and for $t = -0.5$ with $d = 8$, then run `minimize`.
# 4. **The hole at large d.** Repeat the search with free branches for $d = 16$ and $32$. Towards which values do the
#    diagonal and the off-diagonal of $C$ go? The closed form of section 6 tells the limits.
# 5. **Your own crossover.** On your machine, at which $d$ do the two routes cost the same for $n = 1024$? Compare
#    with the rule in `hsic_lab.losses._off_diagonal.pick_route`.
#
# **Next:** `02_hsic_from_scratch`: what HSIC sees that correlation misses, and when it is significant.
