"""A server that scores answers: what is sent, what is asked for again, and what stops the run."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local_server import LocalServer
from rlhflab.config import RewardSource
from rlhflab.data.types import Message, Prompt, Rollout
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import make_reward

Reply = tuple[int, str] | Callable[[], tuple[int, str]]


class Server(LocalServer):
    """Answers with the given replies, one after the other, the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.authorizations: list[str | None] = []
        super().__init__()
        self.url += "/score"

    def answer(self, path: str, content: Any, authorization: str | None) -> tuple[int, str]:
        self.paths.append(path)
        self.authorizations.append(authorization)
        self.asked.append(content)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply() if callable(reply) else reply


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with made.running():
        yield made


@pytest.fixture
def ask(llama: SharedModel, server: Server) -> Callable[..., list[float | None]]:
    """Post the texts; with options that keep the test quick."""
    def scores(*texts: str, url: str = "", **options: Any) -> list[float | None]:
        source = RewardSource(name="http", url=url or server.url, **{"wait": 0.0, "retries": 2, **options})
        reward = make_reward([source], llama, micro_tokens=64)
        return [score.value for score in reward([rollout(text) for text in texts])]

    return scores


def rollout(text: str) -> Rollout:
    return Rollout(prompt=Prompt(id="p", messages=(Message(role="user", content="Hi"),), facts={"secret": 1}),
                   prompt_ids=(1,), token_ids=(5, 2), logprobs=(0.0, 0.0), text=text, finish="stop", seed=0)


def scores(*values: Any) -> tuple[int, str]:
    return 200, json.dumps({"scores": list(values)})


def test_answers_are_posted_in_batches_without_their_facts(ask: Callable[..., Any], server: Server) -> None:
    server.replies = [scores(1, -0.5), scores(2.5)]
    assert ask("a", "b", "é", batch=2) == [1.0, -0.5, 2.5]
    assert [len(each["answers"]) for each in server.asked] == [2, 1]
    assert server.asked[1] == {"answers": [{"messages": [{"role": "user", "content": "Hi"}], "answer": "é"}]}


def test_null_is_unscored(ask: Callable[..., Any], server: Server) -> None:
    server.replies = [scores(None, 0)]
    assert ask("a", "b") == [None, 0.0]


@pytest.mark.parametrize("bad", [
    (500, "oops"), (429, "slow down"), (200, "not json"), (200, "[1]"), (200, '{"scores": 1}'),
    (200, '{"scores": [1, 2]}'), (200, '{"scores": [NaN]}'), (200, '{"scores": [Infinity]}'),
    (200, '{"scores": ["1"]}'), (200, '{"scores": [true]}')])
def test_what_may_pass_is_asked_for_again(bad: Reply, ask: Callable[..., Any], server: Server) -> None:
    server.replies = [bad, bad, scores(3)]
    assert ask("a") == [3.0] and len(server.asked) == 3


@pytest.mark.parametrize(("bad", "sentence"), [
    ((503, ""), "in 3 attempts, the last time: HTTP Error 503"),
    ((200, '{"scores": [NaN]}'), "nan is not a finite number or null"),
    ((200, '{"scores": []}'), "0 scores came for 1 answers"),
    ((200, '{"scores": ["x"]}'), "'x' is not a finite number or null"),
    ((200, '{"score": 1}'), "is not an object with a list 'scores'"),
])
def test_what_stays_wrong_stops_the_run(bad: Reply, sentence: str, ask: Callable[..., Any], server: Server) -> None:
    server.replies = [bad]
    with pytest.raises(RunError, match=rf"{server.url}: gave no usable scores .*{sentence}"):
        ask("a")
    assert len(server.asked) == 3


def test_a_server_that_is_too_slow_is_asked_again_and_then_stops_the_run(
        ask: Callable[..., Any], server: Server) -> None:
    over = threading.Event()

    def silent() -> tuple[int, str]:
        over.wait()
        return scores(2)

    try:
        server.replies = [silent, scores(1)]
        # A busy machine may be too slow for the good reply as well: then it is asked for once more.
        assert ask("a", timeout=0.05, retries=1000) == [1.0] and len(server.asked) >= 2
        server.replies = [silent]
        with pytest.raises(RunError, match=r"in 2 attempts, .*timed out"):
            ask("a", timeout=0.05, retries=1)
    finally:
        over.set()


def test_waiting_doubles(ask: Callable[..., Any], server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("rlhflab.rollout.http.time.sleep", waited.append)
    server.replies = [(500, "")]
    with pytest.raises(RunError):
        ask("a", wait=0.5, retries=3)
    assert waited == [0.5, 1.0, 2.0]


def test_a_refusal_is_not_asked_for_again(ask: Callable[..., Any], server: Server) -> None:
    server.replies = [(404, "")]
    with pytest.raises(RunError, match="refused the answers with status 404"):
        ask("a")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_answers_go_nowhere_else(status: int, ask: Callable[..., Any], server: Server) -> None:
    server.replies = [(status, server.url.replace("/score", "/elsewhere"))]
    with pytest.raises(RunError, match=f"refused the answers with status {status}"):
        ask("a")
    assert server.paths == ["/score"]


def test_nobody_there_stops_the_run(ask: Callable[..., Any]) -> None:
    with pytest.raises(RunError, match="refused"):
        ask("a", url="http://127.0.0.1:9/", timeout=5)


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "localhost:80", "http://"])
def test_only_http_addresses_are_taken(url: str, llama: SharedModel) -> None:
    with pytest.raises(ConfigError, match="is not an http"):
        make_reward([RewardSource(name="http", url=url)], llama, micro_tokens=64)


TOKEN = "s3cret-t0ken"


def test_a_token_comes_from_the_environment_and_goes_into_the_header_alone(
        ask: Callable[..., Any], server: Server, monkeypatch: pytest.MonkeyPatch, llama: SharedModel) -> None:
    monkeypatch.setenv("REWARD_TOKEN", f"{TOKEN}\n")  # as a file with a line's end would set it
    server.replies = [scores(1), scores(None), (401, "who are you"), (503, "")]
    source = RewardSource(name="http", url=server.url, token_env="REWARD_TOKEN", wait=0.0, retries=0)
    reward = make_reward([source], llama, micro_tokens=64)
    said = [str(reward([rollout("a")])) for _ in range(2)] + [str(source.model_dump())]
    for _ in range(2):
        with pytest.raises(RunError) as error:
            reward([rollout("a")])
        said.append(str(error.value))
    assert server.authorizations == [f"Bearer {TOKEN}"] * 4
    assert "status 401" in said[3] and not any(TOKEN in words for words in [*said, str(server.asked)])
    server.replies = [scores(1)]
    ask("a")
    assert server.authorizations[-1] is None, "where none is asked for none is sent"


@pytest.mark.parametrize(("token", "sentence"), [
    (None, "the environment variable REWARD_TOKEN is not set"), (" ", "REWARD_TOKEN is not set"),
    (f"{TOKEN}\r\nX: y", "the token in REWARD_TOKEN has characters"), (f"{TOKEN}é", "has characters that no header")])
def test_a_token_that_cannot_be_sent_is_not_shown_either(
        token: str | None, sentence: str, ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("REWARD_TOKEN", token)
    with pytest.raises(ConfigError, match=sentence) as error:
        ask("a", token_env="REWARD_TOKEN")
    assert TOKEN not in str(error.value)
