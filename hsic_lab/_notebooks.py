"""Execute a notebook and show it: the machinery behind the demo, `make notebooks` and their tests."""

import copy
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelClient, AsyncKernelManager
from jupyter_client.channels import AsyncZMQSocketChannel
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"


class _ThisInterpreter(KernelSpecManager):
    """One kernel, the interpreter that runs now: an installed "python3" may belong to another environment."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )


class _ShellChannel(AsyncZMQSocketChannel):
    """A channel on which sending cannot hide that a reply has come.

    A cell that shows widgets makes the client send while it waits for that cell's reply on the same socket. The
    inherited `send` goes past the asyncio socket, which is then never woken for a reply of just that moment, and
    execution stands still until the cell's timeout (nbclient issue 312); the asyncio socket's own send looks again.
    """

    def send(self, msg: dict) -> None:
        self.socket.send_multipart(self.session.serialize(msg))


class _Client(AsyncKernelClient):
    shell_channel_class = _ShellChannel


def execute(
    path: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    cwd: str | os.PathLike | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> NotebookNode:
    """The notebook at `path`, executed by the current interpreter; also written to `output` if that is given.

    `cwd` is the kernel's working directory (by default the notebook's folder), `environment` is added to this
    process's variables, `timeout` bounds each cell in seconds. Outputs carry no time stamps. Raises
    nbclient.exceptions.CellExecutionError with the cell and its traceback, CellTimeoutError,
    FileNotFoundError; nothing is written then.
    """
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    run(notebook, cwd=cwd or path.parent, environment=environment, timeout=timeout)
    if output is not None:
        write_atomically(output, nbformat.writes(notebook) + "\n")
    return notebook


def run(
    notebook: NotebookNode,
    *,
    cwd: str | os.PathLike,
    environment: Mapping[str, str] | None = None,
    timeout: float = 600,
) -> None:
    """Execute a notebook in memory, in place; the arguments are those of `execute`."""
    if not Path(cwd).is_dir():
        raise FileNotFoundError(f"the kernel's working directory does not exist: {cwd}")
    # Backends of other front ends (Agg from a test run, an IDE's) would leave the notebook without images.
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(
            kernel_spec_manager=_ThisInterpreter(), connection_file=f"{folder}/kernel.json", client_factory=_Client
        )
        if os.name == "posix":
            manager.transport = "ipc"  # sockets that are files: no port to race for, nobody else can listen
        client = NotebookClient(notebook, km=manager, timeout=timeout, record_timing=False, coalesce_streams=True)
        client.execute(cleanup_kc=True, cwd=str(Path(cwd).resolve()), env=inherited | dict(environment or {}))


def keep_stills(notebook: NotebookNode) -> None:
    """Take the widgets out of a notebook: the image beside one stays, one without a image goes altogether.

    Without its kernel a widget is a name and nothing to look at.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("data", {}).pop(WIDGET, None) is None or "image/png" in output.data
            ]


def to_html(notebook: NotebookNode, path: str | os.PathLike, title: str | None = None) -> Path:
    """One HTML file with the notebook's text, code and images inside; returns its path.

    Styles and images are embedded and everything shows without a network, except that formulas then stay as TeX:
    MathJax, which typesets them, is fetched from a CDN. Of a widget the page has the still image. `title` is the
    window's, by default the file's stem.
    """
    path = Path(path)
    notebook = copy.deepcopy(notebook)
    keep_stills(notebook)
    # require.js is fetched only for widgets, and none is left: an empty script in its place.
    exporter = HTMLExporter(embed_images=True, require_js_url="data:text/javascript,")
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title or path.stem}})
    return write_atomically(path, html)


def write_atomically(path: str | os.PathLike, text: str) -> Path:
    """Write a text file under a temporary name, then rename it: a killed process leaves the previous version whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
