"""Render the committed notebooks into a static site: `site/index.html` and one page a notebook.

    python notebooks/build_site.py [folder]

Every page stands alone: images are embedded, formulas are MathML, there is no script and nothing is fetched, so
that it opens from a disk without a network. Nothing is executed: pages show the outputs that were committed.
"""

import base64
import html
import io
import re
import sys
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from PIL import Image

from hsic_lab._notebooks import write_atomically

FOLDER = Path(__file__).resolve().parent
THUMBNAIL_WIDTH = 480

# What a notebook answers, and which of its images, counted from 0, stands for it on the index.
QUESTIONS = {
    "00_quickstart": ("What does it look like, end to end?", 1),
    "01_barlow_twins_is_hsic": ("Why is the loss a statement about HSIC, and where are the negatives?", 1),
    "02_hsic_from_scratch": ("What does HSIC see that correlation misses, and when is it significant?", 0),
    "03_between_two_families": ("Which losses repel which pairs, and who collapses without asymmetry?", 3),
    "04_reading_cross_correlation": ("How do I read a heatmap of C, and what does a healthy one look like?", 0),
    "05_ablation_batch_size": ("Who needs large batches?", 2),
    "06_ablation_projector_width": ("How wide and how deep must the projector be?", 1),
    "07_lambda_and_the_minus_one_target": ("Which lambda, and what becomes of the target -1?", 1),
    "08_kernels_beyond_linear": ("What do kernels other than the linear one see, and does it matter?", 0),
    "09_linear_evaluation": ("How do I ask frozen features what they know, without fooling myself?", 0),
    "10_your_own_data": ("How do I use this on my own images, embeddings, network or loop?", 0),
}

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --quiet: #59636e; --paper: #fff; --panel: #f5f6f8; --line: #d8dce1;
  --link: #0a5bb5; --keyword: #8a3ea8; --string: #20713a; --number: #a34a00; }
@media (prefers-color-scheme: dark) { :root { --text: #e2e5e9; --quiet: #9aa4af; --paper: #16191d; --panel: #20242a;
  --line: #3a414a; --link: #79b8ff; --keyword: #d2a8ff; --string: #8ddb8c; --number: #ffab70; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text);
  font: 1.05rem/1.6 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
main, nav, footer { max-width: 54rem; margin: 0 auto; padding: 0 1.2rem; }
main { padding-bottom: 3rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; justify-content: space-between; padding-top: .8rem;
  padding-bottom: .8rem; font-size: .92rem; }
header { border-bottom: 1px solid var(--line); } footer { border-top: 1px solid var(--line); max-width: none; }
a { color: var(--link); } a.anchor-link { visibility: hidden; text-decoration: none; padding-left: .3em; }
:is(h1, h2, h3):hover a.anchor-link { visibility: visible; }
h1, h2, h3 { line-height: 1.25; } h1 { font-size: 2rem; } h2 { margin-top: 2.4rem; font-size: 1.45rem; }
pre, code { font: .88rem/1.5 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", monospace; }
pre { overflow-x: auto; margin: .6rem 0; padding: .7rem .9rem; border-radius: 6px; }
.highlight pre { background: var(--panel); border-left: 3px solid var(--line); }
.jp-OutputArea pre { padding-left: 1.1rem; color: var(--quiet); }
:not(pre) > code { background: var(--panel); padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
math { font-size: 1.08em; } math[display=block] { display: block; overflow-x: auto; overflow-y: hidden; padding: .5rem 0; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .9rem; margin: .8rem 0; }
th, td { padding: .3rem .7rem; border: 0; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.cards { display: grid; gap: 1rem; padding: 0; list-style: none; }
.cards > li { display: grid; grid-template-columns: 12rem 1fr; gap: 1.2rem; padding: 1rem; border: 1px solid var(--line);
  border-radius: 8px; }
.cards h2 { margin: 0; font-size: 1.15rem; } .cards p { margin: .2rem 0 .5rem; color: var(--quiet); font-size: .92rem; }
.cards img { width: 100%; max-height: 9rem; object-fit: contain; } .cards ul { padding-left: 1.2rem; font-size: .92rem; }
summary { cursor: pointer; font-size: .92rem; }
@media (max-width: 40rem) { .cards > li { grid-template-columns: 1fr; } h1 { font-size: 1.6rem; } }
.highlight :is(.k, .kn, .kc, .ow) { color: var(--keyword); } .highlight :is(.s1, .s2, .sa, .sd) { color: var(--string); }
.highlight :is(.mi, .mf) { color: var(--number); } .highlight .c1 { color: var(--quiet); font-style: italic; }
"""


class _MathML(IPythonRenderer):
    # The formulas of a Markdown cell as MathML, which browsers typeset by themselves.
    def block_math(self, body: str) -> str:
        return self.inline_math(body, "block")

    def inline_math(self, body: str, display: str = "inline") -> str:
        # The sign of the transpose stands too high in most fonts, and has an operator's space around it.
        return re.sub(r"<mo>&#x022A4;</mo>", '<mi mathvariant="normal">T</mi>', convert(body, display=display))


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_MathML(escape=False)).render(source)


def page_body(notebook: NotebookNode, pages: set[str]) -> str:
    """The cells of a notebook as HTML; names of other notebooks become links to their `pages`."""
    exporter = HTMLExporter(template_name="basic", embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", _markdown)
    body, _ = exporter.from_notebook_node(notebook)

    def link(match: re.Match) -> str:
        return f'<a href="{match[1]}.html">{match[0]}</a>' if match[1] in pages else match[0]

    return re.sub(r"<code>(\d\d_\w+)</code>", link, body)


def headings(notebook: NotebookNode) -> tuple[str, list[str]]:
    """The title of a notebook and its sections, as HTML."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    lines = re.findall(r"^(#{1,2}) (.+)$", text, re.MULTILINE)
    titles = [words for level, words in lines if level == "#"]
    if not titles:
        raise ValueError("the notebook has no title, a line that begins with '# '")
    return _inline(titles[0]), [_inline(words) for level, words in lines if level == "##"]


def thumbnail(notebook: NotebookNode, image: int) -> str:
    """A small copy of the output image with this number, as a data URL; ValueError if there is none."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if image >= len(images):
        raise ValueError(f"image {image} was asked for, and the notebook shows {len(images)}")
    image = Image.open(io.BytesIO(base64.b64decode(images[image]))).convert("RGB")
    image.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_WIDTH), Image.Resampling.LANCZOS)
    image.save(small := io.BytesIO(), "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


def _inline(markdown: str) -> str:
    return re.sub(r"^<p>|</p>\s*$", "", _markdown(markdown).strip())


def _page(title: str, above: str, body: str, below: str) -> str:
    """A whole page; `title` is HTML, of which the window shows the words."""
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", title)).strip()
    footer = f"<footer><nav>{below}</nav></footer>\n" if below else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{words}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        f"<header><nav>{above}</nav></header>\n<main>\n{body}\n</main>\n{footer}</body>\n</html>\n"
    )


def _card(name: str, notebook: NotebookNode) -> str:
    question, image = QUESTIONS[name]
    title, sections = headings(notebook)
    inside = "".join(f"<li>{section}</li>" for section in sections)
    return (
        f'<li><a href="{name}.html"><img src="{thumbnail(notebook, image)}" alt="a image of {name}"></a>'
        f'<div><h2><a href="{name}.html">{html.escape(question)}</a></h2><p>{name[:2]} · {title}</p>'
        f"<details><summary>What is inside</summary><ul>{inside}</ul></details></div></li>"
    )


def build_site(folder: Path, sources: list[Path]) -> list[Path]:
    """Write the pages of these notebooks and their index; returns the files, the index first.

    Raises ValueError for a notebook without a question in `QUESTIONS`, without a title, or without its image.
    """
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in sources}
    unknown = [name for name in notebooks if name not in QUESTIONS]
    if unknown:
        raise ValueError(f"QUESTIONS says nothing of {unknown}: what does each answer, and which image stands for it?")
    names = list(notebooks)
    cards = "\n".join(_card(name, notebook) for name, notebook in notebooks.items())
    intro = (
        "<h1>Barlow Twins is a statement about HSIC</h1>\n<p>A course in notebooks. Look for your question; they also "
        "read well in order. Every claim in the text is asserted in a cell, and the images are the cells' own.</p>"
    )
    index = _page("hsic_lab: the notebooks", "<span>hsic_lab</span>", f'{intro}\n<ol class="cards">\n{cards}\n</ol>', "")
    written = [write_atomically(folder / "index.html", index)]
    for before, name, after in zip([None, *names], names, [*names[1:], None], strict=False):
        links = [
            f'<a href="{before}.html">← {before}</a>' if before else "<span></span>",
            '<a href="index.html">All notebooks</a>',
            f'<a href="{after}.html">{after} →</a>' if after else "<span></span>",
        ]
        question = f"<p><em>{html.escape(QUESTIONS[name][0])}</em></p>"
        body = question + page_body(notebooks[name], set(names))
        page = _page(headings(notebooks[name])[0], "\n".join(links), body, "\n".join(links))
        written.append(write_atomically(folder / f"{name}.html", page))
    return written


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0]) if arguments else FOLDER.parent / "site"
    written = build_site(folder, sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")))
    print(f"{len(written)} pages, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB: open {written[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
