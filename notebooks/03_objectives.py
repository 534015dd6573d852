# %% [markdown]
# # Objectives as terms on two matrices
#
# A batch of $n$ images and $d$ features gives two matrices: similarities between *samples* ($n \times n$) and covariances between
# *features* ($d \times d$). An *objective* is the loss that a training minimizes. **Every loss in this notebook is a function of matrices of
# these two kinds.**
#
# Pushing samples apart and making features uncorrelated are nearly the same: the two terms differ only by the lengths of rows and columns.
#
# *Negative samples* are other images that a loss pushes apart one by one. Barlow Twins needs none: across the views it pushes all pairs of
# images apart with one equal weight, so negatives exist only as a mean over the batch. This is what Tsai et al. (2021, arXiv 2104.13712) argue.
#
# **What you will see**
#
# 1. The two matrices of a batch.
# 2. Ten losses written with them.
# 3. A theorem: to push samples apart and to decorrelate features is nearly the same.
# 4. Which pairs of images each loss pushes apart.
# 5. SIGReg, the loss of the method LeJEPA, which compares the whole distribution with a normal one.
#
# **What you need**: $\mathrm{HSIC} = \lVert C \rVert_F^2$ from [notebook 01](01_barlow_twins_is_hsic.ipynb). Nothing is downloaded.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer draws for a quick check

# %% [markdown]
# The next cell holds the imports and the drawing functions. It is folded, as are the cells with checks and solutions.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import math
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F

from hsic_lab.correlation import cross_correlation, standardize
from hsic_lab.datasets import DigitScenes
from hsic_lab.hsic import dhsic
from hsic_lab.kernels import Gaussian, Linear
from hsic_lab.losses import (
    BarlowTwinsLoss,
    HSICSSLLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SIGRegLoss,
    SpectralContrastiveLoss,
    SSLHSICLoss,
    VICRegLoss,
)
from hsic_lab.plots import plot_pairs, set_theme
from hsic_lab.views import normalize

set_theme()
PALETTE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
close = partial(torch.allclose, rtol=1e-10, atol=1e-10)  # the tolerance of every identity
normal = partial(torch.randn, dtype=torch.float64)

def center(grams):
    """Subtract the means of rows and columns in every matrix of a stack: HKH."""
    grams = grams - grams.mean(dim=-1, keepdim=True)
    return grams - grams.mean(dim=-2, keepdim=True)


def off(matrix):
    """Return the off-diagonal entries."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def show_matrices(panels, label, rows=1, size=2.8, **labels):
    """Draw matrices, each on a color scale (named `label`) centered at 0 that covers 97 % of its entries."""
    columns = -(-len(panels) // rows)
    figure, axes = plt.subplots(rows, columns, figsize=(size * columns + 0.6, 0.9 * size * rows), layout="constrained")
    for ax, (title, matrix) in zip(axes.flat, panels.items(), strict=True):
        limit = matrix.abs().quantile(0.97).item() or matrix.abs().max().item()
        image = ax.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        ax.set_title(title, fontsize="medium")
        ax.set(**labels)
        ax.locator_params(nbins=5, integer=True)
        extend = "both" if matrix.abs().max() > limit else "neither"
        figure.colorbar(image, ax=ax, shrink=0.6, extend=extend).set_label(label, fontsize="small")
    return axes



def shrunk(images):
    return F.avg_pool2d(normalize(images), 2).flatten(1)


def show_forces(forces):
    """Draw one matrix over both views for each loss, with lines between the views."""
    words = "sample of A, then B"
    for ax in show_matrices(forces, "∂L / ∂ similarity", rows=2, xlabel=words, ylabel=words).flat:
        ax.label_outer()
        ax.axhline(n - 0.5, color="0.6", linewidth=0.8)
        ax.axvline(n - 0.5, color="0.6", linewidth=0.8)


def plot_gaps(gaps, doubly):
    """Draw the difference of the two contrasts between its bounds."""
    ax = plt.subplots(figsize=(6.6, 3.6), layout="constrained")[1]
    for bound, label in ((N**2 / M - N, None), (N**2 - N, "bounds")):
        ax.axhline(bound, color="0.4", linestyle="--", linewidth=1, label=label)
    ax.plot(torch.linspace(0, 1, len(gaps)), gaps, "o-", color=PALETTE[0], label="rows of length 1")
    ax.plot([0] * len(doubly), doubly, "D", color=PALETTE[3], label="rows and columns", clip_on=False, zorder=3)
    ax.set(xlabel="inequality of the column lengths", ylabel="$L_c - L_{nc}$", title=f"N = {N} samples, M = {M} features")
    ax.legend()


def plot_sigreg(sliced, exact, distances):
    """Draw the slice noise beside the exact value, and the three distances of four samples."""
    (left, right) = plt.subplots(1, 2, figsize=(9.4, 3.9), layout="constrained", width_ratios=[1, 1.2])[1]
    left.hist(sliced, bins=20, color=PALETTE[0], alpha=0.6, label="256 random directions")
    left.axvline(exact, color=PALETTE[3], linewidth=2, label="all directions, exact")
    left.set(xlabel="$T$ of one batch", ylabel="draws of directions")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize="small")
    distances.plot.barh(ax=right, width=0.75, color=[PALETTE[0], PALETTE[2], PALETTE[1]])
    right.invert_yaxis()
    right.set(xlabel="distance", ylabel="")
    right.legend(loc="lower center", bbox_to_anchor=(0.35, 1), fontsize="small", ncols=3, columnspacing=1)

# %% [markdown]
# ## 1. Samples and features
#
# The two views of a pair share the background, a part of a photograph. The digit, its position, size and color differ.

# %% alt="Nine pairs of small scenes. The two views of a pair show the same part of a photograph behind different digits."
n, d = 24, 12
scenes = DigitScenes("train", size=16)
image_a, image_b = scenes.pairs(n, 3, shared=("background",))
plot_pairs(image_a, image_b, n=9);

# %% [markdown]
# One random layer on shrunken images takes the place of a network. It gives $Z_a$ and $Z_b$ with $n$ rows (**samples**) and $d$ columns
# (**features**). With its column means subtracted, $Z_a$ has two products with itself:
#
# $$\begin{aligned}
# K &= \tfrac1n Z_a Z_a^\top \;(n \times n), \text{ the Gram matrix of the samples}, \\
# \Sigma &= \tfrac1n Z_a^\top Z_a \;(d \times d), \text{ the covariance of the features}.
# \end{aligned}$$
#
# They have the same nonzero eigenvalues. The squared **Frobenius norm** $\lVert\cdot\rVert_F^2$, the sum of squared entries, is the sum of
# the squared eigenvalues, so it is the same for both.
#
# In the figure the axes of the left matrix are the 24 samples, with similar ones next to each other, and those of the right matrix are
# the 12 features. Red is positive, blue is negative. A loss that makes the off-diagonal of the left matrix small pushes *samples*
# apart. On the right matrix it decorrelates *features*.

# %% alt="Left: heatmap of the Gram matrix of 24 samples. Right: heatmap of the covariance of 12 features. Both titles give the same squared norm, 0.8996." tags=["hide-input"] jupyter={"source_hidden": true}
generator = torch.Generator().manual_seed(1)
layer = torch.randn(3 * 8 * 8, d, generator=generator, dtype=torch.float64) / 192**0.5


z_a, z_b = (torch.tanh(shrunk(p).double() @ layer) for p in (image_a, image_b))
order = center(z_a @ z_a.T).svd().U[:, 0].argsort()  # similar samples next to each other, for the plot
z_a, z_b = z_a[order], z_b[order]

centered = z_a - z_a.mean(dim=0)
gram, covariance = centered @ centered.T / n, centered.T @ centered / n
assert close(gram.square().sum(), covariance.square().sum())
assert close(torch.linalg.eigvalsh(gram)[-d:], torch.linalg.eigvalsh(covariance))

axes = show_matrices({f"Gram $K$, ‖·‖² = {gram.square().sum():.4f}": gram,
                      f"covariance $\\Sigma$, ‖·‖² = {covariance.square().sum():.4f}": covariance}, "entry", size=3.7)
for ax, word in zip(axes, ("sample", "feature"), strict=True):
    ax.set(xlabel=word, ylabel=word)

# %% [markdown]
# ## 2. Every loss in terms of these matrices
#
# You know Barlow Twins and HSIC_SSL from notebook 01. These are five more losses, with the method that they come from:
#
# | loss | method | what it asks for |
# |---|---|---|
# | negative cosine | SimSiam (Chen and He 2021), BYOL (Grill et al. 2020) | the two views of an image point in the same direction |
# | NT-Xent | SimCLR (Chen et al. 2020) | of all samples, the other view of the image is the most similar one |
# | spectral | HaoChen et al. (2021) | the same, with squares in place of exponentials |
# | VICReg | Bardes et al. (2022) | equal views; each feature varies; different features are uncorrelated |
# | SSL-HSIC | Li et al. (2021) | features depend on which image they show, and their own HSIC stays small |
#
# All seven can be written with a few matrices:
#
# * $X, Y$: the views with standardized **columns**, and $C = X^\top Y / n$ ($d \times d$);
# * $\Sigma_a, \Sigma_b$: the covariances of the views, with $1/(n-1)$ as in VICReg;
# * $U, V$: the views with **rows** of length 1, and $S = UV^\top$ ($n \times n$), the cosines between views;
# * $W$: the cosines between all $2n$ samples of both views;
# * $G$: the centered Gram matrix of all $2n$ samples.

# %%
x, y = standardize(z_a), standardize(z_b)
u, v = F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)
both = torch.cat([z_a, z_b])
C, S = cross_correlation(z_a, z_b), u @ v.T
W = torch.cat([u, v]) @ torch.cat([u, v]).T
G = center(both @ both.T)
covariances = [torch.cov(z.T) for z in (z_a, z_b)]
eye = torch.eye(2 * n, dtype=torch.bool)
temperature, gamma = 0.5, 3.0

# %% [markdown]
# With these matrices each loss takes one line or two. (The temperature of NT-Xent divides the cosines, and $\gamma$ is the weight of the
# second term of SSL-HSIC.) The folded cell after it compares the values with the classes of the library. They agree.

# %%
rebuilt = {
    "Barlow Twins": (1 - C.diagonal()).square().sum() + off(C).square().sum() / d,
    "HSIC_SSL": (1 - C.diagonal()).square().sum() + (1 + off(C)).square().sum() / d,
    "VICReg": 25 * (z_a - z_b).square().mean() + sum(
        12.5 * F.relu(1 - (cov.diagonal() + 1e-4).sqrt()).mean() + off(cov).square().sum() / d
        for cov in covariances),
    "SSL-HSIC, linear": G.mean() - G.diagonal(n).mean() + gamma * G.norm() / (2 * n),
    "spectral": -2 * S.diagonal().mean() + off(S).square().mean(),
    "NT-Xent": -S.diagonal().mean() / temperature
    + (W / temperature).masked_fill(eye, -torch.inf).logsumexp(1).mean(),
    "negative cosine": -S.diagonal().mean(),
}

# %% tags=["hide-input"] jupyter={"source_hidden": true}
losses = {
    "Barlow Twins": BarlowTwinsLoss(None),  # lambda = 1/d
    "HSIC_SSL": HSICSSLLoss(),
    "VICReg": VICRegLoss(),
    "SSL-HSIC, linear": SSLHSICLoss(Linear(), gamma),
    "spectral": lambda z_a, z_b: SpectralContrastiveLoss()(F.normalize(z_a, dim=1), F.normalize(z_b, dim=1)),
    "NT-Xent": NTXentLoss(temperature),
    "negative cosine": NegativeCosineSimilarity(),
}
library = {name: loss(z_a, z_b) for name, loss in losses.items()}
for name in losses:
    assert close(rebuilt[name], library[name]), name
pd.DataFrame({"formula": rebuilt, "library": library}).astype(float).round(10)

# %% [markdown]
# Barlow Twins and HSIC_SSL compare features across views, VICReg within each view. The spectral loss and NT-Xent compare *samples*. The
# negative cosine has no term for other samples or features.
#
# Three more losses are functions of the same matrices (you can skip them at a first reading):
#
# * **TiCo** (Zhu et al. 2022), without its memory, penalizes $\frac1n \sum_b u_b^\top A u_b$ with $A = \frac1n U^\top U$ and $u_b$ row $b$
#   of $U$. This is $\lVert A \rVert_F^2$, the mean of all squared cosines between samples.
# * **FroSSL** (Skean et al. 2023) penalizes $\log \lVert \rho \rVert_F^2$, where $\rho$ is the covariance divided by its trace (the sum of
#   its diagonal). The Gram matrix gives the same value. $1 / \lVert \rho \rVert_F^2$ is an effective number of eigenvalues: if $m$ of them
#   are equal and the others 0, it is $m$.
# * **CorInfoMax** (Ozsoy et al. 2022) maximizes $\log\det R$ of a covariance $R$. If $R = I + tE$ is close to the identity ($E$ has a zero
#   diagonal, $t$ is small), then $-\log\det R \approx \frac{t^2}{2}\lVert E \rVert_F^2$, an off-diagonal penalty as in Barlow Twins. The error
#   falls as $t^3$.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
moment = u.T @ u / n
assert close(((u @ moment) * u).sum(dim=1).mean(), moment.square().sum())
assert close(moment.square().sum(), (u @ u.T).square().mean())

eigenvalues = torch.linalg.eigvalsh(covariance) / covariance.trace()
for matrix in (gram, covariance):
    assert close((matrix / matrix.trace()).square().sum().log(), eigenvalues.square().sum().log())
print(f"effective number of eigenvalues (FroSSL): {1 / eigenvalues.square().sum():.2f} of {d}")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
correlation = torch.corrcoef(z_a.T)
E = correlation - torch.eye(d, dtype=torch.float64)
sizes = 2.0 ** -torch.arange(4, 12)
remainders = torch.stack([
    (-torch.logdet(torch.eye(d, dtype=torch.float64) + t * E) - t**2 / 2 * E.square().sum()).abs() for t in sizes
])
slopes = (remainders[:-1] / remainders[1:]).log2()
assert (slopes[-3:] - 3).abs().max() < 0.02  # halving t divides the remainder by 2^3
print(f"remainder (CorInfoMax): O(t^{slopes[-1]:.3f})")

# %% [markdown]
# ## 3. The duality theorem
#
# Let $Z$ be a matrix with $N$ samples $z_b$ (rows) and $M$ features $z_{\cdot i}$ (columns), as in Garrido et al. (2023, arXiv
# 2206.02574). Contrast the samples or the features:
#
# $$L_{c} = \sum_{b \neq b'} (z_b^\top z_{b'})^2 , \qquad L_{nc} = \sum_{i \neq j} (z_{\cdot i}^\top z_{\cdot j})^2 .$$
#
# ($c$ is for *contrastive*, $nc$ for *non-contrastive*, the names of the two families of methods.) Each is a squared Frobenius norm
# without its diagonal. The norms are equal, so only the diagonals differ (theorem 3.3):
#
# $$L_{nc} + \sum_i \lVert z_{\cdot i} \rVert^4 = L_{c} + \sum_b \lVert z_b \rVert^4 .$$

# %%
def contrast_samples(z):
    return off(z @ z.T).square().sum()


def contrast_features(z):
    return off(z.T @ z).square().sum()


def fourth_powers(z, dim):
    return z.norm(dim=dim).pow(4).sum()


# %%
for N, M in ((24, 12), (12, 40), (7, 7)):
    z = torch.randn(N, M, generator=generator, dtype=torch.float64)
    of_samples = contrast_samples(z) + fourth_powers(z, 1)
    assert close(contrast_features(z) + fourth_powers(z, 0), of_samples)

# %% [markdown]
# With rows of length 1 the row term is $N$, and the column term lies between $N^2/M$ (equal columns) and $N^2$ (one nonzero column). This
# gives corollary 3.4.1:
#
# $$L_{nc} - N + \tfrac{N^2}{M} \;\le\; L_{c} \;\le\; L_{nc} - N + N^2 .$$
#
# If the columns also have equal length, the losses differ by the **constant** $N - N^2/M$.
#
# The figure shows $L_c - L_{nc}$ for matrices with rows of length 1. On the left the columns have similar lengths, on the right only one
# column is not 0. The orange diamond is five matrices, which lie on one another. Their rows and columns were normalized in turn until all
# columns had the same length.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
N, M = 24, 12
gaps, z = [], torch.randn(N, M, generator=generator, dtype=torch.float64)
for unequal in torch.linspace(0, 1, 21).tolist():  # from columns of similar length to a single nonzero one
    rows = F.normalize(z * torch.cat([torch.ones(1), torch.full((M - 1,), 1 - unequal)]), dim=1)
    gap = contrast_samples(rows) - contrast_features(rows)
    assert N**2 / M - N - 1e-9 <= gap <= N**2 - N + 1e-9
    gaps.append(gap)

# %% alt="The difference of the two contrasts against the inequality of the feature lengths. It stays between the two dashed bounds; the matrices with normalized rows and columns lie on the lower bound." tags=["hide-input"] jupyter={"source_hidden": true}
doubly = []
for _ in range(5):
    z = torch.randn(N, M, generator=generator, dtype=torch.float64)
    for _ in range(500):
        z = F.normalize(F.normalize(z, dim=0) * (N / M) ** 0.5, dim=1)
    assert close(z.square().sum(dim=0), torch.full((M,), N / M, dtype=torch.float64))
    assert abs(contrast_features(z) - contrast_samples(z) - (N - N**2 / M)) < 1e-9
    doubly.append(contrast_samples(z) - contrast_features(z))
plot_gaps(gaps, doubly)

# %% [markdown]
# Up to the lengths of rows and columns, "push samples apart" and "decorrelate features" are the same term. The option
# `contrast="samples"` of `BarlowTwinsLoss` and `VICRegLoss` takes the other side of the theorem. (The folded cell checks it.)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
diagonals = C.diagonal().square().sum() - (x.square().sum(dim=1) * y.square().sum(dim=1)).sum() / n**2
one_side, other_side = (BarlowTwinsLoss(1.0, contrast=side)(z_a, z_b) for side in ("samples", "dimensions"))
assert close(one_side - other_side, diagonals)

# %% [markdown]
# ## 4. Which pairs repel each other
#
# Put all $2n$ samples of both views into one Gram matrix. Entry $(b, c)$ of the next heatmaps is the derivative of the loss by the
# similarity of samples $b$ and $c$. **Red** (positive): descent makes the samples less similar, they repel. **Blue**: they attract. White:
# the loss does not use this pair.
#
# Barlow Twins and VICReg treat each feature $j$ separately. So the folded cell uses one matrix for each feature,
# $K^{(j)}_{bc} = z_{bj} z_{cj}$, writes each loss as a function of these matrices, and takes the derivatives
# $\Gamma^{(j)} = \partial L / \partial K^{(j)}$. The heatmaps show their mean over $j$.
#
# Nothing is lost: the derivatives determine the whole gradient,
# $\partial L / \partial z_{bj} = \sum_c (\Gamma^{(j)}_{bc} + \Gamma^{(j)}_{cb})\, z_{cj}$. The cells check this, and the value of each loss,
# against the classes of the library.
#
# Rows and columns of a heatmap are the $2n$ samples, first view A, then view B. Gray lines separate the views.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
def blocks(grams):
    """Return the parts within view A, across views, and within view B."""
    return grams[..., :n, :n], grams[..., :n, n:], grams[..., n:, n:]


def trace(grams):
    return grams.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def cosines(grams):
    total = grams.sum(dim=0)
    length = total.diagonal().sqrt()
    return total / length[:, None] / length


def barlow_twins(grams, weight=1 / d):
    a, across, b = (center(part) for part in blocks(grams))
    var_a, var_b = trace(a) / n, trace(b) / n
    diagonal = trace(across) / n / (var_a * var_b).sqrt()
    squared_norm = ((a / var_a[:, None, None]).sum(0) * (b / var_b[:, None, None]).sum(0)).mean()  # HSIC
    return (1 - diagonal).square().sum() + weight * (squared_norm - diagonal.square().sum())


def vicreg(grams):
    a, across, b = blocks(grams)
    loss = 25 * (trace(a) + trace(b) - 2 * trace(across)).sum() / (n * d)
    for part in (center(a), center(b)):
        var = trace(part) / (n - 1)
        squared_norm = part.sum(dim=0).square().sum() / (n - 1) ** 2
        loss = loss + 12.5 * F.relu(1 - (var + 1e-4).sqrt()).mean() + (squared_norm - var.square().sum()) / d
    return loss


def ssl_hsic(grams):
    total = center(grams.sum(dim=0))
    return -total.diagonal(n).mean() + gamma * torch.linalg.norm(total) / (2 * n)


def spectral(grams):
    across = blocks(cosines(grams))[1]
    return -2 * across.diagonal().mean() + off(across).square().mean()


def nt_xent(grams):
    logits = cosines(grams) / temperature
    return -logits.diagonal(n).mean() + logits.masked_fill(eye, -torch.inf).logsumexp(dim=1).mean()


def negative_cosine(grams):
    return -cosines(grams).diagonal(n).mean()


of_grams = {
    "negative cosine": negative_cosine, "NT-Xent": nt_xent, "spectral": spectral,
    "SSL-HSIC, linear": ssl_hsic, "Barlow Twins": barlow_twins, "VICReg": vicreg,
}

# %% alt="Six heatmaps over pairs of samples. Partners are blue for every loss. Other pairs are white for the negative cosine, red for NT-Xent, red and blue across views for spectral, red and blue everywhere for linear SSL-HSIC, constant red across views for Barlow Twins, red within views for VICReg."
forces, row_sums = {}, {}
for name, function in of_grams.items():
    grams = (both.T[:, :, None] * both.T[:, None, :]).requires_grad_()
    value = function(grams)
    derivative = torch.autograd.grad(value, grams)[0]
    derivative = derivative + derivative.mT

    free = both.clone().requires_grad_()
    expected = losses[name](free[:n], free[n:])
    assert close(value, expected), name
    gradient = torch.einsum("jbc,cj->bj", derivative, both)
    assert close(gradient, torch.autograd.grad(expected, free)[0]), name
    row_sums[name] = derivative.sum(dim=-1)
    forces[name] = derivative.mean(dim=0).fill_diagonal_(0)  # (b, b) is a squared length
show_forces(forces)

# %% [markdown]
# The blue lines are the **partners**, the two views of one image, which every loss pulls together. (Their color is cut off at the end of
# the scale.) All other entries are pairs of different images:
#
# * **Negative cosine**: white. It uses no other pairs.
# * **NT-Xent**: red. Every pair repels, similar pairs more strongly.
# * **Spectral**: pairs across views. A pair repels if its cosine is positive and attracts if it is negative.
# * **SSL-HSIC** (linear): each row sums to zero, because of centering. Similar samples repel, dissimilar ones attract.
# * **Barlow Twins**: across views a constant red, *all* permuted pairs with the same weight. Within a view, samples that are similar *in
#   the other view* repel; the blue comes from the division by the standard deviation.
# * **VICReg**: pairs within a view repel, similar ones more strongly.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
partner = eye.roll(n, dims=1)
other = ~(partner | eye)
across = torch.zeros_like(other)
across[:n, n:] = across[n:, :n] = True
for name, force in forces.items():
    assert (force[partner] < 0).all(), name

assert (forces["negative cosine"][other] == 0).all()
assert (forces["NT-Xent"][other] > 0).all()
per_cosine = forces["NT-Xent"] * both.norm(dim=1)[:, None] * both.norm(dim=1)  # by cosine, not by dot product
assert torch.corrcoef(torch.stack([per_cosine[other], W[other].exp()]))[0, 1] > 0.8
assert (forces["spectral"][other & ~across] == 0).all()
assert (forces["spectral"][other & across].sign() == W[other & across].sign()).all()
for name in ("SSL-HSIC, linear", "Barlow Twins", "VICReg"):
    assert row_sums[name].abs().max() < 1e-10 * forces[name].abs().max(), name
permuted, within = forces["Barlow Twins"][other & across], other[:n, :n]
assert (permuted > 0).all() and close(permuted, permuted.mean())
assert forces["Barlow Twins"][other & ~across].mean() < 0
for name, gram in {"Barlow Twins": y @ y.T, "VICReg": center(z_a @ z_a.T)}.items():  # in view A
    assert torch.corrcoef(torch.stack([forces[name][:n, :n][within], gram[within]]))[0, 1] > 0.5, name
assert (forces["VICReg"][other & across] == 0).all() and (forces["VICReg"][other & ~across] > 0).all()

# %% [markdown]
# ### The permuted pairs in Barlow Twins
#
# Divide the columns of $Z_a$ and $Z_b$ by their standard deviations, call the results $\tilde Z_a$ and $\tilde Z_b$, and let
# $\tilde S = \tilde Z_a \tilde Z_b^\top$ be the similarities between the views *before* centering. With
# $H = I - \frac1n \mathbf 1\mathbf 1^\top$, which subtracts means ($\mathbf 1$: the column of ones), the alignment of Barlow Twins is
# $\mathrm{tr}\,C = \frac1n \mathrm{tr}(H \tilde S H)$. So
#
# $$\frac{\partial\, \mathrm{tr}\, C}{\partial \tilde S} = \frac1n H
# = \frac1n I - \frac1{n^2}\mathbf 1 \mathbf 1^\top .$$
#
# The alignment pulls the $n$ real pairs together and pushes all $n^2$ permuted pairs apart with one small weight.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
raw = ((z_a / z_a.std(dim=0, correction=0)) @ (z_b / z_b.std(dim=0, correction=0)).T).requires_grad_()
alignment = trace(center(raw)) / n
assert close(alignment, C.trace())
weights = torch.autograd.grad(alignment, raw)[0]
assert close(weights, torch.eye(n, dtype=torch.float64) / n - 1 / n**2)
assert close(off(weights), torch.full((n * (n - 1),), -1 / n**2, dtype=torch.float64))

# %% [markdown]
# ### A test: mix the samples of the batch
#
# Replace the batch by $QZ_a$, $QZ_b$ with an orthogonal $n \times n$ matrix $Q$ and $Q \mathbf 1 = \mathbf 1$. Every row is now a mixture
# of all samples, but all means and covariances stay the same. If a loss does not change, it uses no individual pairs: its negatives exist
# only as a mean.
#
# The last column of the table says *none* if a loss uses no pair of different images, *as a mean* if mixing does not change the loss, and
# *pair by pair* if it does.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
basis = torch.linalg.qr(torch.cat([torch.ones(n, 1), torch.randn(n, n - 1, generator=generator)], 1).double()).Q[:, 1:]
rotation = torch.linalg.qr(torch.randn(n - 1, n - 1, generator=generator, dtype=torch.float64)).Q
Q = 1 / n + basis @ rotation @ basis.T
assert close(Q @ Q.T, torch.eye(n, dtype=torch.float64)) and close(Q.sum(dim=1), torch.ones(n, dtype=torch.float64))

# %% tags=["hide-input"] jupyter={"source_hidden": true}
used = {name: (force[other] != 0).double().mean().item() for name, force in forces.items()}
change = {name: abs(losses[name](Q @ z_a, Q @ z_b) - losses[name](z_a, z_b)).item() for name in forces}
negatives = pd.DataFrame({"share of other pairs used": used, "change when mixed": change})
negatives["negatives"] = "pair by pair"
negatives.loc[negatives["change when mixed"] < 1e-9, "negatives"] = "as a mean"
negatives.loc[negatives["share of other pairs used"] == 0, "negatives"] = "none"
assert negatives["negatives"].to_dict() == {
    "negative cosine": "none", "NT-Xent": "pair by pair", "spectral": "pair by pair",
    "SSL-HSIC, linear": "as a mean", "Barlow Twins": "as a mean", "VICReg": "as a mean",
}
negatives.round(3)

# %% [markdown]
# This supports Tsai et al. (2021): Barlow Twins pushes pairs apart, but it uses no individual negative samples. The same holds
# for VICReg, and for SSL-HSIC *with a linear kernel*, but not with a nonlinear one:

# %% tags=["hide-input"] jupyter={"source_hidden": true}
nonlinear = SSLHSICLoss(gamma=gamma)
change = abs(nonlinear(Q @ z_a, Q @ z_b) - nonlinear(z_a, z_b))
print(f"SSL-HSIC, inverse multiquadric kernel, change when mixed: {change:.3f}")
assert change > 1e-3

# %% [markdown]
# ## 5. SIGReg: compare the whole distribution
#
# The losses above use means and covariances, or pairs. **SIGReg** (Balestriero and LeCun 2025, arXiv 2511.08544), one of the two terms of
# the loss of LeJEPA, asks for more: the features should follow the standard normal distribution.
#
# It looks at one direction at a time. Let $u$ be a vector of length 1 and $x_i = u^\top z_i$ the $n$ projected samples. Their
# *characteristic function*, which determines their distribution, is $\varphi(t) = \frac1n \sum_i e^{\mathrm{i} t x_i}$ with the imaginary
# unit $\mathrm{i}$. That of the standard normal distribution is $e^{-t^2/2}$. SIGReg squares the difference at all frequencies $t$,
#
# $$\begin{aligned}
# T_u &= \int \bigl|\varphi(t) - e^{-t^2/2}\bigr|^2 e^{-t^2/2}\, dt \\
# &= \sqrt{2\pi}\, \Bigl[ \tfrac1{n^2} \sum_{i,j} e^{-(x_i - x_j)^2/2} - \sqrt2\, \tfrac1n \sum_i e^{-x_i^2/4} + \tfrac1{\sqrt3} \Bigr],
# \end{aligned}$$
#
# and averages over directions. The second line is a squared **maximum mean discrepancy** (MMD, [notebook 01](01_barlow_twins_is_hsic.ipynb),
# section 3) between the samples and the normal distribution with a Gaussian kernel: the first sum is over the Gram matrix. So SIGReg is
# one more objective on the matrix of samples. The cell checks the formula.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
x_1d = 0.5 + normal(64, generator=generator)
t = torch.linspace(-12, 12, 4001, dtype=torch.float64)
phi = torch.exp(1j * t[:, None] * x_1d).mean(dim=1)
integral = torch.trapezoid((phi - torch.exp(-t**2 / 2)).abs().square() * torch.exp(-t**2 / 2), t)

gram_1d = torch.exp(-(x_1d[:, None] - x_1d).square() / 2)
formula = (2 * math.pi) ** 0.5 * (gram_1d.mean() - 2**0.5 * torch.exp(-x_1d.square() / 4).mean() + 3**-0.5)
exact_1d, quadrature = (SIGRegLoss(1.0, slices=k)(x_1d[:, None], x_1d[:, None]) / 64 for k in (None, 1))
print(f"integral       {integral:.10f}\nformula        {formula:.10f}\nlibrary        {exact_1d:.10f}")
print(f"17 frequencies {quadrature:.10f}")
assert close(integral, formula) and close(exact_1d, formula) and abs(quadrature - formula) < 5e-4

# %% [markdown]
# LeJEPA draws 1024 directions at every step and computes the integral from 17 frequencies. The mean over *all* directions has a closed
# form too ([notebook 08](08_kernels_beyond_linear.ipynb)). `SIGRegLoss()` computes this exact mean, and `SIGRegLoss(slices=256)` draws
# directions.
#
# What does SIGReg ask for? Compare three distributions:
#
# * $P$, that of the features;
# * $N$, the standard normal one;
# * the *product* $P_1 \otimes \dots \otimes P_d$ of the *marginals* $P_1, \dots, P_d$, the distributions of the single features. This is what
#   $P$ would be if the features were independent.
#
# Take a kernel that is a product over the features, such as the Gaussian. Then the MMD between $P$ and the product is
# $\sqrt{\mathrm{dHSIC}}$, where dHSIC is HSIC for $d$ variables. (The kernel of SIGReg is no product. For it, read this MMD in place of
# $\sqrt{\mathrm{dHSIC}}$.) The triangle inequality gives
#
# $$\begin{aligned}
# \bigl|\sqrt{\mathrm{dHSIC}} - \mathrm{MMD}(P_1 \otimes \dots \otimes P_d, N)\bigr| &\le \mathrm{MMD}(P, N) \\
# &\le \sqrt{\mathrm{dHSIC}} + \mathrm{MMD}(P_1 \otimes \dots \otimes P_d, N) .
# \end{aligned}$$
#
# So SIGReg asks for two things together: **independent features** and **normal marginals**. The cell computes the three distances for
# four samples of two features, with a Gaussian kernel.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
def distances(z):
    """Return the MMD to the normal distribution, the root of dHSIC, and the MMD of the product of the marginals to it."""
    grams = torch.exp(-(z.T[:, :, None] - z.T[:, None, :]).square() / 2)  # one for each feature
    cross = torch.exp(-z.T.square() / 4) / 2**0.5  # the mean of the kernel with a normal sample
    joint = grams.prod(dim=0).mean() - 2 * cross.prod(dim=0).mean() + 3 ** (-len(grams) / 2)
    product = grams.mean(dim=(1, 2)).prod() - 2 * cross.mean(dim=1).prod() + 3 ** (-len(grams) / 2)
    dependence = dhsic(*z.T[:, :, None], kernels=[Gaussian(1.0)] * len(grams))
    return {"MMD(P, N)": joint.sqrt(), "√dHSIC": dependence.sqrt(), "MMD(product, N)": product.sqrt()}


plain, draws = normal(500, 2, generator=generator), torch.rand(500, 2, generator=generator, dtype=torch.float64)
sign = normal(500, generator=generator).sign()
samples = {
    "normal": plain, "uniform, independent": 12**0.5 * (draws - 0.5),
    "normal marginals,\ndependent": torch.stack([plain[:, 0], sign * plain[:, 0]], dim=1), "scaled by 2": 2 * plain,
}
found = pd.DataFrame({name: distances(z) for name, z in samples.items()}).T.astype(float)

# %% [markdown]
# The picture shows these distances on the right. On the left is $T$, the mean of $T_u$ over directions, for one batch of 64 samples
# with 8 features: exact, and with 256 random directions drawn 400 times. The random directions add a noise of about 5 % of the value.
# (The 17 frequencies shift the histogram to the left by about 2 %.)

# %% alt="Left: histogram of T for 256 random directions, spread by several percent around the exact value. Right: bars of three distances for four samples. The dependent sample with normal marginals has a large root of dHSIC and a small distance of its marginals; the uniform and the scaled sample have it the other way round." tags=["hide-input"] jupyter={"source_hidden": true}
batch = normal(64, 8, generator=generator)
exact = SIGRegLoss(1.0)(batch, batch).item() / 64
slices = SIGRegLoss(1.0, slices=256)
sliced = torch.stack([slices(batch, batch) / 64 for _ in range(100 if FAST else 400)])
noise = (sliced.std() / exact).item()
assert 0.005 < 1 - sliced.mean() / exact < 0.03 and 0.03 < noise < 0.08
plot_sigreg(sliced, exact, found)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
print(f"noise of 256 directions: {noise:.1%} of the exact value")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
joint, dependence, product = (found[name] for name in found)
assert ((dependence - product).abs() <= joint + 1e-12).all() and (joint <= dependence + product + 1e-12).all()
assert (found.loc["normal"] < 0.05).all()
assert abs(torch.corrcoef(samples["normal marginals,\ndependent"].T)[0, 1]) < 0.15
assert found.loc["normal marginals,\ndependent", "√dHSIC"] > 4 * found.loc["normal marginals,\ndependent", "MMD(product, N)"]
for name in ("uniform, independent", "scaled by 2"):
    assert found.loc[name, "MMD(product, N)"] > 1.5 * found.loc[name, "√dHSIC"], name

# %% [markdown]
# Every blue bar is at most as long as the two others together. The normal sample has three short bars. The dependent sample has a
# correlation near 0, because its second feature is the first one with a random sign. Barlow Twins and VICReg, which see correlations
# only, do not detect this dependence. SIGReg does, and it also detects marginals that are not normal, as in the other two samples.
#
# ## Summary
#
# * Contrasting samples and contrasting features differ only by the lengths of rows and columns.
# * NT-Xent and the spectral loss use individual pairs. Barlow Twins, VICReg and linear SSL-HSIC use means and covariances. The negative
#   cosine uses partners only.
# * SIGReg is a squared MMD to the normal distribution. It asks for independent features with normal marginals.
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. **Temperature.** Compute the derivatives of section 4 for NT-Xent with the temperatures 0.1 and 5. At which temperature do all negative
#    pairs have nearly the same weight?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The weight of a pair is proportional to exp(cosine / temperature), so a high temperature makes the weights equal.
spreads = {}
for temperature in (0.1, 5.0):
    grams = (both.T[:, :, None] * both.T[:, None, :]).requires_grad_()
    entries = torch.autograd.grad(nt_xent(grams), grams)[0].mean(dim=0)
    entries = (entries + entries.T) * both.norm(dim=1)[:, None] * both.norm(dim=1)  # by cosine
    spreads[temperature] = (entries[other].std() / entries[other].mean()).item()
for t, spread in spreads.items():
    print(f"temperature {t}: spread of the weights {spread:.2f} of their mean")
assert spreads[5.0] < 0.2 and spreads[0.1] > 1

# %% [markdown]
# 2. **The other side.** Does mixing the batch change `BarlowTwinsLoss(1 / d, contrast="samples")`? Why?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Yes: it subtracts the lengths of the rows, and a mixture of samples has rows of other lengths.
other_side = BarlowTwinsLoss(1 / d, contrast="samples")
change = abs(other_side(Q @ z_a, Q @ z_b) - other_side(z_a, z_b)).item()
print(f"change when mixed: {change:.4f}")
assert change > 1e-3 and close((Q @ x).square().sum(), x.square().sum())

# %% [markdown]
# 3. **What scaling changes.** Multiply independent normal features by 0.5, 1 and 2. Which of the three distances of section 5 has its
#    minimum at 1, and which ones stay small at every scale?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Independence does not depend on the scale, so the root of dHSIC stays small. The marginals do depend on it.
by_scale = pd.DataFrame({scale: distances(scale * plain) for scale in (0.5, 1.0, 2.0)}).astype(float)
assert (by_scale.loc["√dHSIC"] < 0.05).all()
assert by_scale.loc["MMD(P, N)"].idxmin() == by_scale.loc["MMD(product, N)"].idxmin() == 1.0
by_scale.rename_axis(columns="scale").round(3)

# %% [markdown]
# **Next:** [03b Symmetry and collapse](03b_symmetry_and_collapse.ipynb) asks which losses need unequal branches, and which ones can pull a
# collapsed batch apart.
