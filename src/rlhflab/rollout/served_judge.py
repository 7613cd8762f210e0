"""A judge behind a server that speaks OpenAI's chat completions. No model is loaded here."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from rlhflab.data.types import Prompt
from rlhflab.rollout.chat_server import chat_server
from rlhflab.rollout.judges import Ask


def server_ask(url: str, model: str, *, max_new_tokens: int, headers: Mapping[str, str], parallel: int = 8,
               timeout: float = 120.0, retries: int = 4, wait: float = 1.0) -> Ask:
    """What `model` at `url`, up to and without `/v1`, replies at temperature 0; `parallel` prompts at a time.

    RunError where the server refuses a prompt, or never gives anything usable.
    """
    reply = chat_server(url, model, max_new_tokens=max_new_tokens, headers=headers, sent="a comparison",
                        wanted="verdict", timeout=timeout, retries=retries, wait=wait)

    def ask(prompts: Sequence[Prompt]) -> list[str]:
        with ThreadPoolExecutor(parallel) as pool:
            return list(pool.map(reply, prompts))

    return ask
