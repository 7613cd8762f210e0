"""The report in a real browser: it draws, it asks for nothing over the network, it fits a phone."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from report_folders import write_demo
from rlhflab.analysis.data_page import write_data_page
from rlhflab.analysis.report import write_report
from rlhflab.runs.data_check import Asked, record_of, run_checks
from survey_rows import FILE, pair, surveyed

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("CI") == "true":
    raise RuntimeError("the browser tests need chromium, which .ci/run installs")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_demo(tmp_path_factory.mktemp("report") / "demo"))


@pytest.fixture
def page() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser.new_page()
        browser.close()


@pytest.fixture(scope="module")
def data_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [pair(f"question number {i}", "long answer" * (i + 1), "short</s>", "ab"[i % 3 == 0]) for i in range(60)]
    seen = surveyed(*rows, *rows[:3])
    record = record_of(Asked(files=[FILE], model=None), seen, run_checks(seen, {}), [])
    return write_data_page(record, tmp_path_factory.mktemp("data") / "page.html")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["report", "data_page"])
def test_a_page_draws_at_phone_and_desktop_width_without_a_word_on_the_network(page, request, which, width) -> None:  # type: ignore[no-untyped-def]
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(request.getfixturevalue(which).as_uri())
    page.mouse.wheel(0, 900)
    page.wait_for_selector(".js-plotly-plot .main-svg")
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing makes the page scroll sideways"
