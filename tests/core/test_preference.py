"""Preference losses against numbers worked by hand, and what holds of all of them."""

import math

import pytest
import torch

from rlhflab.core.losses import Loss
from rlhflab.core.preference import (
    AnswerLogprobs,
    add_nll,
    answer_logprobs,
    bco_loss,
    dpo_loss,
    ipo_avg_loss,
    ipo_sum_loss,
    kto_loss,
    less_tail,
    preference_loss,
    simpo_loss,
)
from rlhflab.errors import ConfigError

ENTRIES = {entry.name: entry for entry in preference_loss.entries()}
ON_PAIRS = [name for name, entry in ENTRIES.items() if "pairs" in entry.needs]
WITH_REFERENCE = [name for name in ON_PAIRS if "reference" in ENTRIES[name].needs]
WITHOUT = [name for name in ON_PAIRS if name not in WITH_REFERENCE]


def side(policy: float, reference: float | None, tokens: float = 1) -> AnswerLogprobs:
    return AnswerLogprobs(policy=torch.tensor([float(policy)]), tokens=torch.tensor([float(tokens)]),
                          reference=None if reference is None else torch.tensor([float(reference)]))


def value(name: str, chosen: AnswerLogprobs, rejected: AnswerLogprobs, **options: float) -> float:
    return preference_loss.bind(name, options, where="loss")(chosen, rejected).each.item()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


CHOSEN, REJECTED = side(-2, -3, tokens=2), side(-9, -5, tokens=4)  # D_c = 1 over 2 tokens, D_r = -4 over 4, h = 5
BY_HAND = [
    ("dpo", {"beta": 0.2}, -log_sigmoid(1.0)),
    ("cdpo", {"beta": 0.2, "label_noise": 0.25}, -0.75 * log_sigmoid(1.0) - 0.25 * log_sigmoid(-1.0)),
    ("robust", {"beta": 0.2, "label_noise": 0.25}, (-0.75 * log_sigmoid(1.0) + 0.25 * log_sigmoid(-1.0)) / 0.5),
    ("hinge", {"beta": 0.1}, 0.5),
    ("hinge", {"beta": 0.3}, 0.0),
    # KL((q, 1 - q), (.8, .2)), q = sigmoid(1) = .7311
    ("exo", {"beta": 0.2, "label_noise": 0.2}, 0.731059 * math.log(0.731059 / 0.8)
     + 0.268941 * math.log(0.268941 / 0.2)),
    ("ipo_sum", {"beta": 0.1}, 0.0),  # the target is 1/(2 x 0.1) = 5
    ("ipo_sum", {"beta": 0.1, "label_noise": 0.1}, 1.0),  # (5 - .8 x 5)^2
    ("ipo_avg", {"beta": 0.1}, 12.25),  # h = 1/2 + 4/4 = 1.5; (1.5 - 5)^2
    ("r_dpo", {"beta": 0.2, "length_penalty": 0.5}, -log_sigmoid(1.0 + 0.5 * (2 - 4))),
    ("dpop", {"beta": 0.2, "penalty": 5.0}, -log_sigmoid(1.0)),  # the chosen answer gained: no penalty
    ("sppo", {"beta": 0.1}, (1 - 5) ** 2 + (-4 + 5) ** 2),
    ("nca", {"beta": 0.5}, -log_sigmoid(0.5) - 0.5 * log_sigmoid(-0.5) - 0.5 * log_sigmoid(2.0)),
    ("bco_pair", {"beta": 0.5}, -log_sigmoid(0.5) - log_sigmoid(2.0)),
    ("apo_zero", {"beta": 0.5}, 1 - sigmoid(0.5) + sigmoid(-2.0)),
    ("apo_down", {"beta": 0.5}, sigmoid(0.5) + 1 - sigmoid(2.5)),
    # log-probs a token: -1 and -2.25
    ("simpo", {"beta": 2.0, "gamma": 0.5}, -log_sigmoid(2.0 * 1.25 - 0.5)),
    ("cpo", {"beta": 0.1, "nll": 0.5}, -log_sigmoid(0.1 * (-2 + 9)) + 0.5 * 1.0),
    ("orpo", {"odds_weight": 0.5}, 1.0 - 0.5 * log_sigmoid(
        math.log(math.exp(-1) / (1 - math.exp(-1))) - math.log(math.exp(-2.25) / (1 - math.exp(-2.25))))),
]


@pytest.mark.parametrize(("name", "options", "expected"), BY_HAND)
def test_a_pair_loss_by_hand(name: str, options: dict[str, float], expected: float) -> None:
    assert value(name, CHOSEN, REJECTED, **options) == pytest.approx(expected, abs=1e-5)


def test_every_pair_loss_is_worked_by_hand() -> None:
    assert {name for name, _, _ in BY_HAND} == set(ON_PAIRS)


@pytest.mark.parametrize(("name", "start"), [
    ("dpo", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)), ("hinge", 1.0), ("r_dpo", math.log(2)),
    ("dpop", math.log(2)), ("ipo_sum", 25.0), ("ipo_avg", 25.0), ("sppo", 50.0), ("nca", 2 * math.log(2)),
    ("bco_pair", 2 * math.log(2)), ("apo_zero", 1.0), ("apo_down", 1.0)])
def test_the_loss_of_a_policy_that_is_its_reference(name: str, start: float) -> None:
    loss = preference_loss.bind(name, {"beta": 0.1}, where="loss")(side(-3, -3), side(-5, -5))
    assert loss.each.item() == pytest.approx(start)
    assert [loss.metrics[key].item() for key in ("margin", "reward_chosen", "accuracy")] == [0, 0, 0]


def test_exo_of_a_policy_that_is_its_reference() -> None:
    # KL of (1/2, 1/2) from (1 - e, e)
    assert value("exo", side(-3, -3), side(-5, -5), label_noise=0.1) == pytest.approx(
        -math.log(2) - 0.5 * math.log(0.9 * 0.1))


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_the_reference_of_a_loss_shifts_it_and_nothing_else(name: str) -> None:
    same = value(name, side(-2, -3), side(-9, -5))
    assert value(name, side(-12, -13), side(-109, -105)) == pytest.approx(same, rel=1e-5)
    assert value(name, side(-4, -3), side(-9, -5)) != pytest.approx(same, rel=1e-3)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_loss_without_reference_reads_none(name: str) -> None:
    loss = preference_loss.bind(name, {}, where="loss")(side(-2, None, 2), side(-9, None, 4))
    assert loss.metrics["accuracy"].item() == 1.0 and loss.metrics["margin"].item() > 0


@pytest.mark.parametrize("name", ON_PAIRS)
def test_the_gradient_raises_the_chosen_over_the_rejected_answer(name: str) -> None:
    a, b = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    sides = [AnswerLogprobs(policy=x, reference=torch.tensor([-3.0]), tokens=torch.full((1,), 2.0)) for x in (a, b)]
    preference_loss.bind(name, {}, where="loss")(*sides).each.sum().backward()
    assert a.grad is not None and b.grad is not None
    assert b.grad.item() - a.grad.item() > 1e-3, "a step downhill widens the margin"


@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust", "hinge", "exo", "ipo_sum", "ipo_avg", "r_dpo", "simpo"])
def test_swapping_the_answers_flips_the_gradient_at_zero_margin(name: str) -> None:
    loss_of = preference_loss.bind(name, {}, where="loss")
    gradients = []
    for order in (1, -1):
        a, b = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
        sides = [AnswerLogprobs(policy=x, reference=torch.tensor([-3.0]), tokens=torch.ones(1)) for x in (a, b)]
        loss_of(*sides[::order]).each.sum().backward()
        gradients.append((a.grad, b.grad))
    torch.testing.assert_close(gradients[0], gradients[1][::-1])
    torch.testing.assert_close(gradients[0][0], -gradients[0][1])


def test_the_metrics_of_a_known_margin() -> None:
    metrics = dpo_loss(CHOSEN, REJECTED, beta=0.5).metrics
    assert {key: metrics[key].item() for key in ("reward_chosen", "reward_rejected", "margin", "accuracy")} == {
        "reward_chosen": 0.5, "reward_rejected": -2.0, "margin": 2.5, "accuracy": 1.0}


def test_label_noise_mixes_the_loss_of_both_orders() -> None:
    right, wrong = (value("dpo", *pair) for pair in ((CHOSEN, REJECTED), (REJECTED, CHOSEN)))
    assert value("cdpo", CHOSEN, REJECTED, label_noise=0.2) == pytest.approx(0.8 * right + 0.2 * wrong)


def test_the_robust_loss_is_right_in_the_mean_over_flipped_labels() -> None:
    seen = [value("robust", *pair, label_noise=0.2) for pair in ((CHOSEN, REJECTED), (REJECTED, CHOSEN))]
    assert 0.8 * seen[0] + 0.2 * seen[1] == pytest.approx(value("dpo", CHOSEN, REJECTED), rel=1e-5)


def test_dpop_asks_for_more_where_the_chosen_answer_lost() -> None:
    lost, rejected = side(-4, -3), side(-9, -5)  # D_c = -1, D_r = -4, h = 3
    assert value("dpop", lost, rejected, beta=0.2, penalty=5.0) == pytest.approx(-log_sigmoid(0.2 * (3 - 5)))


def test_orpo_stays_finite_where_an_answer_is_certain() -> None:
    certain = torch.tensor([0.0], requires_grad=True)
    chosen = AnswerLogprobs(policy=certain, reference=None, tokens=torch.ones(1))
    loss = preference_loss.bind("orpo", {}, where="loss")(chosen, side(-50, None))
    loss.each.sum().backward()
    assert loss.each.isfinite().all() and certain.grad is not None and certain.grad.isfinite().all()


@pytest.mark.parametrize(("name", "option", "wrong"), [
    ("dpo", "beta", 0.0), ("cdpo", "label_noise", 0.5), ("robust", "label_noise", 0.5), ("exo", "label_noise", 0.0),
    ("dpop", "penalty", -1.0), ("r_dpo", "length_penalty", -0.1), ("simpo", "gamma", -1.0), ("cpo", "nll", -1.0),
    ("orpo", "odds_weight", 0.0), ("kto", "desirable_weight", -1.0)])
def test_an_option_out_of_range_is_refused(name: str, option: str, wrong: float) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.{option}"):
        preference_loss.bind(name, {option: wrong}, where="loss")


def test_an_unknown_loss_or_option_is_named() -> None:
    with pytest.raises(ConfigError, match="no preference loss is called 'dpoo'; there are apo_down, apo_zero, bco"):
        preference_loss.bind("dpoo", {}, where="loss")
    with pytest.raises(ConfigError, match=r"loss\.label_noise.*the options of dpo are: beta"):
        preference_loss.bind("dpo", {"label_noise": 0.1}, where="loss")


def test_every_loss_says_what_it_needs_and_where_it_comes_from() -> None:
    for entry in ENTRIES.values():
        assert ("pairs" in entry.needs) != ("labels" in entry.needs), entry.name
        assert "arXiv:" in entry.source or "Mitchell" in entry.source, entry.name
        assert set(entry.admits) <= {"length", "ld_alpha", "nll_weight"}, entry.name


# -- thumbs ------------------------------------------------------------------------------------------------------------

THUMBS = AnswerLogprobs(policy=torch.tensor([-2.0, -9.0]), reference=torch.tensor([-3.0, -5.0]), tokens=torch.ones(2))
GOOD = torch.tensor([True, False])  # D = 1 and -4


def test_kto_by_hand() -> None:
    loss = kto_loss(THUMBS, GOOD, torch.tensor(0.5), beta=0.2, desirable_weight=2.0, undesirable_weight=3.0)
    # 2 (1 - sigmoid(.2 (1 - .5))), 3 (1 - sigmoid(.2 (.5 + 4)))
    assert loss.each.tolist() == pytest.approx([2 * (1 - sigmoid(0.1)), 3 * (1 - sigmoid(0.9))])
    assert loss.metrics["reward_chosen"].tolist() == pytest.approx([0.2])
    assert loss.metrics["reward_rejected"].tolist() == pytest.approx([-0.8])
    assert loss.metrics["accuracy"].tolist() == [1, 1]


def test_bco_by_hand() -> None:
    loss = bco_loss(THUMBS, GOOD, torch.tensor(-1.5), beta=0.2, desirable_weight=2.0)
    # -2 log sigmoid(.2 (1 + 1.5)), -log sigmoid(.2 (-1.5 + 4))
    assert loss.each.tolist() == pytest.approx([-2 * log_sigmoid(0.5), -log_sigmoid(0.5)])


@pytest.mark.parametrize("loss_of", [kto_loss, bco_loss])
def test_a_thumb_pushes_its_answer_away_from_the_baseline(loss_of) -> None:  # type: ignore[no-untyped-def]
    policy = torch.tensor([-3.0, -3.0], requires_grad=True)
    answers = AnswerLogprobs(policy=policy, reference=torch.tensor([-3.0, -3.0]), tokens=torch.ones(2))
    loss = loss_of(answers, GOOD, torch.tensor(0.0))
    loss.each.sum().backward()
    assert policy.grad is not None and policy.grad[0] < 0 < policy.grad[1]
    assert policy.grad[0] == -policy.grad[1] and loss.metrics["accuracy"].tolist() == [0, 0]


def test_kto_starts_at_half_its_weights_and_bco_at_log_two() -> None:
    at_start = AnswerLogprobs(policy=torch.tensor([-3.0, -3.0]), reference=torch.tensor([-3.0, -3.0]),
                              tokens=torch.ones(2))
    assert kto_loss(at_start, GOOD, torch.tensor(0.0)).each.tolist() == [0.5, 0.5]
    assert bco_loss(at_start, GOOD, torch.tensor(0.0)).each.tolist() == pytest.approx([math.log(2)] * 2)


# -- what a run says of length and likelihood --------------------------------------------------------------------------

POLICY = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0])
OWNER = torch.tensor([0, 0, 0, 1, 2, 2])  # three tokens, one, two
REFERENCE = torch.zeros(6)


def test_ld_weighs_the_tail_of_the_longer_answer_pair_by_pair() -> None:
    chosen, rejected = less_tail(POLICY, REFERENCE, OWNER, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]), alpha=0.5)
    # answer 0 beside 1: -1 - .5 (2 + 4); beside 2: -1 - 2 - .5 x 4. Answer 2 beside 0: whole; beside 1: -16 - .5 x 32
    assert chosen.policy.tolist() == [-4.0, -5.0, -8.0]
    assert rejected.policy.tolist() == [-8.0, -48.0, -32.0]
    assert chosen.tokens.tolist() == [3, 3, 1] and rejected.tokens.tolist() == [1, 2, 2]


def test_ld_with_alpha_one_is_the_plain_sum_and_with_zero_forgets_the_tail() -> None:
    pairs = torch.tensor([0, 2]), torch.tensor([1, 0])
    plain = answer_logprobs(POLICY, None, OWNER, 3)
    for ours, answers in zip(less_tail(POLICY, None, OWNER, *pairs, alpha=1.0), pairs, strict=True):
        torch.testing.assert_close(ours.policy, plain.of(answers).policy)
        assert ours.reference is None
    assert less_tail(POLICY, None, OWNER, *pairs, alpha=0.0)[0].policy.tolist() == [-1.0, -48.0]


def test_length_normalised_ipo_is_ipo_avg() -> None:
    by_mean = ipo_sum_loss(CHOSEN.per_token(), REJECTED.per_token()).each
    torch.testing.assert_close(by_mean, ipo_avg_loss(CHOSEN, REJECTED).each)
    assert CHOSEN.per_token().mean.item() == CHOSEN.mean.item() == -1.0


def test_the_likelihood_term_is_a_mean_over_the_chosen_answers_tokens() -> None:
    plain: Loss = dpo_loss(CHOSEN, REJECTED)
    with_nll = add_nll(plain, CHOSEN, weight=0.3)
    assert with_nll.each.item() == pytest.approx(plain.each.item() + 0.3 * 1.0)
    assert with_nll.metrics["nll"].item() == 1.0 and with_nll.metrics["loss"].item() == with_nll.each.item()


def test_simpo_reads_the_policy_a_token() -> None:
    assert simpo_loss(CHOSEN, REJECTED, beta=2.0).metrics["reward_rejected"].item() == 2.0 * -9 / 4
