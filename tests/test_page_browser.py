"""The page in a real browser: it opens, filters, expands, links; names stay text; nothing is fetched and nothing goes wrong.

Skipped where selenium, Chromium or its driver is absent.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judging import bumped
from test_report import compared
from test_show_page import HOSTILE, hostile
from test_show_text import DIFFERENT, SITE, row

from tracediff import Report
from tracediff.show.page import page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the page was not tested in a browser")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the path: the page was not tested in a browser"),
]
LAYERS, STEPS = 12, 8


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium with a profile of its own, which logs every request and every message."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run", f"user-data-dir={profile}")
    for switch in (*switches, "window-size=1280,900"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield opened
    opened.quit()


class Opened:
    """A page in the browser, by what a person does to it."""

    def __init__(self, browser: Any, report: Report, folder: Path) -> None:
        self.browser = browser
        self.path = folder / "page.html"
        self.path.write_text(page(report), encoding="utf-8")
        self.go()

    def go(self, link: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(self.path.as_uri() + link)
        WebDriverWait(self.browser, 60).until(lambda _: self.run("return document.documentElement.dataset.ready") == "yes")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def frame(self) -> None:
        """Waits until what was asked for is drawn."""
        self.browser.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))")

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.browser.find_elements("css selector", selector)
        return found

    def one(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def click(self, element: Any) -> None:
        self.run("arguments[0].click()", element)

    def press(self, key: str) -> None:
        self.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))", key)

    def write(self, selector: str, words: str, event: str = "input") -> None:
        field = "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
        self.run(f"{field} field.dispatchEvent(new Event(arguments[2]))", selector, words, event)

    def lines(self) -> list[str]:
        """The lines of the table of pairs that exist."""
        return [str(line.text) for line in self.all("#pairs-body .lines .line")]

    @property
    def panel(self) -> str:
        """What the panel says; "" where it is closed."""
        return str(self.one("#panel").text)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    """The page of a toy pair with one fault."""
    browser.get_log("browser")
    yield Opened(browser, compared(tmp_path, faults={"dec.a": bumped}), tmp_path)
    assert browser.get_log("browser") == []


def many() -> Report:
    """A report of layers in a loop, one of which goes wrong at step 5."""
    rows = []
    for step in range(STEPS):
        for layer in range(LAYERS):
            site = replace(
                SITE, reference=f"enc.{layer}.attn", port=f"layers.{layer}.attn", call=f"net[0]/@ode={step}/.layers.{layer}[{step}]"
            )
            wrong = layer == 3 and step >= 5
            rows.append(row(site, 1e-2 if wrong else 1e-7, introduced=wrong and step == 5))
    return replace(DIFFERENT, rows=tuple(rows))


def test_it_draws_all_its_parts(opened: Opened) -> None:
    for part in (
        "#findings .thumb canvas",
        ".map-cells",
        "#order-body canvas",
        "#tree-reference .leaf",
        "#tree-port .leaf",
        ".lines .line",
    ):
        assert opened.all(part), part
    assert opened.one("h1").text.startswith("different")


def test_it_fetches_nothing(opened: Opened) -> None:
    assert opened.run("return performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).length") == 0


def test_a_script_that_comes_later_does_not_run(opened: Opened, browser: Any) -> None:
    opened.run("const made = document.createElement('script'); made.textContent = 'window.hurt = 1'; document.body.append(made)")
    assert opened.run("return window.hurt") is None
    assert [entry for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]


def test_search_and_filters_leave_what_fits(opened: Opened) -> None:
    everything = opened.one("#pairs-count").text
    opened.write("#pairs-search", "dec.a output")
    assert len(opened.lines()) == 1
    assert opened.one("#pairs-count").text != everything
    opened.write("#pairs-search", "")
    opened.write("#pairs-state", "INTRODUCED", "change")
    assert [line for line in opened.lines() if "INTRODUCED" in line] == opened.lines() != []
    opened.write("#pairs-search", "no such name")
    assert "No pair fits" in opened.one("#pairs-body").text


def test_columns_sort_both_ways(opened: Opened) -> None:
    head = opened.one("#pairs-body .head .c-ratio")
    button = opened.one("#pairs-body .head .c-ratio button")
    opened.click(button)
    assert "INTRODUCED" in opened.lines()[0]
    assert head.get_attribute("aria-sort") == "descending"
    opened.click(button)
    assert head.get_attribute("aria-sort") == "ascending"


def test_a_pair_opens_and_its_link_opens_it_again(opened: Opened) -> None:
    opened.write("#pairs-search", "dec.a output")
    opened.click(opened.one("#pairs-body .lines .line"))
    assert "dec.a" in opened.panel
    assert len(opened.all("#panel .pictures canvas")) == 3
    link = opened.run("return location.hash")
    opened.go(link)
    assert "dec.a" in opened.panel
    opened.press("Escape")
    assert not opened.panel


def test_a_stage_leads_to_its_first_divergence_and_to_its_code_in_two_clicks(opened: Opened) -> None:
    assert opened.run("return document.querySelector('#stages').offsetTop < document.querySelector('#findings').offsetTop")
    opened.click(opened.one("#stages td.first a"))
    opened.frame()
    assert "dec.a" in opened.panel
    opened.click(opened.one("#panel .chip.link"))
    opened.frame()
    assert opened.run("return location.hash") == "#finding-0-1"


def test_a_link_to_a_finding_shows_it_where_it_was_not_shown_yet(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, replace(many(), divergences=DIFFERENT.divergences * 9), tmp_path)
    assert not opened.one("#finding-0-9").is_displayed()
    opened.go("#finding-0-9")
    assert opened.one("#finding-0-9").is_displayed()


def test_keys_go_from_one_introduced_error_to_the_next(opened: Opened) -> None:
    opened.press("n")
    assert "introduced here" in opened.panel
    assert "dec.a" in opened.panel


def test_modules_open_and_show_their_partner(opened: Opened) -> None:
    leaf = next(leaf for leaf in opened.all("#tree-port .leaf") if leaf.get_attribute("title") == "dec.a")
    opened.click(leaf)
    assert opened.one("#tree-reference .leaf.chosen").get_attribute("title") == "dec.a"
    assert "dec.a ↔ dec.a" in opened.one("#models-hint").text


def test_the_map_shows_a_slip_at_a_step_and_a_layer(browser: Any, tmp_path: Path) -> None:
    opened = Opened(browser, many(), tmp_path)
    assert opened.one("#map-columns").get_attribute("value") == "scope:ode"
    names = [name.text for name in opened.all(".map-name")]
    assert any(f"layers.* ×{LAYERS}.attn" in name for name in names)
    folded = len(names)
    opened.click(opened.one("#map-folded"))
    assert len(opened.all(".map-name")) > folded
    cells = opened.one(".map-cells")
    for key in ("ArrowRight",) * 5 + ("ArrowDown",) * LAYERS * 2:
        opened.run("arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: arguments[1]}))", cells, key)
    assert "ode 5" in opened.one("#map-hint").text
    opened.write("#map-columns", "call", "change")
    assert opened.one(".map-cells").get_attribute("aria-label").endswith("arrow keys move, Enter opens")


def test_hostile_names_stay_text(browser: Any, tmp_path: Path) -> None:
    browser.get_log("browser")
    opened = Opened(browser, hostile(), tmp_path)
    opened.press("n")
    assert HOSTILE in opened.panel
    assert any(HOSTILE in line.text for line in opened.all("#tree-port .leaf"))
    assert HOSTILE in opened.lines()[0]
    assert opened.run("return document.scripts.length") == 3
    assert browser.get_log("browser") == []


def test_twenty_thousand_pairs_are_few_lines_at_a_time(browser: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    errors = 10 ** rng.uniform(-9, -3, 20_000)
    rows = tuple(row(replace(SITE, port=f"layers.{i % 500}.{i % 7}", call=f"net[{i}]"), float(error)) for i, error in enumerate(errors))
    opened = Opened(browser, replace(DIFFERENT, rows=rows), tmp_path)
    assert "20,000" in opened.one("#pairs-count").text
    assert len(opened.lines()) < 80
    opened.run("document.querySelector('.lines').scrollTop = 34 * 15000")
    opened.frame()
    assert any(line.startswith("15,0") or line.startswith("150") for line in opened.lines())


@pytest.mark.parametrize("width", [380, 800, 1400])
def test_no_width_is_too_small(opened: Opened, browser: Any, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    opened.go()
    wide = opened.run("return document.documentElement.scrollWidth")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert wide <= width


def test_a_notebook_shows_the_page_in_a_frame(browser: Any, tmp_path: Path) -> None:
    shown = compared(tmp_path, faults={"dec.a": bumped}).view(height=700)._repr_html_()
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><meta charset='utf-8'><body>{shown}</body>", encoding="utf-8")
    browser.get_log("browser")
    browser.get((tmp_path / "cell.html").as_uri())
    browser.switch_to.frame(0)
    try:
        WebDriverWait(browser, 60).until(lambda _: browser.execute_script("return document.documentElement.dataset.ready") == "yes")
        browser.execute_script("document.querySelector('.thumb .open').click()")
        assert "dec.a" in browser.find_element("css selector", "#panel").text
    finally:
        browser.switch_to.default_content()
    assert browser.get_log("browser") == []
