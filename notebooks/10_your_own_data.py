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
# # Bring your own: images, embeddings, networks, training loops
#
# **What you will see.** Four doors into the library, one for each thing you may already have:
#
# 1. *your own images*, in a folder or an array: features from them with a scikit-learn estimator, in a pipeline;
# 2. *somebody's embeddings*, in a file: one page of images and a verdict in plain words, from one command;
# 3. *your own network and your own views*: the library's training around them;
# 4. *your own training loop*: the loss alone, in five lines of PyTorch.
#
# **What you need.** A first course in machine learning and scikit-learn's `fit` and `transform`. Here all data ships with
# scikit-learn, so that nothing is downloaded; wherever you see it, put yours. `00_quickstart` says what the matrix $C$ is
# that everything here looks at; in short, $C_{ij}$ is the correlation between feature $i$ of one view of the images and
# feature $j$ of another view of the same images.

# %% tags=["parameters"]
import os
import re
import tempfile
from pathlib import Path

FAST = os.environ.get("HSIC_LAB_FAST") == "1"  # shorter training: same cells
EPOCHS, STEPS = (8, 40) if FAST else (40, 150)
FOLDER = Path(tempfile.mkdtemp())  # everything that this notebook writes

# %%
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
from hsic_lab.losses import BarlowTwinsLoss
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

# %% [markdown]
# ## 1. Your own images
#
# ### In an array
#
# Say you have 1797 handwritten digits as an array `(n, h, w)`, and labels for few of them. First images without labels:
# the *estimator* makes two *views* of each image (random crops and shifts of it), and trains an encoder so that features
# of the two views agree while different features stay uncorrelated. Then a classifier on the features, with the labels.
# In scikit-learn that is one pipeline.
#
# Digits have a handedness: a mirrored 2 is no 2. The default views mirror images half of the time, and crop down to a
# fifth of them. Views say what should *not* matter, so for digits we say it ourselves: no mirror, and only gentle crops.

# %%
images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)  # floats in [0, 1]; uint8 will do as well
train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.3, stratify=labels, random_state=0)

gentle = TwoViews(8, scale=(0.6, 1.0), flip=0.0, brightness=0.2, contrast=0.2)
view_a, view_b = gentle(torch.from_numpy(train_x[:10, None]), torch.Generator().manual_seed(0))
plot_pairs(view_a, view_b, n=10);

# %%
settings = {"views": gentle, "epochs": EPOCHS, "batch_size": 128, "projector": (256, 64), "random_state": 0}
encoder = SelfSupervisedEncoder(**settings)
encoder.fit(train_x)  # no labels
history_figure({"digits": encoder.history_}, len(encoder.correlation_));

# %% [markdown]
# Left the loss, right what it looks at: the mean of the diagonal of $C$ (1 when every feature agrees with itself across the
# views) and the mean of everything off it. The estimator keeps all of it: `encoder_` is the network, `history_` the curves
# above, `correlation_` the last $C$. Now 5 labels for each digit, on raw pixels and on what the encoder makes of them; five
# times, each with 5 others.

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


on_pixels = few_label_accuracies(train_x.reshape(len(train_x), 64), test_x.reshape(len(test_x), 64))
on_features = few_label_accuracies(encoder.transform(train_x), encoder.transform(test_x))
for name, accuracies in (("raw pixels", on_pixels), ("features", on_features)):
    print(f"{name:11s} {accuracies.mean():.3f}, from {accuracies.min():.3f} to {accuracies.max():.3f}")
if not FAST:
    assert on_features.mean() > on_pixels.mean(), "what was learnt without labels saves labels"

# %% [markdown]
# One split and one training: take it as a sign of life, not as a measurement. (`09_linear_evaluation` is about how to measure.)
#
# The estimator is an ordinary one. A pipeline fits it and the classifier in one go, `GridSearchCV` tries its settings,
# `joblib.dump` stores it. Pipelines often carry flat rows; `image_shape` says how to fold them:

# %%
model = make_pipeline(
    SelfSupervisedEncoder(**settings | {"epochs": 8}, image_shape=(8, 8)),
    StandardScaler(),
    LogisticRegression(max_iter=1000),
)
model.fit(train_x.reshape(len(train_x), 64), train_y)
score = model.score(test_x.reshape(len(test_x), 64), test_y)
print(f"pipeline with all {len(train_y)} labels: {score:.3f}")
assert score > 0.7

# %% [markdown]
# (Without `image_shape` flat rows are taken for plain tables, and the views replace entries by those of other rows. That is how to use
# the estimator on data that are no images.)
#
# ### In a folder
#
# One sub-folder a class, images of any size and format in it. We write such a folder, from two photographs that ship with
# scikit-learn, and read it back. `from_folder` decodes, resizes, splits; `train` and everything else takes what it returns.

# %%
rng = np.random.default_rng(0)
for name in ("china.jpg", "flower.jpg"):
    photograph = load_sample_image(name)
    (FOLDER / "photographs" / name[:-4]).mkdir(parents=True)
    for number in range(60):
        side = int(rng.integers(60, 160))
        top, left = (int(rng.integers(0, length - side)) for length in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side]
        Image.fromarray(crop).save(FOLDER / "photographs" / name[:-4] / f"{number:03d}.png")

data = from_folder(FOLDER / "photographs", size=32)
print(f"{len(data.train)} training images, {len(data.test)} test images, classes {data.class_names}")
figure, axes = plt.subplots(2, 10, figsize=(10, 2.3), layout="constrained")
for row, label in zip(axes, (0, 1), strict=True):
    for ax, image in zip(row, data.train.images[data.train.labels == label], strict=False):
        ax.imshow(image.permute(1, 2, 0))
        ax.set_axis_off()
    row[0].set_title(data.class_names[label], loc="left", fontsize="medium")
assert data.train.images.shape[1:] == (3, 32, 32)

# %% [markdown]
# ## 2. Somebody's embeddings
#
# Suppose a colleague sends features of the test digits: are they any good? Here are four candidates, made of what we have.
# One is our encoder's. In the other three something went wrong that happens in practice.

# %%
features = torch.from_numpy(encoder.transform(test_x))
generator = torch.Generator().manual_seed(0)
width = features.shape[1]
noise = torch.randn(len(features), width, generator=generator)
candidates = {
    "ours": features,
    "one direction": features[:, :1] * torch.randn(1, width, generator=generator) + 1e-4 * noise,  # dimensions died out
    "one point": torch.ones_like(features) + 1e-5 * noise,  # the encoder ignores its input
    "copies": (features @ torch.randn(width, 3, generator=generator)).repeat(1, width // 3),  # features repeat
}
figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
for ax, (name, z) in zip(axes, candidates.items(), strict=True):
    plot_embedding(z, test_y, ax)
    ax.set_title(name)
    if ax is not axes[-1]:
        ax.get_legend().remove()

# %% [markdown]
# Each cloud is drawn on its two directions of largest variance (their shares in brackets), one color a digit. The eye is easily deceived: the axes
# stretch to fill the frame, so the collapsed clouds look as lively as the healthy one. `diagnose` is not deceived.

# %%
verdicts = {name: diagnose(z).attrs["verdict"] for name, z in candidates.items()}
for name, verdict in verdicts.items():
    print(f"{name:15s} {verdict}")
assert verdicts["one point"] == "complete collapse"
assert verdicts["one direction"] == verdicts["copies"] == "dimensional collapse"
plot_diagnostics(diagnose(candidates["ours"]));

# %% [markdown]
# A filled circle is a rule kept, a cross a rule broken, an empty circle a number that no rule judges. "Redundant" is the
# mildest fault: features correlate more than chance would make them. Networks that were not told to decorrelate *these*
# features mostly get it (our loss decorrelated the 64 numbers that the projector makes of them).
#
# With two views of the same images the diagnostics see more. Images in, two views, features out:

# %%
pair = gentle(torch.from_numpy(test_x[:, None]), generator)
z_a, z_b = (encoder.projector_(extract_features(encoder.encoder_, view)).detach() for view in pair)
frame = diagnose(z_a, z_b)
frame.loc[frame["diagnostic"].isin(["mean_diagonal", "alignment", "lidar", "feature_sum_covariance"])]

# %% [markdown]
# ### One page for all of it
#
# `write_report` puts heatmap, spectrum, cloud, diagnostics, a linear probe, CKA and tests of independence on one HTML page
# that needs no network, to send back to your colleague. On a command line the same is
#
# ```
# hsic-lab inspect embeddings.npz
# hsic-lab inspect view_a.npy view_b.npy --labels labels.csv --output page.html
# ```
#
# for `.npy`, `.npz`, `.csv`, `.parquet` and `.safetensors`. Nothing is unpickled: a file that holds Python objects is
# refused.

# %%
np.savez(FOLDER / "embeddings.npz", z_a=z_a, z_b=z_b, labels=test_y)
page = write_report(read_embeddings(FOLDER / "embeddings.npz"), FOLDER / "page.html")
text = page.read_text(encoding="utf-8")
print(f"{page.name}: {len(text) / 1e3:.0f} kB, with the sections {re.findall('<h2>(.*?)</h2>', text)}")
assert "http" not in re.sub(r"base64,[^\"]*", "", text), "nothing is fetched"

# %% [markdown]
# Open it in a browser, or here: `from IPython.display import IFrame; IFrame(page, 1000, 600)`.
#
# ## 3. Your own network, your own views
#
# `train` takes any `nn.Module` from images `(n, c, h, w)` to features `(n, p)`, and any function that makes two views of a
# batch of uint8 images with a `torch.Generator`. Two demands only: draw random numbers from that generator (then a run can be
# repeated, and resumed), and make the views of each image independently.
#
# As an example, views that are *shifts* by up to one pixel with a little noise, and a plain network without convolutions.

# %%
def shifted(images, generator):
    """Two views of uint8 `(n, c, h, w)`: each shifted by -1, 0 or 1 pixels both ways, with noise, on the scale [-1, 1]."""
    n, _, height, width = images.shape
    padded = F.pad(normalize(images), (1, 1, 1, 1), value=-1.0)

    def view():
        top, left = (torch.randint(3, (n, 1, 1), generator=generator) for _ in range(2))
        rows, columns = top + torch.arange(height)[:, None], left + torch.arange(width)
        moved = padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
        return moved + 0.1 * torch.randn(moved.shape, generator=generator)

    return view(), view()


torch.manual_seed(0)  # `train` seeds what it makes itself; your module is yours
mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU())
data = from_arrays(train_x, train_y, test_x, test_y, name="my digits")
config = TrainConfig(epochs=EPOCHS, batch_size=128, projector=(128, 48), loss="vicreg", device="cpu")
run = train(config, FOLDER / "run", data, progress=False, encoder=mine, views=shifted)
compare_cross_correlations({
    "before training": run.snapshots[0], f"after {max(run.snapshots)} steps": run.snapshots[max(run.snapshots)],
});

# %%
before, after = (run.snapshots[step].diagonal().mean() for step in (0, max(run.snapshots)))
probe = linear_probe(
    extract_features(run.encoder, data.train.images), train_y, extract_features(run.encoder, data.test.images), test_y
)
print(f"mean diagonal {before:.2f} -> {after:.2f}; linear probe {probe.accuracy:.3f} on {probe.n_test} test images")
assert run.encoder is mine and after > before and probe.accuracy > 0.8

# %% [markdown]
# The run is a folder with settings, curves, matrices and weights. To load it again, `Run.load` needs an encoder of the same shape to
# fill, since a file with numbers does not say what your module is. And the estimator from section 1 takes both too:
# `SelfSupervisedEncoder(encoder=mine, views=shifted)`.
#
# ## 4. The loss alone
#
# If you have a training loop, you need one line of this library. The losses are modules that take two tensors $(n, d)$, the
# *projections* of the two views. Names and arguments are those of the package lightly. Here is a whole training, on *scenes*:
# pairs of images whose only common thing is the handwritten digit in front.

# %%
torch.manual_seed(0)
backbone, projector = ConvEncoder(8), MLPProjector([128, 256, 64])
network = nn.Sequential(backbone, projector)
criterion = BarlowTwinsLoss(lambda_param=1 / 64)
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

scenes, draws = DigitScenes("train"), torch.Generator().manual_seed(0)
losses = []
for _ in range(STEPS):
    view_a, view_b = (normalize(view) for view in scenes.pairs(128, draws, shared=("digit",)))
    z_a, z_b = network(torch.cat([view_a, view_b])).chunk(2)  # one pass: batch normalization sees both views
    loss = criterion(z_a, z_b)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

figure, ax = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
ax.plot(losses, linewidth=1)
ax.axhline(criterion.expected_if_independent(128, 64), color="0.4", linestyle="--", linewidth=1, label="independent views, on average")
ax.set(xlabel="training step", ylabel="Barlow Twins loss")
ax.legend(frameon=False);

# %% [markdown]
# Is a loss of 20 good? Every loss knows what it is for views that have nothing in common: `criterion.expected_if_independent(n, d)`, the
# dashed line. And `terms` says what it is made of.

# %%
with torch.no_grad():
    print({name: round(value.item(), 2) for name, value in criterion.terms(z_a, z_b).items()})
    c = cross_correlation(z_a, z_b)
    by_hand = (1 - c.diagonal()).square().sum() + (c.square().sum() - c.diagonal().square().sum()) / 64
assert abs(by_hand.item() - losses[-1]) < 1e-3 * losses[-1], "nothing else is in the loss"
assert np.mean(losses[-10:]) < criterion.expected_if_independent(128, 64)

# %% [markdown]
# ## Exercises
#
# 1. In section 1, use the default views (`views=None`). What do mirrored digits cost?
# 2. Give `write_report` raw pixels, flattened. What is the verdict, and which pixels are the dead features?
# 3. In section 3, make the two views unlike: shift only one of them. Does $C$ care?
# 4. In section 4, swap the loss for `NTXentLoss(temperature=0.5)`. What else has to change?
#
# **Next:** this is the last notebook. Go back to `00_quickstart` with your own images in place of the scenes.
