"""Regenerate the notebooks: `NN_name.py` (jupytext percent format, the source) -> `NN_name.ipynb` with outputs.

    python notebooks/build.py                 all of them, in the full setting
    python notebooks/build.py 01 quickstart   those whose name contains one of the words
    python notebooks/build.py --check         execute nothing; exit 1 if a pair is out of step
"""

import argparse
import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

from hsic_lab._notebooks import keep_stills, run, write_atomically

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def sources() -> list[Path]:
    """Every notebook's source, in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def convert(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs: a pure function of the text, cell ids included."""
    notebook = jupytext.read(source, fmt="py:percent")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        # From the content, not the position: a cell put in between leaves the ids of the others, and the diff, alone.
        content = f"{cell.cell_type}\n{cell.source}"
        seen[content] = seen.get(content, 0) + 1
        cell.id = hashlib.sha256(f"{content}\n{seen[content]}".encode()).hexdigest()[:12]
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def problems(source: Path) -> list[str]:
    """How the committed notebook of a source departs from it; nothing if they are in step."""
    path = source.with_suffix(".ipynb")
    if not path.exists():
        return [f"{path.name} does not exist"]
    written, wanted = nbformat.read(path, as_version=4), convert(source)
    if [_identity(cell) for cell in written.cells] != [_identity(cell) for cell in wanted.cells]:
        return [f"{path.name} was not built from the present {source.name}"]
    return []


def build(source: Path) -> None:
    """Execute a source in the full setting and write its notebook."""
    notebook = convert(source)
    run(notebook, cwd=FOLDER, environment=environment(fast=False))
    strip(notebook)
    nbformat.validate(notebook)
    write_atomically(source.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")


def environment(fast: bool) -> dict[str, str]:
    """The variables of a notebook's kernel: the setting, and the package of this very checkout."""
    path = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"HSIC_LAB_FAST": str(int(fast)), "PYTHONPATH": path}


def strip(notebook: NotebookNode) -> None:
    """Take off what differs between two equal executions or tells of the machine: metadata, widgets, paths."""
    keep_stills(notebook)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output.metadata = {}
                for kind, value in output.data.items():
                    if kind.startswith("text/"):
                        output.data[kind] = _without_paths(value)
            elif output.output_type == "stream":
                output.text = _without_paths(output.text)


def _without_paths(text: str) -> str:
    text = re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "<cell>", text)  # where warnings say that a cell is
    for folder, name in ((Path(sys.prefix), "<python>"), (FOLDER.parent, "."), (Path.home(), "~")):  # inner first
        text = re.sub(re.escape(str(folder)) + r"(?=[/\\\s'\"):]|$)", name, text)
    return text


def _identity(cell: NotebookNode) -> tuple:
    return cell.id, cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="words that the notebooks' names contain (default: all)")
    parser.add_argument("--check", action="store_true", help="only say which notebooks are out of step")
    options = parser.parse_args(arguments)
    chosen = [s for s in sources() if not options.names or any(word in s.stem for word in options.names)]
    if not chosen:
        parser.error(f"no notebook's name contains {options.names}; there are {[s.stem for s in sources()]}")
    if options.check:
        found = [problem for source in chosen for problem in problems(source)]
        print("\n".join(found) or f"{len(chosen)} notebooks in step with their sources")
        return 1 if found else 0
    for source in chosen:
        start = time.perf_counter()
        build(source)
        print(f"{source.with_suffix('.ipynb').name}  {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
