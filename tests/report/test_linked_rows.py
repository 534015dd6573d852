"""The two scatter plots of a comparison in a real browser: pointer, keyboard, colors and narrow screens."""

import shutil

import numpy as np
import pytest
import torch

from hsic_lab.report import Embeddings, write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs the browser: apt-get install chromium")
FLAGS = ["--no-sandbox", "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
RINGS = "[...document.querySelectorAll('.ring')].map(r => [r.cx.baseVal.value, r.cy.baseVal.value])"
PLACES = "[...s.querySelectorAll('.dot')].map(d => [d.cx.baseVal.value, d.cy.baseVal.value])"
DOTS = f"[...document.querySelectorAll('.linked figure svg')].map(s => {PLACES})"
KEYS = {"ArrowRight": 1, "ArrowDown": 2, "ArrowLeft": 1, "End": 59, "ArrowUp": 58, "Home": 0}  # from row 0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 5, generator=generator)
    other = z @ torch.randn(5, 9, generator=generator)
    labels = np.array(["cat", "dog", "a long name of a class"])[np.arange(60) % 3]
    page = tmp_path_factory.mktemp("page") / "page.html"
    return write_report(
        Embeddings(z, labels=labels, name="one"), page, reference=Embeddings(other, name="two")
    ).as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def opened(browser, address, scheme="light", width=1280):
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else said.append(request.url),
    )
    page.goto(address)
    page.wait_for_selector(".linked .dot")
    return page, said


def test_row_under_the_pointer_is_marked_in_both_plots(browser, address):
    page, said = opened(browser, address)
    dots = page.evaluate(DOTS)
    for plot, row in ((0, 7), (1, 31)):
        svg = page.locator(".linked figure svg").nth(plot)
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        x, y = dots[plot][row]
        page.mouse.move(box["x"] + x / 400 * box["width"], box["y"] + y / 400 * box["height"])
        assert page.evaluate(RINGS) == [dots[0][row], dots[1][row]]
        assert page.locator(".linked output").inner_text().startswith(f"Row {row}, label ")
    assert said == []


def test_arrow_keys_go_from_row_to_row(browser, address):
    page, said = opened(browser, address)
    dots, output = page.evaluate(DOTS), page.locator(".linked output")
    page.locator(".linked figure svg").nth(1).focus()
    for key, row in [(None, 0), *KEYS.items(), ("ArrowLeft", 59), ("ArrowRight", 0)]:
        if key:
            page.keyboard.press(key)
        assert page.evaluate(RINGS) == [dots[0][row], dots[1][row]]
        assert output.inner_text().startswith(f"Row {row}, label ")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('.linked')") is None, "a plot is one stop of the tab key"
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_page_follows_the_color_scheme_and_the_width(browser, address, scheme, width):
    page, said = opened(browser, address, scheme, width)
    color = "getComputedStyle(document.body).{}.match(/[0-9]+/g).slice(0, 3).map(Number)"
    ink, paper = (sum(page.evaluate(color.format(name))) for name in ("color", "backgroundColor"))
    assert (ink < 150 and paper > 700) if scheme == "light" else (ink > 650 and paper < 100)
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing is wider than the screen"
    left, right = (page.locator(".linked figure").nth(i).bounding_box() for i in (0, 1))
    assert (left["y"] == right["y"]) == (width == 1280) and left["width"] == right["width"] > 300
    assert said == []
