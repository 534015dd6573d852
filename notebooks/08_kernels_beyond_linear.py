# %% [markdown]
# # Kernels beyond linear
#
# The penalty of Barlow Twins is HSIC with *linear* kernels, which detects correlation only. Other kernels detect more.
# SSL-HSIC (Li et al. 2021, arXiv 2106.08320) is a loss with such kernels.
#
# **A kernel that detects every dependence sees dependence that Barlow Twins leaves. Whether this makes better features
# depends on the data: in the trainings of section 8, with a learning rate and a weight for each kernel, the inverse
# multiquadric kernel is ahead of the linear one on digit scenes, and no kernel is shown to be ahead on CIFAR-10.**
#
# **What you will see**
#
# 1. Two features that are uncorrelated and still dependent, tested with three kernels.
# 2. The two limits of the Gaussian kernel: very wide it is the linear kernel, very narrow it detects nothing.
# 3. Why decorrelated features need not be independent: the features that hide in one Gaussian pair.
# 4. SSL-HSIC, and what its linear case shares with Barlow Twins.
# 5. InfoNCE, the loss of SimCLR: the first term of SSL-HSIC plus a remainder that vanishes at high temperatures.
# 6. One kernel that two losses, SSL-HSIC and SIGReg, have in common.
# 7. Projections of a trained network that are dependent although all correlation was removed.
# 8. Trainings with three kernels: what tuning changes.
#
# **What you need**: [notebook 01](01_barlow_twins_is_hsic.ipynb) for HSIC and the matrix $C$.
# [Notebook 02](02_hsic_from_scratch.ipynb) helps with permutation tests. The notebook runs in about a minute.

# %% tags=["parameters"]
import os
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # smaller problems for a quick check: same cells, same assertions
EPOCHS = 1 if FAST else 3
RESULTS = Path("../data/results")

# %% [markdown]
# The next cell holds the imports and the drawing functions. It is folded. Open it if you want to read it.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import json
import math
import tempfile
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.special import eval_hermitenorm, factorial, hyp1f1

from hsic_lab.ablation import paired_differences, read_table
from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes, ImageData, Images
from hsic_lab.encoders import ConvEncoder, MLPProjector
from hsic_lab.hsic import hsic
from hsic_lab.independence import permutation_test
from hsic_lab.kernels import Gaussian, InverseMultiquadric, Linear
from hsic_lab.losses import BarlowTwinsLoss, NTXentLoss, SIGRegLoss, SSLHSICLoss
from hsic_lab.plots import plot_cross_correlation, plot_differences, plot_pairs, set_theme
from hsic_lab.training import TrainConfig, train
from hsic_lab.views import normalize

set_theme()
generator = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def close(a, b, tolerance=1e-10):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance)


def kernel_table(name):
    """A table of trainings, with the kernels named as in the text."""
    table = read_table(RESULTS / f"ablation_{name}.csv")
    return table.assign(kernel=table["kernel"].map({"linear": "linear", "gaussian": "Gaussian", "imq": "IMQ"}))


def plot_samples(samples, pvalues):
    """Draw each sample with the p-values of the three kernels."""
    axes = plt.subplots(1, 4, figsize=(9, 3.3), layout="constrained")[1]
    for ax, (sample, (x, y)) in zip(axes, samples.items(), strict=True):
        ax.plot(x, y, ".", color="C0", alpha=0.5)
        words = "\n".join(f"{name}: p = {value:.3f}" for name, value in pvalues[sample].items())
        ax.set(title=sample, xticks=[], yticks=[], xlabel=words)


def plot_limits(sigmas, ratio, wide):
    """Draw HSIC over its mean under permutation, and the limit of wide kernels."""
    (left, right) = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")[1]
    left.plot(sigmas, ratio, "o-", color="C0", markersize=4)
    left.set(xscale="log", xlabel="bandwidth σ", ylabel="HSIC / mean HSIC of permutations", title="circle")
    middle = (sigmas > 0.2).numpy()
    right.plot(sigmas[middle], wide[middle], "o-", color="C3", markersize=4)
    right.set(xscale="log", yscale="log", xlabel="bandwidth σ", ylabel="σ⁴ HSIC / linear HSIC")
    right.set_title("wide kernels are linear")
    for ax in (left, right):
        ax.axhline(1, color="0.4", linestyle="--", linewidth=1)


def plot_hermite(x, c, rho):
    """Draw three Hermite features against the variable, C of six, and its diagonal beside powers of rho."""
    axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")[1]
    at = np.linspace(-2.5, 2.5, 200)
    for k in (1, 2, 3):
        axes[0].plot(at, hermite(at, k), label=f"$h_{k}$")
    axes[0].set(title="three features of $x$", xlabel="$x$")
    axes[0].legend(loc="lower right")
    plot_cross_correlation(c, axes[1], title="C")
    axes[1].set(xlabel="feature of $y$", ylabel="feature of $x$")
    degrees = np.arange(1, len(c) + 1)
    axes[2].plot(degrees, rho**degrees, color="0.4", label=r"$\rho^k$")
    axes[2].plot(degrees, np.diagonal(c), "o", color="C3", label="$C_{kk}$")
    axes[2].set(title="diagonal", xlabel="feature $k$", ylim=(0, 1))
    axes[2].legend()


def plot_meeting(dimensions):
    """Draw the kernel of SIGReg and the inverse multiquadric, and their largest difference against d."""
    (left, right) = plt.subplots(1, 2, figsize=(9, 3.7), layout="constrained")[1]
    u = np.linspace(0, 6, 200)
    for number, d in enumerate((2, 8, 128)):
        left.plot(u, sigreg_kernel(u * d**0.5, d), color=f"C{number}", label=f"SIGReg, d = {d}")
    left.plot(u, (1 + u**2) ** -0.5, ":", color="0.2", linewidth=2, label="inverse multiquadric")
    left.set(xlabel=r"distance / $\sqrt{d}$", ylabel="kernel", ylim=(0, 1.02))
    left.legend()
    right.plot(list(dimensions), list(dimensions.values()), "o-", color="C3")
    right.set(xscale="log", yscale="log", xlabel="features d", ylabel="largest difference", xticks=list(dimensions))
    right.set_xticklabels(list(dimensions))
    right.minorticks_off()


def plot_orders(temperatures, remainders):
    """Draw the remainders of InfoNCE with their fitted slopes, which are returned."""
    ax = plt.subplots(figsize=(6.8, 3.8), layout="constrained")[1]
    slopes = [np.polyfit(np.log(temperatures[-4:]), np.log(values[-4:]), 1)[0] for values in remainders.values()]
    for (words, values), slope in zip(remainders.items(), slopes, strict=True):
        ax.plot(temperatures, values, "o-", label=f"{words}, slope {slope:.2f}")
    ax.set(xscale="log", yscale="log", xlabel="temperature T", ylabel="remainder of InfoNCE", xticks=temperatures)
    ax.set_xticklabels([f"{t:g}" for t in temperatures.tolist()])
    ax.minorticks_off()
    ax.legend(fontsize="small")
    return slopes


def plot_dependence(whitened, tests):
    """Draw the most dependent pair of features, and the p-values of all pairs with two kernels."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    strongest = tests.query("kernel == 'Gaussian'").sort_values("hsic").iloc[-1]
    i, j = int(strongest["i"]), int(strongest["j"])
    axes[0].plot(whitened[:, i], whitened[:, j], ".", color="C0", alpha=0.6)
    axes[0].set(title="most dependent pair", xlabel=f"feature {i}", ylabel=f"feature {j}")
    for ax, (name, part) in zip(axes[1:], tests.groupby("kernel", sort=False), strict=True):
        table = torch.full((whitened.shape[1],) * 2, torch.nan)
        table[part["i"].tolist(), part["j"].tolist()] = torch.tensor(part["p"].tolist())
        image = ax.imshow(table.T, cmap="viridis_r", vmin=0, vmax=1)
        ax.set(title=f"{name}: {(part['p'] <= 0.05).mean():.0%} ≤ 0.05", xlabel="feature", ylabel="feature")
    figure.colorbar(image, ax=axes[2], label="p-value", shrink=0.8)


def plot_tuning(tuned):
    """Draw validation accuracy against the learning rate and against gamma: every run, and the means."""
    axes = plt.subplots(1, 2, figsize=(9, 3.7), sharey=True, layout="constrained")[1]
    for ax, setting, label in zip(axes, ("learning_rate", "gamma"), ("learning rate", "weight γ"), strict=True):
        part = tuned[(tuned["tuned"] == setting) & (tuned["evaluation"] == "linear on validation")]
        values = sorted(part[setting].unique())
        for number, (kernel, runs) in enumerate(part.groupby("kernel", sort=False)):
            ax.plot(runs[setting] * 1.03 ** (number - 1), runs["accuracy"], ".", color=f"C{number}", alpha=0.6)
            ax.plot(runs.groupby(setting)["accuracy"].mean(), color=f"C{number}", label=kernel)
        ax.set(xscale="log", xlabel=label)
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
    axes[0].set_ylabel("validation accuracy")
    axes[0].legend()

# %% [markdown]
# ## 1. What a kernel can detect
#
# A kernel $k(x, x')$ measures how similar two points $x$ and $x'$ are. With $r = \lVert x - x' \rVert$ their distance,
# three kernels are
#
# $$\text{linear } \langle x, x' \rangle, \qquad \text{Gaussian } e^{-r^2 / 2 \sigma^2}, \qquad
# \text{inverse multiquadric (IMQ) } \frac{c}{\sqrt{c^2 + r^2}} .$$
#
# $\sigma$ and $c$ are **bandwidths**: the distance beyond which points hardly count as similar. If you give none, the
# library uses the median distance between the points.
#
# The plot shows four samples of $n = 300$ pairs: $x$ to the right, $y$ upwards. Below each stands the $p$-value of a
# permutation test with each kernel: the share of 300 arrangements of $y$ (the observed one and 299 permutations) whose
# unbiased HSIC is at least as large as the observed one. A small share is evidence of dependence; a share near 1 is not.

# %% alt="Four scatter plots with permutation p-values of three kernels: independent, correlated, parabola and circle. All kernels detect the correlation, none rejects for the independent sample, and only the Gaussian and IMQ kernels detect the circle."
n = 200 if FAST else 300
u, e = noise(n), noise(n)
angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
samples = {
    "independent": (u, e),
    "correlated": (u, 0.5 * u + e),
    "parabola": (u, u.square() + 0.5 * e),
    "circle": (angle.cos() + 0.15 * u, angle.sin() + 0.15 * e),
}
kernels = {"linear": Linear(), "Gaussian": Gaussian(), "IMQ": InverseMultiquadric()}
pvalues = pd.DataFrame({
    sample: {name: permutation_test(x, y, k, k, permutations=199).pvalue for name, k in kernels.items()}
    for sample, (x, y) in samples.items()
})
plot_samples(samples, pvalues)

# %%
assert (pvalues["independent"] > 0.05).all() and (pvalues["correlated"] < 0.05).all()
assert (pvalues.loc[["Gaussian", "IMQ"], ["parabola", "circle"]] < 0.05).all(axis=None)
assert (pvalues.loc["linear", ["parabola", "circle"]] > 0.05).all()
assert FAST or permutation_test(*samples["circle"], permutations=199).out_of == 300  # the next multiple of n

# %% [markdown]
# All three kernels detect the correlation. Only the Gaussian and the IMQ detect the parabola and the circle, where $x$
# and $y$ are uncorrelated. These two are **characteristic** kernels: with them the HSIC of two variables is 0 only
# if they are independent.
#
# ## 2. The two limits of the bandwidth
#
# If $\sigma$ is very large, $e^{-r^2/2\sigma^2} \approx 1 - \frac{r^2}{2 \sigma^2}$. After centering only
# $\frac{1}{\sigma^2}\langle x, x' \rangle$ remains, which is the linear kernel up to a factor. With $\sigma_x$ and
# $\sigma_y$ the bandwidths for $x$ and $y$,
#
# $$\sigma_x^2\, \sigma_y^2\, \mathrm{HSIC} \to \mathrm{HSIC}_\text{linear} \qquad (\sigma_x, \sigma_y \to \infty) .$$
#
# If $\sigma$ is very small, every point is similar to itself only. The two kernel matrices become the identity, and
# HSIC is $\frac{n - 1}{n^2}$ for every permutation of the rows. A test cannot distinguish the sample from its
# permutations.
#
# The left panel divides HSIC of the circle by its mean over 20 random permutations, for bandwidths $\sigma_x = \sigma_y
# = \sigma$. Above the dashed line at 1, the pairs look dependent. The right panel shows the first limit.

# %% alt="Left: HSIC of the circle over its mean under permutation, against the Gaussian bandwidth. It is 1 for tiny bandwidths, has a high peak near 0.5 and is below 1 for large ones. Right: the scaled Gaussian HSIC over linear HSIC tends to 1 for large bandwidths."
x, y = samples["circle"]
linear = hsic(x, y)
sigmas = 2.0 ** torch.arange(-18, 9)
permutations = [torch.randperm(n, generator=generator) for _ in range(20)]


def at(sigma, rows=slice(None)):
    return hsic(x, y[rows], Gaussian(sigma.item()), Gaussian(sigma.item())).item()


observed = np.array([at(sigma) for sigma in sigmas])
permuted = np.array([np.mean([at(sigma, rows) for rows in permutations]) for sigma in sigmas])
wide = np.array([(sigma**4 * at(sigma) / linear).item() for sigma in sigmas])
plot_limits(sigmas, observed / permuted, wide)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
assert abs(wide[-1] - 1) < 0.01 and abs(observed[0] / permuted[0] - 1) < 1e-6
assert np.isclose(observed[0], (n - 1) / n**2, rtol=1e-6)
assert (observed / permuted).max() > 3 > 1.8 > (observed / permuted)[-1]
errors = np.abs(wide[-4:] - 1)
assert np.allclose(np.log2(errors[:-1] / errors[1:]), 2, atol=0.1)  # doubling sigma divides the error by four
median = torch.pdist(x[:, None]).median()
assert at(median) > 3 * np.mean([at(median, rows) for rows in permutations])
assert FAST or (round((observed / permuted).max()) == 13 and round(median.item(), 2) == 0.71)
assert FAST or (observed / permuted)[-1] < 0.1

# %% [markdown]
# **Between the two limits is a range of bandwidths in which the circle is clearly detected.** Its HSIC is up to 13 times
# that of the permutations. The median distance, 0.71, lies in this range.
#
# For wide kernels the ratio is near 0, and not 1: they see only the correlation of $x$ and $y$. That of this sample
# happens to be nearer to 0 than that of most permutations.
#
# ## 3. Why decorrelated is not independent
#
# Take two views $x$ and $y$ of one variable: normal variables with mean 0, variance 1 and correlation $\rho$. Let a
# network compute several features of each, the normalized **Hermite polynomials**: $h_1(x) = x$,
# $h_2(x) = (x^2 - 1)/\sqrt2$, $h_3(x) = (x^3 - 3x)/\sqrt6$, and so on. They have mean 0 and variance 1. Mehler's formula
# gives their correlations across the views:
#
# $$\operatorname{E}\, h_j(x)\, h_k(y) = \begin{cases} \rho^k & j = k \\ 0 & j \ne k \end{cases} \qquad
# \text{so } C = \operatorname{diag}(\rho, \rho^2, \rho^3, \dots) .$$
#
# **To Barlow Twins these are different features, without redundancy. But all of them are functions of one variable:** if
# you know $h_1(x)$, you know the others.
#
# The picture shows three of the features, $C$ of the first six (its axes count from 0), and the diagonal of $C$.

# %% alt="Left: three Hermite polynomials. Middle: C of six Hermite features of a Gaussian pair with correlation 0.8, empty off the diagonal. Right: the diagonal falls as powers of 0.8."
def hermite(x, k):
    """The Hermite polynomial of degree k with variance 1 under the normal distribution."""
    return eval_hermitenorm(k, x) / factorial(k) ** 0.5


rho, degrees = 0.8, range(1, 7)
nodes, weights = np.polynomial.hermite_e.hermegauss(40)  # exact means over a normal variable
weights = weights / weights.sum()
x, e = np.meshgrid(nodes, nodes, indexing="ij")
y, joint = rho * x + (1 - rho**2) ** 0.5 * e, np.outer(weights, weights)
c = np.array([[(joint * hermite(x, j) * hermite(y, k)).sum() for k in degrees] for j in degrees])
plot_hermite(x, c, rho)

# %%
assert np.allclose(c, np.diag(rho ** np.arange(1, 7)), atol=1e-10)
sample = torch.from_numpy(np.random.default_rng(0).standard_normal(300))[:, None]
first, second = (torch.from_numpy(hermite(sample.numpy(), k)) for k in (1, 2))
for name, kernel in {"linear": Linear(), "Gaussian": Gaussian()}.items():
    pvalue = permutation_test(first, second, kernel, kernel).pvalue
    print(f"{name} kernel: p-value of h_1 and h_2 of one view {pvalue:.3f}")
assert permutation_test(first, second, Linear(), Linear()).pvalue > 0.05
assert permutation_test(first, second).pvalue < 0.01

# %% [markdown]
# The linear test finds nothing between $h_1$ and $h_2$ of one view ($p$ near 1), and the Gaussian test does ($p$ below
# 0.01). A linear kernel sees correlation only, and polynomials of different degrees are uncorrelated. A Gaussian kernel
# is a sum over all degrees, so it sees that $h_2$ is a function of $h_1$.
#
# A high degree has a price: the entry $\rho^k$ on the diagonal falls with $k$, so such a feature agrees less across the
# views.
#
# ## 4. SSL-HSIC, and what its linear case shares with Barlow Twins
#
# Put the projections of both views of $n$ images into one table $Z$ of $2n$ rows. Let $Y$ say which image a row shows: a
# one in column $b$ for image $b$, and zeros elsewhere. SSL-HSIC rewards the dependence between $Z$ and $Y$, and
# penalizes the dependence of $Z$ on itself with a weight $\gamma$:
#
# $$L = -\mathrm{HSIC}(Z, Y) + \gamma \sqrt{\mathrm{HSIC}(Z, Z)} .$$
#
# Li et al. leave out the pairs of a row with itself where rows of one image are compared. Then the first term is, up to a
# factor and a constant, the mean of $k$ over the two views of an image minus its mean over all pairs of rows. With the linear kernel and standardized features (columns of mean 0 and variance 1 in each view) you
# know both terms already:
#
# $$\mathrm{HSIC}(Z, Y) = \frac{d + \mathrm{tr}\, C}{2n}, \qquad \mathrm{HSIC}(Z, Z) = \lVert R \rVert_F^2 .$$
#
# $C$ is the cross-correlation of the views, and $R$ the correlation matrix of the features over all $2n$ rows. The
# library leaves out the factor and the constant of the first term: `terms(...)["dependence"]` is $-\mathrm{tr}\,C$.
#
# **Barlow Twins at $\lambda = 1$, $\; d - 2\,\mathrm{tr}\,C + \lVert C \rVert_F^2$, has the same two parts**: alignment,
# and a penalty on redundancy. There are two differences. It measures redundancy across the views ($C$ instead of $R$),
# and it takes no square root.

# %%
n, d = 64, 8
base = noise(n, d) @ noise(d, d)
z_a, z_b = base + 0.5 * noise(n, d), base + 0.5 * noise(n, d)
x, y, c = standardize(z_a), standardize(z_b), cross_correlation(z_a, z_b)
pooled = torch.cat([x, y])

terms = SSLHSICLoss("linear", gamma=1.0, standardized=True).terms(z_a, z_b)
print(f"tr C = {c.trace():.4f}")
print(f"minus the dependence term = {-terms['dependence']:.4f}")
assert close(-terms["dependence"], c.trace())
assert close(terms["self_dependence"], (pooled.T @ pooled / (2 * n)).norm())
assert close(BarlowTwinsLoss(1.0)(z_a, z_b), d - 2 * c.trace() + c.square().sum())
assert close(BarlowTwinsLoss(1.0)(z_a, z_b), hsic(x, y) + (x - y).square().sum() / n - d)

# %% [markdown]
# For two identical views $R = C$, and the loss of Barlow Twins can be written with the two terms of SSL-HSIC alone:

# %%
same = SSLHSICLoss("linear", gamma=1.0, standardized=True).terms(z_a, z_a)
assert close(same["self_dependence"] ** 2, cross_correlation(z_a, z_a).square().sum())  # identical views: R = C


def barlow_from_ssl_hsic(z_a, z_b):
    """Barlow Twins at lambda = 1 from the two terms of SSL-HSIC, for identical views."""
    terms = SSLHSICLoss("linear", gamma=1.0, standardized=True).terms(z_a, z_b)
    return z_a.shape[1] + 2 * terms["dependence"] + terms["self_dependence"] ** 2


assert close(barlow_from_ssl_hsic(z_a, z_a), BarlowTwinsLoss(1.0)(z_a, z_a))

# %% [markdown]
# **Do not use the linear kernel on raw projections.** Then both terms grow with the square of their scale. If the sum of
# the terms is negative, the loss falls as the scale grows without limit. If it is positive, the loss falls as all
# projections shrink to a point. Standardize the columns, or scale every row to length 1 as Li et al. do.

# %%
for gamma in (0.3, 3.0):
    loss, fixed = SSLHSICLoss("linear", gamma), SSLHSICLoss("linear", gamma, standardized=True)
    assert close(loss(10 * z_a, 10 * z_b), 100 * loss(z_a, z_b), 1e-9)
    assert close(fixed(10 * z_a, 10 * z_b), fixed(z_a, z_b), 1e-9)
    print(f"gamma = {gamma}: loss at scale 1 {loss(z_a, z_b):8.2f}, at scale 10 {loss(10 * z_a, 10 * z_b):10.2f}")

# %% [markdown]
# ## 5. InfoNCE shares the first term of SSL-HSIC
#
# InfoNCE (NT-Xent, the loss of SimCLR) compares rows $u, u'$ of length 1 by $k(u, u') = \langle u, u' \rangle / T$,
# where $T$ is the temperature. For each row it is, up to a constant,
#
# $$-\,k(\text{pair}) + \log \text{mean} \exp k(\text{others}) .$$
#
# "Pair" is the other view of the same image, and "others" are all other rows. The logarithm of the mean of $e^k$ expands
# into the *cumulants* of $k$, the mean first and the variance second:
#
# $$\log \text{mean}\, e^{k} = \text{mean}\, k + \tfrac12 \mathrm{Var}\, k + O(k^3) .$$
#
# **The first part, $-\,k(\text{pair}) + \text{mean}\,k$, is the dependence term of SSL-HSIC**, with the mean over the
# other rows. What follows is another penalty: half the variance of $k$, and higher orders.
#
# A high temperature makes $k$ small. So what is left of InfoNCE after the first part should fall as $1/T^2$, and what is
# left after the variance as $1/T^3$. On log axes these powers are slopes, $-2$ and $-3$. The picture shows both
# remainders for 64 random pairs.

# %%
n = len(z_a)
u, v = F.normalize(z_a + 2, dim=1), F.normalize(z_b + 2, dim=1)  # shifted: a third order that is not too small
w = torch.cat([u, v])
off = ~torch.eye(2 * n, dtype=torch.bool)

# %% alt="Remainders of InfoNCE against temperature on log axes: two straight lines, with slope -2 after subtracting the mean term and slope -3 after also subtracting the variance term."
temperatures = 2.0 ** np.arange(1, 9)
remainders = {"after the mean: ½ Var k": [], "after the variance: third order": []}
for temperature in temperatures.tolist():
    info_nce = NTXentLoss(temperature)(u, v) - math.log(2 * n - 1)
    others = (w @ w.T / temperature)[off].reshape(2 * n, -1)
    dependence = (u * v).sum(dim=1).mean() / temperature - others.mean()
    variance = others.var(dim=1, correction=0).mean() / 2
    remainders["after the mean: ½ Var k"].append(abs(info_nce + dependence).item())
    remainders["after the variance: third order"].append(abs(info_nce + dependence - variance).item())

slopes = plot_orders(temperatures, remainders)
assert np.allclose(slopes, (-2, -3), atol=0.1)

# %% [markdown]
# The slopes are $-2$ and $-3$.
#
# One detail: the mean of InfoNCE leaves out the pair of a row with itself, and SSL-HSIC takes the mean over *all* pairs.
# The mean over all pairs is $1 - \frac1{2n}$ times the other one, plus a constant.

# %%
k = w @ w.T
all_pairs, without_self = k.mean(), k[off].mean()
assert close(all_pairs, (1 - 1 / (2 * n)) * without_self + 1 / (2 * n))
assert close(-SSLHSICLoss("linear").terms(u, v)["dependence"], (u * v).sum(dim=1).mean() - all_pairs)

# %% [markdown]
# ## 6. Two losses, one kernel
#
# Li et al. train SSL-HSIC with the inverse multiquadric kernel. **SIGReg**, the loss of LeJEPA
# ([notebook 03](03_objectives.ipynb), section 5), has no kernel to choose: it compares the features with a normal
# distribution along all directions. The mean over all directions can be written with a kernel of the distance $r$ of two
# rows,
#
# $$k(r) = {}_1F_1\bigl(\tfrac12; \tfrac d2; -\tfrac{r^2}{2}\bigr) ,$$
#
# where $d$ is the number of features and ${}_1F_1$ Kummer's function. **As $d$ grows, this becomes the inverse
# multiquadric** with $c = \sqrt d$, that is $\bigl(1 + r^2/d\bigr)^{-1/2}$. So two losses with different aims use almost
# the same similarity.
#
# Left: both kernels against the distance. Right: their largest difference over distances up to $6 \sqrt d$.

# %% alt="Left: the kernel of SIGReg for 2, 8 and 128 features and the inverse multiquadric; at 128 the curves coincide. Right: the largest difference falls from 0.029 at 8 features to 0.0002 at 1024."
def sigreg_kernel(r, d):
    return hyp1f1(0.5, d / 2, -(r**2) / 2)


def difference(d):
    r = np.linspace(0, 6 * d**0.5, 2000)
    return abs(sigreg_kernel(r, d) - (1 + r**2 / d) ** -0.5).max()


differences = {d: difference(d) for d in (8, 32, 128, 1024)}
plot_meeting(differences)

# %%
for d, value in differences.items():
    print(f"{d:4} features: largest difference {value:.4f}")
assert np.allclose(list(differences.values()), (0.0287, 0.0068, 0.0017, 0.0002), atol=1e-4)
z = noise(40, 32)
r = torch.cdist(z, z)
assert close(InverseMultiquadric(32**0.5)(z), (1 + r.square() / 32) ** -0.5, 1e-6)
pairs = torch.from_numpy(sigreg_kernel(r.numpy(), 32)).mean()
cross = torch.from_numpy(hyp1f1(0.5, 16, -z.square().sum(dim=1).numpy() / 4)).mean()
by_hand = (2 * math.pi) ** 0.5 * (pairs - 2**0.5 * cross + 3**-0.5)
assert close(SIGRegLoss(lambda_param=1.0)(z, z) / 40, by_hand, 1e-8)

# %% [markdown]
# The last lines of the cell compute SIGReg by hand with this kernel: its mean over all pairs of rows, minus a term of
# each row alone, plus a constant.
#
# ## 7. Projections of a network: uncorrelated and dependent
#
# Now train a small network with Barlow Twins. The two views of a pair share the background, a crop of one of two
# photographs. The digit in front is drawn anew.


# %% alt="Nine pairs of digit scenes. In each pair both views show the same piece of a photograph, and the digits in front differ in class, color, size and place."
def scenes_of(split, count, seed):
    """Scenes of 16 by 16 pixels, with the photograph in the background as the label."""
    renderer = DigitScenes(split, size=16)
    factors = renderer.draw(count, seed)
    return Images(renderer.render(factors), factors["photograph"])


scenes = DigitScenes("train", size=16)
data = ImageData("digit_scenes", scenes_of("train", 2048, 0), scenes_of("test", 1000, 1), ("0", "1"), scenes=scenes)
plot_pairs(*scenes.pairs(9, 7, shared=("background",)), n=9);

# %%
settings = {
    "dataset": "digit_scenes", "shared": ("background",), "width": 8, "projector": (128, 32), "epochs": EPOCHS,
    "batch_size": 64, "learning_rate": 4e-3, "snapshots": 2, "device": "cpu", "precision": "float32",
}


def fit(**options):
    """The trained run, in evaluation mode."""
    with tempfile.TemporaryDirectory() as folder:
        return train(TrainConfig(**settings, **options), Path(folder) / "run", data, progress=False)


barlow = fit(loss="barlow_twins", lambda_param=0.1)

# %% [markdown]
# Barlow Twins asks for uncorrelated features, and reaches them only approximately. To remove all correlation,
# **whiten** the projections of 300 test scenes: multiply them by a matrix that makes their correlations exactly 0.
# Then test all pairs of the first eight whitened features for independence, once with the linear and once with the
# Gaussian kernel. The picture shows the pair with the largest Gaussian HSIC (left), and the p-value of each pair.

# %%
images, count = 300, 6 if FAST else 8
with torch.no_grad():
    z = standardize(barlow.projector(barlow.encoder(normalize(data.test.images[:images]))).double())
whitened = torch.linalg.svd(z, full_matrices=False).U[:, :count] * images**0.5
assert close(whitened.T @ whitened / images, torch.eye(count, dtype=torch.float64))


# %% alt="Left: scatter plot of the most dependent pair of whitened features, curved although its correlation is 0. Right: p-values of all pairs. With the linear kernel no pair is below 0.05, with the Gaussian kernel most are."
pairs = list(combinations(range(count), 2))
rows = []
for name, kernel in {"linear": Linear(), "Gaussian": Gaussian()}.items():
    for i, j in pairs:
        found = permutation_test(whitened[:, i], whitened[:, j], kernel, kernel, permutations=199)
        rows.append((name, i, j, found.pvalue, found.statistic))
tests = pd.DataFrame(rows, columns=["kernel", "i", "j", "p", "hsic"])
plot_dependence(whitened, tests)

# %%
significant = tests.assign(significant=tests["p"] <= 0.05).groupby("kernel")["significant"].mean()
for name in ("linear", "Gaussian"):
    print(f"{name} kernel: p <= 0.05 for {significant[name]:.0%} of {len(pairs)} pairs")
assert significant["linear"] == 0 and significant["Gaussian"] > 0.3
assert FAST or (significant["Gaussian"] > 2 / 3 and len(pairs) == 28)

# %% [markdown]
# **With the linear kernel no pair is below 0.05, and with the Gaussian kernel more than two thirds of the 28 pairs are.**
# If the features were independent, about one pair in twenty would be by chance. So in this network (one training, one
# seed) dependence remains without correlation. A characteristic kernel can detect it. The next section asks whether this makes
# the features more useful.
#
# ## 8. Does a kernel that detects more learn more?
#
# **The IMQ does on the scenes. On CIFAR-10 no kernel is shown to be ahead of the linear one**; the end of this section
# shows it. Every line below is the difference between a kernel and the linear one, in points of accuracy, with its
# 95 % interval over five seeds (left) and ten (right). Differences are paired by seed: two runs with one seed start from the same weights
# and see the same images. A filled dot is significant after Holm's correction for the two comparisons. The gray stripe
# is $\pm 1$ point.
#
# The loss is SSL-HSIC with standardized features, on scenes that share a digit. A linear probe reads the digit on scenes
# that no training saw. Left: all kernels have one rate, 0.002, and $\gamma = 1$, which nobody tuned. Right: each kernel
# has a rate and a weight $\gamma$ of its own.

# %% alt="Differences to the linear kernel with 95 percent intervals. Left, at one untuned rate: the Gaussian is seven and the IMQ ten points ahead. Right, tuned: the IMQ is about eight points ahead, and the wide interval of the Gaussian contains 0."
untuned, tuned = kernel_table("kernel"), kernel_table("tuned_kernel")
results = {
    "one rate for all": untuned[untuned["evaluation"] == "linear"],
    "tuned": tuned[tuned["tuned"].isna() & (tuned["evaluation"] == "linear")],
}
found = {title: paired_differences(part, "kernel", "linear") for title, part in results.items()}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharex=True)
for ax, (title, frame) in zip(axes, found.items(), strict=True):
    plot_differences(frame, ax).set_title(title, y=1.1)

# %%
means = pd.DataFrame({title: part.groupby("kernel", sort=False)["accuracy"].mean() for title, part in results.items()})
ahead = pd.DataFrame({title: 100 * frame.set_index("second")["mean"] for title, frame in found.items()})
assert ahead.round(1).to_dict("list") == {"one rate for all": [6.7, 10.1], "tuned": [-0.1, 7.6]}
assert (found["one rate for all"]["low"] > 0).all()
assert found["tuned"].set_index("second")["verdict"].to_dict() == {"Gaussian": "not decided", "IMQ": "IMQ ahead"}
assert (means["tuned"] - means["one rate for all"]).between(0.255, 0.335).all()
low = results["tuned"].query("accuracy < 0.5")
assert low[["kernel", "seed"]].to_numpy().tolist() == [["Gaussian", 3]] and low["accuracy"].round(2).item() == 0.31
columns = {"accuracy in percent": 100 * means, "points ahead of linear": ahead.reindex(means.index, fill_value=0)}
pd.concat(columns, axis=1).round(1)

# %% [markdown]
# **Tuning adds 26 to 33 points to every kernel**, several times the difference between kernels. So the left panel mainly
# shows how much each kernel suffers from a rate and a $\gamma$ that do not suit it. With tuning the IMQ is still ahead.
# The interval of the Gaussian kernel is wide because of one run: with seed 3 it has 31 %.
#
# Be careful with this answer. An earlier table with the same settings, in bfloat16 and with five seeds, found +2 points
# for the IMQ and decided nothing ([results](../docs/results.md)). Because the first five seeds of the table above
# disagreed with it, five more were added. These five alone decide nothing. A test that was planned before would be stronger.
#
# How the settings were chosen: first the learning rate at $\gamma = 3$, the default of the class, then $\gamma$ at the
# best rate. Each time the highest mean of three tuning seeds won, on *validation scenes*. The ten seeds above are
# others. Below, a dot is one tuning run and a line the mean of three. Do not compare these accuracies with those above:
# validation and test scenes show different digits.

# %% alt="Validation accuracy against the learning rate, left, and against gamma, right, for three kernels. All rise with the rate up to 0.032, fall to 11 to 18 percent at 0.128, and have their maximum at gamma 2."
plot_tuning(tuned)

# %%
curves = tuned[(tuned["evaluation"] == "linear on validation") & (tuned["tuned"] == "gamma")]
by_gamma = 100 * curves.groupby(["kernel", "gamma"], sort=False)["accuracy"].mean().unstack()
ahead = by_gamma.loc["IMQ"] - by_gamma.loc["linear"]
assert (by_gamma.idxmax(axis=1) == 2.0).all() and (by_gamma[2.0] - by_gamma[4.0]).between(5, 12).all()
assert ahead[1.0] < 0 < 3 < ahead[2.0] < 9 < ahead[4.0]
for choice in json.loads(tuned.attrs["chosen"]):
    assert choice["learning_rate"] == 0.032 and choice["gamma"] == 2.0 and choice["at_end"] == []
pd.concat([by_gamma, ahead.to_frame("IMQ minus linear").T]).round(1).rename_axis(columns="γ")

# %% [markdown]
# **$\gamma$ alone moves every kernel by five to twelve points**, from $\gamma = 2$ to 4. At $\gamma = 1$ the mean of the IMQ
# is below that of the linear kernel, at 2 more than three points above it, at 4 more than nine. With three seeds these are
# rough numbers. But they show that a comparison at one $\gamma$ for all is also a comparison of how well $\gamma$ suits each.
#
# All three kernels chose $\gamma = 2$ and a rate of 0.032, both inside their lists. At a rate of 0.128 they learn little.
#
# **On CIFAR-10 the linear and the Gaussian kernel are the same within one point, and the IMQ is not decided.** The grid
# `data/grids/tuned_cifar10_kernel.toml` trains on 15 360 images in batches of 256. The rate and then $\gamma$ were chosen
# for every kernel on 5000 other images, by two runs each. The five seeds below are others, on the official test split.

# %% alt="Differences to the linear kernel on CIFAR-10 with 95 percent intervals. The Gaussian: an interval within one point of 0. The IMQ: plus 1.1 points, from minus 0.1 to plus 2.2."
cifar = kernel_table("tuned_cifar10_kernel")
cifar = cifar[cifar["tuned"].isna() & (cifar["evaluation"] == "linear")]
differences = paired_differences(cifar, "kernel", "linear")
runs = 100 * cifar.pivot(index="seed", columns="kernel", values="accuracy")
print("accuracy of every run in percent", runs[["linear", "Gaussian", "IMQ"]].round(1), sep="\n")
_ = plot_differences(differences, plt.subplots(figsize=(7, 2.2), layout="constrained")[1])

assert differences.set_index("second")["verdict"].to_dict() == {"Gaussian": "same within 1 point", "IMQ": "not decided"}
assert runs.min().min() > 61 and runs.max().max() < 64 and (runs["IMQ"] > runs["linear"]).sum() == 4

# %% [markdown]
# All runs lie between 61 and 64 %, whatever their kernel. The IMQ is ahead with four of five seeds, by one point on
# average. It chose the highest rate of its list, so a higher one might help it.

# %% [markdown]
# ## Summary
#
# * A characteristic kernel can detect every dependence. In a sample its bandwidth must fit: if it is too wide the kernel
#   is nearly linear, and if it is too narrow it detects nothing.
# * Uncorrelated features can be functions of one variable: Hermite polynomials of a Gaussian pair have a diagonal $C$.
# * Barlow Twins ($\lambda = 1$), SSL-HSIC and InfoNCE share one term, the dependence of the projections on their image.
#   They differ in their penalty on redundancy. The kernel of SIGReg tends to the inverse multiquadric.
# * In short tuned trainings the IMQ is ahead of the linear kernel on the scenes, and nothing is decided about it on
#   CIFAR-10. The Gaussian and the linear kernel are the same within one point on CIFAR-10.
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. Which of the bandwidths of section 2 gives the largest ratio of HSIC to its permutations for the circle? Is the
#    median distance near it?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The best of these bandwidths is a little smaller than the median.
best = sigmas[(observed / permuted).argmax()].item()
print(f"best bandwidth {best:.2f}, median {median:.2f}")
assert median / 2 < best < median

# %% [markdown]
# 2. In section 7, whiten the projections of the *untrained* network instead. Does training make the pairs dependent?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Some pairs are dependent before the training, more than one in 20. After it there are more (one seed).
torch.manual_seed(0)
encoder = ConvEncoder(settings["width"])
random_network = torch.nn.Sequential(encoder, MLPProjector([encoder.out_features, *settings["projector"]]))
with torch.no_grad():
    z = standardize(random_network(normalize(data.test.images[:images])).double())
white = torch.linalg.svd(z, full_matrices=False).U[:, :count] * images**0.5
dependent = np.mean([permutation_test(white[:, i], white[:, j], permutations=199).pvalue <= 0.05 for i, j in pairs])
print(f"untrained network: {dependent:.0%} of the pairs with p <= 0.05; trained: {significant['Gaussian']:.0%}")
assert dependent > 0.1 and (FAST or dependent < significant["Gaussian"])

# %% [markdown]
# 3. Let $T$ go to 0 in section 5. Where does the slope $-3$ no longer hold, and why?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Gradually below T = 2: the expansion needs a small k = cosine / T. At T = 0.5 the
# local slope is off by more than 0.1.
def third_order(temperature):
    others = (w @ w.T / temperature)[off].reshape(2 * n, -1)
    exact = others.exp().mean(dim=1).log().mean()
    return abs(exact - others.mean() - others.var(dim=1, correction=0).mean() / 2).item()


local = {t: math.log2(third_order(t) / third_order(2 * t)) for t in (0.05, 0.1, 0.5, 2.0, 8.0)}
for t, slope in local.items():
    print(f"T = {t:<4}  slope {-slope:.2f}")
assert all(abs(local[t] - 3) < 0.1 for t in (2.0, 8.0)) and 0.1 < abs(local[0.5] - 3) < 0.3
assert abs(local[0.05] - 3) > 0.3

# %% [markdown]
# 4. Train with the linear kernel, $\gamma = 3$ and `standardized=False`. What happens to the scale of the projections?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# They shrink. At gamma = 3 the sum of the two terms is positive, so a smaller scale
# means a smaller loss (section 4).
run = fit(loss="ssl_hsic", loss_options={"kernel": "linear", "gamma": 3.0, "standardized": False})
with torch.no_grad():
    after = run.projector(run.encoder(normalize(data.test.images[:images]))).std(dim=0).mean().item()
    before = random_network(normalize(data.test.images[:images])).std(dim=0).mean().item()
print(f"mean standard deviation of a projection: {before:.3g} in an untrained network, {after:.3g} after training")
assert FAST or after < before / 2

# %% [markdown]
# **Next:** [09 Linear evaluation](09_linear_evaluation.ipynb): how to measure what frozen features contain, and which
# mistakes to avoid.
