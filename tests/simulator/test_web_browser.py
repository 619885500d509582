"""The web report in a real browser: nothing asked of the network, no error, and it reacts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from simulator.cli import run
from tests.simulator.web_support import HOSTILE, enlarged, search_result, written

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # A container has no user namespaces for the sandbox; the page is our own.
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A report of a search whose model has a hostile name."""
    tmp_path = tmp_path_factory.mktemp("report")
    search = search_result("--tp", "1,2,4", "--weight-format", "bf16,fp8")
    search = json.loads(json.dumps(search | {"model": HOSTILE, "workload": HOSTILE}))
    target = tmp_path / "report.html"
    assert 0 == run(["report", *written(tmp_path, search=enlarged(search, 40)), "-o", str(target)])
    return target.as_uri()


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """The report, open; what it asked for and complained about is checked at the end."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    yield opened
    assert opened.evaluate("window.owned") is None
    opened.close()
    assert [address] == [url for url in asked if not url.startswith("data:")]
    assert [] == errors


def column(page: Any, number: int) -> list[str]:
    cells = ".filtered tbody tr:not([hidden]) > :nth-child({})"
    found: list[str] = page.eval_on_selector_all(
        cells.format(number), "cells => cells.map(cell => cell.dataset.v)"
    )
    return found


def test_columns_sort_by_click_and_by_key(page: Any) -> None:
    head = page.locator(".filtered thead th", has_text="TTFT")
    head.locator("button").click()
    assert "ascending" == head.get_attribute("aria-sort")
    place = head.evaluate("cell => cell.cellIndex") + 1
    numbers = [float(value) for value in column(page, place)]
    assert sorted(numbers) == numbers
    assert len(set(numbers)) > 1
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert "descending" == head.get_attribute("aria-sort")
    assert numbers[::-1] == [float(value) for value in column(page, place)]
    assert 1 == page.locator(".filtered th[aria-sort=descending], [aria-sort=ascending]").count()
    assert "sorted by TTFT" in page.locator("#said").text_content()


def test_the_filter_hides_rows_and_their_points(page: Any) -> None:
    assert 40 == len(column(page, 1))
    points = page.locator("figure .pt[data-key]:visible")
    assert 80 == points.count()  # two charts
    page.get_by_label("Filter by words").fill("fp8 tp4")
    labels = column(page, 2)
    assert 0 < len(labels) < 40
    assert all("fp8" in label and "tp4" in label for label in labels)
    assert 2 * len(labels) == points.count()
    assert f"{len(labels)} of 40 plans" == page.locator(".count").text_content()
    page.get_by_label("Filter by words").fill("")
    assert 40 == len(column(page, 1))


def test_points_tell_what_they_are_on_hover_and_by_keys(page: Any) -> None:
    tip = page.locator("#tip")
    assert tip.is_hidden()
    best = page.locator("rect.pt[aria-label*='best']").first
    best.scroll_into_view_if_needed()
    best.hover()
    assert tip.is_visible()
    assert "tokens/s/user" in tip.text_content()
    page.mouse.move(0, 0)
    assert tip.is_hidden()
    group = page.locator(".pts:has([data-key])").first
    first = group.locator(".pt[tabindex='0']")
    assert 1 == first.count()
    first.focus()
    told = tip.text_content()
    page.keyboard.press("ArrowRight")
    assert tip.is_visible()
    assert told != tip.text_content()
    page.keyboard.press("Enter")
    assert 1 == page.locator("tr.on").count()
    label = page.locator("tr.on th").text_content()
    assert tip.text_content().startswith(f"{label} (#")
    page.keyboard.press("Escape")
    assert tip.is_hidden()


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_is_no_wider_than_the_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    assert width == page.evaluate("document.documentElement.scrollWidth")
    sizes = page.eval_on_selector_all(
        "svg[viewBox='0 0 420 290'] text",
        "all => all.map(text => text.getBoundingClientRect().height)",
    )
    assert min(sizes) > 9
    assert HOSTILE in page.locator("h2").first.text_content()


def test_it_prints_all_rows(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.locator(".controls").first.is_hidden()
    assert 40 == page.locator(".filtered tbody tr:visible").count()
    assert 20_000 < len(page.pdf())
