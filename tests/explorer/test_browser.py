"""The explorer and two notebooks in JupyterLab in a real browser: controls, drawn pixels, samples of a cell."""

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
import pytest
from explorer_page import matrices, snapshots
from matplotlib.colors import Normalize

from hsic_lab.correlation import feature_order
from hsic_lab.plots import DIVERGING, PALETTE
from hsic_lab.plots._heatmaps import _block_means

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
    for name in ("00_quickstart", "04_reading_cross_correlation"):
        nbformat.write(jupytext.read(ROOT / "notebooks" / f"{name}.py"), folder / f"{name}.ipynb")
    source = (ROOT / "tests" / "explorer" / "explorer_page.py").read_text(encoding="utf-8")
    page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    page.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(page, folder / "explorers.ipynb")
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
def page(lab):
    """A browser tab that records errors of scripts."""
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = chromium.new_page(viewport={"width": 1500, "height": 1700})
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        yield tab
        chromium.close()


def explorer(page, number):
    """Wait until the heatmaps of an explorer are drawn, and return the explorer."""
    found = page.locator(".hsic-explorer").nth(number)
    found.scroll_into_view_if_needed()
    found.locator("canvas[data-step]").last.wait_for()
    return found


def pixels(found, panel=0):
    """The colors of a heatmap, (side, side, 3)."""
    canvas = found.locator("canvas[data-step]").nth(panel).element_handle()
    flat = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
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


def test_slider_and_click_show_steps_and_samples(explorers):
    page, shown = explorers, explorer(explorers, 2)
    wanted = snapshots()
    wait_for_step(page, shown, 25, 25)
    np.testing.assert_array_equal(pixels(shown), colored(wanted[25].double().numpy()))
    slider = shown.locator("[data-control=step]")
    slider.focus()
    page.keyboard.press("Home")
    wait_for_step(page, shown, 0, 0)
    np.testing.assert_array_equal(pixels(shown), colored(wanted[0].double().numpy()))
    page.keyboard.press("End")
    wait_for_step(page, shown, 25, 25)
    np.testing.assert_array_equal(pixels(shown), colored(wanted[25].double().numpy()))

    canvas = shown.locator("canvas[data-step]").first
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 5.5 / 16, "y": box["height"] * 3.5 / 16})  # row 3, column 5
    shown.locator("svg[data-chart=scatter] circle").first.wait_for()
    assert shown.locator("svg[data-chart=scatter] circle").count() == 1024
    assert "feature 3 of view A" in shown.locator(".behind").inner_text()
    assert "feature 5 of view B" in shown.locator(".behind").inner_text()
    images = shown.locator(".strip img")
    assert images.count() == 16 and all(image.get_attribute("alt") for image in images.all())
    assert all(image.evaluate("i => i.complete && i.naturalWidth == 32") for image in images.all())
    assert "expected if independent" in shown.locator(".sums").first.inner_text()


def test_panels_have_colors_and_a_training_adds_panels(explorers):
    live = explorer(explorers, 3)
    wait_for_step(explorers, live, 25, 25)
    assert live.locator(".title").all_inner_texts() == ["first", "second"]
    colors = live.locator(".swatch").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    wanted = [tuple(round(255 * part) for part in matplotlib.colors.to_rgb(color)) for color in PALETTE[:2]]
    assert colors == [f"rgb{color}" for color in wanted]


def test_heatmap_shows_the_matrix(explorers):
    """Colors, block means, order, zoom, keys and hover, against the same matrices computed here."""
    page = explorers
    small, large = explorer(page, 0), explorer(page, 1)
    c, big = (matrix.double().numpy() for matrix in matrices())
    assert np.abs(pixels(small).astype(int) - colored(c)).max() == 0
    means, _ = _block_means(big)
    different = np.abs(pixels(large).astype(int) - colored(means)).max(axis=2)
    assert different.max() <= 4 and (different > 0).mean() < 0.001  # a sum's rounding at the edge of two colors

    assert small.locator(".bar div").inner_text().split() == ["1", "0", "−1"]
    set_range(small, "limit", 0.5)
    assert c.max() > 0.5 and c.min() > -0.5
    assert small.locator(".bar div").inner_text().split() == ["≥0.5", "0", "−0.5"], "entries beyond the upper end"
    np.testing.assert_array_equal(pixels(small), colored(c, 0.5))
    small.locator("[data-control=order]").select_option("cluster")
    page.wait_for_function("e => e.innerText.includes('position 0')", arg=small.element_handle())
    order = feature_order(c, "cluster")
    np.testing.assert_array_equal(pixels(small), colored(c[order][:, order], 0.5))

    canvas = small.locator("canvas[data-step]").first
    canvas.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    i, j = order[1], order[2]
    assert small.locator(".readout").inner_text() == f"A {i}, B {j}: C = {c[i, j]:.4f}".replace("-", "−")
    page.keyboard.press("+")
    inside = np.ix_(order[1:7], order[1:7])  # half of 12, around the cursor
    np.testing.assert_array_equal(pixels(small), colored(c[inside], 0.5))
    small.locator("[data-control=reset]").click()
    assert len(pixels(small)) == 12
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] * 0.99, "y": 1})
    assert f"A {order[0]}, B {order[-1]}" in small.locator(".readout").inner_text()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.4, steps=3)
    page.mouse.up()
    assert len(pixels(small)) == 5


def test_quickstart_runs_in_jupyterlab(lab, page):
    cells = run_all(page, lab, "00_quickstart")
    assert sum("image/png" in o.get("data", {}) for cell in cells for o in cell["outputs"]) >= 4
    assert page.errors == []


def test_explorer_notebook_runs_in_jupyterlab(lab, page):
    run_all(page, lab, "04_reading_cross_correlation")
    assert explorer(page, 2).locator(".title").all_inner_texts() == ["digit", "position", "colour", "background"]
    assert page.errors == []
