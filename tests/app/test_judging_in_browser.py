"""Judging in a real browser: by keys alone, on a phone, with answers that try to run."""

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest
import uvicorn

from annotation_stores import ALWAYS, item
from rlhflab.app.annotate import Desk, annotation_app
from rlhflab.app.server import Access, address, bind
from rlhflab.data.store import Store
from rlhflab.data.types import Message, Prompt

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("CI") == "true":
    raise RuntimeError("the browser tests need chromium, which .ci/run installs")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]

EVIL = ("</script><script>window.ran = 1</script><img src=http://evil.example/x onerror='window.ran = 2'>"
        "![i](http://evil.example/y.png) [a](javascript:window.ran=3) <a href='javascript:window.ran=4'>b</a>"
        "<svg onload='window.ran = 5'></svg><style>body{display:none}</style>\n\n| a |\n|---|\n| <iframe src=/> |")
LONG = "word " * 400 + "x" * 300


class Site:
    """A server of its own thread, with a store that a test looks into."""

    def __init__(self, folder) -> None:  # type: ignore[no-untyped-def]
        self.store = Store.open(folder / "store.sqlite")
        evil = Prompt(id="evil", messages=(Message(role="system", content=EVIL), Message(role="user", content=EVIL)))
        self.store.add([replace(item(0, a=EVIL, b=EVIL + "!"), prompt=evil), item(1, a=LONG, b="short"),
                        item(2, b=None)])
        self.store.set_overlap(2)
        people = ("anna", "ben")
        self.access = Access.of(people, token="0123456789abcdef", host="127.0.0.1")
        desk = Desk(store=self.store, annotators=people, adjudicators=("ben",), plan=ALWAYS, count_every=0)
        self.bound = bind("127.0.0.1", 0)
        self.server = uvicorn.Server(uvicorn.Config(annotation_app(desk, self.access), log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]})
        self.thread.start()

    def link(self, person: str) -> str:
        return self.access.link(address(self.bound), person)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.bound.close()


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def watched(browser, width=1280):
    """A page, what it asked for, and what it complained of."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, asked, complaints


def press(page, *keys):
    """The keys, the last of which leads to another page. Before the page is whole its script would not hear them."""
    page.wait_for_load_state("load")
    for key in keys[:-1]:
        page.keyboard.press(key)
    with page.expect_navigation():
        page.keyboard.press(keys[-1])


def test_everything_is_done_by_keys_alone(site, browser):
    page, _, complaints = watched(browser)
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    assert page.url.endswith("/") and "#" not in page.url
    for key in ("e", "2", "0", "r"):
        page.keyboard.press(key)
    page.keyboard.type("t because b")
    press(page, "Escape", "ArrowRight")
    (row,) = site.store.all_said()
    second = "b" if row.shown_first == "a" else "a"
    assert (row.verdict, row.strength, row.reason) == (second, 1.0, "t because b")
    assert set(row.tags) == {f"{row.shown_first}:verbose", f"{second}:metric_gaming"}
    assert row.seconds is not None and 0 < row.seconds < 600
    press(page, "u")
    press(page, "b")
    press(page, "t")
    press(page, "3", "ArrowLeft")
    page.wait_for_selector("text=Nothing left for you")
    standing = {each.id: [(said.verdict, said.tags) for said in each.said] for each in site.store.everything()}
    assert standing == {1: [("both_bad", ())], 2: [("tie", ())], 3: [("good", ("ignores_instructions",))]}
    assert complaints == []


def test_no_answer_can_run_load_or_lead_away(site, browser):
    page, asked, complaints = watched(browser)
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    page.locator(".raw summary").first.click()
    assert page.evaluate("window.ran") is None
    assert page.locator("main img, main svg, main iframe, main style, main script").count() == 0
    assert page.locator(".written a[href^='javascript']").count() == 0
    home = address(site.bound)
    assert [url for url in asked if not url.startswith(home)] == [] and complaints == []
    assert page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=9\">'), 1")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None, "the policy stops what would slip through"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_and_can_be_read_in_both_schemes(site, browser, width, scheme):
    page, _, _ = watched(browser, width)
    page.emulate_media(color_scheme=scheme)
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    press(page, "s")
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing makes the page scroll sideways"
    for button in page.locator(".choices button").all():
        box = button.bounding_box()
        assert box is not None and box["height"] >= 40 and box["y"] + box["height"] <= 900, "always within reach"
    paper, ink = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert contrast(paper, ink) > 7


def contrast(one: str, other: str) -> float:
    """WCAG contrast of two `rgb(r, g, b)`."""
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour.strip("rgb()").split(",")[:3]]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def test_a_screen_reader_hears_what_each_control_is(site, browser):
    page, _, _ = watched(browser)
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    for name in ("Answer 1 is better", "Answer 2 is better", "Equally good", "Both bad", "Skip"):
        assert page.get_by_role("button", name=name, exact=True).count() == 1
    assert page.get_by_role("checkbox", name="Too long or wordy").count() == 2
    assert page.get_by_role("radio").count() == 3
    assert page.get_by_role("group", name="Problems of answer 1").count() == 1
    assert page.get_by_role("textbox", name="Reason").count() == 1
    assert page.locator("h1").count() == 1 and page.get_by_role("status").count() == 1


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844), (844, 390)])
def test_nothing_that_has_the_focus_is_under_the_bar(site, browser, width, height):
    page, _, _ = watched(browser, width)
    page.set_viewport_size({"width": width, "height": height})
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    page.keyboard.press("r")
    page.wait_for_function("""() => {
        const one = document.activeElement, bar = document.querySelector(".verdicts");
        return one.name === "reason" && one.getBoundingClientRect().bottom <= bar.getBoundingClientRect().top; }""")
    assert page.get_by_role("group", name="How much better?").count() == 1, "heard on a phone too"


def test_single_keys_can_be_turned_off(site, browser):
    page, _, _ = watched(browser)
    page.goto(site.link("anna"))
    page.wait_for_selector("#judge")
    page.wait_for_load_state("load")
    page.locator(".help summary").click()
    page.get_by_label("Single keys judge").uncheck()
    page.keyboard.press("t")
    page.reload()
    page.keyboard.press("t")
    page.wait_for_timeout(100)
    assert list(site.store.all_said()) == []


def test_two_people_disagree_and_the_adjudicator_decides(site, browser):
    for person, key in (("anna", "ArrowLeft"), ("ben", "b")):
        page, _, _ = watched(browser)
        page.goto(site.link(person))
        page.wait_for_selector("#judge")
        press(page, key)
    page.get_by_role("link", name="Conflicts").click()
    page.locator(".conflicts a").click()
    page.wait_for_selector("#judge")
    press(page, "t")
    assert "No judgments disagree" in page.inner_text("main")
    *_, last = site.store.all_said()
    assert (last.annotator, last.purpose, last.verdict) == ("ben", "adjudicate", "tie")
