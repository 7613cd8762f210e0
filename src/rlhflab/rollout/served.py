"""Answers written by a server that speaks OpenAI's completions, such as vLLM: push the adapter, prove it, ask.

Nothing here trusts the server: after each push its log-probs of a fixed text must be those of the weights just trained.
"""

import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from rlhflab.core.batch import TokenAnswer, Tree, pack
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import Engine, Generation, with_limits
from rlhflab.rollout.http import checked_url, post, server_root

CANARY = ("The delivery of 12 March was late, and three of its five boxes were open. What should I write to the shop? "
          "Write briefly, say what was wrong, and ask for the money back.")
"""The text whose log-probs show which weights a server has."""
UNSURE = 4.0
"""Deviations of the rounding by which a push must have moved the canary before it can be told from the one before."""


def openai_engine(policy: SharedModel, *, url: str = "http://localhost:8000", model: str = "",
                  folder: str | None = None, tolerance: Annotated[float, Field(gt=0)] = 0.1,
                  parallel: Annotated[int, Field(ge=1)] = 64, timeout: Annotated[float, Field(gt=0)] = 600.0,
                  retries: Annotated[int, Field(ge=0)] = 4, wait: Annotated[float, Field(ge=0)] = 1.0) -> Engine:
    """A completions server at `url` that takes adapters, such as vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.

    `model`: the base's name there, where it is not the one here. `folder`: where adapters are saved for the server to
    read; a temporary folder where absent. After each push the server's log-probs of a fixed text may differ from ours
    by `tolerance` nats a token in the mean, and must have moved with the weights; otherwise the run stops. At a
    temperature other than 1 the server must give log-probs after it (vLLM: --logprobs-mode processed_logprobs).
    """
    checked_url(url, where="engine.url")
    return _Server(policy, url=server_root(url), name=model or policy.base.name,
                   folder=Path(folder) if folder else None, tolerance=tolerance, parallel=parallel,
                   ask=partial(post, timeout=timeout, retries=retries, wait=wait))


class _Server:
    """Owns what was pushed to the server, and the folder it lies in."""

    def __init__(self, policy: SharedModel, *, url: str, name: str, folder: Path | None, tolerance: float,
                 parallel: int, ask: Callable[..., Any]) -> None:
        self.policy, self.url, self.name, self.ask = policy, url, name, ask
        self.tolerance, self.parallel = tolerance, parallel
        self._own_folder = None if folder else tempfile.TemporaryDirectory(prefix="rlhflab-adapters-")
        self.folder = folder or Path(self._own_folder.name)  # type: ignore[union-attr]
        self.pushed: str | None = None
        """Name of the adapter that the server has now."""
        self.canary = list(policy.tokenizer(CANARY).input_ids)
        self.before = self._ours(None)
        """Our log-probs of the canary under the weights of the push before; under the base's at first."""

    def __call__(self, prompts: Sequence[Sequence[int]], *, role: str | None, seeds: Sequence[Sequence[int | None]],
                 max_new_tokens: int | Sequence[Sequence[int]], stop_ids: Sequence[int], temperature: float = 1.0,
                 advance: Callable[[int], None] = lambda answers: None) -> list[list[Generation]]:
        name = self.name if role is None else self._push(role)
        self._prove(name, role)

        def write(wanted: tuple[int, int | None, int]) -> Generation:
            prompt, seed, limit = wanted
            answer: Generation = self.ask(
                f"{self.url}/v1/completions", self._request(
                    name, prompts[prompt], max_tokens=limit, seed=seed, stop_token_ids=sorted(set(stop_ids)),
                    temperature=0.0 if seed is None else temperature),
                partial(_generation, stop_ids=stop_ids, limit=limit), sent="a prompt", wanted="answer")
            advance(1)
            return answer

        limited = with_limits(seeds, max_new_tokens)
        with ThreadPoolExecutor(self.parallel) as pool:
            each = pool.map(write, [(i, seed, limit) for i, own in enumerate(limited) for seed, limit in own])
            return [[next(each) for _ in own] for own in seeds]

    def _push(self, role: str) -> str:
        """Save the role, let the server load it and forget the one before. Returns its name there."""
        name = f"{role}-{uuid.uuid4().hex[:12]}"
        self.policy.save_role(role, self.folder / name)
        load, unload = (partial(self.ask, f"{self.url}/v1/{verb}_lora_adapter", read=bytes, wanted="answer")
                        for verb in ("load", "unload"))
        load({"lora_name": name, "lora_path": str((self.folder / name).resolve())}, sent="the adapter")
        if self.pushed is not None:
            unload({"lora_name": self.pushed}, sent="to forget the adapter before")
            shutil.rmtree(self.folder / self.pushed, ignore_errors=True)
        self.pushed = name
        return name

    def _prove(self, name: str, role: str | None) -> None:
        """RunError unless the server reads the canary as we do.

        A bound alone would not tell weights from those one small step before. So the server's log-probs are also
        projected on the way that ours went with this push: 1 is where they should be, 0 is where they were.
        """
        now = self._ours(role)
        served: Tensor = self.ask(
            f"{self.url}/v1/completions", self._request(name, self.canary, max_tokens=1, temperature=0.0, echo=True),
            partial(_echoed, ids=self.canary), sent="the fixed text", wanted="log-probs of a fixed text")
        gap = float((served - now).abs().mean())
        way, since = now - self.before, served - self.before
        moved = float(way.norm())
        share = float(since @ way) / moved**2 if moved else 1.0
        rounding = float((since - share * way).norm()) / math.sqrt(len(way))
        if not gap <= self.tolerance or (share < 0.5 and moved > UNSURE * rounding):
            raise RunError(f"{self.url}: the server does not have the weights just trained: its log-probs of a fixed "
                           f"text differ from ours by {gap:.3g} nats a token (limit {self.tolerance:g}), and went "
                           f"{share:.0%} of the way that ours went with the last push (limit 50%)")
        self.before = now

    @torch.no_grad()
    def _ours(self, role: str | None) -> Float[Tensor, " s"]:
        """Our log-probs of all of the canary but its first token."""
        tree = Tree(prompt=tuple(self.canary[:1]), answers=(TokenAnswer(ids=tuple(self.canary[1:])),))
        return self.policy.logprobs(pack([tree]).to(self.policy.device), role).logprob.cpu()

    def _request(self, name: str, prompt: Sequence[int], *, seed: int | None = None, **more: Any) -> dict[str, Any]:
        """Token ids in and out, and the whole distribution: servers take other defaults from a model's files."""
        return {"model": name, "prompt": list(prompt), "n": 1, "logprobs": 1, "return_tokens_as_token_ids": True,
                "skip_special_tokens": False, "add_special_tokens": False, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
                "repetition_penalty": 1.0, **({} if seed is None else {"seed": seed}), **more}


def _generation(body: bytes, *, stop_ids: Sequence[int], limit: int) -> Generation:
    """The answer in `body`. ValueError says what is wrong with it."""
    ids, logprobs, finish = _tokens(body)
    if not 0 < len(ids) <= limit or None in logprobs:
        raise ValueError(f"{len(ids)} tokens came where at most {limit} were asked for, or without log-probs")
    stopped = ids[-1] in stop_ids
    if not stopped and len(ids) < limit:
        raise ValueError(f"an answer ended ({finish}) before its limit and without its end token")
    return Generation(tuple(ids), tuple(value for value in logprobs if value is not None),
                      "stop" if stopped else "length")


def _echoed(body: bytes, *, ids: Sequence[int]) -> Float[Tensor, " s"]:
    """Log-probs of all of the prompt `ids` but its first token. ValueError says what is wrong with them."""
    echoed, logprobs, _ = _tokens(body)
    if echoed[:len(ids)] != list(ids) or None in logprobs[1:len(ids)]:
        raise ValueError("the prompt did not come back token by token with its log-probs")
    return torch.tensor(logprobs[1:len(ids)])


def _tokens(body: bytes) -> tuple[list[int], list[float | None], str]:
    """Ids, log-probs and the reason of the end of the one completion in `body`."""
    try:
        choice = json.loads(body)["choices"][0]
        ids = [int(token.removeprefix("token_id:")) for token in choice["logprobs"]["tokens"]]
        logprobs = [None if value is None else float(value) for value in choice["logprobs"]["token_logprobs"]]
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the answer is not a completion with token ids and log-probs ({error!r})") from error
    if len(ids) != len(logprobs) or not all(value is None or math.isfinite(value) for value in logprobs):
        raise ValueError("ids and log-probs do not match, or are not finite numbers")
    return ids, logprobs, str(choice.get("finish_reason"))
