"""The desk in a real browser: a chat with two models, by keys, on a phone, with answers and reports that try to act."""

import os
import shutil
import threading
from collections.abc import Iterator

import pytest
import uvicorn

from desk_folders import whole_desk
from rlhflab.app.server import Access, address, bind

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None and os.environ.get("CI") == "true":
    raise RuntimeError("the browser tests need chromium, which .ci/run installs")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")]
PAGES = ("/", "/runs", "/runs/ppo-20261124-101500", "/runs/broken", "/registry", "/gates",
         "/gates/gate-20261125-110000")


class Site:
    """A server of its own thread, and what its API was asked."""

    def __init__(self, folder, *, token=None) -> None:  # type: ignore[no-untyped-def]
        self.access = Access.of(("anna",), token=token, host="127.0.0.1")
        self.api = whole_desk(folder, self.access)
        self.bound = bind("127.0.0.1", 0)
        self.server = uvicorn.Server(uvicorn.Config(self.api.app, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]})
        self.thread.start()
        self.home = address(self.bound)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.bound.close()


@pytest.fixture
def site(tmp_path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def watched(browser, width=1280, scheme="light"):
    """A page, what it asked for, and what it complained of."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return page, asked, complaints


def opened(page, url):
    page.goto(url)
    page.wait_for_selector("select option[value=dpo] >> nth=0", state="attached")
    return page


def ask(page, text, *, wait=True):
    page.fill("[name=prompt]", text)
    page.keyboard.press("Enter")
    if wait:
        page.wait_for_selector("#send:not([disabled])")


def replies(page):
    """What stands in the last two answers, side A first."""
    return [each.inner_text() for each in page.locator(".exchange").last.locator(".reply").all()]


def picker(page, letter):
    return page.locator(f'.picker[data-side="{letter}"]')


def turn(page, label, value):
    """Set a dial by keys, as a reader without a mouse does; a step is 0.05, and Home is 0."""
    page.get_by_label(label, exact=True).press("Home")
    for _ in range(round(value / 0.05)):
        page.get_by_label(label, exact=True).press("ArrowRight")


def test_both_sides_answer_and_each_keeps_its_own_conversation(site, browser):
    page, asked, complaints = watched(browser)
    opened(page, site.home)
    ask(page, "hello")
    assert replies(page) == ['1 messages, {"model": "smollm2-135m"}', '1 messages, {"model": "prod", "strength": 1}']
    ask(page, "again")
    assert [text.split(",")[0] for text in replies(page)] == ["3 messages", "3 messages"]
    contents = [[turn["content"] for turn in body["messages"]] for body in site.api.bodies[2:]]
    assert sorted(contents) == sorted([
        ["hello", '1 messages, {"model": "smollm2-135m"}', "again"],
        ["hello", '1 messages, {"model": "prod", "strength": 1}', "again"]])
    assert [url for url in asked if not url.startswith(site.home)] == [] and complaints == []


def test_a_dial_a_setting_and_a_system_message_are_sent(site, browser):
    page, _, _ = watched(browser)
    opened(page, site.home)
    picker(page, "A").locator("select").select_option("dpo")
    turn(page, "Strength of A", 0.35)
    turn(page, "Strength of B", 1.5)
    page.locator(".settings summary").click()
    for label, text in (("Temperature", "0"), ("Most tokens", "9"), ("Seed", "5"), ("System message", "Be brief.")):
        page.get_by_label(label).fill(text)
    ask(page, "hello")
    first, second = sorted(site.api.bodies, key=lambda body: body["model"])
    assert (first["model"], first["strength"], second["model"], second["strength"]) == ("dpo", 0.35, "prod", 1.5)
    assert all((body["temperature"], body["max_tokens"], body["seed"], body["stream"]) == (0, 9, 5, True)
               for body in site.api.bodies)
    assert first["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    assert "dpo, strength 0.35" in page.locator(".exchange h2").first.inner_text()


def test_a_mixture_is_opened_on_demand_and_sent_by_weight(site, browser):
    page, _, _ = watched(browser)
    opened(page, site.home)
    side = picker(page, "B")
    assert side.get_by_label("Weight of sft in B").is_hidden()
    side.get_by_label("Mix several adapters").check()
    assert side.get_by_label("Weight of dpo in B").input_value() == "1", "prod is dpo, which the mixture begins with"
    turn(page, "Weight of sft in B", 0.5)
    ask(page, "hello")
    mixed = next(body for body in site.api.bodies if "mixture" in body)
    assert mixed["mixture"] == {"sft": 0.5, "dpo": 1} and "strength" not in mixed
    turn(page, "Weight of sft in B", 0)
    turn(page, "Weight of dpo in B", 0)
    ask(page, "hello")
    assert "The mixture of B has no weight above 0." in page.locator("#status").inner_text()
    assert len(site.api.bodies) == 2


def test_an_answer_grows_as_it_is_written_and_can_be_stopped(site, browser):
    page, _, complaints = watched(browser)
    opened(page, site.home)
    ask(page, "slow", wait=False)
    page.wait_for_selector('.reply[aria-busy="true"]:text("1 messages") >> nth=1')
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:not([disabled])")
    assert page.locator("#status").inner_text() == "Stopped."
    assert all("1 messages" in text and "}" not in text for text in replies(page))
    assert all(text.startswith("stopped") for text in page.locator(".how").all_inner_texts())
    ask(page, "hello")
    assert all(text.startswith("3 messages") for text in replies(page)), "what was said before the stop stays"
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".exchange").count() == 0
    ask(page, "hello")
    assert all(text.startswith("1 messages") for text in replies(page)) and complaints == []


def test_what_is_being_written_while_it_is_cleared_belongs_to_no_conversation(site, browser):
    page, _, complaints = watched(browser)
    opened(page, site.home)
    ask(page, "slow", wait=False)
    page.wait_for_selector('.reply:text("1 messages") >> nth=1')
    page.get_by_role("button", name="Clear").click()
    page.wait_for_selector("#send:not([disabled])")
    ask(page, "hello")
    assert page.locator(".exchange").count() == 1 and complaints == []
    assert all(text.startswith("1 messages") for text in replies(page))


def test_an_error_is_a_sentence_and_the_message_stays_out_of_that_conversation(site, browser):
    page, _, _ = watched(browser)
    opened(page, site.home)
    ask(page, "fail")
    assert replies(page)[0] == "strength must lie between 0 and 1.5, found 9."
    assert page.locator("#status").inner_text().startswith("A did not answer")
    ask(page, "hello")
    assert [text.split(" ")[0] for text in replies(page)] == ["1", "3"]
    ask(page, "break")
    assert all("the model ran out of memory." in text for text in replies(page))
    site.close()
    ask(page, "hello")
    assert replies(page) == ["The server cannot be reached."] * 2


def test_no_answer_can_run_load_or_lead_away(site, browser):
    page, asked, complaints = watched(browser)
    opened(page, site.home)
    ask(page, "evil")
    assert all("<script>window.ran = 1</script>" in text for text in replies(page)), "it is shown as it was written"
    ask(page, "markdown")
    assert page.locator(".reply strong").count() == page.locator(".reply code").count() == 2
    page.reload()
    page.wait_for_selector(".reply strong")
    assert page.evaluate("window.ran") is None
    assert page.locator(".reply img, .reply svg, .reply style, .reply script, .reply a[href^=javascript]").count() == 0
    assert [url for url in asked if not url.startswith(site.home)] == [] and complaints == []
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran=9\">')")
    page.wait_for_timeout(100)
    assert page.evaluate("window.ran") is None, "the policy stops what would slip through"


def test_the_conversation_is_there_again_after_a_look_at_another_page(site, browser):
    page, _, _ = watched(browser)
    opened(page, site.home)
    turn(page, "Strength of B", 0.5)
    ask(page, "hello")
    page.get_by_role("link", name="Registry").click()
    page.get_by_role("link", name="Chat").click()
    page.wait_for_selector(".exchange")
    assert page.get_by_label("Strength of B", exact=True).input_value() == "0.5"
    ask(page, "again")
    assert all(text.startswith("3 messages") for text in replies(page))


def test_a_reader_enters_by_the_link_and_the_chat_works_with_the_cookie(tmp_path, browser):
    site = Site(tmp_path, token="0123456789abcdef")
    try:
        page, _, _ = watched(browser)
        page.goto(site.access.link(site.home, "anna"))
        page.wait_for_selector("select option[value=dpo] >> nth=0", state="attached")
        assert "#" not in page.url
        ask(page, "hello")
        assert all(text.startswith("1 messages") for text in replies(page))
    finally:
        site.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_every_page_fits_and_complains_of_nothing(site, browser, width, scheme):
    page, asked, complaints = watched(browser, width, scheme)
    for path in PAGES:
        page.goto(f"{site.home}{path}", wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.locator("h1").count() == 1 and page.locator("[aria-current=page]").count() == 1, path
    opened(page, site.home)
    ask(page, "hello " + "x" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("Send", "Stop", "Clear"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box is not None and box["height"] >= 40 and box["y"] + box["height"] <= 900, "always within reach"
    last = page.locator(".exchange .how").last.bounding_box()
    bar = page.locator(".composer").bounding_box()
    assert last["y"] + last["height"] <= bar["y"] + 1, "the newest answer is not behind the message box"
    assert complaints == [] and [url for url in asked if not url.startswith(site.home)] == []


def test_a_screen_reader_hears_what_each_control_is_and_when_an_answer_is_whole(site, browser):
    page, _, _ = watched(browser)
    opened(page, site.home)
    for letter in ("A", "B"):
        assert page.get_by_role("combobox", name=f"Model of {letter}").count() == 1
        assert page.get_by_role("slider", name=f"Strength of {letter}", exact=True).count() == 1
        assert page.get_by_role("group", name=f"Model {letter}").count() == 1
    assert page.get_by_role("textbox", name="Message to both").count() == 1
    ask(page, "hello")
    assert page.get_by_role("region", name="Answer of A").count() == 1
    assert page.locator('.reply[aria-live="polite"][aria-busy="false"]').count() == 2
    assert page.get_by_role("status").inner_text() == "Both have answered."


def test_the_curves_of_a_run_are_drawn_without_a_network(site, browser):
    page, asked, complaints = watched(browser)
    page.goto(f"{site.home}/runs/ppo-20261124-101500")
    page.wait_for_selector(".plot .scatterlayer path")
    assert complaints == [] and [url for url in asked if not url.startswith(site.home)] == []


def test_a_report_runs_in_a_world_of_its_own(site, browser):
    page, _, _ = watched(browser)
    page.goto(f"{site.home}/runs")
    page.get_by_role("link", name="report").click()
    page.wait_for_selector("text=ran")
    page.wait_for_selector("#who:text('ran')")
    for _ in range(50):
        if page.evaluate("window.called"):
            break
        page.wait_for_timeout(50)
    assert page.evaluate("window.called") == "no" and page.evaluate("window.cookies").startswith("none")
    assert page.evaluate("self.origin") == "null"


def test_the_graph_leads_to_an_adapter_and_the_check_runs_on_demand(site, browser):
    page, _, complaints = watched(browser)
    page.goto(f"{site.home}/registry")
    assert page.locator("svg.lineage rect").count() == 6
    page.get_by_role("button", name="Check every file").click()
    page.wait_for_selector("text=are as the ledger says")
    page.locator("svg.lineage a").nth(1).click()
    page.wait_for_selector("text=Model card")
    assert page.locator("h1").inner_text() == "dpo"
    assert "window.ran = 1" in page.locator(".card").first.inner_text() and page.evaluate("window.ran") is None
    assert complaints == []
