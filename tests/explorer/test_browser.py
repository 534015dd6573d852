"""The explorer in a real browser, in JupyterLab and as a file: controls, drawn pixels, samples; and two notebooks."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from explorer_page import images, matrices, run, snapshots
from matplotlib.colors import Normalize

from hsic_lab.correlation import feature_order
from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.plots._heatmaps import _block_means
from hsic_lab.report import write_report

jupytext = pytest.importorskip("jupytext", reason="needs jupytext: pip install -e '.[dev]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser: apt-get install chromium")

FLAGS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
DONE = f"{NOTEBOOK}.context.model.toJSON().cells.filter(c => c.cell_type == 'code' && c.source.length)"


@dataclass(frozen=True)
class Lab:
    """The address of a server and the folder that it shows."""

    address: str
    folder: Path


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab with its own settings, this interpreter as kernel, two notebooks and the page of explorers."""
    folder = tmp_path_factory.mktemp("lab")
    source = (ROOT / "tests" / "explorer" / "explorer_page.py").read_text(encoding="utf-8")
    pages = {"explorers": nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])}
    for name in ("00_quickstart", "04_reading_cross_correlation"):
        pages[name] = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    for name, page in pages.items():
        page.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
        nbformat.write(page, folder / f"{name}.ipynb")
    kernel = folder / ".jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    settings = folder / ".lab" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = {
        name: str(folder / ".jupyter" / name)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own
    environment |= {"JUPYTER_PATH": str(folder / ".jupyter"), "OMP_NUM_THREADS": "1", "HSIC_LAB_FAST": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={folder}",
        "--IdentityProvider.token=lab",
        "--LabApp.expose_app_in_browser=True",
        f"--LabApp.user_settings_dir={folder}/.lab",
        f"--LabApp.workspaces_dir={folder}/.workspaces",
    ]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api?token=lab", server, folder / "server.log")
            yield Lab(f"http://127.0.0.1:{port}", folder)
        finally:
            server.terminate()  # it ends its kernels
            server.wait(30)


def wait_for_server(address, server, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


def run_all(page, lab, name, timeout=300):
    """Open a notebook, run its cells in a fresh kernel, and return the executed cells."""
    page.goto(f"{lab.address}/lab/tree/{name}.ipynb?token=lab&reset")
    page.wait_for_function(
        f"window.jupyterapp && {NOTEBOOK}?.sessionContext?.session?.kernel?.status == 'idle'", timeout=60_000
    )
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'), null")
    page.wait_for_function(
        f"{DONE}.every(c => c.execution_count) || {DONE}.some(c => c.outputs.some(o => o.output_type == 'error'))",
        timeout=timeout * 1000,
    )
    page.wait_for_function(f"{NOTEBOOK}.sessionContext.session.kernel.status == 'idle'", timeout=timeout * 1000)
    cells = page.evaluate(DONE)
    assert [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"] == []
    return cells


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def open_tab(browser, **options):
    """A browser tab that records errors of scripts."""
    tab = browser.new_context(**options).new_page()
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    return tab


@pytest.fixture(scope="module")
def page(browser):
    return open_tab(browser, viewport={"width": 1500, "height": 1700})


def explorer(page, number):
    """Wait until the heatmaps of an explorer are drawn, and return the explorer."""
    found = page.locator(".hsic-explorer").nth(number)
    found.scroll_into_view_if_needed()
    found.locator("canvas[data-step]").last.wait_for()
    return found


def drawn(shown):
    """Wait until the explorer has drawn its last change, which it does in the next frame; return `shown`."""
    shown.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return shown


def pixels(found, panel=0):
    """The colors of a heatmap, (side, side, 3)."""
    canvas = drawn(found).locator("canvas[data-step]").nth(panel).element_handle()
    flat = canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    side = round((len(flat) / 4) ** 0.5)
    return np.array(flat, dtype=np.uint8).reshape(side, side, 4)[..., :3]


def colored(matrix, limit=1.0):
    return matplotlib.colormaps[DIVERGING](Normalize(-limit, limit)(matrix), bytes=True)[..., :3]


def wait_for_step(page, found, *steps):
    """Wait until the heatmaps of an explorer show these steps."""
    shown = "e => [...e.querySelectorAll('canvas[data-step]')].map(c => c.dataset.step).join()"
    page.wait_for_function(
        f"([e, steps]) => ({shown})(e) == steps", arg=[found.element_handle(), ",".join(map(str, steps))]
    )


def set_range(found, name, value):
    slider = found.locator(f"[data-control={name}]")
    slider.evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", value)


@pytest.fixture
def explorers(lab, page):
    """The page of explorers, executed in a fresh kernel."""
    run_all(page, lab, "explorers")
    yield page
    assert page.errors == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The page of the explorer that the notebook shows too."""
    explorer = CorrelationExplorer({name: run(name) for name in ("one", "two")}, images=images())
    return explorer.save_html(tmp_path_factory.mktemp("saved") / "page.html")


def open_saved(browser, saved, **options):
    """The page in a tab without a network."""
    tab = open_tab(browser, offline=True, **options)
    tab.on("request", lambda one: tab.errors.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
    tab.goto(saved.as_uri())
    return tab, explorer(tab, 0)


def drive(page, shown, wanted, pairs):
    """Use every control of an explorer of two runs with the matrices `wanted` by step and samples of `pairs` pairs."""
    order = feature_order(wanted[25], "cluster")
    wait_for_step(page, shown, 25, 25)
    np.testing.assert_array_equal(pixels(shown, 1), colored(wanted[25]))
    sums = shown.locator(".sums").first.inner_text()
    norm = f"\u2016C\u2016²_F = HSIC = {np.square(wanted[25]).sum():.1f}"
    assert norm in sums and "expected if independent" in sums
    assert norm in shown.locator("canvas[data-step]").first.get_attribute("aria-label"), "for screen readers"

    shown.locator("[data-control=step]").focus()
    for key, step in (("Home", 0), ("ArrowRight", 10), ("End", 25), ("Home", 0)):
        page.keyboard.press(key)
        wait_for_step(page, shown, step, step)
        np.testing.assert_array_equal(pixels(shown), colored(wanted[step]))
    play = shown.locator("[data-control=play]")
    play.click()
    assert play.inner_text() == "Pause"
    wait_for_step(page, shown, 25, 25)
    page.wait_for_function("play => play.innerText == 'Play'", arg=play.element_handle())

    canvas = shown.locator("canvas[data-step]").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 5.5 / 16, "y": box["height"] * 3.5 / 16})  # row 3, column 5
    shown.locator("svg[data-chart=scatter] circle").first.wait_for()
    assert shown.locator("svg[data-chart=scatter] circle").count() == pairs
    behind = shown.locator(".behind")
    assert all(words in behind.inner_text() for words in ("feature 3 of view A", "feature 5 of view B", "of step 25"))
    strip = shown.locator(".strip img")
    page.wait_for_function(
        "e => [...e.querySelectorAll('.strip img')].every(i => i.naturalWidth == 32)", arg=shown.element_handle()
    )
    assert strip.count() == 16 and all(image.get_attribute("alt") for image in strip.all())
    assert behind.bounding_box()["x"] > shown.locator(".map").last.bounding_box()["x"], "beside the heatmaps"
    assert behind.bounding_box()["y"] < box["y"], "not below the click"

    set_range(shown, "limit", 0.5)
    assert drawn(shown).locator(".bar div").inner_text().split() == ["≥0.5", "0", "−0.5"], (
        "entries beyond the upper end"
    )
    shown.locator("[data-control=order]").select_option("cluster")
    page.wait_for_function("e => e.innerText.includes('position 0')", arg=shown.element_handle())
    np.testing.assert_array_equal(pixels(shown), colored(wanted[25][np.ix_(order, order)], 0.5))
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    found = drawn(shown).locator(".readout").first.inner_text()
    p, q = 3 + 1, 5 + 2  # from the place of the click
    assert found == f"A {order[p]}, B {order[q]}: C = {wanted[25][order[p], order[q]]:.4f}".replace("-", "−")
    page.keyboard.press("Enter")
    page.wait_for_function(f"e => e.innerText.includes('feature {order[q]} of view B')", arg=behind.element_handle())
    page.keyboard.press("+")
    inside = np.ix_(order[2:10], order[4:12])  # half of 16, around the cursor
    np.testing.assert_array_equal(pixels(shown), colored(wanted[25][inside], 0.5))
    np.testing.assert_array_equal(pixels(shown, 1), colored(wanted[25][inside], 0.5), err_msg="panels zoom together")
    shown.locator("[data-control=out]").click()
    assert len(pixels(shown)) == 16
    shown.locator("[data-control=in]").click()
    assert len(pixels(shown)) == 8
    shown.locator("[data-control=reset]").click()
    assert len(pixels(shown)) == 16
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 0.99, "y": 1})
    assert f"A {order[0]}, B {order[-1]}" in drawn(shown).locator(".readout").first.inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=3)
    page.mouse.up()
    assert len(pixels(shown)) == 7


def test_a_kernel_that_does_not_know_the_explorer_is_named(lab, page):
    run_all(page, lab, "explorers")
    shown = explorer(page, 2)
    assert not shown.locator(".silent").is_visible()
    page.evaluate(f"{NOTEBOOK}.sessionContext.session.kernel.restart()")
    page.wait_for_function(f"{NOTEBOOK}.sessionContext.session.kernel.status == 'idle'", timeout=60_000)
    shown.locator("canvas[data-step]").first.click(position={"x": 40, "y": 40})
    shown.locator(".silent").wait_for()
    assert "run the cell again" in shown.locator(".silent").inner_text()
    assert "Loading the samples" in drawn(shown).locator(".behind").inner_text()
    shown.locator("[data-control=order]").select_option("diagonal")
    assert page.errors == []


def test_controls_with_a_kernel(explorers):
    wanted = {step: c.double().numpy() for step, c in snapshots().items()}
    drive(explorers, explorer(explorers, 2), wanted, 1024)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_of_a_file(browser, saved, scheme):
    rounded = {step: (c.double() * 4096).round().numpy() / 4096 for step, c in snapshots().items()}
    tab, shown = open_saved(browser, saved, viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    drive(tab, shown, rounded, 256)
    assert "rounded to multiples of 1/4096" in shown.inner_text()
    exact = colored(snapshots()[25].double().numpy()).astype(int)
    assert np.abs(colored(rounded[25]) - exact).max() <= 12, "one of 256 colors"
    light = tab.evaluate("getComputedStyle(document.querySelector('.hsic-explorer')).color.match(/[0-9]+/)[0] < 128")
    assert light == (scheme == "light")
    assert tab.errors == []


@pytest.mark.parametrize("width", [1280, 900, 724, 390])
def test_file_fits_its_window_without_overlaps(browser, saved, width):
    tab, shown = open_saved(browser, saved, viewport={"width": width, "height": 800}, has_touch=True)
    shown.locator("[data-control=order]").select_option("cluster")
    tab.wait_for_function("document.querySelector('.columns').innerText.includes('position 0')")
    crowded = tab.evaluate("""() => [...document.querySelectorAll(".rows, .columns")].filter((ends) => {
      const boxes = [...ends.children].map((e) => e.getBoundingClientRect());
      boxes.sort((p, q) => p.left - q.left || p.top - q.top);
      const apart = boxes.slice(1).every((q, k) => q.left >= boxes[k].right + 4 || q.top >= boxes[k].bottom + 4);
      return !apart || boxes.some((box) => Math.min(box.width, box.height) > 20);
    }).map((ends) => ends.innerText)""")
    assert crowded == [], "one line each, with a gap"
    canvas = shown.locator("canvas[data-step]").first
    assert canvas.bounding_box()["width"] > 250
    canvas.tap()
    shown.locator("svg[data-chart=scatter] circle").first.wait_for()
    tab.wait_for_function("document.querySelectorAll('svg[data-chart=spectrum] path').length == 3")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    overlaps = tab.evaluate("""() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
      const boxes = [...svg.querySelectorAll("text")].map((t) => [t.textContent, t.getBoundingClientRect()]);
      return boxes.flatMap(([a, p], k) => boxes.slice(k + 1).filter(([, q]) =>
        p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom).map(([b]) => `${a} on ${b}`));
    })""")
    assert overlaps == []
    outside = tab.evaluate("""() => [...document.querySelectorAll("figure svg text")].filter((text) => {
      const [t, s] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
      return t.left < s.left - 1 || t.right > s.right + 1 || t.top < s.top - 4 || t.bottom > s.bottom + 4;
    }).map((text) => text.textContent)""")
    assert outside == []
    if width == 390:
        assert tab.evaluate("scrollY") > 0, "the samples are scrolled into view"
    assert tab.errors == []


def test_two_fingers_zoom(browser, saved):
    tab, shown = open_saved(browser, saved, viewport={"width": 390, "height": 800}, has_touch=True)
    box = shown.locator("canvas[data-step]").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = tab.context.new_cdp_session(tab)
    for kind, spread in (("touchStart", 30), ("touchMove", 45), ("touchMove", 60), ("touchEnd", None)):
        points = [] if spread is None else [{"x": x - spread, "y": y, "id": 0}, {"x": x + spread, "y": y, "id": 1}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert len(pixels(shown)) == 8
    assert tab.errors == []


@pytest.mark.parametrize("mode", ["contentVisibility", "full"])
def test_explorer_scrolled_away_and_back_is_drawn(lab, page, mode):
    settings = lab.folder / ".lab" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(json.dumps({"windowingMode": mode}))
    run_all(page, lab, "explorers")
    assert page.evaluate(f"{NOTEBOOK}.content.notebookConfig.windowingMode") == mode
    shown = explorer(page, 0)
    before = pixels(shown)
    for _ in range(60):
        page.evaluate("window.jupyterapp.commands.execute('notebook:insert-cell-below'), null")
    page.evaluate(f"{NOTEBOOK}.content.scrollToItem(60, 'start'), null")
    page.wait_for_function("(document.querySelector('.hsic-explorer')?.getBoundingClientRect().bottom ?? 0) <= 0")
    page.evaluate(f"{NOTEBOOK}.content.scrollToItem(0, 'start'), null")
    shown = explorer(page, 0)
    np.testing.assert_array_equal(pixels(shown), before)
    shown.locator("[data-control=order]").select_option("diagonal")
    page.wait_for_function("e => e.innerText.includes('position 0')", arg=shown.element_handle())
    assert np.abs(pixels(shown).astype(int) - before).max() > 0
    settings.unlink()
    assert page.errors == []


def test_panels_have_colors_and_a_training_adds_panels(explorers):
    live = explorer(explorers, 3)
    wait_for_step(explorers, live, 25, 25)
    assert live.locator(".title").all_inner_texts() == ["first", "second"]
    colors = live.locator(".swatch").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    wanted = [tuple(round(255 * part) for part in matplotlib.colors.to_rgb(color)) for color in PALETTE[:2]]
    assert colors == [f"rgb{color}" for color in wanted]


def test_heatmap_shows_the_matrix(explorers):
    """Colors and block means of arrays, against the same matrices computed here."""
    page = explorers
    small, large = explorer(page, 0), explorer(page, 1)
    c, big = (matrix.double().numpy() for matrix in matrices())
    assert np.abs(pixels(small).astype(int) - colored(c)).max() == 0
    means, _ = _block_means(big)
    different = np.abs(pixels(large).astype(int) - colored(means)).max(axis=2)
    assert different.max() <= 4 and (different > 0).mean() < 0.001  # a sum's rounding at the edge of two colors
    assert small.locator("[data-control=step]").is_hidden() and small.locator("[data-control=play]").is_hidden()
    width = small.evaluate("e => e.clientWidth")
    assert small.locator(".behind").bounding_box()["x"] + 240 > width - 20, "a lone panel uses the width"


def test_quickstart_runs_in_jupyterlab(lab, page):
    cells = run_all(page, lab, "00_quickstart")
    assert sum("image/png" in o.get("data", {}) for cell in cells for o in cell["outputs"]) >= 4
    assert page.errors == []


def test_explorer_notebook_runs_in_jupyterlab(lab, page):
    run_all(page, lab, "04_reading_cross_correlation")
    titles = explorer(page, 2).locator(".title")
    titles.last.filter(has_text="background").wait_for()  # the texts follow the elements
    assert titles.all_inner_texts() == ["digit", "position", "color", "background"]
    assert page.errors == []


def test_report_of_one_view_names_its_columns_and_shows_correlations_of_the_samples(browser, tmp_path):
    z = np.random.default_rng(0).normal(size=(300, 4))
    table = pd.DataFrame(z, columns=["sepal length", "petal", "<b>", "none"]).assign(none=1.0)
    table["copy"] = -table["petal"]
    table.to_csv(tmp_path / "x.csv", index=False)
    tab, shown = open_saved(browser, write_report(tmp_path / "x.csv", tmp_path / "page.html"))
    words = shown.inner_text()
    assert "all linear dependence among the features" in words and "view" not in words.split("HSIC")[0]
    assert "constant features: 1, left out of these numbers" in words and "of view" not in words
    canvas = shown.locator("canvas[data-step]").first
    box = canvas.bounding_box()
    for row, column, expected in ((1, 1, "1.000"), (1, 4, "−1.000"), (0, 3, "0.000"), (0, 1, None)):
        place = {"x": box["width"] * (column + 0.5) / 5, "y": box["height"] * (row + 0.5) / 5}
        canvas.click(position=place)
        pair = [table.columns[row], table.columns[column]]
        assert drawn(shown).locator(".readout").inner_text().startswith(" and ".join(pair) + ": C = ")
        tab.wait_for_function("([e, axis]) => e.innerText.includes(axis)", arg=[
            shown.locator(".behind").element_handle(), f"feature {pair[1]}"])  # fmt: skip
        found = shown.locator(".behind figcaption").inner_text()
        shown_value = float(found.partition("correlation ")[2].partition(";")[0].replace("−", "-"))
        exact = table[pair[0]][:256].corr(table[pair[1]][:256]) if column != 3 else 0
        assert expected is None or f"correlation {expected}" in found
        assert abs(shown_value - exact) < 0.01 and "256 rows" in found
    assert tab.errors == []
