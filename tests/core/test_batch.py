"""The layout says which hidden state predicts which token, and micro-batches keep within their budget."""

import pytest
import torch

from rlhflab.core.batch import PAD, PROMPT, TokenAnswer, Tree, micro_batches, pack


def test_sources_predict_the_next_token_of_their_own_branch() -> None:
    batch = pack([Tree(prompt=(7, 8), answers=(TokenAnswer(ids=(9, 2)), TokenAnswer(ids=(5, 6, 2))))])
    assert batch.tokens.tolist() == [[7, 8, 9, 2, 5, 6, 2]]
    # Both answers' first tokens are predicted by the prompt's last state, column 1.
    assert batch.source.tolist() == [1, 2, 1, 4, 5]
    assert batch.target.tolist() == [9, 2, 5, 6, 2]
    assert batch.owner.tolist() == [0, 0, 1, 1, 1]
    assert batch.last.tolist() == [3, 6]


def test_positions_of_every_answer_continue_from_the_prompt() -> None:
    batch = pack([Tree(prompt=(7, 8), answers=(TokenAnswer(ids=(9, 2)), TokenAnswer(ids=(5, 2))))])
    assert batch.position.tolist() == [[0, 1, 2, 3, 2, 3]]
    assert batch.branch.tolist() == [[PROMPT, PROMPT, 1, 1, 2, 2]]


def test_a_shorter_row_is_padded_and_its_padding_is_never_scored() -> None:
    batch = pack([Tree(prompt=(7, 8, 9), answers=(TokenAnswer(ids=(2,)),)),
                  Tree(prompt=(7,), answers=(TokenAnswer(ids=(2,)),))])
    assert batch.branch[1].tolist() == [PROMPT, 1, PAD, PAD]
    assert batch.source.tolist() == [2, 4]
    assert (batch.branch.flatten()[batch.source] != PAD).all()


def test_unscored_tokens_are_read_but_not_predicted() -> None:
    answer = TokenAnswer(ids=(9, 2, 30, 31, 2), scored=(True, True, False, False, True))
    batch = pack([Tree(prompt=(7,), answers=(answer,))])
    assert batch.target.tolist() == [9, 2, 2]
    assert batch.source.tolist() == [0, 1, 4]
    assert batch.last.tolist() == [5]


@pytest.mark.parametrize("kind", ["prompt", "answer"])
def test_an_empty_prompt_or_answer_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Tree(prompt=() if kind == "prompt" else (1,), answers=(TokenAnswer(ids=(1,) if kind == "prompt" else ()),))


def test_micro_batches_hold_every_item_once_within_the_budget_of_padded_tokens() -> None:
    lengths = [5, 40, 7, 39, 8, 100, 6]
    groups = micro_batches(lengths, 80)
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert groups[0] == [5], "longest first, alone where it is over the budget"
    assert all(len(group) * max(lengths[i] for i in group) <= 80 for group in groups[1:])


def test_moving_a_batch_keeps_every_field() -> None:
    batch = pack([Tree(prompt=(7, 8), answers=(TokenAnswer(ids=(9, 2)),))])
    for name in set(batch.__slots__) - {"trunk"}:
        torch.testing.assert_close(getattr(batch.to("cpu"), name), getattr(batch, name))
