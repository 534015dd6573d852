# %% [markdown]
# # Your own images, embeddings, networks and training loops
#
# Four parts of this library work with what you already have, in a few lines each: **a scikit-learn estimator for images or tables, a
# report for embeddings in a file, a training for your own network and views, and a loss for your own loop.**
#
# **What you will see**
#
# 1. *your own images*, in an array or a folder: features from a scikit-learn estimator, in a pipeline;
# 2. *embeddings in a file*: one page of plots and a verdict, from one command;
# 3. *your own network and your own views*, with the library's training;
# 4. *your own training loop*, with only a loss from the library.
#
# **What you need**: a first course in machine learning, and scikit-learn's `fit` and `transform`. All data here come
# with scikit-learn, so nothing is downloaded. Put your own data in their place. The notebook runs in about a minute.
#
# Everything here looks at one matrix, $C$. Take two altered versions (*views*) of each image, an *encoder* that turns
# each view into *features*, and a small network behind it, the *projector*, that turns the features into $d$
# *projections*. $C_{ij}$ is the correlation, over the images, between projection $i$ of one view and projection $j$ of
# the other. The loss acts on $C$; you keep the encoder. [Notebook 00](00_quickstart.ipynb) introduces it.

# %% tags=["parameters"]
import os
import re
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # shorter training: same cells
EPOCHS, STEPS = (8, 40) if FAST else (40, 150)
FOLDER = Path(tempfile.mkdtemp())  # all files of this notebook

# %% [markdown]
# The next cell holds the imports and two helpers. It is folded. Open it if you want to read it.

# %% tags=["hide-input"] jupyter={"source_hidden": true}
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hsic_lab.correlation import cross_correlation
from hsic_lab.datasets import DigitScenes, from_arrays, from_folder
from hsic_lab.diagnostics import diagnose
from hsic_lab.encoders import ConvEncoder, MLPProjector
from hsic_lab.estimator import SelfSupervisedEncoder
from hsic_lab.evaluation import extract_features, linear_probe
from hsic_lab.losses import BarlowTwinsLoss, NTXentLoss
from hsic_lab.plots import (
    compare_cross_correlations,
    history_figure,
    plot_diagnostics,
    plot_embedding,
    plot_pairs,
    set_theme,
)
from hsic_lab.report import read_embeddings, write_report
from hsic_lab.training import TrainConfig, train
from hsic_lab.views import TwoViews, normalize

set_theme()


def write_folder(folder, names, count=60):
    """Write random square crops of photographs that come with scikit-learn: a sub-folder for each photograph."""
    rng = np.random.default_rng(0)
    for name in names:
        photograph = load_sample_image(f"{name}.jpg")
        (folder / name).mkdir(parents=True)
        for number in range(count):
            side = int(rng.integers(60, 160))
            top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
            crop = photograph[top : top + side, left : left + side]
            Image.fromarray(crop).save(folder / name / f"{number:03d}.png")


def show_classes(data):
    """Draw ten training images of each of two classes."""
    axes = plt.subplots(2, 10, figsize=(9.6, 2.3), layout="constrained")[1]
    for row, label in zip(axes, (0, 1), strict=True):
        for ax, image in zip(row, data.train.images[data.train.labels == label], strict=False):
            ax.imshow(image.permute(1, 2, 0))
            ax.set_axis_off()
        row[0].set_title(data.class_names[label], loc="left", fontsize="medium")


def show_candidates(candidates, labels):
    """Draw each set of features on its first two principal axes."""
    axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")[1]
    for ax, (name, z) in zip(axes.flat, candidates.items(), strict=True):
        plot_embedding(z, labels, ax)
        ax.set_title(name)
        if ax is not axes[0, 1]:
            ax.get_legend().remove()


def show_loss(losses, independent):
    """Draw the loss against the step, and its expected value for independent views."""
    ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")[1]
    ax.plot(losses, linewidth=1)
    ax.axhline(independent, color="0.4", linestyle="--", linewidth=1, label="independent views, on average")
    ax.set(xlabel="training step", ylabel="Barlow Twins loss")
    ax.legend()

# %% [markdown]
# ## 1. Your own images
#
# ### In an array
#
# Suppose you have handwritten digits as an array `(n, h, w)` (number of images, height, width), and labels for a few of
# them. First use the images without labels. The *estimator* makes two random views of each image. It trains an encoder
# with the Barlow Twins loss: projections of the two views should agree, and different projections should be
# uncorrelated. Then fit a classifier on the features, with the labels.
#
# **Views say what should *not* matter.** The default views mirror half of the images and crop down to a fifth of an
# image. A mirrored 2 is not a 2, so for digits use other views: no mirror, and crops that keep at least 60 % of the
# image. The picture shows two views of each of eight images.

# %% alt="Eight handwritten digits in two rows, view A and view B: each pair shows the same digit, cropped and shifted differently."
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)  # floats in [0, 1]; uint8 works too
train_x, test_x, train_y, test_y = train_test_split(
    images, labels, test_size=0.3, stratify=labels, random_state=0
)

gentle = TwoViews(8, scale=(0.6, 1.0), flip=0.0, brightness=0.2, contrast=0.2)
view_a, view_b = gentle(torch.from_numpy(train_x[:8, None]), torch.Generator().manual_seed(0))
_ = plot_pairs(view_a, view_b, n=8)

# %% alt="Training curves of the estimator: the loss per feature falls, the mean diagonal of C rises towards 0.9, and the mean off-diagonal entry stays near 0."
settings = {"views": gentle, "epochs": EPOCHS, "batch_size": 128, "projector": (256, 64), "random_state": 0}
encoder = SelfSupervisedEncoder(**settings)
encoder.fit(train_x)  # no labels
figure = history_figure({"digits": encoder.history_}, len(encoder.correlation_))

# %% [markdown]
# The left plot shows the loss divided by $d$. The right plots show the mean of the diagonal of $C$ (1 when every
# projection agrees with itself across the views) and the mean of the other entries. The dashed lines are the targets 1
# and 0, and the bound $-\frac1{d-1}$ of [notebook 01](01_barlow_twins_is_hsic.ipynb), section 6. The estimator keeps all
# of this: `encoder_` is the network, `history_` the curves, `correlation_` the last $C$.
#
# Now fit a classifier with 5 labels for each digit, on the raw pixels and on the encoder's features. Repeat it five
# times with other labels.


# %%
def few_label_accuracies(train_features, test_features):
    """Test accuracies of logistic regression on standardized features, each fitted with 5 labels a class."""
    accuracies = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(train_y))
        few = np.concatenate([order[train_y[order] == digit][:5] for digit in range(10)])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        accuracies.append(model.fit(train_features[few], train_y[few]).score(test_features, test_y))
    return np.array(accuracies)


# %% [markdown]
# The next cell gives it the pixels as rows of 64 numbers, and the features that the estimator computes from them. It
# prints the mean test accuracy and its range.

# %%
on_pixels = few_label_accuracies(train_x.reshape(len(train_x), 64), test_x.reshape(len(test_x), 64))
on_features = few_label_accuracies(encoder.transform(train_x), encoder.transform(test_x))
for name, accuracies in (("raw pixels", on_pixels), ("features", on_features)):
    print(f"{name:11s} {accuracies.mean():.3f}, from {accuracies.min():.3f} to {accuracies.max():.3f}")
if not FAST:
    assert on_features.mean() > on_pixels.mean(), "features learned without labels give a higher accuracy than pixels"

# %% [markdown]
# **The features need fewer labels than the pixels here.** This is one split and one training: it shows that the estimator
# works, and does not measure how well. [Notebook 09](09_linear_evaluation.ipynb) explains how to measure.
#
# The estimator follows scikit-learn's rules. A pipeline fits it together with the classifier, `GridSearchCV` searches
# its settings, and `joblib.dump` stores it. Pipelines often pass flat rows. `image_shape` gives the height and width of
# the images in these rows:

# %%
model = make_pipeline(
    SelfSupervisedEncoder(**settings | {"epochs": 8}, image_shape=(8, 8)),
    StandardScaler(),
    LogisticRegression(max_iter=1000),
)
model.fit(train_x.reshape(len(train_x), 64), train_y)
score = model.score(test_x.reshape(len(test_x), 64), test_y)
pixels = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
on_pixels = pixels.fit(train_x.reshape(len(train_x), 64), train_y).score(test_x.reshape(len(test_x), 64), test_y)
print(f"all {len(train_y)} labels: pipeline {score:.3f}, raw pixels {on_pixels:.3f}")
assert score > 0.7 and on_pixels > 0.95

# %% [markdown]
# With all labels the pixels of such small images are enough. The gain above is one for few labels.
#
# Without `image_shape` the estimator treats flat rows as a table. Its views then replace some entries of a row by
# entries of other rows. Use it like this for data that are not images.
#
# ### In a folder
#
# The folder has one sub-folder for each class, with images of any size, in the usual formats. The next cell
# writes such a folder from two photographs that come with scikit-learn, and reads it back. `from_folder` decodes,
# resizes and splits the images. `train` and the other functions accept what it returns.

# %% alt="Two rows of small square crops read back from the folder: buildings and sky of the photograph china, petals and dark leaves of the photograph flower."
write_folder(FOLDER / "photographs", ("china", "flower"))
data = from_folder(FOLDER / "photographs", size=32)
print(f"{len(data.train)} training images and {len(data.test)} test images of {' and '.join(data.class_names)}")
show_classes(data)
assert data.train.images.shape[1:] == (3, 32, 32)

# %% [markdown]
# ## 2. Embeddings in a file
#
# Suppose a colleague sends you features of the test digits. Are they good? Here are four candidates. The first comes
# from the encoder above. The other three each have a fault that occurs in practice: only one direction is left, the
# encoder ignores its input, or features are copies of one another.

# %% alt="Scatter plots of four sets of features on their first two principal axes, one color for each digit. The digits form groups for ours and partly for copies; one direction and one point look spread out only because the axes are stretched."
features = torch.from_numpy(encoder.transform(test_x))
generator = torch.Generator().manual_seed(0)
width = features.shape[1]
noise = torch.randn(len(features), width, generator=generator)
candidates = {
    "ours": features,
    "one direction": features[:, features.var(dim=0).argmax(), None] * torch.randn(width, generator=generator)
    + 1e-4 * noise,
    "one point": torch.ones_like(features) + 1e-5 * noise,
    "copies": (features @ torch.randn(width, 3, generator=generator)).repeat(1, width // 3),
}
show_candidates(candidates, test_y)

# %% [markdown]
# Each plot shows the two directions of largest variance, with their shares of the variance in brackets and one color for
# each digit. **Such plots can mislead**: the axes are stretched to fill the frame, so collapsed features look as spread
# out as good ones. `diagnose` measures instead.

# %% alt="Board of the diagnostics of our features: a line each with its value, verdict and rule. The judged measures are healthy except the redundancy."
verdicts = {name: diagnose(z).attrs["verdict"] for name, z in candidates.items()}
for name, verdict in verdicts.items():
    print(f"{name:15s} {verdict}")
assert verdicts["one point"] == "complete collapse"
assert verdicts["one direction"] == verdicts["copies"] == "dimensional collapse"
_ = plot_diagnostics(diagnose(candidates["ours"]), plt.subplots(figsize=(8.2, 3.2), layout="constrained")[1])

# %% [markdown]
# `diagnose` finds the three faults. The board shows our own features, one measure a line: its value, the verdict, and
# the rule behind it. A filled circle means that a rule is met, a cross that it is broken. An empty circle is no fault:
# no rule judges the value, or the verdict is only "redundant". The column `meaning` of the result explains each measure.
#
# *Redundant* means that features correlate more than chance explains. It is the mildest verdict, and it is common: our
# loss decorrelated the 64 projections, not these features of the encoder.
#
# With two views of the same images `diagnose` measures more. The next cell makes two views of the test images and
# projects them. It prints four of the measures:
#
# * `mean_diagonal`: the mean of the diagonal of $C$;
# * `feature_sum_covariance`: the sum of all entries of $C$; clearly below 0 the two branches oppose each other
#   ([notebook 07](07_the_minus_one_target.ipynb), section 3);
# * `alignment`: the mean squared distance between the two views of an image, after scaling each row to length 1;
# * `lidar`: the number of directions in which images differ, each measured by how the views of one image differ.

# %%
pair = gentle(torch.from_numpy(test_x[:, None]), generator)
z_a, z_b = (encoder.projector_(extract_features(encoder.encoder_, view)).detach() for view in pair)
frame = diagnose(z_a, z_b).set_index("diagnostic")
frame.loc[["mean_diagonal", "feature_sum_covariance", "alignment", "lidar"], ["value", "verdict"]].round(2)

# %% [markdown]
# ### One page with everything
#
# `write_report` writes one HTML page: the heatmap of $C$, the spectrum (the variance along each principal axis), the
# scatter plot, diagnostics, a linear probe, CKA and tests of independence. The page needs no network, so you can send it
# to your colleague. On a command line the same is
#
# ```bash
# hsic-lab inspect embeddings.npz
# hsic-lab inspect view_a.npy view_b.npy --labels labels.csv --output page.html
# ```
#
# It reads `.npy`, `.npz`, `.csv`, `.tsv`, `.parquet`, `.safetensors` and `.pt`. Nothing is unpickled: a file that contains Python
# objects is refused.

# %%
np.savez(FOLDER / "embeddings.npz", z_a=z_a, z_b=z_b, labels=test_y)
page = write_report(read_embeddings(FOLDER / "embeddings.npz"), FOLDER / "page.html")
text = page.read_text(encoding="utf-8")
print(f"{page.name} has {len(text) / 1e3:.0f} kB and these sections:", *re.findall("<h2>(.*?)</h2>", text), sep="\n  ")
assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import", text), "the page loads nothing from a network"

# %% [markdown]
# Open the page in a browser, or here: `from IPython.display import IFrame; IFrame(page, 1000, 600)`.
#
# ## 3. Your own network, your own views
#
# `train` accepts any `nn.Module` that maps images `(n, c, h, w)` ($n$ images, $c$ channels, height, width) to features
# `(n, p)`. It also accepts any function that makes two views of a batch of uint8 images with a `torch.Generator`. The
# function has to do two things:
#
# * draw all random numbers from that generator, so that a run can be repeated and resumed;
# * make the views of each image independently of the other images.
#
# The example uses a plain network without convolutions, and the loss VICReg. Its views are *shifts* by up to one pixel
# with a little noise.


# %%
def shifted(images, generator):
    """Two views of uint8 `(n, c, h, w)`, each shifted by -1, 0 or 1 pixels both ways, with noise, scaled to [-1, 1]."""
    n, _, height, width = images.shape
    padded = F.pad(normalize(images), (1, 1, 1, 1), value=-1.0)

    def view():
        top, left = (torch.randint(3, (n, 1, 1), generator=generator) for _ in range(2))
        rows, columns = top + torch.arange(height)[:, None], left + torch.arange(width)
        moved = padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
        return moved + 0.1 * torch.randn(moved.shape, generator=generator)

    return view(), view()


# %% alt="Heatmaps of C before training and after the last step. Before training all entries are near 0; afterwards the diagonal is near 1 and the other entries are larger than before."
def own_network():
    torch.manual_seed(0)  # `train` seeds the networks that it makes; your own module is made here
    hidden = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU())
    return nn.Sequential(nn.Flatten(), hidden, nn.Linear(128, 96), nn.ReLU())


mine = own_network()
data = from_arrays(train_x, train_y, test_x, test_y, name="my digits")
config = TrainConfig(epochs=EPOCHS, batch_size=128, projector=(128, 48), loss="vicreg", device="cpu")
run = train(config, FOLDER / "run", data, progress=False, encoder=mine, views=shifted)
last = max(run.snapshots)
figure = compare_cross_correlations({"before training": run.snapshots[0], f"after {last} steps": run.snapshots[last]})

# %%
before, after = (run.snapshots[step].diagonal().mean() for step in (0, last))
probe = linear_probe(
    extract_features(run.encoder, data.train.images), train_y, extract_features(run.encoder, data.test.images), test_y
)
print(f"mean diagonal of C: {before:.2f} before training, {after:.2f} after it")
print(f"linear probe: accuracy {probe.accuracy:.3f} on {probe.n_test} test images")
assert run.encoder is mine and after > before and probe.accuracy > 0.8

# %% [markdown]
# The heatmaps show $C$ of pairs that were not trained on. The diagonal rises towards 1: the views agree. The entries
# beside it grow, too: projections repeat part of each other. VICReg penalizes this within each view, by one of its three
# terms.
#
# The run is a folder with settings, curves, matrices and weights. To load it again, give `Run.load` an encoder of the
# same shape: the file holds the weights, but not the code of your module. The estimator of section 1 accepts both too:
# `SelfSupervisedEncoder(encoder=own_network(), views=shifted)`.
#
# ## 4. The loss alone
#
# If you have a training loop, one line of this library is enough. The losses are modules that take two tensors
# `(n, d)`, the projections of the two views. Where the package `lightly` has a loss, its name and arguments are the same.
#
# The next two cells are a whole training. Its images are *scenes*: the two images of a pair share only the handwritten
# digit in front.

# %%
torch.manual_seed(0)
backbone, projector = ConvEncoder(8), MLPProjector([128, 256, 64])
network = nn.Sequential(backbone, projector)
criterion = BarlowTwinsLoss(lambda_param=1 / 64)
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

scenes, draws = DigitScenes("train"), torch.Generator().manual_seed(0)

# %%
losses = []
for _ in range(STEPS):
    view_a, view_b = (normalize(view) for view in scenes.pairs(128, draws, shared=("digit",)))
    z_a, z_b = network(torch.cat([view_a, view_b])).chunk(2)  # one pass: batch normalization uses both views
    loss = criterion(z_a, z_b)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

# %% alt="Barlow Twins loss against training step. It starts near the dashed line of independent views at 65 and falls to about 20."
independent = criterion.expected_if_independent(128, 64)
show_loss(losses, independent)

# %% [markdown]
# **Is a loss of about 20 good?** Compare it with 65, the expected loss of views that have nothing in common (dashed):
# `criterion.expected_if_independent(n, d)`. The method `terms` returns the two parts of the loss, here those of the last
# batch.

# %%
with torch.no_grad():
    for name, value in criterion.terms(z_a, z_b).items():
        print(f"{name} {value:.2f}")
    c = cross_correlation(z_a, z_b)
    by_hand = (1 - c.diagonal()).square().sum() + (c.square().sum() - c.diagonal().square().sum()) / 64
assert abs(by_hand.item() - losses[-1]) < 1e-3 * losses[-1], "the loss consists of these two terms only"
assert np.mean(losses[-10:]) < independent and round(independent) == 65
assert FAST or 15 < np.mean(losses[-10:]) < 25

# %% [markdown]
# ## Exercises
#
# Each solution is a folded cell below its question.
#
# 1. In section 1, use the default views (`views=None`), which mirror and crop strongly. How much accuracy do they cost here,
#    and how much does the mirror alone (`flip=0.5`)?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# The default views cost more than ten points in this split, the mirror alone a part of that.
mirrored = TwoViews(8, scale=(0.6, 1.0), flip=0.5, brightness=0.2, contrast=0.2)
accuracy = {"gentle views": on_features.mean()}
for name, views in {"gentle views, mirrored": mirrored, "default views": None}.items():
    other = SelfSupervisedEncoder(**settings | {"views": views})
    other.fit(train_x)
    accuracy[name] = few_label_accuracies(other.transform(train_x), other.transform(test_x)).mean()
for name, value in accuracy.items():
    print(f"{name}: accuracy {value:.3f}")
if not FAST:
    assert accuracy["default views"] < accuracy["gentle views"] - 0.1
    assert accuracy["default views"] < accuracy["gentle views, mirrored"] < accuracy["gentle views"]

# %% [markdown]
# 2. Diagnose raw pixels, flattened. What is the verdict? Which pixels are nearly constant (standard deviation below 0.01)?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Redundant: neighboring pixels are alike. Some pixels at the left and right edge are nearly always black.
pixels = torch.from_numpy(test_x.reshape(len(test_x), 64))
constant = (pixels.std(dim=0) < 0.01).nonzero().flatten()
print("verdict:", verdict := diagnose(pixels).attrs["verdict"])
for column in range(8):
    rows = [str(pixel // 8) for pixel in constant.tolist() if pixel % 8 == column]
    if rows:
        print(f"nearly constant pixels of column {column}: rows {', '.join(rows)}")
assert verdict == "redundant" and len(constant) and set((constant % 8).tolist()) <= {0, 7}

# %% [markdown]
# 3. In section 3, shift only one of the two views, with a new network. Does the diagonal of $C$ change?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# Hardly. But the two branches now see different distributions, so C need not be symmetric any more.
def one_shifted(images, generator):
    return shifted(images, generator)[0], normalize(images)


one_sided = train(config, FOLDER / "one sided", data, progress=False, encoder=own_network(), views=one_shifted)
c_one = one_sided.snapshots[max(one_sided.snapshots)]
print(f"mean diagonal: both shifted {after:.2f}, one shifted {c_one.diagonal().mean():.2f}")
assert c_one.diagonal().mean() > 0.5 and (FAST or abs(c_one.diagonal().mean() - after) < 0.05)

# %% [markdown]
# 4. In section 4, compute `NTXentLoss(temperature=0.5)` of the trained projections, and of the same with shuffled pairs.
#    Which value would it have if all similarities were equal?

# %% tags=["hide-cell"] jupyter={"source_hidden": true, "outputs_hidden": true}
# Solution
# About 5 for real pairs and 6 for shuffled ones. For equal similarities it is log(2 n -
# 1) = 5.54 with n = 128.
with torch.no_grad():
    trained_value = NTXentLoss(temperature=0.5)(z_a, z_b).item()
    shuffled_value = NTXentLoss(temperature=0.5)(z_a, z_b.roll(1, dims=0)).item()
print(f"real pairs {trained_value:.2f}, shuffled pairs {shuffled_value:.2f}, equal similarities {np.log(255):.2f}")
assert trained_value < shuffled_value and round(np.log(255), 2) == 5.54
assert FAST or trained_value < np.log(255) < shuffled_value

# %% [markdown]
# **Next:** [11 What Barlow Twins converges to](11_what_barlow_twins_converges_to.ipynb): where a linear training ends.
