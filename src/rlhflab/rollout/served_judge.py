"""A judge behind a server that speaks OpenAI's chat completions. No model is loaded here.

What such a server takes for the same model may change from day to day; an answer that is kept says which name it had.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rlhflab.data.types import Prompt
from rlhflab.rollout.http import post
from rlhflab.rollout.judges import Ask


def server_ask(url: str, model: str, *, max_new_tokens: int, headers: Mapping[str, str], parallel: int = 8,
               timeout: float = 120.0, retries: int = 4, wait: float = 1.0) -> Ask:
    """What `model` at `url`, up to and without `/v1`, replies at temperature 0; `parallel` prompts at a time.

    RunError where the server refuses a prompt, or never gives anything usable.
    """
    def reply(prompt: Prompt) -> str:
        content = {"model": model, "temperature": 0, "max_tokens": max_new_tokens, "n": 1,
                   "messages": [{"role": turn.role, "content": turn.content} for turn in prompt.messages]}
        return post(f"{url.rstrip('/')}/v1/chat/completions", content, _reply, sent="a comparison", wanted="verdict",
                    timeout=timeout, retries=retries, wait=wait, headers=headers)

    def ask(prompts: Sequence[Prompt]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(reply, prompts))

    return ask


def _reply(body: bytes) -> str:
    """The text of the one choice in `body`. ValueError says what is wrong with it."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the answer is not a chat completion ({error!r})") from error
    if not isinstance(text, str):
        raise ValueError(f"the reply is {text!r}, not text")
    return text
