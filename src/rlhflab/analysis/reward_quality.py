"""How often a reward model orders held-out pairs as asked, beside rules that read no meaning. Numbers and text only."""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhflab.analysis.bag_of_words import Vocabulary, fit_preferences
from rlhflab.core.calibration import Array
from rlhflab.core.stats import mean_interval
from rlhflab.data.types import PreferencePair
from rlhflab.scenarios.base import Scenario


def reward_quality(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair], scores: NDArray[Any],
                   task: Scenario | None) -> dict[str, Any]:
    """Accuracy on held-out labels, beside what length alone reaches, and agreement with the gold order.

    `scores`: of the held-out pairs, (pairs, 2), chosen first. Gold ties are left out.
    """
    prompts = [pair.prompt.messages for pair in held_out]
    quality: dict[str, Any] = {
        "accuracy": mean_interval((scores[:, 0] > scores[:, 1]).astype(float).tolist(), prompts)._asdict(),
        "length_only": mean_interval(ordered_by_length(train, held_out).tolist(), prompts)._asdict(),
        "gold_order": None, "labels_on_gold_order": None}
    if task is not None:
        gold = np.array([[task.judge(pair.prompt, text).gold for text in (pair.chosen, pair.rejected)]
                         for pair in held_out])
        differ = gold[:, 0] != gold[:, 1]
        if differ.any():
            apart = [prompt for prompt, differs in zip(prompts, differ, strict=True) if differs]
            agrees = (scores[differ, 0] > scores[differ, 1]) == (gold[differ, 0] > gold[differ, 1])
            labels = gold[differ, 0] > gold[differ, 1]
            quality |= {"gold_order": mean_interval(agrees.astype(float).tolist(), apart)._asdict(),
                        "labels_on_gold_order": mean_interval(labels.astype(float).tolist(), apart)._asdict()}
    return quality


def opinions(pairs: Iterable[PreferencePair]) -> Iterator[tuple[Hashable, bool]]:
    """(comparison, verdict) of every pair: the same two answers to one prompt are one comparison, whoever judged."""
    for pair in pairs:
        first, second = sorted((pair.chosen, pair.rejected))
        yield (pair.prompt.messages, first, second), pair.chosen == first


def ordered_by_length(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> Array:
    """1 where the rule "the longer answer" (or "the shorter", if that holds oftener in `train`) is right, else 0.

    Characters count; equal lengths are half right.
    """
    of_train, of_held_out = (np.array([float(np.sign(len(pair.chosen) - len(pair.rejected))) for pair in pairs])
                             for pairs in (train, held_out))
    return 0.5 + 0.5 * (1.0 if of_train.sum() >= 0 else -1.0) * of_held_out


def ordered_by_words(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> Array:
    """1 where a bag of words fitted on `train` scores the chosen answer above the other, else 0; ties are half right.

    Logistic regression of the label on the difference of the two answers' word counts, without an intercept and with an
    L2 penalty of half the squared norm on the summed loss (C = 1). The prompt is not read. The fit is convex, so it
    depends on no seed.
    """
    vocabulary = Vocabulary.of([text for pair in train for text in (pair.chosen, pair.rejected)])
    if not vocabulary.column:
        return np.full(len(held_out), 0.5)
    seen, unseen = (vocabulary.counts(pair.chosen for pair in pairs) - vocabulary.counts(
        pair.rejected for pair in pairs) for pairs in (train, held_out))
    gaps: Array = unseen @ fit_preferences(seen)
    return 0.5 + 0.5 * np.sign(np.round(gaps, 9))
