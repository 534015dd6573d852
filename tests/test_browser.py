"""The notebooks in a real browser: JupyterLab from a clean kernel, the explorer's controls, what the picture does."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[dev]'")
from playwright.sync_api import sync_playwright
from test_notebooks import build

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser: apt-get install chromium")

FLAGS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]
NOTEBOOK = "window.jupyterapp.shell.currentWidget"
DONE = f"{NOTEBOOK}.context.model.toJSON().cells.filter(c => c.cell_type == 'code' && c.source.length)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab with copies of the notebooks, settings of its own and this interpreter as kernel."""
    folder = tmp_path_factory.mktemp("lab")
    for source in build.sources():
        nbformat.write(build.convert(source), folder / f"{source.stem}.ipynb")
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
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | build.environment(fast=True) | own
    environment |= {"JUPYTER_PATH": str(folder / ".jupyter"), "OMP_NUM_THREADS": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
        "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=lab",
        "--LabApp.expose_app_in_browser=True", f"--LabApp.user_settings_dir={folder}/.lab",
        f"--LabApp.workspaces_dir={folder}/.workspaces",
    ]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api?token=lab", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
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


@contextmanager
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def run_all(page, lab, name, timeout=120):
    """Open a notebook, run its cells in a fresh kernel, return the executed notebook."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?token=lab&reset")
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
