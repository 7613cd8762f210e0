"""Who may ask, how often and how much: what a hostile client could send. What is asked is in test_openai_api."""

import asyncio

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from rlhflab.app.gate import Gate, Keys, Rate, read_keys
from rlhflab.errors import ConfigError

KEY, OTHER = "a-key-of-twenty-chars", "another-key-of-some-chars"
HERE = "http://127.0.0.1:8000"


def client(*, keys=(), rate=None, base=HERE, clock=lambda: 0.0):
    app = FastAPI()

    @app.api_route("/v1/echo", methods=["GET", "POST"])
    async def echo(request: Request) -> int:
        return len(await request.body())

    @app.get("/page")
    async def page() -> str:
        return "a page"

    app.add_middleware(Gate, keys=keys_of(*keys), largest=100, rate=None if rate is None else Rate(
        a_minute=rate, clock=clock))
    return TestClient(app, base_url=base)


def keys_of(*keys):
    from hashlib import sha256

    return Keys(digests={f"k{i}": sha256(key.encode()).digest() for i, key in enumerate(keys)})


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("given", [{}, bearer("wrong"), bearer(""), bearer(KEY[:-1]), bearer(KEY + "x"),
                                   {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"X-Api-Key": KEY}])
def test_without_a_right_key_nothing_is_answered(given):
    answer = client(keys=(KEY, OTHER)).post("/v1/echo", content=b"abc", headers=given)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": {"message": "the API key is missing or wrong; send Authorization: Bearer KEY",
                                       "type": "authentication_error", "param": None, "code": "invalid_api_key"}}


@pytest.mark.parametrize("key", [KEY, OTHER])
def test_each_right_key_lets_one_in(key):
    answer = client(keys=(KEY, OTHER)).post("/v1/echo", content=b"abc", headers=bearer(key))
    assert answer.json() == 3
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


def test_a_key_is_compared_with_all_of_them(monkeypatch):
    compared = []
    monkeypatch.setattr("rlhflab.app.gate.hmac.compare_digest", lambda a, b: compared.append(len(b)) or a == b)
    assert keys_of(KEY, OTHER).holder(KEY) == "k0"
    assert compared == [32, 32], "digests, each time as many"


def test_other_hosts_need_keys_and_short_keys_are_refused_without_being_repeated(tmp_path):
    with pytest.raises(ConfigError, match=r"--host 0.0.0.0: other machines can reach it, so keys are needed"):
        Keys.of(token=None, file=None, host="0.0.0.0")
    assert Keys.of(token=KEY, file=None, host="0.0.0.0").holder(KEY) == "token"
    with pytest.raises(ConfigError, match="--token: a key is at least 16 random ASCII characters, found 6;") as error:
        Keys.of(token="secret", file=None, host="127.0.0.1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "holds no keys"), (f"anna {KEY} x\n", ":1: must be NAME KEY, found 3 words"),
    (f"# keys\n\nanna {KEY}\n{OTHER}\n", ":4: must be NAME KEY, found 1 words"),
    (f"anna {KEY}\nanna {OTHER}\n", ":2: anna has a key already"), ("anna short\n", ":1: a key is at least 16")])
def test_a_file_of_keys_is_named_with_its_line(tmp_path, text, sentence):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"--api-keys: .*keys:? ?.*{sentence}") as error:
        read_keys(path)
    assert KEY not in str(error.value) and OTHER not in str(error.value)
    path.write_text(f"# keys\nanna {KEY}\n ben\t{OTHER}\n")
    assert read_keys(path) == {"anna": KEY, "ben": OTHER}


def test_without_keys_only_the_names_of_this_machine_are_answered():
    for base in ("http://rebound.example:8000", "http://10.0.0.1"):
        assert client(base=base).get("/v1/echo").status_code == 421
        assert client().get("/v1/echo", headers={"Host": "["}).status_code == 421
        assert client(base=base, keys=(KEY,)).get("/v1/echo", headers=bearer(KEY)).status_code == 200
    for base in (HERE, "http://localhost", "http://[::1]:1"):
        assert client(base=base).get("/v1/echo").status_code == 200


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://["},
                                     {"Origin": "http://127.0.0.1:9999"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_from_elsewhere_is_not_answered(headers):
    assert client().post("/v1/echo", content=b"{}", headers=headers).status_code == 403
    assert client().post("/v1/echo", content=b"{}", headers={"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
                         ).status_code == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_only_get_and_post(method):
    assert client().request(method, "/v1/echo").status_code == 405


def test_what_is_too_large_is_refused_by_its_length_and_by_what_comes():
    made = client()
    assert made.post("/v1/echo", content=b"x" * 100).json() == 100
    answer = made.post("/v1/echo", content=b"x" * 101)
    assert answer.status_code == 413 and answer.json()["error"]["message"] == \
        "a request has at most 100 bytes, found 101"
    assert made.post("/v1/echo", content=iter([b"x" * 60, b"x" * 60])).status_code == 413


def asgi(app, *messages):
    """What an app sends in answer to these messages; asking for one more is an error."""
    sent, coming = [], iter(messages)

    async def receive():
        return next(coming)

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "path": "/v1/echo", "method": "POST", "query_string": b"", "headers": [
        (b"host", b"127.0.0.1")]}, receive, send))
    return sent, list(coming)


def test_a_refused_body_is_read_to_its_end_and_not_beyond():
    part = {"type": "http.request", "body": b"x" * 60, "more_body": True}
    parts = [part, part, part, {"type": "http.request", "body": b"", "more_body": False}, "never asked for"]
    app = client().app
    for messages in (parts, [*parts[:1], {**part, "more_body": False}, "never asked for"]):
        sent, left = asgi(app, *messages)
        assert sent[0]["status"] == 413 and left == ["never asked for"]


def test_each_key_has_a_rate_that_fills_again():
    now = [0.0]
    made = client(keys=(KEY, OTHER), rate=2, clock=lambda: now[0])
    statuses = [made.get("/v1/echo", headers=bearer(KEY)).status_code for _ in range(3)]
    assert statuses == [200, 200, 429] and made.get("/v1/echo", headers=bearer(OTHER)).status_code == 200
    now[0] = 10.0
    answer = made.get("/v1/echo", headers=bearer(KEY))
    assert answer.headers["retry-after"] == "20", "a third of a permission is there, one comes every 30 s"
    assert answer.json()["error"]["type"] == "rate_limit_error"
    now[0] = 30.0
    assert made.get("/v1/echo", headers=bearer(KEY)).status_code == 200


def test_other_paths_are_not_the_gates_business():
    made = client(keys=(KEY,), rate=1)
    assert [made.get("/page").status_code for _ in range(3)] == [200] * 3
    assert made.get("/v1").status_code == 401
