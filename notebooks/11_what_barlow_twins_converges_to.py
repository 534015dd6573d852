# %% [markdown]
# # What Barlow Twins converges to
#
# Where does a training end? For a deep network this is hard to say. If the features are *linear* functions of the input and the weight
# $\lambda$ is large, you can say it exactly. **Barlow Twins finds the directions on which the two views agree best, the leading ones of
# canonical correlation analysis (CCA). It does not choose the canonical directions themselves: if they agree well enough, it mixes them
# so that all features agree equally.** Linear SSL-HSIC and the spectral loss find the same span, as generalized eigenvectors.
#
# **What you will see**
#
# 1. The answer, in one picture.
# 2. Why: the leading directions, and a curve that is convex up to 3/2.
# 3. How large the weight $\lambda$ must be, in one example.
# 4. The same with the coordinates of images and the loss of the library.
# 5. Linear SSL-HSIC and the spectral loss: generalized eigenvalues.
#
# **What you need**: [notebook 01](01_barlow_twins_is_hsic.ipynb) for $C$ and the loss, and eigenvalues of a symmetric matrix. Nothing is
# downloaded. The notebook runs in about half a minute.

# %% tags=["parameters"]
import os

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # fewer starts and weights for a quick check
STARTS = 4 if FAST else 10

# %% [markdown]
# The next cell holds the imports, the drawing functions and the search for a minimum. It is folded. Open it if you want to read it.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import matplotlib.pyplot as plt
import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F

from hsic_lab.correlation import cross_correlation
from hsic_lab.datasets import DigitScenes
from hsic_lab.losses import BarlowTwinsLoss, SSLHSICLoss
from hsic_lab.plots import set_theme
from hsic_lab.views import normalize

set_theme()
PALETTE = plt.rcParams["axes.prop_cycle"].by_key()["color"]
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def numbers(values, digits=3):
    """The values of a vector in one line, without a minus sign before 0."""
    return " ".join(f"{round(value, digits) + 0.0: .{digits}f}" for value in values.tolist())


def minimize(loss, shape, starts=STARTS):
    """Minimize a loss over matrices of this shape by L-BFGS from random starts; return the best one."""
    found = []
    for _ in range(starts):
        w = normal(*shape).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [w], max_iter=1000, tolerance_grad=1e-11, tolerance_change=1e-15, history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(w=w, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(w)
            value.backward()
            return value

        optimizer.step(closure)
        found.append((loss(w).item(), w.detach()))
    return min(found, key=lambda one: one[0])[1]


def plot_answer(solutions, rho, h):
    """Draw the agreement of each feature, and the shares of the canonical directions in each feature."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained", width_ratios=[1.1, 1, 1])
    place, numbers = np.arange(d), range(1, d + 1)
    for number, (name, w) in enumerate(solutions.items()):
        c = (w * rho) @ w.T
        mark, color = "os"[number], PALETTE[3 * number]
        axes[0].plot(place + 0.1 * number, c.diagonal(), mark, color=color, markersize=8, label=name)
        image = axes[number + 1].imshow(w.square(), cmap="viridis", vmin=0, vmax=1)
        axes[number + 1].set(title=name, xlabel="canonical direction", ylabel="feature")
        axes[number + 1].set_yticks(place, numbers)
        axes[number + 1].set_xticks(range(len(rho)), range(1, len(rho) + 1))
    axes[0].axhline(h, color="0.4", linestyle="--", linewidth=1, label="$h$")
    axes[0].set(xlabel="feature", ylabel="agreement $C_{ii}$", ylim=(0, 1), xticks=place, xticklabels=numbers)
    axes[0].legend(loc="lower left")
    figure.colorbar(image, ax=axes[2], label="share", shrink=0.8)


def plot_convexity(rho):
    """Draw the cost of a feature against 1 / C_ii, with the canonical features and their mean."""
    ax = plt.subplots(figsize=(7, 4), layout="constrained")[1]
    u = np.linspace(1, 1.9, 200)
    ax.plot(u, (1 - 1 / u) ** 2, color="0.2")
    ax.axvspan(1, 1.5, color=PALETTE[0], alpha=0.12)
    ax.annotate("convex: $C_{ii} > 2/3$", (1.25, 0.18), ha="center", color=PALETTE[0])
    at = 1 / np.array(rho)
    ax.plot(at, (1 - 1 / at) ** 2, "o", color=PALETTE[3], markersize=8, label="canonical features")
    mean = at.mean()
    ax.plot(mean, ((1 - 1 / at) ** 2).mean(), "x", color=PALETTE[3], markersize=9, label="their mean cost")
    ax.plot(mean, (1 - 1 / mean) ** 2, "s", color=PALETTE[0], markersize=8, label="cost if all are equal")
    ax.set(xlabel="$u = 1 / C_{ii}$", ylabel="cost $(1 - 1/u)^2$ of a feature", ylim=(-0.01, 0.23))
    ax.legend(loc="upper left", bbox_to_anchor=(0.62, 0.4))


def plot_weights(weights, smallest, unequal):
    """Draw the smallest singular value of W and the inequality of the diagonal against lambda."""
    (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")[1]
    left.plot(weights, smallest, "o-", color=PALETTE[0])
    left.set(ylabel="smallest singular value of $W$", ylim=(-0.03, 1.03))
    right.plot(weights, unequal, "o-", color=PALETTE[3])
    right.set(ylabel="largest minus smallest $C_{ii}$", ylim=(0, None))
    for ax in (left, right):
        ax.set(xscale="log", xlabel="weight $\\lambda$")


def plot_eigenvalues(eigenvalues, losses):
    """Draw the generalized eigenvalues, and the smallest loss against the number of features."""
    (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")[1]
    k = np.arange(1, len(eigenvalues) + 1)
    left.bar(k, eigenvalues, color=PALETTE[0], width=0.6)
    left.set(xlabel="$k$", ylabel="generalized eigenvalue $\\mu_k$", xticks=k)
    right.plot(k, -np.cumsum(np.maximum(eigenvalues, 0) ** 2), color="0.4", label="$-\\sum \\mu_k^2$")
    right.plot(list(losses), list(losses.values()), "o", color=PALETTE[3], label="found by the search")
    right.set(xlabel="number of features $d$", ylabel="smallest loss", xticks=k)
    right.legend()


# %% [markdown]
# ## 1. The answer
#
# **The setting.** An input has $p$ coordinates. The two views $x$ and $x'$ of an image are *white*: each coordinate has mean 0 and variance
# 1, and different coordinates of one view are uncorrelated. Across the views, coordinate $k$ of $x$ is correlated with coordinate $k$ of
# $x'$ by $\rho_k > 0$, and with no other one. If both views have one distribution, a linear map brings data into this form (section 4).
#
# So the coordinates are the **canonical directions** of CCA, and $\rho_1 \ge \rho_2 \ge \dots$ are its **canonical correlations**.
# Write $\Lambda = \operatorname{diag}(\rho_1, \dots, \rho_p)$.
#
# **The features** are $z = W x$ with a matrix $W$ of $d$ rows. Each row has length 1, so each feature has variance 1. Then
# $C = W \Lambda W^\top$, and the *agreement* of feature $i$ is $C_{ii}$, its correlation across the views.
#
# The cell minimizes the Barlow Twins loss over $W$ at $\lambda = 1000$, for $d = 3$ features of $p = 6$ coordinates. The picture compares
# the result with the canonical features, which are the first three coordinates. Left: the agreement of each feature. Middle and right: the
# *share* $W_{ik}^2$ of direction $k$ in feature $i$; the shares of a row sum to 1.

# %% alt="Left: agreement of three features. The canonical ones have 0.95, 0.85 and 0.7, those of Barlow Twins all 0.82. Middle and right: shares of six canonical directions in the features. Canonical features use one direction each, those of Barlow Twins mix the first three and do not use the others."
rho, d = torch.tensor([0.95, 0.85, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64), 3


def barlow_twins(w, rho, weight):
    """The Barlow Twins loss of linear features of white inputs."""
    w = F.normalize(w, dim=1)
    c = (w * rho) @ w.T
    return (1 - c.diagonal()).square().sum() + weight * (c.square().sum() - c.diagonal().square().sum())


found = minimize(lambda w: barlow_twins(w, rho, 1000.0), (d, len(rho)))
solutions = {"canonical": torch.eye(len(rho), dtype=torch.float64)[:d], "Barlow Twins": F.normalize(found, dim=1)}
h = d / (1 / rho[:d]).sum().item()  # the harmonic mean
plot_answer(solutions, rho, h)

# %% [markdown]
# **The features of Barlow Twins use the first three canonical directions only.** They are not the canonical ones: each is a mixture of
# the three. All three features agree across the views with the same correlation, the *harmonic mean* of the three canonical
# correlations,
#
# $$h = \frac{d}{\sum_{k=1}^d 1/\rho_k} = 0.8202, \qquad \text{and the loss is } d\,(1 - h)^2 = 0.0970 .$$
#
# The canonical features have a higher loss, 0.1150.

# %%
w = solutions["Barlow Twins"]
c = (w * rho) @ w.T
values = {name: barlow_twins(one, rho, 1000.0).item() for name, one in solutions.items()}
print("diagonal of C of Barlow Twins:", numbers(c.diagonal(), 4))
for name, value in values.items():
    print(f"loss of the {name} features: {value:.4f}")
assert round(h, 4) == 0.8202 and (c.diagonal() - h).abs().max() < 1e-3
assert abs(values["Barlow Twins"] - d * (1 - h) ** 2) < 1e-4 and round(d * (1 - h) ** 2, 4) == 0.0970
assert round(values["canonical"], 4) == 0.1150
assert w[:, d:].abs().max() < 1e-4  # no part of the other directions
assert (w @ w.T - torch.eye(d, dtype=torch.float64)).abs().max() > 0.05  # within one view the features are correlated

# %% [markdown]
# ## 2. Why
#
# **Which diagonals are possible?** A large $\lambda$ forces $C = W \Lambda W^\top$ to be a diagonal matrix $D$. This means
# $W = D^{1/2} Q \Lambda^{-1/2}$, where the rows $q_i$ of $Q$ are orthogonal to each other and have length 1. The rows of $W$ have length
# 1, too, which says
#
# $$u_i := \frac1{C_{ii}} = q_i^\top \Lambda^{-1} q_i ,$$
#
# and the loss is $\sum_i (1 - 1/u_i)^2$. It grows with every $u_i$.
#
# **Why the first $d$ directions.** The $u_i$ are the diagonal of $Q \Lambda^{-1} Q^\top$. By Cauchy's interlacing theorem its $k$-th
# smallest eigenvalue is at least $1/\rho_k$. If you replace the eigenvalues by $1/\rho_k$, no $u_i$ grows, and the result belongs to a
# $Q$ within the first $d$ directions. So no other directions are needed.
#
# **Why equal.** Within these directions $\sum_i u_i = \operatorname{tr} \Lambda^{-1} = \sum_{k \le d} 1/\rho_k$, whatever $Q$ is. The sum
# is fixed, and the loss depends on how it is shared out. The function $(1 - 1/u)^2$ is convex for $u < 3/2$. If $\rho_k > 2/3$ for all
# $k \le d$, then all $u_i < 3/2$, because each is an average of these $1/\rho_k$. For a convex function equal shares have the smallest total, so all $u_i$
# become equal. (By the theorem of Schur and Horn a $Q$ with equal $u_i$ exists.)
#
# The picture shows it for the three canonical features: the mean of their costs lies above the curve, and the equal features on it.

# %% alt="The cost of a feature against u = 1 / C. The curve is convex up to u = 1.5. Three canonical features lie on it; the mean of their costs lies above the cost of three equal features."
plot_convexity(rho[:d].tolist())
u = torch.linspace(1, 3, 2001, dtype=torch.float64)
second = ((1 - 1 / u) ** 2).diff().diff()
assert (second[u[1:-1] < 1.499] > 0).all() and (second[u[1:-1] > 1.501] < 0).all()
assert abs((1 / c.diagonal()).sum() - (1 / rho[:d]).sum()) < 1e-3

# %% [markdown]
# Where the curve is not convex, equal features need not be best. Take $d = 2$ and $\rho = (0.9, 0.4)$, with $0.4 < 2/3$: equal features
# would cost 0.398, and the canonical ones cost 0.370. The search finds unequal features, with a cost within 0.001 of the canonical ones.

# %%
pair = torch.tensor([0.9, 0.4], dtype=torch.float64)
w_pair = F.normalize(minimize(lambda w: barlow_twins(w, pair, 1e4), (2, 2)), dim=1)
diagonal = ((w_pair * pair) @ w_pair.T).diagonal().sort().values
equal = 2 * (1 - 2 / (1 / pair).sum()) ** 2
print("diagonal of C:", numbers(diagonal))
print(f"loss {barlow_twins(w_pair, pair, 1e4):.4f}; of equal features {equal:.4f}")
assert round(equal.item(), 3) == 0.398 and abs(barlow_twins(w_pair, pair, 1e4) - 0.37) < 1e-3
assert diagonal[1] - diagonal[0] > 0.4

# %% [markdown]
# ## 3. How large must lambda be?
#
# So far $\lambda$ was very large. With a small $\lambda$ it costs little if features repeat the best directions. The next picture shows two
# numbers against $\lambda$, for the $\rho$ of section 1. Left: the smallest singular value of $W$. It is 0 if the three features use fewer
# than three directions. Right: how unequal the diagonal is.

# %% alt="Left: the smallest singular value of W against lambda. It is 0 up to 0.01 and above 0.3 from 0.03 on. Right: the inequality of the diagonal is 0 at 0.001, has a peak at 0.01, and falls to 0 as lambda grows."
def subspace_angle(w, basis):
    """The largest angle in degrees between the rows of w and the rows of an orthonormal basis of the same dimension."""
    cosine = torch.linalg.svdvals(torch.linalg.qr(w.T).Q.T @ basis.T).min()
    return torch.rad2deg(torch.arccos(cosine.clamp(max=1))).item()


weights = (0.001, 0.01, 0.03, 1.0, 100.0) if FAST else (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
found = [minimize(lambda w, weight=weight: barlow_twins(w, rho, weight), (d, len(rho))) for weight in weights]
best = [F.normalize(w, dim=1) for w in found]
smallest = [torch.linalg.svdvals(w).min().item() for w in best]
unequal = [np.ptp(((w * rho) @ w.T).diagonal().numpy()) for w in best]
plot_weights(weights, smallest, unequal)

# %%
large = [number for number, weight in enumerate(weights) if weight >= 0.03]
angles = [subspace_angle(best[number], solutions["canonical"]) for number in large]
print(f"largest angle to the CCA subspace from lambda = 0.03 on: {max(angles):.4f} degrees")
for weight, value in zip(weights, smallest, strict=True):
    print(f"lambda = {weight:<7g} smallest singular value of W {value:.3f}")
assert max(angles) < 0.1 and min(smallest[number] for number in large) > 0.3
assert max(value for weight, value in zip(weights, smallest, strict=True) if weight < 0.02) < 0.05
assert unequal[-1] < 1e-3
assert torch.linalg.svdvals(best[0])[1] < 0.05 and unequal[0] < 1e-3  # at 0.001 all rows are one, up to the sign

# %% [markdown]
# **From $\lambda = 0.03$ on the three features span the first three directions, within 0.1 degrees, in this example.** The diagonal becomes
# equal later. The rule $\lambda = 1/d = 0.33$ is well inside this range.
#
# At $\lambda = 0.01$ and below, the features repeat the best directions and give up the third one. At $\lambda = 0.001$ all features are
# one and the same, so the diagonal is equal again, for a bad reason.
#
# ## 4. The same with the coordinates of images
#
# Now the loss of the library gets data, in four steps:
#
# 1. Take pairs of scenes that share the background, and shrink them.
# 2. Add normal noise of standard deviation 1 to every pixel (pixels lie between $-1$ and 1), so that the views do not agree nearly perfectly.
# 3. Reduce them to 20 white coordinates: the principal ones, each divided by its standard deviation.
# 4. Use each pair in both orders, so that both views have one distribution.
#
# The eigenvectors of the cross-covariance of the white coordinates are the canonical directions, its eigenvalues the $\rho_k$.

# %%
scenes = DigitScenes("train", size=16)
views = scenes.pairs(2048, 0, shared=("background",))
first, second = (F.avg_pool2d(normalize(view), 2).flatten(1).double() for view in views)
rows = torch.cat([first, second])
rows = rows + normal(*rows.shape)
centered = rows - rows.mean(dim=0)
_, lengths, axes = torch.linalg.svd(centered, full_matrices=False)
white = centered @ axes[:20].T / lengths[:20] * len(rows) ** 0.5
x_a, x_b = white, white.roll(len(first), dims=0)  # each pair in both orders

correlations, directions = torch.linalg.eigh(x_a.T @ x_b / len(x_a))
order = correlations.argsort(descending=True)
correlations, directions = correlations[order], directions[:, order]
print("canonical correlations:", numbers(correlations[:8]))
assert torch.allclose(x_a.T @ x_a / len(x_a), torch.eye(20, dtype=torch.float64), atol=1e-10)

# %% [markdown]
# Minimize `BarlowTwinsLoss` at $\lambda = 10$ over a linear map of these coordinates to three features. The picture is that of section 1.

# %% alt="Left: agreement of three features: canonical ones fall, those of Barlow Twins are equal. Middle and right: shares of the first eight canonical directions in the features. Barlow Twins mixes the first three and hardly uses the others."
criterion = BarlowTwinsLoss(lambda_param=10.0)
found = minimize(lambda w: criterion(x_a @ w.T, x_b @ w.T), (d, 20), starts=2)
shares = F.normalize(found @ directions, dim=1)[:, :8]
h = d / (1 / correlations[:d]).sum().item()
plot_answer({"canonical": torch.eye(8, dtype=torch.float64)[:d], "Barlow Twins": shares}, correlations[:8], h)

# %%
diagonal = cross_correlation(x_a @ found.T, x_b @ found.T).diagonal()
angle = subspace_angle(found, directions[:, :d].T)
print(f"agreement of the features: {numbers(diagonal, 4)}; harmonic mean {h:.4f}")
print(f"angle to the CCA subspace: {angle:.2f} degrees")
assert correlations[d - 1] > 2 / 3 and (diagonal - h).abs().max() < 2e-3 and angle < 1
assert abs(criterion(x_a @ found.T, x_b @ found.T).item() - d * (1 - h) ** 2) < 2e-3

# %% [markdown]
# **The search finds what section 2 predicts**: three features in the span of the first three canonical directions (within one degree), and
# agreements within 0.002 of the harmonic mean. The data have the form of section 1 by construction, so this checks the loss of the library.
# It says nothing about networks that are not linear.
#
# ## 5. SSL-HSIC and the spectral loss: generalized eigenvalues
#
# Other losses do not standardize the features. Now the inputs need not be white. Let $A$ be their covariance *across* the views and $B$ the
# one *within* the views. Let $z = W^\top x$, where $W$ has $d$ *columns*, and consider
#
# $$L(W) = -2 \operatorname{tr}(W^\top A W) + \lVert W^\top B W \rVert_F^2 .$$
#
# The first term rewards agreement, the second one penalizes large and repeated features. Two losses have this form:
#
# * linear **SSL-HSIC** ([notebook 08](08_kernels_beyond_linear.ipynb), section 4), whose terms are $\operatorname{tr}(W^\top A W)$ and
#   $\lVert W^\top B W \rVert_F$, if you leave out its square root;
# * the **spectral loss** (HaoChen et al. 2021, [notebook 03](03_objectives.ipynb)) of centered features, if its mean goes over all pairs.
#
# Its minimum is
#
# $$\min_W L(W) = -\sum_{k=1}^d \mu_k^2, \qquad A v_k = \mu_k B v_k ,$$
#
# over the $d$ largest **generalized eigenvalues** $\mu_k$ of $A$ and $B$, as long as they are positive. To see it, put $V = B^{1/2} W$ and
# $M = B^{-1/2} A B^{-1/2}$. Then $L = \lVert M - V V^\top \rVert_F^2 - \lVert M \rVert_F^2$, and the best $V V^\top$ keeps the $d$
# largest eigenvalues of $M$, which are the $\mu_k$.
#
# Left: the generalized eigenvalues of eight coordinates. Right: the smallest loss, from the formula and from a search.

# %% alt="Left: eight generalized eigenvalues, falling. Right: the smallest loss found for one to eight features lies on minus the cumulative sum of the squared eigenvalues."
q = 8  # the first eight coordinates, stretched and rotated: no longer white
inputs_a = x_a[:, :q] * torch.linspace(2.0, 0.5, q, dtype=torch.float64) @ torch.linalg.qr(normal(q, q)).Q
inputs_b = inputs_a.roll(len(first), dims=0)
A, B = inputs_a.T @ inputs_b / len(inputs_a), inputs_a.T @ inputs_a / len(inputs_a)
eigenvalues = scipy.linalg.eigh(A.numpy(), B.numpy(), eigvals_only=True)[::-1]


def without_root(w):
    return -2 * (w.T @ A @ w).trace() + (w.T @ B @ w).square().sum()


losses = {k: without_root(minimize(without_root, (q, k), starts=2)).item() for k in range(1, q + 1)}
plot_eigenvalues(eigenvalues, losses)

# %%
expected = -np.cumsum(np.maximum(eigenvalues, 0) ** 2)
assert np.allclose(list(losses.values()), expected, atol=1e-6)
w = normal(q, 3)
z_a, z_b = inputs_a @ w, inputs_b @ w
terms = SSLHSICLoss("linear", gamma=1.0).terms(z_a, z_b)
assert torch.isclose(-terms["dependence"], (w.T @ A @ w).trace())
assert torch.isclose(terms["self_dependence"] ** 2, (w.T @ B @ w).square().sum())
over_all_pairs = (z_a.T @ z_a / len(z_a) * (z_b.T @ z_b / len(z_b))).sum()
spectral = -2 * (z_a * z_b).sum(dim=1).mean() + over_all_pairs
assert torch.isclose(spectral, without_root(w))
best_w = minimize(without_root, (q, 3), starts=2)
variances = torch.linalg.eigvalsh(best_w.T @ B @ best_w).flip(0)
assert np.allclose(variances, eigenvalues[:3], atol=1e-3)  # direction k has the variance mu_k
print(f"smallest loss with 3 features {losses[3]:.6f}; minus the sum of three squares {expected[2]:.6f}")

# %% [markdown]
# For white inputs $B$ is the identity, and the $\mu_k$ are the canonical correlations: **these losses find the span of the leading
# canonical directions, too**. They differ from Barlow Twins inside it. This loss does not change if you rotate the features, and it gives
# direction $k$ the variance $\mu_k$. Barlow Twins gives every feature the variance 1 and the same agreement.
#
# ## Summary
#
# * With linear features and a large $\lambda$, Barlow Twins spans the first $d$ canonical directions.
# * If their correlations exceed 2/3, all features agree equally, by the harmonic mean of the correlations.
# * Linear SSL-HSIC without its root and the spectral loss span the same directions, with the loss $-\sum \mu_k^2$.
# * A deep network is not linear. What carries over are two questions: which directions are kept, and how is agreement shared out?
#
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. Take $\rho = (0.6, 0.5, 0.4)$ and $d = 3$, all below 2/3. Are the features equal or canonical at a large $\lambda$?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The curve is not convex there, and the canonical features are best.
low = torch.tensor([0.6, 0.5, 0.4], dtype=torch.float64)
w = F.normalize(minimize(lambda w: barlow_twins(w, low, 1000.0), (3, 3)), dim=1)
print("diagonal of C:", numbers(((w * low) @ w.T).diagonal().sort().values))
assert torch.allclose(((w * low) @ w.T).diagonal().sort().values, low.flip(0), atol=1e-3)

# %% [markdown]
# 2. Draw a random orthogonal $Q$ and build $W = D^{1/2} Q \Lambda^{-1/2}$ for $\rho = (0.95, 0.85, 0.7)$. Is $C$ diagonal, and what is the
#    sum of $1 / C_{ii}$?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# It is diagonal for every Q, and the sum is always that of 1 / rho.
w = F.normalize(torch.linalg.qr(normal(3, 3)).Q / rho[:3].sqrt(), dim=1)  # D makes the rows of length 1
c = (w * rho[:3]) @ w.T
print("C:", *(numbers(row, 4) for row in c), sep="\n  ")
print(f"sum of 1 / C_ii: {(1 / c.diagonal()).sum():.6f}, of 1 / rho: {(1 / rho[:3]).sum():.6f}")
assert torch.allclose(c, c.diagonal().diag(), atol=1e-10)
assert torch.isclose((1 / c.diagonal()).sum(), (1 / rho[:3]).sum())

# %% [markdown]
# 3. With more features than directions, $d = 4$ and $p = 3$, $C$ cannot be diagonal with a positive diagonal. What does $C$ look like at the
#    minimum for $\lambda = 1/d$?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# C has rank 3, so the features must share directions: the off-diagonal entries stay away from 0.
w = F.normalize(minimize(lambda w: barlow_twins(w, rho[:3], 0.25), (4, 3)), dim=1)
c = (w * rho[:3]) @ w.T
print("C:", *(numbers(row, 2) for row in c), sep="\n  ")
assert torch.linalg.matrix_rank(c) == 3 and (c - c.diagonal().diag()).abs().max() > 0.1

# %% [markdown]
# **Next:** [12 Comparing networks](12_comparing_networks.ipynb): how alike are two networks, and what inflates the answer?
