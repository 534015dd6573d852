"""The static site in a real browser: every page opens from the disk, without a script, a network or a raw formula."""

import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("notebooks_build_site", ROOT / "notebooks" / "build_site.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What a page holds once it is drawn: a formula that was not converted shows as text between dollars.
FACTS = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    images: [...document.images].map(i => i.complete && i.naturalWidth > 50 && i.getBoundingClientRect().width > 50),
    formulas: [...document.querySelectorAll('math')].map(m => m.getBoundingClientRect()).map(r => r.width * r.height),
    scripts: document.scripts.length,
    wide: document.documentElement.scrollWidth - window.innerWidth,
    anchors: [...document.querySelectorAll('[id]')].map(e => e.id),
    text: (document.querySelectorAll('pre, code, style').forEach(e => e.remove()), document.body.textContent),
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build.build_site(tmp_path_factory.mktemp("site"), NOTEBOOKS)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the path")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def test_pages_open_whole_from_the_disk(site, browser):
    assert [path.stem for path in site] == ["index", *(path.stem for path in NOTEBOOKS)]
    # Narrow and dark, wide and light: a page that fits both scrolls sideways in neither.
    for width, scheme in ((400, "dark"), (1200, "light")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests, complaints = [], []
        page.on("request", lambda request, seen=requests: seen.append(request.url))
        page.on("console", lambda message, seen=complaints: seen.append(message.text))
        page.on("pageerror", lambda error, seen=complaints: seen.append(str(error)))
        for path in site:
            page.goto(path.as_uri())
            metadata = page.evaluate(FACTS)
            assert metadata["pictures"] and all(metadata["pictures"]), path.name
            assert path.stem == "index" or (metadata["formulas"] and min(metadata["formulas"]) > 0), path.name
            assert "$" not in metadata["text"] and "\\frac" not in metadata["text"], path.name
            assert metadata["scripts"] == 0 and metadata["wide"] <= 0, (path.name, width, metadata["wide"])
            for link in metadata["links"]:
                target, _, anchor = link.partition("#")
                if target == path.as_uri():
                    assert not anchor or anchor in metadata["anchors"], (path.name, link)
                elif target.startswith("file:"):
                    assert Path(target.removeprefix("file://")) in site, (path.name, link)
        assert complaints == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_every_page_is_one_click_from_the_index_and_its_neighbors(site):
    index, *pages = (path.read_text() for path in site)
    for path, text in zip(site[1:], pages, strict=True):
        question, _ = build.QUESTIONS[path.stem]
        assert f'<h2><a href="{path.name}">{build.html.escape(question)}</a></h2>' in index
        assert 'href="index.html"' in text
    for one, two, text_one, text_two in zip(site[1:], site[2:], pages, pages[1:], strict=False):
        assert f'href="{two.name}">{two.stem} →' in text_one and f'href="{one.name}">← {one.stem}' in text_two


def written(folder, name, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), folder / f"{name}.ipynb")
    return [folder / f"{name}.ipynb"]


def test_what_a_notebook_lacks_is_named(tmp_path):
    title = nbformat.v4.new_markdown_cell("# Title")
    with pytest.raises(ValueError, match=r"QUESTIONS says nothing of \['99_lesson'\]"):
        build.build_site(tmp_path / "site", written(tmp_path, "99_lesson", title))
    with pytest.raises(ValueError, match="image 1 was asked for, and the notebook shows 0"):
        build.build_site(tmp_path / "site", written(tmp_path, "00_quickstart", title))
    with pytest.raises(ValueError, match="no title"):
        build.build_site(tmp_path / "site", written(tmp_path, "00_quickstart"))
    assert not (tmp_path / "site").exists()


def test_formulas_and_names_of_other_notebooks(tmp_path):
    source = "Read `01_next`, not `02_none`; $a < b$ and\n\n$$\\frac{1}{n}$$\n\n`$x$` is code."
    body = build.page_body(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(source)]), {"01_next"})
    assert '<a href="01_next.html"><code>01_next</code></a>' in body and "<code>02_none</code>" in body
    assert body.count("<math") == 2 and "<mfrac>" in body and 'display="block"' in body
    assert "<code>$x$</code>" in body and body.count("$") == 2
