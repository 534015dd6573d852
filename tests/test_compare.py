"""Layer-by-layer CKA of two models: values, hooks, training flags and the plot."""

import math
from types import SimpleNamespace

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.spatial import procrustes as scipy_procrustes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hsic_lab._checks import seeded
from hsic_lab.cka import MinibatchCKA, cka
from hsic_lab.compare import compare_models, mutual_knn, procrustes
from hsic_lab.hsic import hsic
from hsic_lab.kernels import Gaussian
from hsic_lab.plots import plot_cka


def network(seed=0, inplace=True):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace), nn.BatchNorm2d(6))
        return nn.Sequential(stem, nn.Flatten(), nn.Dropout(), nn.Linear(6 * 16, 8)).train()


LAYERS = ["0.0", "0.1", "0.2", "1", "2", "3"]


def images(n=60, seed=0):
    return torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def activations(model, batch):
    """A copy of the activation of every layer, computed without hooks."""
    model, x, found = model.eval(), batch.float() / 127.5 - 1, []
    with torch.no_grad():
        for module in [*model[0], *model[1:]]:
            x = module(x).clone()
            found.append(x.flatten(1).double())
            x = x.clone()
    return found


@pytest.mark.parametrize("kernel", [None, Gaussian(4.0)])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_one_batch_gives_cka_of_the_activations(kernel, estimator):
    a, b = network(0, inplace=False), network(1, inplace=False)
    frame = compare_models(a, b, images(), kernel=kernel, estimator=estimator)
    expected = [
        [float(cka(x, y, kernel, kernel, estimator)) for y in activations(b, images())]
        for x in activations(a, images())
    ]
    np.testing.assert_allclose(frame.to_numpy(), expected, atol=2e-5)
    assert list(frame.index) == list(frame.columns) == LAYERS
    assert (frame.index.name, frame.columns.name) == ("model_a", "model_b")


def test_batches_are_combined_as_in_minibatch_cka():
    a, b = network(0), network(1)
    frame = compare_models(a, b, images(43), ["0.1", "3"], batch_size=20)
    for i, row in ((1, "0.1"), (5, "3")):
        for j, column in ((1, "0.1"), (5, "3")):
            metric = MinibatchCKA()
            for batch in images(43).split([20, 23]):
                metric.update(activations(a, batch)[i], activations(b, batch)[j])
            assert frame.loc[row, column] == pytest.approx(float(metric.compute()), abs=2e-5)


def test_in_place_relu_does_not_change_the_layer_before():
    inplace, pure = (compare_models(network(0, k), network(0, k), images()) for k in (True, False))
    pd.testing.assert_frame_equal(inplace, pure, rtol=1e-6)
    assert pure.loc["0.0", "0.1"] < 0.99
    crossed = compare_models(network(0, True), network(0, False), images())
    np.testing.assert_allclose(np.diagonal(crossed), 1, atol=1e-9)


@pytest.mark.parametrize("same_object", [True, False])
def test_shuffled_loader_with_labels_gives_both_models_the_same_rows(same_object):
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(images(64), torch.arange(64))
    loader = DataLoader(data, batch_size=16, shuffle=True, generator=generator)
    a = network(0)
    frame = compare_models(a, a if same_object else network(0), loader)
    np.testing.assert_allclose(np.diagonal(frame), 1, atol=1e-9)
    ordered = compare_models(a, network(1), images(64), batch_size=64)
    shuffled = compare_models(a, network(1), DataLoader(data, batch_size=64, shuffle=True, generator=generator))
    pd.testing.assert_frame_equal(ordered, shuffled, rtol=1e-4)


def test_every_batch_counts_and_their_order_does_not_matter():
    batches = [images(10), images(12, 1) // 3, images(8, 2)]
    frames = [compare_models(network(0), network(1), order) for order in (batches, batches[::-1])]
    pd.testing.assert_frame_equal(*frames, rtol=1e-9)
    assert (frames[0] - compare_models(network(0), network(1), batches[2:])).abs().to_numpy().max() > 0.01


class Returns(nn.Module):
    """The flat images after a linear layer, in whatever container."""

    def __init__(self, container):
        super().__init__()
        self.container, self.layer = container, nn.Linear(108, 5)

    def forward(self, x):
        return self.container(self.layer(x.flatten(1)))


class Boom(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom")


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_flags_and_buffers_are_restored(fails):
    a, b = network(0), network(1)
    b[2].eval()
    if fails:
        b.append(Boom())
    flags = [module.training for module in (*a.modules(), *b.modules())]
    states = [{k: v.clone() for k, v in model.state_dict().items()} for model in (a, b)]
    if fails:
        with pytest.raises(RuntimeError, match="boom"):
            compare_models(a, b, images(), ["3"])
    else:
        compare_models(a, b, images(), ["3"])
    assert not any(module._forward_hooks for module in (*a.modules(), *b.modules()))
    assert flags == [module.training for module in (*a.modules(), *b.modules())]
    for model, state in zip((a, b), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())


class Shared(nn.Module):
    """One ReLU called twice, as in a residual block, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.act, self.idle = nn.Linear(6, 5), nn.Linear(5, 4), nn.ReLU(), nn.Linear(2, 2)

    def forward(self, x):
        return self.act(self.fc2(self.act(self.fc1(x))))


def test_layers_default_to_the_order_of_calls_and_a_second_call_is_its_own_layer():
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    frame = compare_models(model, model, x)
    assert list(frame.index) == ["fc1", "act", "fc2", "act#2"]
    named = compare_models(model, model, x, ["act", ""], ["fc2"])
    assert list(named.index) == ["act", "act#2", ""] and list(named.columns) == ["fc2"]
    assert named.loc["", "fc2"] == pytest.approx(frame.loc["act#2", "fc2"])
    with pytest.raises(ValueError, match=r"layers \['idle'\] of model_b are not called"):
        compare_models(model, model, x, ["fc1"], ["idle"])


@pytest.mark.parametrize(
    "module, layers, error, message",
    [
        (
            Returns(lambda x: "text"),
            [""],
            TypeError,
            "layer '' of model_a must return a tensor, a tuple that starts.* last_hidden_state, got str",
        ),
        (nn.Sequential(nn.Flatten(0)), None, ValueError, r"layer '0' of model_a must return 60 rows.* \(6480,\)"),
        (network(), ["0.0", "0.11"], ValueError, "model_a has no layer '0.11'; close: .*'0.1'"),
        (network(), "0.0", TypeError, "list of names, got '0.0'"),
        (nn.Sequential(nn.ReLU()), [], ValueError, "at least one layer of model_a, got none"),
        (
            nn.Sequential(nn.Threshold(9, 0.1), nn.Threshold(9, 0.7)),
            None,
            ValueError,
            r"layers \['0', '1'\] of model_a",
        ),
        (
            nn.Sequential(nn.Threshold(9, 1.3), nn.Threshold(9, 123.4)),
            None,
            ValueError,
            r"layers \['0', '1'\] of model_a",
        ),
        (nn.Sequential(nn.Threshold(9, float("nan"))), None, ValueError, "layer '0' of model_a: x holds"),
    ],
)
def test_errors_name_the_layer(module, layers, error, message):
    with pytest.raises(error, match=message):
        compare_models(module, network(), images(), layers, None if layers == "0.0" else ["3"])


@pytest.mark.parametrize(
    "data, error, message",
    [
        (images(3), ValueError, "at least 4 images, got 3"),
        ([], ValueError, "at least 4 images, got 0"),
        (images(8)[:0], ValueError, "at least one image"),
        (images(8).int(), ValueError, "uint8 or floating point, got torch.int32"),
        ([{"image": [1, 2]}], TypeError, r"by argument name, got \{'image': 'list'\}"),
        ([{"labels": images(8)}], TypeError, r"by argument name, got \{\}"),
        ({"a": images(8), "b": images(7)}, ValueError, r"one number of rows, got \{'a': 8, 'b': 7\}"),
        ([{"x": images(8)}, {"x": images(3)[..., :2]}], ValueError, "3 rows cannot join its neighbor: 'x' differs"),
        (["text"], TypeError, "images must be a torch.Tensor, got str"),
    ],
)
def test_errors_about_images(data, error, message):
    with pytest.raises(error, match=message):
        compare_models(network(), network(), data)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pooling": "max"}, "pooling must be one of 'flatten', 'mean', 'cls', got 'max'"),
        ({"pooling": "cls"}, r"pooling='cls' needs tokens .* layer '0.0' of model_a returns \(8, 6, 4, 4\)"),
        ({"measure": "cca"}, "measure must be one of 'cka', 'mutual_knn', 'procrustes', got 'cca'"),
        ({"measure": "mutual_knn", "kernel": Gaussian()}, "'mutual_knn' has no kernel.* got kernel=Gaussian"),
        ({"measure": "procrustes", "estimator": "biased"}, "'procrustes' has no .*estimator='biased'"),
        ({"measure": "mutual_knn", "k": 8}, "layer '0.0' of model_a: k must be an integer .* at most 7, got 8"),
        ({"sampled_features": True, "estimator": "biased"}, "unbiased linear CKA, got .*estimator='biased'"),
        ({"sampled_features": True, "kernel": Gaussian()}, "unbiased linear CKA, got Gaussian"),
        ({"permutations": 18}, "permutations must be an integer of at least 19, got 18"),
    ],
)
def test_errors_about_options(options, message):
    with pytest.raises(ValueError, match=message):
        compare_models(network(), network(), images(8), **options)


# --- outputs that are no tensor, tokens and feature maps, batches that are dicts, half precision


@pytest.mark.parametrize(
    "container, label",
    [
        (lambda z: (z, z * 0), "[0]"),
        (lambda z: [z], "[0]"),
        (lambda z: {"logits": z}, "['logits']"),
        (lambda z: {"last_hidden_state": z, "pooler": z * 0}, ".last_hidden_state"),
        (lambda z: SimpleNamespace(last_hidden_state=z, pooler=z * 0), ".last_hidden_state"),
    ],
)
def test_activations_in_containers_are_found_and_labeled(container, label):
    model = Returns(container)
    frame = compare_models(model, model, images(), ["layer", ""])
    assert list(frame.index) == ["layer", label] and frame.to_numpy() == pytest.approx(1)
    with pytest.raises(TypeError, match=r"layer '' of model_a must .* got dict with \['a', 'b'\]"):
        compare_models(Returns(lambda z: {"a": z, "b": z}), model, images(), [""])


class Tokens(nn.Module):
    """Token ids (n, t) to tokens (n, t, 4), and feature maps (n, 4, t, 1)."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed, self.conv = nn.Embedding(11, 4), nn.Conv2d(4, 3, 1)

    def forward(self, input_ids, attention_mask=None):
        tokens = self.embed(input_ids)
        return self.conv(tokens.mT[..., None])


def token_batch(n=24, t=5):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(t) < torch.randint(2, t + 1, (n, 1), generator=generator)
    return {"input_ids": torch.randint(11, (n, t), generator=generator), "attention_mask": mask.long()}


@pytest.mark.parametrize(
    "pooling, layers, labels, rows",
    [
        ("flatten", ["embed", "conv"], ["embed", "conv"], lambda e, c, m: (e.flatten(1), c.flatten(1))),
        (
            "mean",
            ["embed", "conv"],
            ["embed (mean over tokens)", "conv (mean over positions)"],
            lambda e, c, m: ((e * m[..., None]).sum(1) / m.sum(1, keepdim=True), c.mean(dim=(2, 3))),
        ),
        ("cls", ["embed"], ["embed (first token)"], lambda e, c, m: (e[:, 0],)),
    ],
)
def test_pooling_of_tokens_and_feature_maps_is_named_by_the_labels(pooling, layers, labels, rows):
    a, b, batch = Tokens(0), Tokens(1), token_batch()
    frame = compare_models(a, b, [batch | {"labels": torch.arange(24)}], layers, pooling=pooling)
    assert list(frame.index) == list(frame.columns) == labels
    with torch.no_grad():
        found = [rows(m.embed(batch["input_ids"]), m(**batch), batch["attention_mask"]) for m in (a, b)]
    expected = [[float(cka(x.double(), y.double())) for y in found[1]] for x in found[0]]
    np.testing.assert_allclose(frame, expected, atol=1e-5)


def test_a_layer_that_a_mask_does_not_fit_says_that_masked_tokens_count():
    class Prefixed(Tokens):
        def forward(self, input_ids, attention_mask):
            return torch.cat([(tokens := self.embed(input_ids))[:, :1], tokens], dim=1)

    model, batch = Prefixed(0), token_batch()
    frame = compare_models(model, model, [batch], ["embed", ""], pooling="mean")
    assert list(frame.index) == ["embed (mean over tokens)", " (mean over all tokens, also masked ones)"]


def test_a_dict_is_split_into_batches_and_small_ones_join():
    a, b, batch = Tokens(0), Tokens(1), token_batch(23)
    whole = compare_models(a, b, batch, batch_size=10, permutations=19)
    parts = [{name: z[rows] for name, z in batch.items()} for rows in (slice(0, 10), slice(10, 23))]
    for got, expected in zip(whole, compare_models(a, b, parts, permutations=19), strict=True):
        pd.testing.assert_frame_equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_agree_with_float32(dtype):
    half = network(0).to(dtype)
    frame, exact = (compare_models(model, network(0), images(), ["0.0", "3"]) for model in (half, network(0)))
    assert np.diagonal(frame) == pytest.approx(1, abs=1e-3) and frame.to_numpy() == pytest.approx(exact, abs=0.01)
    assert np.diagonal(compare_models(half, half, images(), pooling="mean")) == pytest.approx(1)
    far = nn.Sequential(nn.Flatten(), nn.Threshold(-9, 0)).to(dtype)  # a middle of 300: half steps of 0.25 or 2
    x = 300 + torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert compare_models(far, far, x).iloc[0, 0] == pytest.approx(1)


# --- permutations


def numpy_tests(values, seed_rank=None):
    """p-value and calibrated score of observed and permuted values (K + 1,), as in arXiv:2602.14486."""
    s, tau = values[0], np.sort(values)[math.ceil(0.95 * len(values)) - 1]
    return np.mean(values >= s - 1e-12), max(0, (s - tau) / (1 - tau))


@pytest.mark.parametrize("measure", ["cka", "mutual_knn", "procrustes"])
def test_permutation_tests_match_permuted_activations(measure):
    a, b, layers, draws = network(0, False), network(1, False), ["0.1", "3"], 39
    tests = compare_models(a, b, images(24), layers, measure=measure, k=3, permutations=draws, seed=5)
    plain = compare_models(a, b, images(24), layers, measure=measure, k=3)
    pd.testing.assert_frame_equal(tests.similarity, plain)
    generator = seeded(5)
    orders = [torch.arange(24), *(torch.randperm(24, generator=generator) for _ in range(draws))]
    of = {"cka": cka, "mutual_knn": lambda x, y: mutual_knn(x, y, 3), "procrustes": procrustes}[measure]
    rows_a, rows_b = ([activations(m, images(24))[i] for i in (1, 5)] for m in (a, b))
    values = np.array([[[float(of(x, y[o])) for y in rows_b] for x in rows_a] for o in orders])
    np.testing.assert_allclose(tests.similarity, values[0], atol=2e-5)
    found = [[numpy_tests(values[:, i, j]) for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(tests.pvalue, [[p for p, _ in row] for row in found])
    np.testing.assert_allclose(tests.calibrated, [[c for _, c in row] for row in found], atol=5e-5)
    scores = (values - values.mean(axis=0)) / values.std(axis=0, ddof=1)
    largest = scores.max(axis=(1, 2))
    np.testing.assert_allclose(tests.adjusted, (largest[:, None, None] >= scores[0] - 1e-6).mean(axis=0))
    assert (tests.adjusted >= tests.pvalue.min().min()).all().all() and tests.similarity.index.name == "model_a"


class Half(nn.Module):
    """Two layers that see a part of the columns only."""

    def __init__(self, columns, width, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.columns, self.first, self.second = columns, nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.second(self.first(x[:, self.columns]).relu())


@pytest.mark.parametrize("options", [{}, {"estimator": "biased"}, {"measure": "mutual_knn", "k": 3}], ids=str)
def test_unrelated_networks_are_rejected_at_the_level_and_wide_ones_score_zero(options):
    below = []
    for seed in range(60):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
        a, b = Half(slice(0, 4), 40, seed), Half(slice(4, 8), 40, seed + 1)
        tests = compare_models(a, b, x, batch_size=8, permutations=19, seed=seed, **options)
        below.append([(tests.pvalue <= 0.05).to_numpy().mean(), (tests.adjusted <= 0.05).to_numpy().any()])
        assert ((tests.calibrated > 0) <= (tests.pvalue <= 0.05)).all().all()
    pairs, any_pair = np.sum(below, axis=0)
    assert pairs <= stats.binom.ppf(0.999, 60, 0.05) and any_pair <= stats.binom.ppf(0.999, 60, 0.05)


def test_equal_networks_have_calibrated_similarity_1_and_the_seed_decides():
    a, x = network(), images()
    first, again, other = (compare_models(a, network(1), x, ["0.0"], permutations=49, seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first.calibrated, again.calibrated)
    assert 0 < first.calibrated.iloc[0, 0] != other.calibrated.iloc[0, 0] > 0
    same = compare_models(a, a, x, ["3"], permutations=49)
    assert same.calibrated.iloc[0, 0] == pytest.approx(1) and same.pvalue.iloc[0, 0] == 1 / 50


# --- features that are a sample of many


@pytest.mark.parametrize("seed", [8, 10])
def test_no_corrected_similarity_has_a_calibrated_score_below_0(seed):
    torch.manual_seed(seed)
    a, b, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(6, 3)
    tests = compare_models(a, b, x, [""], [""], sampled_features=True, permutations=19)
    assert tests.similarity.iloc[0, 0] > 1 and tests.calibrated.iloc[0, 0] == 0


def test_correction_for_sampled_features_leaves_out_products_of_features_with_themselves():
    a, b = Half(slice(0, 4), 5, 0), Half(slice(2, 6), 3, 1)
    x = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    got = compare_models(a, b, x, ["first"], sampled_features=True).iloc[0, 0]
    with torch.no_grad():
        rows = [m.first(x[:, m.columns]).double() for m in (a, b)]

    def mean(z, w, same):
        pairs = [(i, j) for i in range(z.shape[1]) for j in range(w.shape[1]) if not (same and i == j)]
        return np.mean([float(hsic(z[:, i], w[:, j], estimator="unbiased")) for i, j in pairs])

    expected = mean(*rows, False) / (mean(rows[0], rows[0], True) * mean(rows[1], rows[1], True)) ** 0.5
    assert got == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="at least 2 features, got 1"):
        compare_models(nn.Linear(6, 1), b, x, [""], ["first"], sampled_features=True)


@pytest.mark.parametrize("p, plain, corrected, spread", [(8, 0.66, 1.11, 0.27), (32, 0.88, 1.02, 0.06)])
def test_correction_overshoots_as_documented(p, plain, corrected, spread):
    """Features drawn from all linear functions of four variables: the true CKA of two samples of them is 1."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(60):
        latent = torch.randn(200, 4, generator=generator)
        sides = [nn.Linear(4, p, bias=False) for _ in range(2)]
        for side in sides:
            side.weight.data.normal_(generator=generator)
        found.append([compare_models(*sides, latent, sampled_features=s).iloc[0, 0] for s in (False, True)])
    means = np.mean(found, axis=0)
    error = spread / 60**0.5
    assert means == pytest.approx([plain, corrected], abs=3 * error) and np.std(found, axis=0)[1] < 2 * spread


# --- mutual nearest neighbors and Procrustes similarity


def dependent(n=40, p=5, q=3):
    x, noise = torch.randn(2, n, p, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, (x + noise)[:, :q]


@pytest.mark.parametrize("k", [1, 4, 39])
def test_mutual_knn_is_the_share_of_common_neighbors(k):
    x, y = dependent()
    near = [np.argsort(np.linalg.norm(z.numpy()[:, None] - z.numpy(), axis=2), axis=1)[:, 1 : k + 1] for z in (x, y)]
    expected = np.mean([len(np.intersect1d(*rows)) / k for rows in zip(*near, strict=True)])
    assert float(mutual_knn(x, y, k)) == pytest.approx(expected)
    assert float(mutual_knn(x + 1e6, y, k)) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"k must be .* at most 39, got 40"):
        mutual_knn(x, y, 40)


def test_order_of_the_rows_does_not_break_ties_of_neighbors():
    """With ties broken by the order of the rows, unrelated samples shared more neighbors than permuted ones."""
    x, y = torch.randint(3, (2, 400, 1), generator=torch.Generator().manual_seed(0)).double()
    permuted = y[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert float(mutual_knn(x, y, 20)) == pytest.approx(float(mutual_knn(x, permuted, 20)), abs=0.005)
    assert float(mutual_knn(x, x, 20)) == pytest.approx(1)


def test_procrustes_matches_scipy_and_ignores_rotations():
    x, y = dependent(q=5)
    disparity = scipy_procrustes(x.numpy(), y.numpy())[2]
    assert float(procrustes(x, y)) == pytest.approx((1 - disparity) ** 0.5, rel=1e-10)
    wide = torch.cat([y, y.square(), x**3] * 20, dim=1)  # more columns than rows
    a, b = x - x.mean(0), wide - wide.mean(0)
    expected = np.linalg.svd((a.T @ b).numpy(), compute_uv=False).sum() / float(a.norm() * b.norm())
    assert [float(procrustes(x, wide)), float(procrustes(wide, x))] == pytest.approx([expected] * 2, rel=1e-10)
    turned = 3 - 2 * x @ torch.linalg.qr(y.T @ y).Q
    assert float(procrustes(x, turned)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("function", [mutual_knn, procrustes])
def test_similarity_rejects_constant_samples(function):
    with pytest.raises(ValueError, match="y is constant: all 40 rows are equal"):
        function(dependent()[0], torch.full((40, 2), 0.3))


def test_mutual_knn_of_batches_is_averaged_by_rows():
    a, b = network(0, False), network(1, False)
    frame = compare_models(a, b, [images(20), images(30, 1)], ["0.1", "3"], measure="mutual_knn", k=4)
    parts = [(activations(a, x)[1], activations(b, x)[5]) for x in (images(20), images(30, 1))]
    expected = (20 * mutual_knn(*parts[0], 4) + 30 * mutual_knn(*parts[1], 4)) / 50
    assert frame.loc["0.1", "3"] == pytest.approx(float(expected), abs=1e-9)


# --- the plot


def table(rows, columns):
    values = np.random.default_rng(0).uniform(0, 1, (rows, columns))
    values[0, 0] = -0.004
    names = [f"layer{i}.conv" for i in range(max(rows, columns))]
    return pd.DataFrame(values, index=names[:rows], columns=names[:columns])


def test_plot_shows_the_table_from_0_to_1_with_its_labels():
    frame = table(3, 5)
    ax = plot_cka(frame)
    (image,) = ax.images
    np.testing.assert_array_equal(image.get_array(), frame)
    assert image.get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(frame.index)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(frame.columns)
    assert [t.get_text() for t in ax.texts][:2] == ["0.00", f"{frame.iloc[0, 1]:.2f}"] and len(ax.texts) == 15
    plt.close("all")


def test_a_layer_of_any_name_is_drawn():
    frame = table(2, 2).set_axis(["calibrated", "attrs"], axis=1)
    assert [t.get_text() for t in plot_cka(frame).get_xticklabels()] == ["calibrated", "attrs"]
    plt.close("all")


def test_plot_of_many_layers_labels_some_and_prints_no_values():
    ax = plt.subplots()[1]
    assert plot_cka(table(100, 20), ax) is ax
    assert not ax.texts and len(ax.get_yticks()) == 34 and len(ax.get_xticks()) == 20
    assert ax.get_yticklabels()[1].get_text() == "layer3.conv"
    plt.close("all")


@pytest.mark.parametrize("frame, message", [(table(2, 2) * np.nan, "finite, 4 of"), (table(2, 2)[:0], "at least one")])
def test_plot_rejects_bad_tables(frame, message):
    with pytest.raises(ValueError, match=message):
        plot_cka(frame)


def test_plot_of_tests_shows_the_calibrated_score_and_marks_what_chance_reaches():
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    tests = compare_models(Half(slice(0, 4), 9, 0), Half(slice(4, 8), 9, 1), x, permutations=19, measure="mutual_knn")
    tests.calibrated.iloc[:] = [[0.0, 0.3], [0.6, 0.0]]
    ax = plot_cka(tests)
    np.testing.assert_array_equal(ax.images[0].get_array(), tests.calibrated)
    assert [t.get_text() for t in ax.texts] == ["–", "0.30", "0.60", "–"]
    assert ax.figure.axes[-1].get_ylabel() == "calibrated mutual kNN\n–: within chance"
    assert plot_cka(tests.similarity).figure.axes[-1].get_ylabel() == "mutual kNN"
    plt.close("all")
