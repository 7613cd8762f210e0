"""Replies of a server that speaks OpenAI's chat completions. No model is loaded here, and nothing is scored.

What such a server takes for the same model may change from day to day; an answer that is kept says which name it had.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rlhflab.data.types import Prompt
from rlhflab.rollout.http import post, server_root

Complete = Callable[..., str]


def chat_server(url: str, model: str, *, max_new_tokens: int, headers: Mapping[str, str], sent: str, wanted: str,
                timeout: float = 120.0, retries: int = 4, wait: float = 1.0) -> Complete:
    """`reply(prompt, **options)`: what `model` at `url`, with or without `/v1` at its end, replies; temperature 0 by
    default.

    RunError where the server refuses a prompt, or never gives anything usable, with what was `sent` and `wanted`.
    """
    ask = partial(post, f"{server_root(url)}/v1/chat/completions", read=_reply, sent=sent, wanted=wanted,
                  timeout=timeout, retries=retries, wait=wait, headers=headers)

    def reply(prompt: Prompt, **options: Any) -> str:
        return ask({"model": model, "temperature": 0, "max_tokens": max_new_tokens, "n": 1, **options,
                    "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]})

    return reply


def sample_server(reply: Complete, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], *, temperature: float,
                  parallel: int = 8, advance: Callable[[int], None] = lambda answers: None) -> list[list[str]]:
    """One reply for each seed of each prompt; a server may take no notice of a seed."""
    def write(wanted: tuple[Prompt, int]) -> str:
        prompt, seed = wanted
        text = reply(prompt, temperature=temperature, seed=seed % 2**31)
        advance(1)
        return text

    with ThreadPoolExecutor(parallel) as pool:
        each = pool.map(write, [(prompt, seed) for prompt, own in zip(prompts, seeds, strict=True) for seed in own])
        return [[next(each) for _ in own] for own in seeds]


def _reply(body: bytes) -> str:
    """The text of the one choice in `body`. ValueError says what is wrong with it."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the answer is not a chat completion ({error!r})") from error
    if not isinstance(text, str):
        raise ValueError(f"the reply is {text!r}, not text")
    return text
