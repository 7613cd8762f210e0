"""From prompts to rollouts: text in, `Rollout` records out. Seeds are made here, so that a run can be repeated."""

from collections.abc import Callable, Sequence
from functools import partial

from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import Engine, generate


def sample(model: SharedModel, chat: ChatFormat, prompts: Sequence[Prompt], *, role: str | None, samples: int = 1,
           max_new_tokens: int, temperature: float = 1.0, seed: int = 0, greedy: bool = False,
           engine: Engine | None = None, places: Sequence[int] | None = None,
           advance: Callable[[int], None] = lambda answers: None) -> list[Rollout]:
    """`samples` answers to each prompt, those of one prompt next to each other, in the order of `prompts`.

    `greedy` puts the most likely answer, whose seed is None, before the samples of each prompt. `engine`: what writes
    them, our own where absent. `places`: number of each prompt, from which its seeds are made; 0, 1, ... where absent.
    """
    prompt_ids = [chat.prompt(prompt) for prompt in prompts]
    first: list[int | None] = [None] if greedy else []
    seeds = [[*first, *(answer_seed(seed, i, k) for k in range(samples))] for i in places or range(len(prompts))]
    written = (engine or partial(generate, model))(
        prompt_ids, role=role, seeds=seeds, max_new_tokens=max_new_tokens, stop_ids=chat.stop_ids,
        temperature=temperature, advance=advance)
    return [Rollout(prompt=prompt, prompt_ids=ids, token_ids=answer.token_ids, logprobs=answer.logprobs,
                    text=chat.text(answer.token_ids), finish=answer.finish, seed=own_seed)
            for prompt, ids, answers, own in zip(prompts, prompt_ids, written, seeds, strict=True)
            for answer, own_seed in zip(answers, own, strict=True)]


def answer_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of one answer: far apart for neighbouring runs, prompts and samples (splitmix64)."""
    mixed = 0
    for part in (seed, prompt, sample):
        mixed = (mixed ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def rollout_trees(rollouts: Sequence[Rollout]) -> list[Tree]:
    """Neighbouring rollouts of one prompt as one tree. Answers keep their order over the whole list."""
    trees: list[Tree] = []
    for i, rollout in enumerate(rollouts):
        answer = TokenAnswer(ids=rollout.token_ids)
        if i and rollouts[i - 1].prompt is rollout.prompt:
            trees[-1] = Tree(prompt=trees[-1].prompt, answers=(*trees[-1].answers, answer))
        else:
            trees.append(Tree(prompt=rollout.prompt_ids, answers=(answer,)))
    return trees
