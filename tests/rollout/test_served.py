"""A server that writes the answers: one that runs the weights just trained, and those that do not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import moved_role
from local_server import LocalServer
from rlhflab.config import Choice
from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.errors import ConfigError, RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import Engine, generate
from rlhflab.rollout.engines import make_engine

PROMPTS = [(1, 50, 60), (1, 70, 71, 72, 73)]
SEEDS = [[5, 6], [7, None]]
OPTIONS: dict[str, Any] = {"role": "policy", "seeds": SEEDS, "max_new_tokens": 6, "stop_ids": [2, 40, 41]}


class Server(LocalServer):
    """tiny-llama behind the part of vLLM's interface that is used."""

    def __init__(self) -> None:
        self.model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        self.lock = threading.Lock()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.stale = False
        """Says yes to a new adapter, and goes on with the one before."""
        self.broken: Callable[[str, dict[str, Any]], dict[str, Any] | None] = lambda path, content: None
        self.roles: dict[str, str | None] = {"tiny-llama": None}
        super().__init__()

    def answer(self, path: str, content: Any, authorization: str | None) -> tuple[int, str]:
        with self.lock:
            self.asked.append((path, content))
            reply = self.broken(path, content) or getattr(self, path.rpartition("/")[2])(**content)
        return 200, json.dumps(reply)

    def load_lora_adapter(self, lora_name: str, lora_path: str) -> dict[str, Any]:
        if self.stale:
            self.roles[lora_name] = list(self.roles.values())[-1]
        else:
            self.model.load_role(lora_name, Path(lora_path))
            self.roles[lora_name] = lora_name
        return {"message": "Success"}

    def unload_lora_adapter(self, lora_name: str) -> dict[str, Any]:
        del self.roles[lora_name]
        return {"message": "Success"}

    def completions(self, model: str, prompt: list[int], *, max_tokens: int, temperature: float, echo: bool = False,
                    seed: int | None = None, stop_token_ids: tuple[int, ...] = (), **more: Any) -> dict[str, Any]:
        role = self.roles[model]
        answer = generate(self.model, [prompt], role=role, seeds=[[seed if temperature else None]],
                          max_new_tokens=max_tokens, stop_ids=stop_token_ids, temperature=temperature or 1.0)[0][0]
        ids, logprobs = list(answer.token_ids), list(answer.logprobs)
        if echo:
            tree = Tree(prompt=tuple(prompt[:1]), answers=(TokenAnswer(ids=tuple(prompt[1:])),))
            with torch.no_grad():
                read = self.model.logprobs(pack([tree]), role).logprob.tolist()
            ids, logprobs = [*prompt, *ids], [None, *read, *logprobs]
        return {"choices": [{"finish_reason": answer.finish, "text": "", "logprobs": {
            "tokens": [f"token_id:{i}" for i in ids], "token_logprobs": logprobs}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    with made.running():
        yield made


@pytest.fixture
def write(llama: SharedModel, server: Server) -> Engine:
    """The engine, on a policy that is not the base."""
    moved_role(llama, "policy")
    return make_engine(Choice(name="openai", url=server.url, retries=1, wait=0.0), llama)


def train(model: SharedModel, size: float = 0.2) -> None:
    with torch.no_grad():
        for parameter in model.parameters("policy"):
            parameter.add_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)))


def test_a_server_writes_what_our_engine_writes_after_every_push(
        write: Engine, llama: SharedModel, server: Server) -> None:
    finished: list[int] = []
    for _ in range(2):
        served, ours = write(PROMPTS, advance=finished.append, **OPTIONS), generate(llama, PROMPTS, **OPTIONS)
        assert [[a.token_ids for a in each] for each in served] == [[a.token_ids for a in each] for each in ours]
        for one, other in zip(chain(*served), chain(*ours), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4) and one.finish == other.finish
        train(llama)
    assert sum(finished) == 8
    assert len(server.roles) == 2, "the base and the last adapter: the one before is forgotten"
    asked = next(content for _, content in server.asked if content.get("seed") == 5)
    assert asked["prompt"] == [1, 50, 60] and asked["return_tokens_as_token_ids"] is True
    assert (asked["top_k"], asked["top_p"], asked["repetition_penalty"]) == (-1, 1.0, 1.0), "the whole distribution"


def test_the_base_is_asked_for_by_its_own_name_with_limits_an_answer(
        write: Engine, llama: SharedModel, server: Server) -> None:
    options = {**OPTIONS, "role": None, "max_new_tokens": [[1, 2], [3, 4]], "stop_ids": []}
    assert [[len(a.token_ids) for a in each] for each in write(PROMPTS, **options)] == [[1, 2], [3, 4]]
    assert {content["model"] for _, content in server.asked} == {"tiny-llama"}


@pytest.mark.parametrize("size", [0.2, 1e-4])
def test_weights_of_the_push_before_are_refused(
        size: float, write: Engine, llama: SharedModel, server: Server) -> None:
    """Also where one small step moved the text by far less than the bound."""
    write(PROMPTS, **OPTIONS)
    train(llama, size)
    server.stale = True
    with pytest.raises(RunError, match=r"does not have the weights just trained: .*went 0% of the way"):
        write(PROMPTS, **OPTIONS)


def test_an_adapter_that_is_taken_and_never_used_is_refused(write: Engine, server: Server) -> None:
    server.stale = True
    with pytest.raises(RunError, match="does not have the weights just trained"):
        write(PROMPTS, **OPTIONS)
    assert not [content for path, content in server.asked if path.endswith("completions") and "echo" not in content]


def test_a_server_of_another_model_is_refused(write: Engine, server: Server) -> None:
    with torch.no_grad():
        server.model.unembedding.mul_(1.2)
    with pytest.raises(RunError, match="does not have the weights just trained"):
        write(PROMPTS, **OPTIONS)


def completion(tokens: list[Any], logprobs: list[Any]) -> dict[str, Any]:
    return {"choices": [{"logprobs": {"tokens": tokens, "token_logprobs": logprobs}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(("reply", "sentence"), [
    ({"choices": []}, "is not a completion with token ids"),
    ({"error": "no"}, "is not a completion with token ids"),
    (completion([5], [-1.0]), "is not a completion with token ids"),
    (completion(["Hello"], [-1.0]), "invalid literal"),
    (completion(["token_id:5", "token_id:2"], [-1.0]), "do not match"),
    (completion(["token_id:2"], [float("nan")]), "not finite"),
    (completion(["token_id:2"], [None]), "or without log-probs"),
    (completion([], []), "0 tokens came"),
    (completion(["token_id:5"] * 7, [-1.0] * 7), "7 tokens came where at most 6"),
    (completion(["token_id:5"], [-1.0]), "before its limit and without its end token"),
])
def test_nonsense_for_an_answer_stops_the_run(
        reply: dict[str, Any], sentence: str, write: Engine, server: Server) -> None:
    server.broken = lambda path, content: None if "echo" in content or "lora" in path else reply
    with pytest.raises(RunError, match=f"gave no usable answer in 2 attempts.*{sentence}"):
        write(PROMPTS, **OPTIONS)


def test_a_prompt_that_comes_back_changed_stops_the_run(write: Engine, server: Server) -> None:
    server.broken = lambda path, content: completion(["token_id:5"], [None]) if "echo" in content else None
    with pytest.raises(RunError, match=r"gave no usable log-probs of a fixed text .*did not come back"):
        write(PROMPTS, **OPTIONS)


def test_a_server_that_is_too_slow_stops_the_run(llama: SharedModel, server: Server) -> None:
    moved_role(llama, "policy")
    slow = make_engine(Choice(name="openai", url=server.url, retries=1, wait=0.0, timeout=0.05),
                       llama)

    def late(path: str, content: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        return {"message": "Success"}

    server.broken = late
    with pytest.raises(RunError, match=r"load_lora_adapter: gave no usable answer in 2 attempts.*timed out"):
        slow(PROMPTS, **OPTIONS)


def test_only_http_addresses_are_taken(llama: SharedModel) -> None:
    with pytest.raises(ConfigError, match=r"engine\.url: 'localhost' is not an http"):
        make_engine(Choice(name="openai", url="localhost"), llama)
