"""A judge's verdict counts only if it can be read and both orders agree."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conftest import moved_role
from rlhflab.config import RewardSource
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.judges import judged
from rlhflab.rollout.rewards import make_reward

PROMPT = Prompt(id="p", messages=(Message(role="user", content="Say it."),), facts={"value": "good"})
OTHER = Prompt(id="q", messages=(Message(role="user", content="Say more."),))


def answered(text: str, prompt: Prompt = PROMPT) -> Rollout:
    return Rollout(prompt=prompt, prompt_ids=(1, 40), token_ids=(50, 2), logprobs=(0.0, 0.0), text=text,
                   finish="stop", seed=0)


def shown(question: Prompt) -> tuple[str, str]:
    """The two answers in the order the judge reads them."""
    text = question.messages[0].content
    a, _, rest = text.partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
    return a, rest.partition("\n\nWhich")[0]


def longer(questions: Sequence[Prompt]) -> list[str]:
    """An honest judge who likes length."""
    return ["A" if len(shown(q)[0]) > len(shown(q)[1]) else "Answer B." for q in questions]


def never(questions: Sequence[Prompt]) -> list[str]:
    """A judge who is not to be asked."""
    raise AssertionError


def judge(rollouts: Sequence[Rollout], ask: Callable[[Sequence[Prompt]], list[str]] = longer,
          against: str = "samples") -> list[Score]:
    return judged(rollouts, ask, against=against, key="value", criteria="Judge.", by="judge:x")  # type: ignore[arg-type]


def test_an_answer_scores_its_share_of_won_comparisons() -> None:
    scores = judge([answered("a"), answered("bbb"), answered("cc"), answered("zz", OTHER), answered("z", OTHER)])
    assert [score.value for score in scores] == [0, 1, 0.5, 1, 0]


def test_each_pair_is_asked_in_both_orders_once_and_equal_texts_not_at_all() -> None:
    asked: list[tuple[str, str]] = []

    def ask(questions: Sequence[Prompt]) -> list[str]:
        asked.extend(map(shown, questions))
        return longer(questions)

    scores = judge([answered("a"), answered("bb"), answered("a")], ask)
    assert asked == [("a", "bb"), ("bb", "a")]
    assert [score.value for score in scores] == [0.25, 1, 0.25], "a half from its equal, nothing from the other"


def test_a_judge_who_likes_a_place_scores_nothing() -> None:
    scores = judge([answered("a"), answered("bb")], lambda questions: ["A"] * len(questions))
    assert [score.value for score in scores] == [None, None]
    assert scores[0].reason == "the judge chose place A in both orders"


@pytest.mark.parametrize("words", ["", "Both are fine", "A or B", "AB", "Neither A"])
def test_a_verdict_that_cannot_be_read_scores_nothing(words: str) -> None:
    scores = judge([answered("a"), answered("bb")], lambda questions: [words, *longer(questions)[1:]])
    assert [score.value for score in scores] == [None, None]
    assert f"{words!r} is neither A nor B" in scores[0].reason


def test_comparisons_that_do_not_count_leave_the_others() -> None:
    def unsure_about_c(questions: Sequence[Prompt]) -> list[str]:
        return ["?" if "c" in shown(q) else said for q, said in zip(questions, longer(questions), strict=True)]

    scores = judge([answered("a"), answered("bb"), answered("c")], unsure_about_c)
    assert [score.value for score in scores] == [0, 1, None]


def test_against_a_stored_answer() -> None:
    scores = judge([answered("better"), answered("bad"), answered("good"), answered("x", OTHER)], against="reference")
    assert [score.value for score in scores] == [1, 0, 0.5, None]
    assert scores[3].reason == "row q has no text at 'value' of its facts"


def test_an_answer_alone_has_nobody_to_be_compared_with() -> None:
    score = judge([answered("a")], never)[0]
    assert score == Score(value=None, by="judge:x", reason="there is no other sample for this prompt")


def test_equal_answers_are_not_worth_a_question() -> None:
    assert [score.value for score in judge([answered("a"), answered("a")], never)] == [0.5, 0.5]


def test_a_random_model_talks_nonsense_and_scores_nothing(llama: SharedModel, tmp_path: Path) -> None:
    moved_role(llama, "judge")
    llama.save_role("judge", tmp_path / "judge")
    llama.drop_role("judge")
    for options in ({}, {"adapter": str(tmp_path / "judge")}, {"model": "tiny-qwen"}):
        reward = make_reward([RewardSource(name="judge", **options)], llama, micro_tokens=64)
        scores = reward([answered("a"), answered("bb")])
        assert all(score.value is None and "neither A nor B" in score.reason for score in scores)
    assert scores[0].by == "judge:tiny-qwen"


def test_a_comparison_that_the_judge_cannot_read_whole_is_not_asked(llama: SharedModel) -> None:
    reward = make_reward([RewardSource(name="judge")], llama, micro_tokens=64)
    scores = reward([answered("a"), answered("b" * llama.context), answered("c", OTHER), answered("dd", OTHER)])
    too_long = "the conversation with both answers is longer than the judge's context"
    assert [(score.value, score.reason) for score in scores[:2]] == [(None, too_long)] * 2
    assert all("neither A nor B" in score.reason for score in scores[2:])
