"""Requests of OpenAI's form to what the service is asked, and its pieces back. A made-up service, no model."""

import json
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from rlhflab.app.gate import Keys
from rlhflab.app.openai_api import serving_app
from rlhflab.data.types import Message
from rlhflab.runs.requests import Piece, Refused, ServedModel, TokenSaid

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
TURNS = [{"role": "user", "content": "q"}]
PIECES = [Piece(1, "yes"), Piece(0, "no"), Piece(0, "!", (), "stop", 3), Piece(1, "", (), "length", 2)]


class MadeUp:
    """Delivers what it was given, and keeps what it was asked."""

    def __init__(self, pieces=PIECES[1:3], error=None):
        self.pieces, self.error, self.asked, self.cancelled = pieces, error, [], 0

    def models(self):
        return [ServedModel(name="a/base", kind="base", digest="b", parent=None, parent_name=None,
                            parent_recorded=False)]

    def write(self, request, deliver):
        self.asked.append(request)
        if self.error:
            raise self.error
        for piece in self.pieces:
            deliver(piece)
        return SimpleNamespace(choices=len({piece.choice for piece in self.pieces}), prompt_tokens=5,
                               fingerprint="b", cancel=self.cancel)

    def cancel(self):
        self.cancelled += 1


def ask(service, path=CHAT, **body):
    client = TestClient(serving_app(service, keys=Keys(digests={})), base_url="http://127.0.0.1",
                        raise_server_exceptions=False)
    needed = {"model": "m"} | ({"messages": TURNS} if path == CHAT else {"prompt": "p"})
    return client.post(path, json={**needed, **body})


def sentence(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def test_choices_come_in_order_with_what_was_used():
    service = MadeUp(PIECES)
    found = ask(service, n=2).json()
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in found["choices"]] == [
        (0, "no!", "stop"), (1, "yes", "length")]
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert found["object"] == "chat.completion" and found["model"] == "m" and service.cancelled


def test_a_request_reaches_the_service_as_it_was_sent():
    service = MadeUp()
    ask(service, messages=[{"role": "developer", "content": "d"}, {"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], max_completion_tokens=7, temperature=0,
        top_p=0.5, seed=3, stop=["x", "y"], strength=1.5, mixture={"z": 0.5}, logprobs=True, user="u", store=False)
    [asked] = service.asked
    assert asked.prompts == ((Message(role="system", content="d"), Message(role="user", content="ab")),)
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed, asked.stop, asked.top_logprobs) == (
        7, 0, 0.5, 3, ("x", "y"), 0)
    assert (asked.strength, asked.mixture) == (1.5, {"z": 0.5})


@pytest.mark.parametrize(("given", "prompts"), [
    ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))])
def test_a_completion_takes_texts_and_token_ids(given, prompts):
    service = MadeUp()
    found = ask(service, PLAIN, prompt=given).json()
    assert service.asked[0].prompts == prompts and service.asked[0].max_tokens == 16
    assert found["choices"][0]["text"] == "no!" and found["object"] == "text_completion"


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_opens_each_choice_and_ends_with_usage():
    *chunks, last = events(ask(MadeUp(PIECES), stream=True, stream_options={"include_usage": True}))
    deltas = [(c["choices"][0]["index"], c["choices"][0]["delta"], c["choices"][0]["finish_reason"]) for c in chunks]
    assert deltas == [(0, {"role": "assistant", "content": ""}, None), (1, {"role": "assistant", "content": ""}, None),
                      (1, {"content": "yes"}, None), (0, {"content": "no"}, None), (0, {"content": "!"}, "stop"),
                      (1, {}, "length")]
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None for chunk in chunks)
    assert "usage" not in events(ask(MadeUp(), stream=True))[0]


def test_logprobs_have_openais_two_forms():
    service = MadeUp([Piece(0, "é", (TokenSaid("é", -0.5, (("é", -0.5), ("a", -1.0))),)), Piece(0, "", (), "stop", 1)])
    [token] = ask(service, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert token == {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
        {"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "a", "logprob": -1.0, "bytes": [97]}]}
    assert ask(service, PLAIN, logprobs=2).json()["choices"][0]["logprobs"] == {
        "tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"é": -0.5, "a": -1.0}], "text_offset": []}


@pytest.mark.parametrize(("body", "words"), [
    ({"messages": []}, "messages: list should have at least 1 item"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: input should be 'system', 'developer'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages.0.content.0.type: input should be 'text', found \"image_url\""),
    ({"messages": "hi"}, "messages: input should be a valid list, found \"hi\""),
    ({"model": ""}, "model: string should have at least 1 character"),
    ({"model": 7}, "model: input should be a valid string, found 7"),
    ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1, found 0"),
    ({"max_tokens": 1.5}, "max_tokens: input should be a valid integer"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens: max_completion_tokens says something else"),
    ({"temperature": -1}, "temperature: input should be greater than or equal to 0, found -1"),
    ({"temperature": "hot"}, "temperature: input should be a valid number, found \"hot\""),
    ({"top_p": 0}, "top_p: input should be greater than 0"), ({"n": 0}, "n: input should be greater"),
    ({"n": 10**6}, "n: input should be less than or equal to 128"),
    ({"seed": 2**63}, "seed: input should be less than"), ({"seed": True}, "seed: input should be a valid integer"),
    ({"stop": ["a"] * 5}, "stop: list should have at most 4 items"), ({"stop": ""}, "should have at least 1 character"),
    ({"strength": 1.6}, "strength: input should be less than or equal to 1.5, found 1.6"),
    ({"strength": -0.1}, "strength: input should be greater than or equal to 0, found -0.1"),
    ({"mixture": {"a": 2}}, "mixture.a: input should be less than or equal to 1.5, found 2"),
    ({"mixture": ["a"]}, "mixture: input should be a valid dictionary"),
    ({"stream": "yes"}, "stream: input should be a valid boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options: needs stream true"),
    ({"top_logprobs": 2}, "top_logprobs: needs logprobs true"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs: input should be less than or equal to 20"),
    ({"logit_bias": {"1": 2}}, "logit_bias: is not supported here; leave it out, or at {}"),
    ({"frequency_penalty": 0.5}, "frequency_penalty: is not supported here; leave it out, or at 0"),
    ({"tools": [{"type": "function"}]}, "tools: is not supported here"),
    ({"response_format": {"type": "json_object"}}, "response_format: is not supported here"),
    ({"temprature": 1}, "temprature: unknown key; known are logprobs, max_completion_tokens, max_tokens, messages")])
def test_what_is_wrong_is_a_sentence_and_nothing_is_asked(body, words):
    service = MadeUp()
    assert words in sentence(ask(service, **body))
    assert not service.asked


@pytest.mark.parametrize("prompt", [[], [[]], ["a", 1], [1, -1], [True], [1.5], {"a": 1}, [["a"]], 7])
def test_a_prompt_is_text_or_token_ids(prompt):
    assert "prompt: must be text, a list of token ids, or" in sentence(ask(MadeUp(), PLAIN, prompt=prompt))


@pytest.mark.parametrize(("content", "kind", "status", "words"), [
    (b"{", "application/json", 400, "the body is not JSON in UTF-8"), (b"", "application/json", 400, "is not JSON"),
    (b"[]", "application/json", 400, "the body must be a JSON object, found list"),
    (b'{"model": "\xff"}', "application/json", 400, "is not JSON in UTF-8"),
    (b'{"model": "\\ud800"}', "application/json", 400, "surrogates not allowed"),
    (b'{"temperature": NaN}', "application/json", 400, "NaN is no number in JSON"),
    (b'{"temperature": 1e999, "model": "m", "messages": [{"role": "user", "content": "q"}]}', "application/json", 400,
     "temperature: input should be"),
    (b"[" * 100000, "application/json", 400, "nested too deeply"),
    (b"{}", "text/plain", 415, "must be application/json, found text/plain"), (b"{}", "", 415, "no content type")])
def test_bodies_that_are_none(content, kind, status, words):
    client = TestClient(serving_app(MadeUp(), keys=Keys(digests={})), base_url="http://127.0.0.1")
    answer = client.post(CHAT, content=content, headers={"Content-Type": kind} if kind else {})
    assert words in sentence(answer, status)


def test_refusals_of_the_service_keep_their_status_and_when_to_come_again():
    answer = ask(MadeUp(error=Refused("full", status=429, code="queue_full", retry_after=1)))
    assert sentence(answer, 429) == "full" and answer.headers["retry-after"] == "1"
    assert ask(MadeUp(error=Refused("no", status=404, param="model"))).json()["error"]["type"] == "not_found_error"


def test_an_answer_that_failed_is_an_error_whole_and_in_a_stream():
    service = MadeUp([Piece(0, "no"), Piece(0, "", (), "failed", 1)])
    assert sentence(ask(service), 500) == "the server could not finish this answer; ask again"
    last = ask(service, stream=True).text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


def test_what_nobody_foresaw_tells_nothing_of_the_inside():
    assert sentence(ask(MadeUp(error=ValueError("a secret"))), 500) == "the server failed at this request"


def test_models_are_told_with_what_the_lab_knows():
    client = TestClient(serving_app(MadeUp(), keys=Keys(digests={})), base_url="http://127.0.0.1")
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "a/base" and model["object"] == "model" and model["rlhflab"]["kind"] == "base"
    assert client.get("/v1/models/a/base").json() == model
    assert "no model is called 'none'" in sentence(client.get("/v1/models/none"), 404)
    assert "/v1/embeddings: no such path" in sentence(client.post("/v1/embeddings", json={}), 404)
    assert "is not reached by GET" in sentence(client.get(CHAT), 405)
    assert client.get("/elsewhere").json() == {"detail": "Not Found"}
