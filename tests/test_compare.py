"""Layer-by-layer CKA of two models: values, hooks, training flags and the plot."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hsic_lab.cka import MinibatchCKA, cka
from hsic_lab.compare import compare_models
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
            nn.Sequential(nn.Flatten(), nn.LSTM(108, 4)),
            None,
            TypeError,
            "layer '1' of model_a must return a tensor, got t",
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
        ([{"image": images(8)}], TypeError, "images must be a torch.Tensor, got dict"),
    ],
)
def test_errors_about_images(data, error, message):
    with pytest.raises(error, match=message):
        compare_models(network(), network(), data)


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
