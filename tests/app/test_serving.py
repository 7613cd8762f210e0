"""The official client against a real server on the loopback: adapters, strength, mixtures, streams, refusals."""

import json
import socket
import threading
import time
from dataclasses import replace
from urllib.parse import urlsplit

import openai
import pytest
import torch

import registry_folders
from conftest import moved_role
from rlhflab.app.gate import Keys
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.live import LiveBatch
from rlhflab.runs.drift_sources import Source, read_replies
from served_adapters import BASE, SMALL, client, registry_with, running, said, service_with
from slow_twins import plain_generate

TURNS = [{"role": "user", "content": "Where is the key?"}]
FREE = {"temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return registry_with(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(made):
    return service_with(made, mine=made.folder.parent / "trained" / "alone")


@pytest.fixture(scope="module")
def url(service):
    with running(service) as found:
        yield found


@pytest.fixture
def ask(url):
    opened = client(url)

    def asked(model, *, strength=None, mixture=None, **options):
        extra = {key: value for key, value in (("strength", strength), ("mixture", mixture)) if value is not None}
        return opened.chat.completions.create(model=model, messages=TURNS, extra_body=extra, **{**FREE, **options})

    return asked


def right(service, role, *, seed=None, weights=None, limit=12):
    """What naive generation writes with an adapter, or with these amounts of several, set into the weights."""
    model = SharedModel.load(BASE, dtype="float32", device="cpu")
    for place, name in enumerate(("sft", "brief", "polite", "alone"), start=1):
        moved_role(model, name, seed=place)
    if weights:
        merged = {name: model.merged_weights(name) for name in weights}
        layers = dict(model.base.model.named_parameters())
        with torch.no_grad():
            for key in merged[next(iter(weights))]:
                base = layers[key.replace(".weight", ".base_layer.weight")]
                base.copy_(base + sum(weight * (merged[name][key] - base) for name, weight in weights.items()))
    prompt = service.lab.chat._ids(service.lab.chat.tokenizer.apply_chat_template(
        TURNS, tokenize=False, add_generation_prompt=True))
    with torch.no_grad():
        ids, _ = plain_generate(model, prompt, role, seed=seed, max_new_tokens=limit,
                                stop_ids=service.lab.chat.stop_ids)
    return service.lab.chat.text(ids)


def refused(error, status, words):
    assert error.value.status_code == status and words in str(error.value), str(error.value)


def test_models_are_listed_with_kind_digest_and_parent(url, made):
    listed = {model.id: model.rlhflab for model in client(url).models.list()}
    assert list(listed) == [BASE, "mine", "sft", "brief", "polite", "alone"]
    digests = {adapter.name: adapter.digest for adapter in made.state().adapters.values()}
    assert listed["brief"] == {"kind": "adapter", "digest": digests["brief"], "parent": digests["sft"],
                               "parent_name": "sft", "parent_recorded": True}
    assert listed["mine"]["digest"] == digests["alone"] and not listed["mine"]["parent_recorded"]
    assert client(url).models.retrieve("sft").id == "sft"


@pytest.mark.parametrize("model", [BASE, "sft", "brief", "mine"])
def test_each_model_answers_as_naive_generation_does(service, ask, model):
    assert said(ask(model)) == right(service, {BASE: None, "mine": "alone"}.get(model, model))


def test_a_seed_is_the_labs_own(service, ask):
    assert said(ask("sft", temperature=1, seed=7)) == right(service, "sft", seed=7)


def test_the_coldest_temperature_takes_the_likeliest_tokens(ask):
    assert said(ask("sft", temperature=1e-300, seed=1)) == said(ask("sft", temperature=0))


def test_strength_0_is_the_parent_and_1_the_child(ask):
    parent, child = ask("sft"), ask("brief")
    assert said(ask("brief", strength=0)) == said(parent) != said(child)
    assert said(ask("brief", strength=1)) == said(child)
    assert ask("brief", strength=0).system_fingerprint == parent.system_fingerprint, "the same weights, no sum of them"
    assert said(ask("sft", strength=0)) == said(ask(BASE))


@pytest.mark.parametrize("strength", [0.25, 1.5])
def test_strength_between_equals_weights_set_by_hand(service, ask, strength):
    assert said(ask("brief", strength=strength)) == right(
        service, None, weights={"sft": 1 - strength, "brief": strength})


def test_a_mixture_equals_weights_set_by_hand(service, ask):
    mixed = said(ask(BASE, mixture={"brief": 0.6, "polite": 0.7}))
    assert mixed == right(service, None, weights={"sft": -0.3, "brief": 0.6, "polite": 0.7})
    assert mixed not in (said(ask("brief")), said(ask("sft")))
    assert said(ask("brief", mixture={"brief": 1.0})) == said(ask("brief"))
    assert said(ask("brief", mixture={"brief": 0, "polite": 0})) == said(ask("sft"))


def test_a_stream_is_the_whole_answer_in_pieces(url, ask):
    whole = ask("sft", temperature=1, seed=5, n=2, max_tokens=24)
    texts, finishes = {0: "", 1: ""}, {}
    for chunk in ask("sft", temperature=1, seed=5, n=2, max_tokens=24, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes.get(choice.index)
    assert texts == {c.index: c.message.content for c in whole.choices}
    assert finishes == {c.index: c.finish_reason for c in whole.choices}
    assert texts[0] != texts[1], "each choice has a seed of its own"


def test_completions_go_on_from_text_and_from_ids(url, service):
    opened = client(url)
    ids = service.lab.chat.tokenizer("ab").input_ids
    found = opened.completions.create(model="sft", prompt=["ab", "cd"], temperature=0, max_tokens=6, logprobs=1)
    again = opened.completions.create(model="sft", prompt=ids, temperature=0, max_tokens=6)
    assert found.choices[0].text == again.choices[0].text and found.usage.prompt_tokens == 4
    assert found.choices[0].logprobs.token_logprobs[0] == pytest.approx(
        max(found.choices[0].logprobs.top_logprobs[0].values()))
    pieces = opened.completions.create(model="sft", prompt="ab", temperature=0, max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text


def test_a_stop_string_ends_an_answer(ask):
    whole = said(ask("sft", max_tokens=24))
    stop = whole[4:6]
    cut = ask("sft", max_tokens=24, stop=[stop])
    assert said(cut) == whole[:whole.index(stop)] and cut.choices[0].finish_reason == "stop"
    assert stop not in "".join(chunk.choices[0].delta.content or "" for chunk in ask(
        "sft", max_tokens=24, stop=stop, stream=True))


def test_requests_of_many_adapters_at_once_are_answered_as_alone(ask):
    wanted = [(name, strength) for name in ("sft", "brief", "polite") for strength in (0.0, 0.5, 1.0)] + [(BASE, None)]
    alone = [said(ask(name, strength=strength)) for name, strength in wanted]
    together = [""] * len(wanted)

    def one(place):
        together[place] = said(ask(wanted[place][0], strength=wanted[place][1]))

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone and len(set(alone)) > 5


@pytest.mark.parametrize(("options", "status", "words"), [
    ({"model": "none"}, 404, "model: no model is called 'none'"),
    ({"strength": 1.6}, 400, "strength: input should be less than or equal to 1.5, found 1.6"),
    ({"model": BASE, "strength": 0.5}, 400, "is the base, which has no change to scale"),
    ({"mixture": {"brief": 0.5, "alone": 0.5}}, 400, "only models with the same parent can be mixed"),
    ({"mixture": {"none": 0.5}}, 404, "mixture: no model is called 'none'"),
    ({"max_tokens": 65}, 400, "max_tokens: 65 are asked for, and this server writes at most 64"),
    ({"max_tokens": 300}, 400, "more than the 256 that fit"),
    ({"n": 17}, 400, "n: 17 answers in one request; at most 16"),
    ({"presence_penalty": 1}, 400, "presence_penalty: is not supported here")])
def test_bad_input_is_a_sentence_for_the_client(ask, options, status, words):
    model = options.pop("model", "brief")
    with pytest.raises(openai.APIStatusError) as error:
        ask(model, **options)
    refused(error, status, words)


def test_prompts_that_do_not_fit_are_named(url):
    opened = client(url)
    for prompt, words in (("x" * 300, "300 tokens of prompt and 16 to write are more than the 256 that fit"),
                          ([5, 320], "prompt: token ids are 0 to 319, found 5 to 320"), ("", "prompt: is empty")):
        with pytest.raises(openai.BadRequestError) as error:
            opened.completions.create(model="sft", prompt=prompt)
        refused(error, 400, words)


def test_who_hangs_up_frees_the_row(url, service):
    """Four streams fill all rows and are left; the next request is answered, and nothing is written any more."""
    opened = client(url)
    streams = [opened.chat.completions.create(model="sft", messages=TURNS, max_tokens=64, temperature=0, stream=True,
                                              stop=["never"]) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
        stream.close()
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as gone:
        body = json.dumps({"model": "sft", "messages": TURNS, "max_tokens": 64}).encode()
        gone.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
    assert said(opened.chat.completions.create(model=BASE, messages=TURNS, **FREE)) is not None
    until(lambda: not service.batch.live and not service.batch._waiting)


def test_active_follows_promotion_and_rollback_without_a_restart(made, service, ask):
    registry_folders.promote(made, "sft")
    first = ask("prod@active")
    assert said(first) == said(ask("sft"))
    registry_folders.promote(made, "brief")
    assert said(ask("prod@active")) == said(ask("brief")) and ask("prod@active").model == "prod@active"
    assert said(ask("prod@active", strength=0)) == said(ask("sft"))
    made.rollback("prod", by="anna", reason="a test")
    assert ask("prod@active").system_fingerprint == first.system_fingerprint
    made.rollback("prod", by="anna", reason="a test", to="base")
    assert said(ask("prod@active")) == said(ask(BASE))


def test_keys_rates_and_sizes_reach_the_official_client(made):
    key = "a-key-of-twenty-chars"
    with running(service_with(None), keys=Keys.of(token=key, file=None, host="127.0.0.1"), rate=3,
                 largest=1000) as found:
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            client(found, "wrong").models.list()
        opened = client(found, key)
        assert [model.id for model in opened.models.list()] == [BASE]
        with pytest.raises(openai.APIStatusError) as error:
            opened.completions.create(model=BASE, prompt="x" * 2000)
        refused(error, 413, "a request has at most 1000 bytes")
        opened.models.list()
        with pytest.raises(openai.RateLimitError) as limit:
            opened.models.list()
        assert int(limit.value.response.headers["retry-after"]) in range(1, 21)


def test_a_full_queue_says_come_again(monkeypatch):
    """One answer is held in its only row, one waits; the third is told to come again, and the two are answered."""
    service, go_on, decode = service_with(None, limits=replace(SMALL, rows=1, queue=1)), threading.Event(), \
        LiveBatch._decode
    monkeypatch.setattr(LiveBatch, "_decode", lambda live: go_on.wait() and decode(live))
    with running(service) as found:
        opened, answers = client(found), []

        def one():
            answers.append(opened.completions.create(model=BASE, prompt=[5], max_tokens=4, temperature=0))

        threads = [threading.Thread(target=one) for _ in range(2)]
        threads[0].start()
        until(lambda: service.batch.live)
        threads[1].start()
        until(lambda: service.batch._waiting)
        with pytest.raises(openai.RateLimitError, match="1 answers are waiting and 1 more were asked") as error:
            one()
        assert error.value.response.headers["retry-after"] == "1"
        go_on.set()
        for thread in threads:
            thread.join()
    assert len(answers) == 2 and answers[0].choices[0].text == answers[1].choices[0].text


def until(true, seconds=60.0):
    """Wait until something is so; AssertionError where it never is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_answers_are_logged_only_where_it_is_switched_on(tmp_path):
    log = tmp_path / "asked.jsonl"
    with running(service_with(None, log=log)) as found:
        texts = [said(client(found).chat.completions.create(model=BASE, messages=TURNS, max_tokens=4, seed=seed))
                 for seed in range(3)]
        client(found).completions.create(model=BASE, prompt="ab", max_tokens=2)
    replies, prompts = read_replies(Source(name=str(log), kind="file"))
    assert [reply.text for reply in replies][:3] == texts and replies[0].prompt == TURNS[0]["content"]
    assert len(prompts) == 2 and json.loads(log.read_text().splitlines()[0])["model"] == BASE


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_files_that_were_changed_are_not_served(tmp_path, name):
    made = registry_with(tmp_path, {"sft": ()})
    path = made.path_of(made.state().find("sft")) / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with running(service_with(made)) as found:
        with pytest.raises(openai.ConflictError, match=f"sft: {name} is [0-9a-f]*, not [0-9a-f]* as recorded"):
            client(found).completions.create(model="sft", prompt="a")
        assert client(found).completions.create(model=BASE, prompt="a").choices


