"""Execute the notebooks: each source `NN_name.py` (jupytext percent format) becomes `NN_name.ipynb` with its outputs.

python notebooks/execute.py          all of them
python notebooks/execute.py 01 02    those whose names start with 01 or 02
"""

import hashlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
EXPLORER = "application/vnd.hsic-lab.explorer"  # its data, from which `docs/conf.py` makes the live element


class ThisInterpreter(KernelSpecManager):
    """Start the interpreter that runs this script; an installed "python3" kernel may belong to another environment."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        start = f"import sys; sys.path.append({str(FOLDER)!r}); import execute; execute.keep_explorers()"
        return KernelSpec(**get_kernel_dict([f"--IPKernelApp.exec_lines={start}"]))


def keep_explorers() -> None:
    """Let every explorer that is displayed in this kernel leave its data in the notebook, about 600 kB at most."""
    from IPython import get_ipython

    def bundle(explorer: Any, **_: Any) -> tuple[dict, dict]:
        from hsic_lab.explorer import CorrelationExplorer
        from hsic_lab.explorer._html import explorer_data

        # A name is matched once, with the class that anywidget makes for one instance; their base class stays.
        formatter.for_type(CorrelationExplorer, bundle)
        data, metadata = explorer._repr_mimebundle_()
        return data | ({EXPLORER: explorer_data(explorer, 600_000, 64)} if explorer.panels else {}), metadata

    formatter = get_ipython().display_formatter.mimebundle_formatter
    formatter.for_type_by_name("hsic_lab.explorer", "CorrelationExplorer", bundle)


class Client(NotebookClient):
    """Ignore the messages of widgets.

    The inherited client answers them while it waits for the cell's reply on the same socket, and can miss that reply
    (nbclient issue 312). Without an answer the figure of a widget appears as an ordinary output of its cell.
    """

    def handle_comm_msg(self, *arguments: object) -> None:
        pass


def sources() -> list[Path]:
    """List the sources of all notebooks in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]*.py"))


def convert(source: Path) -> NotebookNode:
    """Read a source as a notebook without outputs. The id of a cell is a hash of its text, so that diffs stay small."""
    notebook, seen = jupytext.read(source, fmt="py:percent"), Counter()
    for cell in notebook.cells:
        seen[text := f"{cell.cell_type}\n{cell.source}"] += 1
        cell.id = hashlib.sha256(f"{text}\n{seen[text]}".encode()).hexdigest()[:12]
        cell.metadata = {name: cell.metadata[name] for name in ("tags", "alt", "jupyter") if name in cell.metadata}
    notebook.update(metadata=METADATA, nbformat=4, nbformat_minor=5)
    return notebook


def execute(notebook: NotebookNode, cwd: Path = FOLDER, timeout: float = 900, **variables: str) -> None:
    """Run a notebook in place, at most `timeout` seconds a cell, with environment `variables`. A failing cell raises."""
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}  # "Agg" would show nothing
    inherited["PYTHONPATH"] = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(kernel_spec_manager=ThisInterpreter(), connection_file=f"{folder}/kernel.json")
        if os.name == "posix":
            manager.transport = "ipc"  # files in place of ports: kernels that start at one moment cannot collide
        client = Client(notebook, km=manager, timeout=timeout, record_timing=False, coalesce_streams=True)
        client.execute(cleanup_kc=True, cwd=str(cwd), env=inherited | variables)
    notebook.metadata = METADATA
    for cell in notebook.cells:
        if cell.cell_type == "code":
            clean(cell)


def clean(cell: NotebookNode) -> None:
    """Replace each widget by the image beside it, or by nothing, and give each image its alternative text.

    The text stands in the metadata of the cell: `alt="..."`, or `alt=["...", "..."]` if the cell draws several images.
    """
    cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {}) or "image/png" in o.data]
    images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    texts = cell.metadata.get("alt", [])
    texts = [texts] if isinstance(texts, str) else texts
    if len(texts) != len(images):
        raise ValueError(f"this cell draws {len(images)} images and has {len(texts)} alt texts:\n\n{cell.source}")
    for output, text in zip(images, texts, strict=True):
        output.data.pop(WIDGET, None)
        output.metadata = {"image/png": {"alt": text}}


if __name__ == "__main__":
    for source in sources():
        if len(sys.argv) == 1 or source.name.startswith(tuple(sys.argv[1:])):
            print(source.stem, flush=True)
            execute(notebook := convert(source))
            nbformat.write(notebook, source.with_suffix(".ipynb"))
