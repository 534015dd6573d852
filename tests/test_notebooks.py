"""The notebooks execute, the committed outputs belong to the sources, and every image has alternative text."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError, CellTimeoutError

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("execute_notebooks", ROOT / "notebooks" / "execute.py")
pipeline = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pipeline)

SOURCES = pipeline.sources()
# test_browser executes these two in JupyterLab where there is a browser.
IN_BROWSER = ("00_quickstart", "04_reading_cross_correlation")
BROWSER = shutil.which("chromium") is not None and importlib.util.find_spec("playwright") is not None
HERE = [source for source in SOURCES if not (BROWSER and source.stem in IN_BROWSER)]
each_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)

FOLDED = {"jupyter": {"source_hidden": True}}  # JupyterLab hides the code of such a cell
IMPORTED_AS = {"scikit-learn": "sklearn", "pillow": "PIL"}  # packages that are imported under another name


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def notebook_of(*texts, **metadata):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text, metadata=metadata) for text in texts])


def without_outputs(notebook):
    return [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in notebook.cells]


@pytest.mark.parametrize("source", HERE, ids=lambda source: source.stem)
def test_executes_in_the_fast_setting(source):
    notebook = pipeline.convert(source)
    # One thread each: the tests run side by side, and kernels with more threads than cores wait for one another.
    pipeline.execute(notebook, HSIC_LAB_FAST="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@each_notebook
def test_committed_notebook_is_in_step_with_its_source(source):
    text = source.with_suffix(".ipynb").read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert without_outputs(notebook) == without_outputs(pipeline.convert(source)), "run `make notebooks`"
    assert notebook.metadata == pipeline.METADATA
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    texts = [o.data["text/plain"] for o in outputs if o.output_type == "execute_result" and "text/html" not in o.data]
    shown = [text for text in texts if re.search(r"^\W*<|^\W*Text\(| at 0x\w+>", text)]
    assert not shown, "end the cell with a semicolon: this shows an object, not a result"
    assert not re.search(r"widget-view|\"widgets\"|/home/|/tmp/|/Users/|site-packages|iopub", text)
    assert str(ROOT) not in text


@each_notebook
def test_every_image_has_alternative_text(source):
    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    images = [o for cell in code_cells(notebook) for o in cell.outputs if "image/png" in o.get("data", {})]
    texts = [image.metadata.get("image/png", {}).get("alt", "") for image in images]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    texts += re.findall(r"!\[(.*?)\]\(", prose)
    assert images and all(len(text) > 20 for text in texts), texts


@each_notebook
def test_source_keeps_the_rules(source):
    notebook = pipeline.convert(source)
    cells = code_cells(notebook)
    visible = [cell.source for cell in cells if not cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert not [text for text in visible if len(text.splitlines()) > 15], "split or fold cells of more than 15 lines"
    modules = [ast.parse(re.sub(r"(?m)^\s*[%!].*$", "", cell.source)) for cell in cells]
    nodes = [node for module in modules for node in ast.walk(module)]
    assert any(isinstance(node, ast.Assert) for node in nodes), "this notebook asserts none of its claims"

    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.startswith("hsic_lab") and "._" in name], "use public modules only"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = project["dependencies"] + project["optional-dependencies"].get("lab", [])
    names = {re.split(r"[<>=\[ ]", line)[0] for line in required}
    allowed = {IMPORTED_AS.get(name, name) for name in names} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imported} - allowed <= {"hsic_lab", "IPython"}

    parameters = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(parameters) == 1 and 'FAST = os.environ.get("HSIC_LAB_FAST") == "1"' in parameters[0].source


@each_notebook
def test_solutions_hide_themselves(source):
    """JupyterLab shows the first line of a folded cell, and the output below it."""
    text = source.read_text(encoding="utf-8")
    _, heading, exercises = text.partition("\n# ## Exercise")
    hidden = {"source_hidden": True, "outputs_hidden": True}
    solutions = [cell for cell in code_cells(pipeline.convert(source)) if cell.metadata.get("jupyter") == hidden]
    assert heading and len(solutions) == exercises.count("\n# %%") - exercises.count("\n# %% [markdown]") > 0
    assert all(cell.source.startswith("# Solution\n") and cell.metadata["tags"] == ["hide-cell"] for cell in solutions)


def test_every_notebook_has_a_source():
    assert {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} == {source.stem for source in SOURCES}
    assert [source.stem.partition("_")[0] for source in SOURCES][2:6] == ["02", "03", "03b", "04"]


def test_cell_ids_depend_on_the_text_only(tmp_path):
    source = tmp_path / "07_lesson.py"
    source.write_text(
        '# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nx = 1\n\n'
        '# %% alt="A line." jupyter={"source_hidden": true}\nx\n\n# %%\nx\n'
    )
    before = pipeline.convert(source)
    assert len({cell.id for cell in before.cells}) == 4 and before == pipeline.convert(source)
    assert [cell.metadata for cell in before.cells] == [{}, {"tags": ["parameters"]}, {"alt": "A line."} | FOLDED, {}]
    source.write_text(source.read_text().replace("# %% tags", "# %%\ny = 2\n\n# %% tags"))
    after = pipeline.convert(source)
    assert [cell.id for cell in after.cells if cell.source != "y = 2"] == [cell.id for cell in before.cells]


def test_kernel_is_this_interpreter_whatever_is_installed(tmp_path):
    fake = tmp_path / "kernels" / "python3"  # found first by Jupyter, and ends at once
    fake.mkdir(parents=True)
    (fake / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    program = (
        "import sys; from test_notebooks import notebook_of, pipeline\n"
        "notebook = notebook_of('import sys, os; print(sys.executable, os.getcwd(), os.environ[\"COLOR\"])')\n"
        "pipeline.execute(notebook, cwd=sys.argv[1], COLOR='teal'); print(notebook.cells[0].outputs[0].text)"
    )
    variables = {"JUPYTER_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | variables,
    )
    assert done.stdout.split() == [sys.executable, str(tmp_path), "teal"]


@pytest.mark.parametrize(
    ("text", "timeout", "error", "words"),
    [("1 / 0", 60, CellExecutionError, "ZeroDivisionError"), ("while True: pass", 1, CellTimeoutError, "timed out")],
)
def test_failing_cell_raises(text, timeout, error, words):
    with pytest.raises(error, match=words):
        pipeline.execute(notebook_of(text), timeout=timeout)


def test_widget_leaves_an_image_with_alternative_text():
    draw = "import ipywidgets, matplotlib.pyplot as plt\ndef draw(k):\n    plt.plot([k]); plt.show()\n"
    notebook = notebook_of(draw + "display(ipywidgets.interactive(draw, k=(1, 3)));", alt="A dot at 2.")
    notebook.cells.append(nbformat.v4.new_code_cell("display(ipywidgets.IntSlider()); 1 + 1"))
    pipeline.execute(notebook)
    first, second = (cell.outputs for cell in notebook.cells)
    assert [output.metadata for output in first] == [{"image/png": {"alt": "A dot at 2."}}]
    assert [output.data for output in second] == [{"text/plain": "2"}]
    assert not re.search(r"widget-view|execution\": {|language_info\": {.*version", nbformat.writes(notebook))


def test_explorer_leaves_its_still_image():
    cell = notebook_of("x", alt="C.").cells[0]
    data = {"text/plain": "CorrelationExplorer()", pipeline.WIDGET: {}, "image/png": "AAAA"}
    cell.outputs = [nbformat.v4.new_output("display_data", data)]
    pipeline.clean(cell)
    assert cell.outputs[0].data == {"text/plain": "CorrelationExplorer()", "image/png": "AAAA"}
    assert cell.outputs[0].metadata == {"image/png": {"alt": "C."}}


@pytest.mark.parametrize("alt", [[], ["one", "two"]])
def test_image_without_alternative_text_is_an_error(alt):
    cell = notebook_of("plot()", alt=alt).cells[0]
    cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": "AAAA"})]
    with pytest.raises(ValueError, match=rf"1 images and has {len(alt)} alt texts:\n\nplot\(\)"):
        pipeline.clean(cell)
