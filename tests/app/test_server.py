"""Who may look, and what a request may be. No browser: what a hostile client could send."""

import socket

import pytest
from fastapi.testclient import TestClient

from annotation_stores import store_with
from rlhflab.app.annotate import Desk, annotation_app
from rlhflab.app.server import LARGEST_REQUEST, Access, address, bind, is_loopback
from rlhflab.data.judging import Plan
from rlhflab.errors import ConfigError

SECRET = "a-secret-of-32-random-characters"


def client(folder, *, token=SECRET, people=("anna", "ben"), base="http://127.0.0.1:8484"):
    store = store_with(folder, people=people)
    access = Access.of(people, token=token, host="127.0.0.1")
    desk = Desk(store=store, annotators=people, adjudicators=(), plan=Plan(gold_every=0), count_every=0)
    made = TestClient(annotation_app(desk, access), base_url=base, follow_redirects=False)
    made.headers["Origin"] = base
    return made, access, store


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_what_others_can_reach_needs_a_token(host):
    with pytest.raises(ConfigError, match=f"--host {host}: other machines can reach it, so a token is needed"):
        Access.of(("anna",), token=None, host=host)
    assert Access.of(("anna",), token=SECRET, host=host).only is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_the_loopback_needs_none_for_one_person(host):
    assert is_loopback(host)
    assert Access.of(("anna",), token=None, host=host).only == "anna"
    assert Access.of(("anna", "ben"), token=None, host=host).only is None, "several people have to be told apart"


def test_a_token_that_can_be_guessed_is_refused_without_being_repeated():
    with pytest.raises(ConfigError, match="--token: has 6 characters, at least 16") as error:
        Access.of(("anna",), token="secret", host="127.0.0.1")
    assert "secret" not in str(error.value)


def test_the_same_token_makes_the_same_links_and_another_one_voids_them():
    first, again, other = (Access.of(("anna",), token=token, host="0.0.0.0")
                           for token in (SECRET, SECRET, SECRET + "x"))
    link = first.link("http://host:1", "anna")
    assert link == again.link("http://host:1", "anna") and SECRET not in link
    key = link.partition("#")[2]
    assert first.person_with(key, "enter") == "anna" and other.person_with(key, "enter") is None
    assert first.person_with(key, "stay") is None, "a link is no cookie"


def test_a_key_opens_the_page_of_its_person_and_no_other(tmp_path):
    pages, access, _ = client(tmp_path)
    assert pages.get("/").status_code == 401
    assert pages.post("/enter", data={"key": f"ben.{access.key('anna')}"}).status_code == 403
    assert pages.post("/enter", data={"key": "\u00fc.\u00fc"}).status_code == 403
    entered = pages.post("/enter", data={"key": f"anna.{access.key('anna')}"})
    assert entered.status_code == 303
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert ">anna<" in pages.get("/").text


@pytest.mark.parametrize("cookie", ["", "!!!", "YW5uYS5ub25l", "/w=="])
def test_a_cookie_that_was_not_given_is_nobody(tmp_path, cookie):
    pages, _, _ = client(tmp_path)
    pages.cookies.set("rlhflab", cookie)
    assert pages.get("/").status_code == 401


@pytest.mark.parametrize(("headers", "status"), [
    ({"Origin": "http://evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": ""}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Content-Length": str(LARGEST_REQUEST + 1)}, 413),
    ({"Content-Type": "application/json"}, 415)])
def test_a_form_from_elsewhere_changes_nothing(tmp_path, headers, status):
    pages, _, store = client(tmp_path, token=None, people=("anna",))
    page = pages.get("/").text
    form = {name: page.partition(f'name="{name}" value="')[2].partition('"')[0]
            for name in ("form_key", "assignment", "submission")}
    answer = pages.post("/judge", data={**form, "verdict": "first"}, headers=headers)
    assert answer.status_code == status and store.counts()["judgments"] == 0
    assert pages.post("/judge", data={**form, "form_key": "0" * 64, "verdict": "first"}).status_code == 403
    assert store.counts()["judgments"] == 0
    assert pages.post("/judge", data={**form, "verdict": "first"}).status_code == 303
    assert store.counts()["judgments"] == 1


def test_a_body_that_hides_its_length_is_stopped(tmp_path):
    pages, _, _ = client(tmp_path)

    def body():
        for _ in range(LARGEST_REQUEST // 1024 + 2):
            yield b"x" * 1024

    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    assert pages.post("/enter", content=body(), headers=kind).status_code == 413


def test_without_keys_a_foreign_host_name_is_refused(tmp_path):
    pages, _, _ = client(tmp_path, token=None, people=("anna",))
    assert pages.get("/", headers={"Host": "evil.example:8484"}).status_code == 421
    assert pages.get("/", headers={"Host": "localhost:8484"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/enter", "/nothing", "/static/annotate.js", "/conflicts"])
def test_every_answer_forbids_what_a_page_may_not_do(tmp_path, path):
    pages, _, _ = client(tmp_path)
    headers = pages.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "same-origin")
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/static/../server.py",
                                  "/static/%2e%2e/server.py"])
def test_nothing_but_the_pages_is_served(tmp_path, path):
    pages, _, _ = client(tmp_path)
    assert pages.get(path).status_code == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(tmp_path, method):
    pages, _, _ = client(tmp_path)
    assert pages.request(method, "/judge").status_code == 405


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: is in use by another program"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_is_one_sentence():
    with pytest.raises(ConfigError, match=r"--host 203\.0\.113\.1 --port 0: cannot be used"):
        bind("203.0.113.1", 0)


def test_a_socket_sends_small_pieces_at_once():
    with bind("127.0.0.1", 0) as bound:
        assert bound.proto == socket.IPPROTO_TCP, "asyncio leaves Nagle's algorithm on where the protocol is not named"
        assert address(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}"
