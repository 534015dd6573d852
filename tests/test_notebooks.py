"""The notebooks run, their committed outputs are those of their sources, and the machinery does what it says."""

import ast
import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat
import pytest
import zmq
import zmq.asyncio
from jupyter_client.session import Session
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from hsic_lab._notebooks import WIDGET, _Client, execute, to_html, write_atomically

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("notebooks_build", ROOT / "notebooks" / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

SOURCES = build.sources()
# Executed by test_browser, in JupyterLab, where there is a browser: once is enough.
IN_BROWSER = ("00_quickstart", "04_reading_cross_correlation")
BROWSER = shutil.which("chromium") is not None and importlib.util.find_spec("playwright") is not None
HERE = [source for source in SOURCES if not (BROWSER and source.stem in IN_BROWSER)]
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

# A package's distribution and its import differ in name now and then.
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def written(tmp_path, *sources, name="lesson.ipynb"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("source", HERE, ids=lambda source: source.stem)
def test_executes_in_the_fast_setting(source, tmp_path):
    # One thread each: the tests run side by side, and two kernels with two threads each wait for one another.
    environment = build.environment(fast=True) | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    path = tmp_path / f"{source.stem}.ipynb"
    nbformat.write(build.convert(source), path)
    done = execute(path, cwd=source.parent, environment=environment)
    assert [cell.execution_count for cell in code_cells(done)] == list(range(1, len(code_cells(done)) + 1))


def test_a_reply_that_comes_while_the_client_sends_is_noticed(tmp_path):
    # What a cell that shows widgets does; the inherited channel is never woken here (nbclient issue 312).
    async def lesson():
        address, session = f"ipc://{tmp_path}/shell", Session(key=b"secret")
        kernel = zmq.Context.instance().socket(zmq.DEALER)
        socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        with kernel, socket:
            kernel.bind(address)
            socket.connect(address)
            channel = _Client.shell_channel_class(socket, session)
            channel.send(session.msg("execute_request"))
            assert session.recv(kernel, mode=0)[1]["msg_type"] == "execute_request"
            reply = asyncio.ensure_future(channel.get_msg())
            await asyncio.sleep(0.2)  # by now it waits in the event loop
            session.send(kernel, "execute_reply", {"status": "ok"})
            time.sleep(0.2)  # the reply arrives while the loop is busy with this
            channel.send(session.msg("comm_msg", {"data": 1}))
            return await asyncio.wait_for(reply, 10), session.recv(kernel, mode=0)[1]

    reply, sent = asyncio.run(lesson())
    assert reply["content"] == {"status": "ok"}
    assert sent["msg_type"] == "comm_msg" and sent["content"] == {"data": 1}


@each_notebook
def test_committed_notebook_is_whole(source):
    assert build.problems(source) == []
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    text = source.with_suffix(".ipynb").read_text()
    assert notebook.metadata == {"kernelspec": build.KERNEL, "language_info": {"name": "python"}}
    assert not re.search(r"widget-view|\"widgets\"|/home/|/tmp/|/Users/|site-packages|iopub", text)


@each_notebook
def test_source_keeps_the_house_rules(source):
    notebook = build.convert(source)
    cells = code_cells(notebook)
    modules = [ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell.source)) for cell in cells]
    nodes = [node for module in modules for node in ast.walk(module)]
    assert any(isinstance(node, ast.Assert) for node in nodes), "no claim of this notebook is asserted"

    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=\[ ]", line)[0] for line in project["dependencies"]}
    allowed = {IMPORTED_AS.get(name, name) for name in required} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imported} - allowed <= {"hsic_lab", "IPython"}

    parameters = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(parameters) == 1 and 'FAST = os.environ.get("HSIC_LAB_FAST") == "1"' in parameters[0].source


def test_every_notebook_has_a_source():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == {source.stem for source in SOURCES}


def test_kernel_is_this_interpreter_whatever_is_installed(tmp_path):
    # A "python3" kernel that is found first and that ends at once.
    fake = tmp_path / "data" / "kernels" / "python3"
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    path = written(tmp_path, "import sys, os; print(sys.executable); print(os.getcwd()); print(os.environ['COLOR'])")
    program = (
        "import sys; from hsic_lab.notebooks import execute\n"
        "print(execute(sys.argv[1], cwd=sys.argv[2], environment={'COLOR': 'teal'}).cells[0].outputs[0].text)"
    )
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "elsewhere"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"JUPYTER_PATH": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.split() == [sys.executable, str(tmp_path / "elsewhere"), "teal"]


def test_executed_notebook_and_page(tmp_path):
    path = written(tmp_path, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);", "1 + 1")
    before = path.read_bytes()
    done = execute(path, tmp_path / "runs" / "done.ipynb")
    assert path.read_bytes() == before
    assert nbformat.read(tmp_path / "runs" / "done.ipynb", as_version=4) == done
    assert done.cells[1].outputs[0].data["text/plain"] == "2"
    assert "execution" not in done.cells[0].metadata  # no time stamps
    page = to_html(done, tmp_path / "runs" / "done.html").read_text()
    assert "data:image/png;base64," in page and "<title>done</title>" in page
    loaded = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?://[^\"]*)", page)
    assert all("mathjax" in address for address in loaded), loaded
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["done.html", "done.ipynb"]


@pytest.mark.parametrize(
    ("source", "timeout", "error", "words"),
    [("1 / 0", 60, CellExecutionError, "ZeroDivisionError"), ("while True: pass", 1, CellTimeoutError, "timed out")],
)
def test_failing_notebook_says_so_and_writes_nothing(tmp_path, source, timeout, error, words):
    with pytest.raises(error, match=words):
        execute(written(tmp_path, source), tmp_path / "out.ipynb", timeout=timeout)
    assert not (tmp_path / "out.ipynb").exists()


def test_missing_files_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        execute(tmp_path / "none.ipynb")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        execute(written(tmp_path, "1"), cwd=tmp_path / "nowhere")


def test_interrupted_write_leaves_the_previous_version(tmp_path):
    path = write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "edit",
    [lambda nb: nb.cells.pop(), lambda nb: nb.cells[0].update(source="changed"), lambda nb: nb.cells[0].update(id="x")],
    ids=["cell missing", "source changed", "id changed"],
)
def test_check_notices_pairs_out_of_step(tmp_path, edit):
    source = tmp_path / "07_lesson.py"
    source.write_text('# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nx = 1\n\n# %%\nx\n\n# %%\nx\n')
    assert build.problems(source) == ["07_lesson.ipynb does not exist"]
    notebook = build.convert(source)
    assert len({cell.id for cell in notebook.cells}) == 4 and notebook == build.convert(source)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert build.problems(source) == []
    edit(notebook)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    assert build.problems(source) == ["07_lesson.ipynb was not built from the present 07_lesson.py"]


def test_strip_takes_off_what_tells_of_the_machine(tmp_path):
    output = nbformat.v4.new_output
    text = f"{ROOT}/data and {sys.prefix}/lib/a.py and /tmp/ipykernel_12/345.py:1"
    widget = output("display_data", {"text/plain": "interactive(...)", WIDGET: {}})
    still = output("display_data", {"text/plain": "explorer", WIDGET: {}, "image/png": "AAAA"})
    shown = output("display_data", {"text/plain": "bar"}, metadata={"a": 1})
    outputs = [output("stream", name="stdout", text=text), widget, still, shown]
    cell = nbformat.v4.new_code_cell("x", outputs=outputs)
    metadata = {"widgets": {}, "language_info": {"name": "python", "version": "3.11.7"}}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata=metadata)
    build.strip(notebook)
    assert cell.outputs[0].text == "./data and <python>/lib/a.py and <cell>:1"
    left = [{"text/plain": "explorer", "image/png": "AAAA"}, {"text/plain": "bar"}]
    assert cell.outputs[1:] == [{"output_type": "display_data", "data": data, "metadata": {}} for data in left]
    assert notebook.metadata == {"kernelspec": build.KERNEL, "language_info": {"name": "python"}}
