"""The explorer in Python: messages to the browser, answers, and errors. test_browser tests the JavaScript."""

import base64
import html.parser
import io
import json
import re
import threading
import time
import zlib
from dataclasses import replace
from queue import Queue

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
from PIL import Image

from hsic_lab.correlation import cross_correlation, feature_order, standardize
from hsic_lab.datasets import load
from hsic_lab.explorer import CorrelationExplorer, explorer_fragment
from hsic_lab.explorer._html import explorer_data
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.training import Event, Run, TrainConfig, train
from hsic_lab.training._setup import held_out_pairs


def projections(n=30, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, d, generator=generator)
    return tuple(shared + 0.5 * torch.randn(n, d, generator=generator) for _ in range(2))


def run_of(tmp_path, steps=(0, 10, 25), d=6, name="a_run"):
    encoder, projector = torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 4, d)
    snapshots = {step: cross_correlation(*projections(d=d, seed=step)) for step in steps}
    return Run(tmp_path / name, TrainConfig(), encoder, projector, snapshots=snapshots)


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
    assert CorrelationExplorer(run).panels[0]["n"] == 445
    newest = explorer.latest
    assert newest["step"] == 25 and newest["matrix"] == run.snapshots[25].numpy().tobytes()


def test_colors_are_the_diverging_map_and_the_palette():
    explorer = CorrelationExplorer({"one": projections(), "two": projections(d=9)})
    assert [panel["color"] for panel in explorer.panels] == PALETTE[:2]
    for k in (0, 60, 128, 255):
        wanted = matplotlib.colormaps[DIVERGING](k, bytes=True)[:3]
        assert tuple(explorer.colors[3 * k : 3 * k + 3]) == wanted


def samples(explorer, step, i, j, panel=0):
    """The answer about a cell, with x and y."""
    content, buffers = answers(explorer, kind="cell", panel=panel, step=step, i=i, j=j)
    return content | dict(zip("xy", (np.frombuffer(buffer, np.float32) for buffer in buffers), strict=False))


def shown_image(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_cell_shows_samples_and_images():
    z_a, z_b = projections()
    images = pixels(), pixels(seed=1)
    behind = samples(CorrelationExplorer(z_a, z_b, images), 0, 2, 4)
    assert behind["correlation"] == pytest.approx(np.corrcoef(z_a[:, 2], z_b[:, 4])[0, 1], abs=1e-5)
    assert len(behind["x"]) == len(behind["y"]) == behind["n"] == 30
    np.testing.assert_allclose(np.mean(behind["x"] * behind["y"]), behind["correlation"], atol=1e-6)
    for key, view, column in (("a", images[0], z_a[:, 2]), ("b", images[1], z_b[:, 4])):
        ranked = column.argsort(stable=True)
        for url, row in zip(behind[f"images_{key}"], [*ranked[:4], *ranked[-4:]], strict=True):
            np.testing.assert_array_equal(shown_image(url), view[row].permute(1, 2, 0))
    few = samples(CorrelationExplorer(z_a[:5], z_b[:5], tuple(view[:5] for view in images)), 0, 2, 4)
    assert len(few["images_a"]) == len(few["images_b"]) == 4, "no image at both ends"
    without = samples(CorrelationExplorer(z_a, z_b), 0, 2, 4)
    assert without["note"] == "" and "images_a" not in without and len(without["x"]) == 30


def test_run_shows_its_own_images_and_the_samples_of_each_step(tmp_path):
    config = TrainConfig(dataset="digits", epochs=1, width=1, projector=(4,), snapshots=3)
    run = train(config, tmp_path / "run", progress=False)
    explorer = CorrelationExplorer(tmp_path / "run")
    view_a, view_b = held_out_pairs(load("digits"), config, torch.device("cpu"))
    for step, c in run.snapshots.items():
        behind = samples(explorer, step, 1, 2)
        assert (behind["at"], behind["n"], behind["note"]) == (step, 256, "")
        assert behind["correlation"] == pytest.approx(float(c[1, 2]), abs=0.2), "256 of 445 pairs"
    with torch.no_grad():  # the images at the ends are those that the networks put there
        z = run.projector(run.encoder(view_a))[:256, 1].numpy()
    shown = shown_image(behind["images_a"][-1])
    kept = run.samples[max(run.snapshots)][0, :, 1].float().numpy()  # of the training's precision, so near ties differ
    assert np.corrcoef(kept, z)[0, 1] > 0.99
    np.testing.assert_allclose(shown / 127.5 - 1, view_a[kept.argsort(kind="stable")[-1], 0], atol=0.01)
    (tmp_path / "run" / "samples.safetensors").unlink()  # runs of earlier versions lack it, and the digests
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "sha256"}))
    behind = samples(CorrelationExplorer(tmp_path / "run"), 0, 1, 2)
    assert behind["at"] == max(run.snapshots) and len(behind["images_b"]) == 8
    with torch.no_grad():
        z_b = run.projector(run.encoder(view_b))[:256]
    np.testing.assert_allclose(behind["y"], standardize(z_b)[:, 2], atol=1e-4)


def test_run_on_a_folder_shows_the_images_as_it_loaded_them(tmp_path):
    for number in range(40):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("L", (12, 9), 6 * number).save(tmp_path / "images" / "ab"[number % 2] / f"{number}.png")
    config = TrainConfig(epochs=1, width=1, projector=(4,), batch_size=16)
    run = train(config, tmp_path / "run", load(str(tmp_path / "images"), size=8), progress=False)
    behind = samples(CorrelationExplorer(run), 0, 1, 2)
    assert behind["note"] == "" and shown_image(behind["images_a"][0]).shape == (8, 8, 3)


def test_one_array_in_place_of_two_views_is_one_view():
    z_a, z_b = projections()
    explorer = CorrelationExplorer({"one": (z_a, z_a), "two": (z_a, z_b)})
    assert [(panel["one"], panel["trained"]) for panel in explorer.panels] == [(True, False), (False, False)]


UNSHOWN = {
    "views of its own": ({"views": "custom"}, "does not say how its views are made"),
    "other images": ({"pictures": "9 x 1 x 8 x 8 (0)"}, "trained on other images, 9 x 1 x 8 x 8 "),
    "absent data set": ({"dataset": "nowhere/pictures"}, "nowhere/pictures"),
}


@pytest.mark.parametrize(("change", "words"), UNSHOWN.values(), ids=UNSHOWN)
def test_run_without_its_images_says_why(tmp_path, change, words):
    run = train(TrainConfig(dataset="digits", epochs=1, width=1, projector=(4,)), tmp_path / "run", progress=False)
    run.config = replace(run.config, **{k: v for k, v in change.items() if k == "dataset"})
    run.metadata |= change
    behind = samples(CorrelationExplorer(run), 0, 1, 2)
    assert words in behind["note"] and "images=(view_a, view_b)" in behind["note"]
    assert len(behind["x"]) == 256 and "images_a" not in behind


def test_folder_is_read_as_its_run(tmp_path):
    run = train(TrainConfig(dataset="digits", epochs=1, width=1, projector=(4,)), tmp_path / "run", progress=False)
    assert CorrelationExplorer(tmp_path / "run").latest["matrix"] == CorrelationExplorer(run).latest["matrix"]
    assert CorrelationExplorer(str(tmp_path / "run")).panels == CorrelationExplorer(run).panels


def test_run_projects_its_images_with_its_own_networks(tmp_path):
    run, images = run_of(tmp_path), (pixels(), pixels(seed=1))
    behind = samples(CorrelationExplorer(run, images=images), 10, 1, 3)
    with torch.no_grad():
        z_a, z_b = (run.projector((view.float() / 127.5 - 1).flatten(1)) for view in images)
    assert behind["correlation"] == pytest.approx(float(cross_correlation(z_a, z_b)[1, 3]), abs=1e-4)
    assert behind["at"] == 25
    without = samples(CorrelationExplorer(run), 10, 1, 3)
    assert "images=(view_a, view_b)" in without["note"] and "x" not in without
    wrong = samples(CorrelationExplorer(run, images=torch.zeros(30, 1, 4, 4)), 10, 1, 3)
    assert "cannot be projected" in wrong["note"]


class Embedded(html.parser.HTMLParser):
    """The data of a page, and every address in it."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.data, self.kind = [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.kind = (tag, dict(attributes).get("type"))
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if self.kind == ("script", "application/json"):
            self.data = json.loads(data)
            self.kind = None

    def matrix(self, panel, step):
        text, later = self.data["matrices"][panel][str(step)]
        planes = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).astype(int)
        z = planes[: len(planes) // 2] + 256 * planes[len(planes) // 2 :]
        k = np.where(z % 2, -(z + 1) // 2, z // 2)
        return k / self.data["level"] + (0 if later is None else self.matrix(panel, later))


def test_panels_can_have_numbers_as_names(tmp_path):
    page = CorrelationExplorer({64: Z, 128: Z}).save_html(tmp_path / "page.html").read_text()
    assert "<title>Cross-correlation matrix: 64, 128</title>" in page


def test_page_holds_the_matrices_and_samples(tmp_path):
    run, images = run_of(tmp_path), (pixels(), pixels(seed=1))
    run.samples = {step: torch.stack([standardize(z) for z in projections(seed=step)]).half() for step in (0, 25)}
    explorer = CorrelationExplorer({"a <run> & more": run, "two": projections(d=9)}, images=images)
    explorer.order = "cluster"
    page = explorer.save_html(tmp_path / "new" / "page.html").read_text()
    found = Embedded(page)
    assert found.addresses == [] and not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xhtml))", page)
    assert "a &lt;run&gt; &amp; more" in page and "a <run>" not in page
    for step, c in run.snapshots.items():
        np.testing.assert_allclose(found.matrix(0, step), c.numpy().ravel(), atol=0.5001 / found.data["level"])
    assert found.data["level"] == 4096
    state = found.data["state"]
    assert (state["step"], state["order"], [p["steps"] for p in state["panels"]]) == (25, "cluster", [[0, 10, 25], [0]])
    wanted = feature_order(run.snapshots[25], "cluster")
    assert found.data["orders"]["cluster"][0] == state["orders"]["positions"][0] == wanted.tolist()
    z_a, z_b = projections(d=9)
    packed = zlib.decompress(base64.b64decode(found.data["samples"][1]["0"]))
    scales, values = (
        np.frombuffer(packed[: 4 * 18], np.float32),
        np.frombuffer(packed[4 * 18 :], np.int8).reshape(18, 30),
    )
    exact = np.concatenate([standardize(z_a).T, standardize(z_b).T])
    np.testing.assert_allclose(scales[:, None] * values, exact, atol=np.abs(exact).max() / 250)
    sheet = shown_image(found.data["sprites"][found.data["sprite"][1]])
    np.testing.assert_array_equal(sheet[8:12, :4], images[1][2].permute(1, 2, 0), err_msg="view B follows 30 of view A")


def size_of_page(tmp_path, d, side):
    """Megabytes and data of the page of two runs with 12 snapshots of 2048 pairs, whose features become independent."""
    generator = torch.Generator().manual_seed(0)
    noise = [0.4 * torch.randn(2048, d, generator=generator) for _ in range(2)]
    own = torch.randn(2048, d, generator=generator)
    low = torch.randn(2048, 30, generator=generator) @ torch.randn(30, d, generator=generator) / 30**0.5
    run = run_of(tmp_path, steps=(), d=2)
    run.metadata["device"] = "cpu"
    for step in range(12):
        weight = 1 - (1 - step / 11) ** 2
        pair = [weight * own + (1 - weight) * low + one for one in noise]
        run.snapshots[step] = cross_correlation(*pair)
        run.samples[step] = torch.stack([standardize(z)[:256].half() for z in pair])
    explorer = CorrelationExplorer({"one": run, "two": run})
    explorer._spectrum = lambda index, step: {"values": [1 / 3] * d}  # takes seconds
    images = torch.randint(0, 256, (256, 3, side // 4, side // 4), generator=generator, dtype=torch.uint8)
    for panel in explorer._panels.values():
        panel.pairs = (images.repeat_interleave(4, 2).repeat_interleave(4, 3),) * 2, ""
    page = explorer.save_html(tmp_path / "page.html")
    return page.stat().st_size / 1e6, Embedded(page.read_text()).data


def test_page_is_small(tmp_path):
    size, data = size_of_page(tmp_path, 128, 32)
    assert size < 5 and data["level"] == 4096 and all(len(by_step) == 12 for by_step in data["samples"])
    size, data = size_of_page(tmp_path, 1024, 96)
    assert size < 15 and data["level"] >= 64 and [len(p["steps"]) for p in data["state"]["panels"]] == [12, 12]
    assert [list(by_step) for by_step in data["samples"]] == [["11"], ["11"]]


def test_fragment_needs_a_matrix():
    with pytest.raises(ValueError, match="no matrix yet"):
        explorer_fragment(CorrelationExplorer())


def test_constant_features_are_counted():
    z_a, z_b = (z.clone() for z in projections())
    z_a[:, [1, 4]], z_b[:, 2] = 3.0, -1.0
    content, (matrix,) = answers(CorrelationExplorer(z_a, z_b), kind="matrix", panel=0, step=0)
    assert content["constant"] == [2, 1] and not np.frombuffer(matrix, np.float32).reshape(6, 6)[1].any()


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
    explorer = CorrelationExplorer()
    explorer.order = "diagonal"
    first.metadata["held_out_pairs"] = second.metadata["held_out_pairs"] = 445
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


@pytest.mark.parametrize("d", [6, 1030])
def test_still_image_of_one_array_has_no_views(d, monkeypatch):
    z_a, z_b = projections(d=d)
    shown = []
    monkeypatch.setattr("matplotlib.pyplot.close", shown.append)
    CorrelationExplorer({"one": (z_a, z_a), "two": (z_a, z_b)})._repr_mimebundle_()
    names = [(ax.get_xlabel().partition("\n")[0], ax.get_ylabel()) for ax in shown[0].axes if ax.get_images()]
    assert names[:2] == [("feature", "feature"), ("feature of view B", "feature of view A")]
    matplotlib.pyplot.close(shown[0])


def test_other_requests_do_not_wait_for_a_spectrum(monkeypatch):
    explorer, sent, wait = CorrelationExplorer(*projections()), Queue(), threading.Event()
    explorer.send = lambda content, buffers=None: sent.put(content["kind"])
    monkeypatch.setattr(explorer, "_spectrum", lambda *request: wait.wait(30) and {"values": []})
    for kind in ("spectrum", "matrix"):
        explorer._handle_custom_msg({"kind": kind, "panel": 0, "step": 0}, [])
    assert sent.get(timeout=30) == "matrix"
    wait.set()
    assert sent.get(timeout=30) == "spectrum"


Z = projections()
NAN = torch.full((30, 6), float("nan"))
BAD = {
    "NaN in a projection": (
        lambda _: CorrelationExplorer(NAN, Z[1]),
        ValueError,
        "z_a of 'C' holds 180 values that are",
    ),
    "a run and a projection": (
        lambda path: CorrelationExplorer(run_of(path), Z[1]),
        TypeError,
        "z_a of 'C' .* got Run",
    ),
    "integers": (lambda _: CorrelationExplorer(Z[0], Z[1].int()), TypeError, "z_b of 'C' must be floating point"),
    "one row": (lambda _: CorrelationExplorer(Z[0][:1], Z[1][:1]), ValueError, r"at least 2 rows, got shape \(1, 6\)"),
    "one feature": (
        lambda _: CorrelationExplorer(Z[0][:, :1], Z[1][:, :1]),
        ValueError,
        r"d at least 2, .*, got \(1, 1\)",
    ),
    "views of two shapes": (lambda _: CorrelationExplorer(Z[0], Z[1][:9]), ValueError, r"\(30, 6\) and \(9, 6\)"),
    "one view": (lambda _: CorrelationExplorer(Z[0]), TypeError, r"pair \(z_a, z_b\), got Tensor"),
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
    "no images": (
        lambda _: CorrelationExplorer(*Z, images=3),
        TypeError,
        "images must be of type list or tuple, got int 3",
    ),
    "three views": (lambda _: CorrelationExplorer(*Z, images=(pixels(),) * 3), ValueError, "pair of tensors, got 3"),
    "images that are none": (lambda _: CorrelationExplorer(*Z, images=Z[0]), ValueError, r"\(n, c, h, w\)"),
    "run without a snapshot": (
        lambda path: CorrelationExplorer(run_of(path, steps=())),
        ValueError,
        "'a_run' has no snapshot",
    ),
    "limit": (lambda _: CorrelationExplorer(*Z, limit=0.0), ValueError, "limit must be a number above 0, got 0.0"),
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
    for cell, words in (([0, 6, 0], r"0 to 5, got \(6, 0\)"), ([1, 0, 0], r"panel from 0 to 0, got \[1, 0, 0\]")):
        with pytest.raises(ValueError, match=words):
            explorer.cell = cell


def test_large_matrix_is_answered_quickly():
    z = torch.randn(512, 2048, generator=torch.Generator().manual_seed(0))
    explorer = CorrelationExplorer(z, z)
    started = time.perf_counter()
    answers(explorer, kind="matrix", panel=0, step=0)
    assert time.perf_counter() - started < 2  # 0.15 s on an idle core
    assert Image.open(io.BytesIO(base64.b64decode(explorer._repr_mimebundle_()[0]["image/png"]))).width > 300


def test_data_for_a_small_element(tmp_path):
    run = run_of(tmp_path)
    run.snapshots.update({step: cross_correlation(*projections(d=64, seed=step)) for step in run.snapshots})
    run.samples = {25: torch.stack([standardize(z) for z in projections(64)]).half()}
    data = json.loads(explorer_data(CorrelationExplorer(run, images=pixels()), 15_000, 16))
    assert data["pairs"] == 16 and data["level"] < 4096
    assert sum(len(text) for text, _ in data["matrices"][0].values()) < 15_000


def test_samples_of_many_steps_leave_room_for_the_matrices(tmp_path):
    run = run_of(tmp_path, steps=range(12), d=64)
    run.samples = {step: torch.stack([standardize(z) for z in projections(64, 64, step)]).half() for step in range(12)}
    data = json.loads(explorer_data(CorrelationExplorer(run), 90_000, 64))
    assert [list(held) for held in data["samples"]] == [["11"]], "the newest ones only"
    assert data["state"]["panels"][0]["steps"] == list(range(12))
