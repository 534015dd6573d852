"""The explorer in Python: messages to the browser, answers, and errors. test_browser tests the JavaScript."""

import base64
import io

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from PIL import Image

from hsic_lab.correlation import cross_correlation
from hsic_lab.explorer import CorrelationExplorer, feature_pair
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.training import Event, Run, TrainConfig, train


def projections(n=30, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, d, generator=generator)
    return tuple(shared + 0.5 * torch.randn(n, d, generator=generator) for _ in range(2))


def run_of(tmp_path, steps=(0, 10, 25), d=6, name="a_run"):
    encoder, projector = torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, d)
    snapshots = {step: cross_correlation(*projections(d=d, seed=step)) for step in steps}
    return Run(tmp_path / name, {}, encoder, projector, snapshots=snapshots)


def pixels(n=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, 4, 4), generator=generator, dtype=torch.uint8)


def answers(explorer, **request):
    sent = []
    explorer.send = lambda content, buffers=None: sent.append((content, buffers))
    explorer._answer(request)
    return sent[0]


def test_matrix_is_sent_exactly_with_its_summary(tmp_path):
    run = run_of(tmp_path)
    explorer = CorrelationExplorer({"one": run, "two": projections(d=9)})
    assert [(p["name"], p["steps"], p["d"], p["n"]) for p in explorer.panels] == [
        ("one", [0, 10, 25], 6, 2048),
        ("two", [0], 9, 30),
    ]
    content, (matrix,) = answers(explorer, kind="matrix", panel=0, step=10)
    c = run.snapshots[10].numpy()
    np.testing.assert_array_equal(np.frombuffer(matrix, np.float32).reshape(6, 6), c)
    assert content["summary"]["total"] == pytest.approx(c.sum(), abs=1e-5)
    assert (sum(content["diagonal_counts"]), sum(content["off_counts"])) == (6, 30)
    content, _ = answers(explorer, kind="spectrum", panel=1, step=0)
    np.testing.assert_allclose(content["values"], np.linalg.svd(cross_correlation(*projections(d=9)))[1], atol=1e-5)
    run.metadata["held_out_pairs"] = 445
    assert CorrelationExplorer(run).panels[0]["n"] == 445 and CorrelationExplorer(run, samples=7).panels[0]["n"] == 7
    newest = explorer.latest
    assert newest["step"] == 25 and newest["matrix"] == run.snapshots[25].numpy().tobytes()


def test_colors_are_the_diverging_map_and_the_palette():
    explorer = CorrelationExplorer({"one": projections(), "two": projections(d=9)})
    assert [panel["color"] for panel in explorer.panels] == PALETTE[:2]
    for k in (0, 60, 128, 255):
        wanted = matplotlib.colormaps[DIVERGING](k, bytes=True)[:3]
        assert tuple(explorer.colors[3 * k : 3 * k + 3]) == wanted


def test_cell_shows_samples_and_images():
    z_a, z_b = projections()
    images = pixels(), pixels(seed=1)
    explorer = CorrelationExplorer(z_a, z_b, images)
    explorer.cell = [0, 2, 4]
    behind = explorer.behind
    assert behind["correlation"] == pytest.approx(np.corrcoef(z_a[:, 2], z_b[:, 4])[0, 1], abs=1e-5)
    assert len(behind["x"]) == len(behind["y"]) == 30
    for key, view, column in (("a", images[0], z_a[:, 2]), ("b", images[1], z_b[:, 4])):
        assert behind[f"extremes_{key}"][-1] == column.argmax()
        address = behind[f"images_{key}"][-1].removeprefix("data:image/png;base64,")
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))
        np.testing.assert_array_equal(shown, view[column.argmax()].permute(1, 2, 0))
    explorer.cell = []
    assert explorer.behind == {}


def test_folder_is_read_as_its_run(tmp_path):
    run = train(TrainConfig(dataset="digits", epochs=1, width=1, projector=(4,)), tmp_path / "run", progress=False)
    assert CorrelationExplorer(tmp_path / "run").latest["matrix"] == CorrelationExplorer(run).latest["matrix"]
    assert CorrelationExplorer(str(tmp_path / "run")).panels == CorrelationExplorer(run).panels


def test_run_projects_its_images_with_its_own_networks(tmp_path):
    run, images = run_of(tmp_path), (pixels(), pixels(seed=1))
    explorer = CorrelationExplorer(run, images=images)
    explorer.cell = [0, 1, 3]
    with torch.no_grad():
        z_a, z_b = (run.projector((view.float() / 127.5 - 1).flatten(1)) for view in images)
    assert explorer.behind["correlation"] == pytest.approx(float(cross_correlation(z_a, z_b)[1, 3]), abs=1e-4)
    assert explorer.behind["step"] == 25
    without = CorrelationExplorer(run)
    without.cell = [0, 1, 3]
    assert "images=(view_a, view_b)" in without.behind["missing"]


def test_order_of_the_newest_matrix_holds_for_all_steps(tmp_path):
    run = run_of(tmp_path)
    explorer = CorrelationExplorer(run)
    explorer.order = "diagonal"
    wanted = np.argsort(-run.snapshots[25].diagonal().numpy(), kind="stable").tolist()
    assert explorer.orders == {"by": "diagonal", "positions": [wanted]}


def test_callback_shows_each_new_snapshot(tmp_path):
    first, second = run_of(tmp_path, steps=(0,), name="first"), run_of(tmp_path, steps=(0,), name="second")
    explorer = CorrelationExplorer()
    assert explorer.panels == [] and "image/png" not in explorer._repr_mimebundle_()[0]
    explorer.callback(Event("step", 0, {}, first))
    assert explorer.panels == []
    explorer.callback(Event("snapshot", 0, {}, first))
    first.snapshots[7] = cross_correlation(*projections(seed=7))
    explorer.callback(Event("snapshot", 7, {}, first))
    assert (explorer.step, explorer.panels[0]["steps"]) == (7, [0, 7])
    assert explorer.latest["matrix"] == first.snapshots[7].numpy().tobytes()
    explorer.callback(Event("snapshot", 0, {}, second))
    assert [panel["name"] for panel in explorer.panels] == ["first", "second"]
    assert explorer.latest["panel"] == 1


def test_order_and_number_of_pairs_hold_for_later_snapshots(tmp_path):
    first, second = run_of(tmp_path, steps=(0,), name="first"), run_of(tmp_path, steps=(0,), name="second")
    explorer = CorrelationExplorer(samples=445)
    explorer.order = "diagonal"
    explorer.callback(Event("snapshot", 0, {}, first))
    first.snapshots[7] = cross_correlation(*projections(seed=7))
    explorer.callback(Event("snapshot", 7, {}, first))
    explorer.callback(Event("snapshot", 0, {}, second))
    newest = [run.snapshots[max(run.snapshots)].diagonal().numpy() for run in (first, second)]
    assert explorer.orders["positions"] == [np.argsort(-d, kind="stable").tolist() for d in newest]
    assert [panel["n"] for panel in explorer.panels] == [445, 445]
    figure = explorer.figure(0)
    shown, order = figure.axes[0].get_images()[0].get_array(), explorer.orders["positions"][0]
    np.testing.assert_allclose(shown, first.snapshots[0][order][:, order], err_msg="by the newest matrix")
    matplotlib.pyplot.close(figure)


def test_widget_comes_with_an_image_for_pages_without_widgets(tmp_path):
    data, _ = CorrelationExplorer(run_of(tmp_path))._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 600


def test_figure_shows_the_given_step(tmp_path):
    run = run_of(tmp_path)
    explorer = CorrelationExplorer(run, limit=0.5)
    for step, shown in ((None, 25), (10, 10), (24, 10)):
        figure = explorer.figure(step)
        image = next(ax.get_images()[0] for ax in figure.axes if ax.get_images())
        np.testing.assert_allclose(image.get_array(), run.snapshots[shown])
        assert image.get_clim() == (-0.5, 0.5)
        matplotlib.pyplot.close(figure)


Z = projections()
NAN = torch.full((30, 6), float("nan"))
BAD = {
    "NaN in a projection": (lambda _: CorrelationExplorer(NAN, Z[1]), ValueError, "cannot be shown: c must be finite"),
    "one row": (lambda _: CorrelationExplorer(Z[0][:1], Z[1][:1]), ValueError, r"at least 2 rows, got shape \(1, 6\)"),
    "one feature": (lambda _: CorrelationExplorer(Z[0][:, :1], Z[1][:, :1]), ValueError, r"d at least 2, got \(1, 1\)"),
    "views of two shapes": (lambda _: CorrelationExplorer(Z[0], Z[1][:9]), ValueError, r"\(30, 6\) and \(9, 6\)"),
    "one view": (lambda _: CorrelationExplorer(Z[0]), TypeError, r"pair of projections \(z_a, z_b\), got Tensor"),
    "images of other rows": (
        lambda _: CorrelationExplorer(*Z, images=pixels(20)),
        ValueError,
        "20 images and 30 rows of 'C'",
    ),
    "views of two lengths": (
        lambda _: CorrelationExplorer(*Z, images=(pixels(), pixels(9))),
        ValueError,
        "got 30 and 9",
    ),
    "three views": (lambda _: CorrelationExplorer(*Z, images=(pixels(),) * 3), ValueError, "pair of tensors, got 3"),
    "images that are none": (lambda _: CorrelationExplorer(*Z, images=Z[0]), ValueError, r"\(n, c, h, w\)"),
    "run without a snapshot": (
        lambda path: CorrelationExplorer(run_of(path, steps=())),
        ValueError,
        "'a_run' has no snapshot",
    ),
    "limit": (lambda _: CorrelationExplorer(*Z, limit=0.0), ValueError, "limit must be positive and finite, got 0.0"),
}


@pytest.mark.parametrize(("make", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input_raises(tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        make(tmp_path)


def test_damaged_snapshots_raise(tmp_path):
    run = run_of(tmp_path)
    run.snapshots[10] = torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"step 10 cannot be shown: c must have shape .* got \(3, 4\)"):
        CorrelationExplorer(run)


def test_unknown_request_raises():
    explorer = CorrelationExplorer(*Z)
    with pytest.raises(ValueError, match="'nothing'"):
        answers(explorer, kind="nothing", panel=0, step=0)
    with pytest.raises(ValueError, match=r"0 to 5, got \(6, 0\)"):
        explorer.cell = [0, 6, 0]


def test_feature_pair_has_the_samples_and_extremes_of_an_entry():
    generator = torch.Generator().manual_seed(0)
    z_a, z_b = (torch.randn(50, 7, generator=generator) for _ in range(2))
    pair = feature_pair(z_a, z_b, 2, 6, extremes=3)
    assert pair.correlation == pytest.approx(float(cross_correlation(z_a, z_b)[2, 6]), abs=1e-6)
    assert pair.correlation == pytest.approx(np.corrcoef(z_a[:, 2], z_b[:, 6])[0, 1], abs=1e-6)
    ranked = np.argsort(z_a[:, 2].numpy())
    np.testing.assert_array_equal(pair.extremes_a, [*ranked[:3], *ranked[-3:]])
    np.testing.assert_array_equal(pair.extremes_b, np.argsort(z_b[:, 6].numpy())[[0, 1, 2, -3, -2, -1]])
    few = feature_pair(z_a[:5], z_b[:5], 0, 0, extremes=4)
    assert len(few.extremes_a) == 4  # no image at both ends
    with pytest.raises(ValueError, match=r"0 to 6, got \(7, 0\)"):
        feature_pair(z_a, z_b, 7, 0)
