"""Configuration of the Sphinx documentation. Build it with `make docs`; no network is needed."""

import html
import json
import re
import shutil
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes

from hsic_lab.explorer import CorrelationExplorer
from hsic_lab.explorer._html import fragment_of

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = "hsic_lab"
author = "the hsic_lab developers"
release = metadata.version("hsic-lab")
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build", "course/files"]
nitpicky = False

# Notebooks are shown with their committed outputs.
EXPLORER = "application/vnd.hsic-lab.explorer"  # written by notebooks/execute.py
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

default_role = "literal"  # single backticks in docstrings are code
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the numpydoc sections
numpydoc_show_class_members = False
copybutton_exclude = ".linenos, .gp, .go"

highlight_language = "text"  # of code that names no language

html_theme = "pydata_sphinx_theme"
html_title = f"hsic_lab {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}  # light or dark; without it the theme reports an error in the console
html_theme_options = {
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_show_sourcelink = False
copyright = "the hsic_lab developers"


def cloud_links(name: str) -> str:
    """Links that open a notebook in Colab or Binder, if `[project.urls]` names a repository on GitHub."""
    repository = next((url for url in PROJECT.get("urls", {}).values() if "github.com/" in url), None)
    if repository is None:
        return ""
    where = repository.rstrip("/").removesuffix(".git").partition("github.com/")[2]
    colab = f"https://colab.research.google.com/github/{where}/blob/main/notebooks/{name}"
    binder = f"https://mybinder.org/v2/gh/{where}/main?labpath=notebooks/{name}"
    return f" · [Open in Colab]({colab}) · [Open in Binder]({binder})"


def live_explorer(output: dict) -> str:
    """The explorer of an output as a live element, with its still image where scripts do not run."""
    image, alt = output["data"]["image/png"].replace("\n", ""), html.escape(output["metadata"]["image/png"]["alt"])
    still = f'<img src="data:image/png;base64,{image}" alt="{alt}">'
    return fragment_of("".join(output["data"][EXPLORER]), CorrelationExplorer._esm, still)


def copy_notebooks() -> None:
    """Copy the notebooks into `course/`, each with a download link below its title and alt text for its images.

    Their links to `../docs`, which hold in the repository, lead to the pages beside `course/`.
    """
    course = ROOT / "docs" / "course"
    shutil.rmtree(course, ignore_errors=True)
    (course / "files").mkdir(parents=True)
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]*.ipynb")):
        shutil.copy(path, course / "files")
        notebook = json.loads(path.read_text())
        links = f"{{download}}`Download this notebook <files/{path.name}>`{cloud_links(path.name)}"
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                if EXPLORER in output.get("data", {}):
                    output["data"] = {"text/html": live_explorer(output)}
            alt = cell["metadata"].get("alt")
            if alt:
                text = alt if isinstance(alt, str) else " ".join(alt)
                cell["metadata"]["mystnb"] = {"image": {"alt": text}}
        first = notebook["cells"][0]
        title, _, rest = "".join(first["source"]).partition("\n")
        first["source"] = f"{title}\n\n{links}\n{rest}"
        (course / path.name).write_text(json.dumps(notebook).replace("](../docs/", "](../"))


def link_course(_app: Any, page: str, text: list[str]) -> None:
    """Let the links to notebooks, which hold in the repository, lead to the pages of `course/`."""
    text[0] = re.sub(r"\]\((\.\./)+notebooks/", "](" + "../" * page.count("/") + "course/", text[0])


def mark_long_code(_app: Any, doctree: nodes.document, _page: str) -> None:
    """Let code that is wider than a phone wrap there; shorter code stays in one piece."""
    for code in doctree.findall(nodes.literal):
        if max(map(len, code.astext().split()), default=0) > 36:
            code["classes"].append("long")


def join_formulas(_app: Any, doctree: nodes.document, _page: str) -> None:
    """Let no line end between a formula and a sign beside it, such as a full stop or a bracket that opens."""
    for formula in list(doctree.findall(nodes.math)):
        parent, place = formula.parent, formula.parent.index(formula)
        before, after = (parent[i] if 0 <= i < len(parent) else None for i in (place - 1, place + 1))
        opening = re.search(r"\(*$", before)[0] if isinstance(before, nodes.Text) else ""
        closing = re.match(r"[^\w\s(]*", after)[0] if isinstance(after, nodes.Text) else ""
        if opening:
            parent[place - 1] = nodes.Text(before.removesuffix(opening))
        if closing:
            parent[place + 1] = nodes.Text(after.removeprefix(closing))
        if opening or closing:
            parent[place] = together = nodes.inline("", "", classes=["together"])
            together += [nodes.Text(opening), formula, nodes.Text(closing)]


def setup(app: Any) -> None:
    app.connect("source-read", link_course)
    app.connect("doctree-resolved", mark_long_code)
    app.connect("doctree-resolved", join_formulas)


copy_notebooks()
