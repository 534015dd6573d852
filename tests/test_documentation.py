"""The documentation builds without warnings, needs no network, and its code, links and images are right."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hsic_lab.ablation import run_ablation

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GUIDES = sorted(path for path in (DOCS / "guides").glob("*.md") if path.stem != "index")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built from a copy of what it needs."""
    copy = tmp_path_factory.mktemp("docs")
    for name in ("docs", "notebooks", "data/results"):
        ignore = shutil.ignore_patterns("_build", "course")
        shutil.copytree(ROOT / name, copy / name, ignore=ignore if name == "docs" else None)
    for name in ("pyproject.toml", "CHANGELOG.md", "README.md"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "docs", "html"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return copy / "html"


class Page(HTMLParser):
    """The images, links and loaded resources of a page."""

    def __init__(self, path):
        super().__init__()
        self.images, self.links, self.loaded = [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values)
            self.loaded.append(values.get("src", ""))
        elif tag == "a":
            self.links.append(values.get("href") or "")
        elif tag == "script":
            self.loaded.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(values.get("href") or "")


def pages(site):
    return {path.relative_to(site): Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_every_part_has_a_page(site):
    found = {str(path) for path in pages(site)}
    assert {"index.html", "course.html", "results.html", "glossary.html", "references.html", "changelog.html"} <= found
    assert {f"guides/{path.stem}.html" for path in GUIDES} <= found
    assert {f"course/{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")} <= found


def test_every_image_has_alt_text(site):
    images = [(path, image) for path, page in pages(site).items() for image in page.images]
    assert len(images) > 60
    without = [(path, image.get("src")) for path, image in images if len(image.get("alt") or "") < 20]
    assert [entry for entry in without if "_static/" not in str(entry[1])] == []


def test_nothing_is_loaded_from_the_network(site):
    loaded = {source for page in pages(site).values() for source in page.loaded}
    assert [source for source in loaded if source.startswith(("http:", "https:", "//"))] == []
    assert (site / "_static/mathjax/tex-chtml.js").exists()


def test_every_inner_link_leads_somewhere(site):
    broken = []
    for path, page in pages(site).items():
        for link in page.links:
            target = link.partition("#")[0].partition("?")[0]
            if target and not link.startswith(("http:", "https:", "mailto:")):
                place = (site / path).parent / target
                broken += [(str(path), link)] if not place.exists() else []
    assert broken == []


def test_every_link_holds_in_the_repository_too():
    """Without a build, `docs/course` does not exist."""
    for path in [*DOCS.rglob("*.md")]:
        if not {"_build", "course"} & set(path.relative_to(DOCS).parts):
            links = re.findall(r"\]\((?!https?:|#)([^)#]+)|\{image\} (\S+)", path.read_text())
            targets = [(path.parent / "".join(link)).resolve() for link in links]
            broken = [str(t) for t in targets if not t.exists() or t.is_relative_to(DOCS / "course")]
            assert broken == [], path


def test_no_line_of_prose_begins_like_a_list():
    """`1. ` at the start of a line makes the rest of a paragraph a list."""
    for path in [
        *(ROOT / "notebooks").glob("*.py"),
        *DOCS.glob("*.md"),
        *GUIDES,
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
    ]:
        prose = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE) if path.suffix == ".py" else path.read_text()
        assert re.findall(r"^[^\W\d_*`|].*\n1\. .*", prose, re.MULTILINE) == [], path


def test_every_work_that_is_cited_has_a_reference():
    """`Holm (1979)`, `(Holm 1979)`, `Song et al. (2012)` and `Chen and He 2021`, in prose and in docstrings."""
    text = (DOCS / "references.md").read_text()
    entries = re.findall(r"^\* (.+?) \((\d{4})\)\. ", text, re.MULTILINE)
    assert len(entries) == len(text.splitlines()) - 2
    known = {(re.split("[, ]", name)[-1], year) for names, year in entries for name in names.split(", ")}
    known |= {(names.removesuffix(" et al."), year) for names, year in entries}
    name = r"((?:[A-Z]\w+-)?[A-Z]\w+)"
    cited = rf"{name}(?: et al\.,?|(?: and| &) [A-Z]\w+,?)? \((\d{{4}})\b|{name} et al\., (\d{{4}})"
    cited += rf"|{name}(?: et al\.|(?: and| &) [A-Z]\w+),? (\d{{4}})\b|\({name},? (\d{{4}})\)"
    for path in [*(ROOT / "hsic_lab").rglob("*.py"), *(ROOT / "notebooks").glob("*.py"), *GUIDES, DOCS / "glossary.md"]:
        prose = re.sub(r"\s+#?\s*", " ", path.read_text())
        found = {tuple(part for part in match if part) for match in re.findall(cited, prose)}
        assert found - known == set(), path


def test_the_glossary_is_in_the_order_of_the_alphabet():
    terms = re.findall(r"^(\w.*)\n    ", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    plain = [re.sub(r"\W", "", term).lower() for term in terms]
    assert len(terms) > 50 and plain == sorted(plain)


def test_every_course_page_has_its_download(site):
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        page = Page(site / "course" / f"{path.stem}.html")
        assert any(link.startswith("../_downloads/") and link.endswith(path.name) for link in page.links), path.name


def test_api_pages_show_every_public_name(site):
    import hsic_lab

    for module in (
        "hsic",
        "independence",
        "losses",
        "views",
        "datasets",
        "training",
        "evaluation",
        "ablation",
        "plots",
    ):
        text = (site / "api" / f"{module}.html").read_text()
        package = getattr(hsic_lab, module)
        names = [name for name in package.__all__ if name != "Callback"]  # a type alias
        missing = [name for name in names if not name.isupper() and f".{name}" not in text and f"{name}</" not in text]
        assert missing == [], module


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_runs(path, tmp_path):
    """A block marked `py` is not run: it needs what a test has not, such as a cluster."""
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    code = "import matplotlib; matplotlib.use('agg')\n" + "\n".join(blocks)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_code_of_the_guides_fits_into_the_column():
    """On a screen of 1280 pixels the column of a guide holds 119 characters of code, on one of 1100 pixels 95."""
    for path in GUIDES:
        lines = [line for block in path.read_text().split("```")[1::2] for line in block.splitlines()]
        assert [line for line in lines if len(line) > 95] == [], path


def test_every_block_of_code_names_its_language():
    """A block without a language would be shown in one color, or as Python."""
    for path in [*GUIDES, DOCS / "index.md", *(ROOT / "notebooks").glob("[0-9]*.py")]:
        fences = re.findall(r"^(?:# )?```(.*)$", path.read_text(), re.MULTILINE)
        assert [language for language in fences[::2] if language == ""] == [], path


def test_the_small_grid_of_the_guide_runs(tmp_path):
    text = re.findall(r"```toml\n(.*?)```", (DOCS / "guides/ablations.md").read_text(), re.DOTALL)[0]
    assert len(text.splitlines()) == 10
    grid = {"name": "small"} | tomllib.loads(text) | {"seeds": 1}
    grid["base"]["epochs"], grid["data"]["n_train"] = 1, 300
    assert (run_ablation(grid, tmp_path, progress=False)["state"] == "finished").all()


@pytest.fixture(scope="module")
def browser(site):
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield opened, f"http://127.0.0.1:{server.server_port}"
        opened.close()
    server.shutdown()


def test_search_finds_a_loss_and_a_click_opens_it(browser):
    opened, address = browser
    page = opened.new_page()
    page.goto(f"{address}/search.html?q=BarlowTwinsLoss")
    result = page.locator("#search-results a").first
    result.wait_for(timeout=60_000)
    result.click()
    page.wait_for_load_state()
    assert "BarlowTwinsLoss" in page.inner_text("main")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_explorers_of_a_notebook_are_live(browser, width, scheme):
    opened, address = browser
    page, problems = opened.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None)
    page.goto(f"{address}/course/04_reading_cross_correlation.html")
    shown = page.locator(".hsic-explorer")
    shown.nth(1).locator("canvas[data-step='434']").nth(1).wait_for()
    assert shown.count() == 3 and shown.locator("img").count() == 0, "the still images are replaced"
    shown.nth(1).locator("canvas[data-step]").first.click()
    shown.nth(1).locator("svg[data-chart=scatter] circle").nth(63).wait_for()
    shown.nth(1).locator("input[type=range]").first.press("Home")
    shown.nth(1).locator("canvas[data-step='0']").nth(1).wait_for()
    light = page.evaluate("""() => ["color", "backgroundColor"].map((name) => {
      let e = document.querySelector(".hsic-explorer");
      while (getComputedStyle(e)[name] === "rgba(0, 0, 0, 0)") e = e.parentElement;
      return getComputedStyle(e)[name].match(/[0-9]+/)[0] > 128;
    })""")
    assert light == [scheme == "dark", scheme == "light"], "text, background"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert [problem for problem in problems if not problem.startswith(address)] == []
    page.close()


def test_formulas_are_typeset(browser):
    opened, address = browser
    page = opened.new_page()
    page.goto(f"{address}/index.html")
    page.wait_for_selector("mjx-container", timeout=60_000)
    page.close()


# What a page cuts off: what is wider than its column, formulas in a line, names of the previous and the next page.
CUT = """() => {
  const box = (element) => element.getBoundingClientRect();
  const columns = ["html", ".bd-article-container"].map((name) => document.querySelector(name));
  const wide = columns.filter((e) => e.scrollWidth > e.clientWidth).map((e) => `${e.scrollWidth} wide`);
  const within = (part, e) => box(part).left > box(e).left - 1 && box(part).right < box(e).right + 1;
  const cut = [...document.querySelectorAll("span.math, .prev-next-area a")]
    .filter((e) => [...e.querySelectorAll("mjx-math, p, i")].some((part) => !within(part, e)));
  return [...wide, ...cut.map((e) => e.textContent.trim())];
}"""
PAGES = ["index", "course", "results", "glossary", "references", "changelog", "api/independence", "api/losses"]


@pytest.mark.parametrize("name", [*PAGES, "course/01_barlow_twins_is_hsic", *(f"guides/{p.stem}" for p in GUIDES)])
def test_a_phone_shows_a_whole_page_without_sideways_scrolling(browser, name):
    opened, address = browser
    page, problems = opened.new_page(viewport={"width": 390, "height": 844}), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(f"{address}/{name}.html")
    page.wait_for_function("!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)")
    assert page.evaluate(CUT) == [] and problems == []
    page.close()


# Signs that begin a line although a formula stands before them, and code of fewer than 37 characters on two lines.
TORN = """() => {
  const tops = (range) => [...range.getClientRects()].map((box) => Math.round(box.top));
  const all = (node) => { const range = document.createRange(); range.selectNodeContents(node); return range; };
  const words = [...document.querySelectorAll(".bd-article code .pre")].filter((e) => e.textContent.length < 37);
  const torn = words.filter((word) => new Set(tops(all(word))).size > 1);
  const signs = [...document.querySelectorAll(".bd-article span.math")].filter((formula) => {
    const next = formula.nextSibling;
    if (next?.nodeType !== 3 || !/^[.,;:)]/.test(next.data)) return false;
    const range = all(next);
    range.setEnd(next, 1);
    const [sign, box] = [range.getBoundingClientRect(), formula.querySelector("mjx-container").getBoundingClientRect()];
    return sign.left < box.left && sign.top > box.top;
  });
  return [...torn, ...signs].map((e) => e.textContent);
}"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["course/08_kernels_beyond_linear", "course/11_what_barlow_twins_converges_to",
                                  "guides/your_own_data", "guides/ablations"])  # fmt: skip
def test_lines_end_at_words_and_code_fits(browser, name, width):
    opened, address = browser
    page = opened.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{address}/{name}.html")
    page.wait_for_function("!window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)")
    assert page.evaluate(TORN) == []
    if width == 1280:
        wide = "(e) => e.checkVisibility({contentVisibilityAuto: true}) && e.scrollWidth > e.clientWidth + 1"
        assert page.evaluate(f"[...document.querySelectorAll('.bd-article pre')].filter({wide}).length") == 0
    page.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_headings_become_smaller(browser, width):
    opened, address = browser
    page = opened.new_page(viewport={"width": width, "height": 900})
    page.goto(f"{address}/course/10_your_own_data.html")
    size = "(name) => parseFloat(getComputedStyle(document.querySelector(`.bd-article ${name}`)).fontSize)"
    sizes = [page.evaluate(size, name) for name in ("h1", "h2", "h3", "p")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    page.close()
