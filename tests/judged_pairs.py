"""Preference pairs on the help desk without a model, and scorers whose worth is known."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from random import Random

from rlhflab.analysis.perturbations import Text
from rlhflab.data.types import Comparison, PreferencePair
from rlhflab.scenarios import scenario
from rlhflab.scenarios.answers import like_after_sft

TASK = scenario("helpdesk")


@cache
def judged_pairs(prompts: int = 400) -> tuple[tuple[PreferencePair, ...], tuple[PreferencePair, ...]]:
    """(training pairs, held-out pairs): three answers a prompt as after SFT, judged twice without bias."""
    random, pairs = Random("pairs"), []
    for prompt in TASK.prompts("rl", prompts):
        answers = dict.fromkeys(like_after_sft(prompt, random) for _ in range(3))
        for a, b in combinations(answers, 2):
            for _ in range(2):
                chose_a = TASK.annotate(Comparison(prompt=prompt, a=a, b=b), random=random).verdict == "a"
                pairs.append(PreferencePair(prompt=prompt, chosen=a if chose_a else b, rejected=b if chose_a else a))
    apart = {prompt.id for prompt in TASK.prompts("rl", prompts)[::4]}
    return (tuple(pair for pair in pairs if pair.prompt.id not in apart),
            tuple(pair for pair in pairs if pair.prompt.id in apart))


def by_gold(pairs: Sequence[PreferencePair]) -> Callable[[Sequence[Text]], list[float]]:
    """A scorer that knows what is right, whatever the user says they believe, and sees what was cut off."""
    known = {pair.prompt.messages[-1].content: pair.prompt for pair in pairs}

    def score(texts: Sequence[Text]) -> list[float]:
        prompts = [known[text.messages[-1].content.partition("\nI am quite sure")[0]] for text in texts]
        return [TASK.judge(prompt, text.answer, stopped=text.stopped).gold
                for prompt, text in zip(prompts, texts, strict=True)]

    return score


def by_length(texts: Sequence[Text]) -> list[float]:
    """A scorer that likes long answers and nothing else."""
    return [float(len(text.answer)) for text in texts]
