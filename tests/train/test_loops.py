"""Each method learns on a tiny random model in seconds, and accumulation equals one big batch."""

from collections.abc import Callable

import pytest
import torch

from conftest import moved_role
from rlhflab.config import Choice, DpoRun, Lora, Optimizer, PpoRun, RewardRun, Run, SftRun, make_run
from rlhflab.core.batch import PreferenceTree, TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import score_trees, tree_logprobs
from rlhflab.train.dpo import train_dpo
from rlhflab.train.ppo import minibatches, train_ppo
from rlhflab.train.reward import train_reward
from rlhflab.train.rollouts import end_score, keep_scored
from rlhflab.train.sft import train_sft
from scorers import early_letters

FAST = {"dtype": "float32", "batch": 8, "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0}}
STEADY = {"learning_rate": 1e-2, "epsilon": 1e-3}
"""Adam divides by the gradient's size, so that a rounding error in a tiny gradient would move a weight a whole step."""
PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content="abcdefgh"[:2 + i % 6]),)) for i in range(16)]


def run_of(kind: str, **settings: object) -> Run:
    return make_run(kind, {**FAST, **settings})


def pair_trees(n: int) -> list[Tree]:
    """Prompts of different lengths; the first answer holds token 100, the second one token 120."""
    return [Tree(prompt=tuple(range(10, 12 + i % 5)), answers=(
        TokenAnswer(ids=(100, 101 + i % 3, 2)), TokenAnswer(ids=(120, 121, 122, 2)[:2 + i % 3])))
        for i in range(n)]


def preferences(n: int) -> list[PreferenceTree]:
    """The first answer of each tree is preferred."""
    return [PreferenceTree(tree=tree, chosen=(0,), rejected=(1,), strength=(1.0,)) for tree in pair_trees(n)]


def logprobs_of(model: SharedModel, trees: list[Tree], role: str | None) -> torch.Tensor:
    return torch.stack([each.sum() for each in tree_logprobs(model, trees, role=role, micro_tokens=512)])


def test_sft_makes_its_demonstrations_likely(llama: SharedModel) -> None:
    trees = [Tree(prompt=tree.prompt, answers=tree.answers[:1]) for tree in pair_trees(16)]
    llama.add_role("policy", Lora(rank=8))
    run = run_of("sft", epochs=8)
    assert isinstance(run, SftRun)
    losses = [step.metrics["loss"] for step in train_sft(run, llama, trees)]
    assert losses[0] > 4 and losses[-1] < 1


def test_a_reward_model_ranks_the_chosen_answer_higher(llama: SharedModel) -> None:
    run = run_of("reward", epochs=6)
    assert isinstance(run, RewardRun)
    llama.add_role("reward", Lora(rank=8), head="random")
    list(train_reward(run, llama, preferences(24)))
    scores = torch.stack(score_trees(llama, pair_trees(24), role="reward", micro_tokens=512))
    assert (scores[:, 0] > scores[:, 1]).all()


@pytest.mark.parametrize("loss", ["dpo", "ipo_avg", "ipo_sum"])
def test_dpo_raises_the_chosen_over_the_rejected_answer(llama: SharedModel, loss: str) -> None:
    run = run_of("dpo", epochs=4, loss={"name": loss})
    assert isinstance(run, DpoRun)
    llama.add_role("policy", Lora(rank=8))
    steps = list(train_dpo(run, llama, preferences(16), reference=None))
    assert steps[0].metrics["margin"] == 0 and steps[-1].metrics["accuracy"] == 1
    gap = [logprobs_of(llama, [Tree(prompt=t.prompt, answers=t.answers[side:side + 1]) for t in pair_trees(16)], role)
           for role in ("policy", None) for side in (0, 1)]
    assert ((gap[0] - gap[1]) > (gap[2] - gap[3])).all()


def ppo_parts(llama: SharedModel, **settings: object) -> tuple[PpoRun, Callable[..., object]]:
    run = run_of("ppo", **{"batch": 8, "samples": 4, "max_new_tokens": 6, "kl_coefficient": 0.0, **settings})
    assert isinstance(run, PpoRun)
    llama.add_role("policy", Lora(rank=8))
    llama.add_role("value", Lora(rank=8), copy_of="policy", head="zero")

    def reward(rollouts: list[Rollout]) -> list[Score]:
        return [Score(value=10 * early_letters([], rollout.text), by="letters") for rollout in rollouts]

    return run, reward


@pytest.mark.parametrize("settings", [
    {"epochs": 2}, {"epochs": 1, "minibatches": 2, "micro_tokens": 64},
    {"advantage": {"name": "gae", "baseline": "prompt"}}])
def test_ppo_raises_its_reward(llama: SharedModel, settings: dict[str, object]) -> None:
    run, reward = ppo_parts(llama, steps=12, **settings)
    steps = list(train_ppo(run, llama, PROMPTS, chat=ChatFormat(llama.tokenizer), reward=reward, reference=None))
    proxies = [step.metrics["proxy"] for step in steps]
    assert sum(proxies[-3:]) / 3 > sum(proxies[:3]) / 3 + 1.0
    assert steps[0].metrics["kl"] == 0 and steps[-1].metrics["kl_k3"] > 0.1
    assert all(step.metrics["engine_gap_max"] < 1e-3 for step in steps)


def test_the_value_learns_what_the_reward_will_be(llama: SharedModel) -> None:
    run, reward = ppo_parts(llama, steps=8, optimizer={"learning_rate": 0.0}, value_learning_rate=0.05, epochs=4,
                            value_clip=100.0)
    steps = list(train_ppo(run, llama, PROMPTS, chat=ChatFormat(llama.tokenizer), reward=reward, reference=None))
    assert steps[-1].metrics["value_loss"] < 0.7 * steps[0].metrics["value_loss"]


def test_no_gradient_of_the_critic_reaches_the_policy(llama: SharedModel) -> None:
    run, _ = ppo_parts(llama, steps=1, epochs=1, value_coefficient=100.0)
    before = [p.clone() for p in llama.parameters("policy")]

    def constant(rollouts: list[Rollout]) -> list[Score]:
        return [Score(value=1.0, by="constant") for _ in rollouts]

    run = run.model_copy(update={"optimizer": Optimizer(learning_rate=0.0),
                                 "advantage": Choice(name="gae", gae_lambda=0.0, whiten_advantages=False)})
    list(train_ppo(run, llama, PROMPTS[:8], chat=ChatFormat(llama.tokenizer), reward=constant, reference=None))
    assert all(torch.equal(a, b) for a, b in zip(before, llama.parameters("policy"), strict=True))


@pytest.mark.parametrize("kind", ["sft", "reward", "dpo"])
def test_accumulated_micro_batches_equal_one_big_batch(kind: str) -> None:
    results = []
    for micro_tokens in (16, 4096):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        moved_role(model, "policy", head="random")
        run = run_of(kind, steps=2, batch=8, micro_tokens=micro_tokens, optimizer=STEADY)
        if isinstance(run, SftRun):
            list(train_sft(run, model, pair_trees(12)))
        elif isinstance(run, RewardRun):
            list(train_reward(run, model, preferences(12), role="policy"))
        elif isinstance(run, DpoRun):
            model.add_role("reference", Lora(), copy_of="policy", trainable=False)
            list(train_dpo(run, model, preferences(12), reference="reference"))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters("policy")]))
    torch.testing.assert_close(results[0], results[1], atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_pairs_that_share_a_prompt_equal_the_same_pairs_each_on_their_own(kind: str) -> None:
    answers = tuple(TokenAnswer(ids=ids) for ids in ((100, 2), (110, 111, 2), (120, 2)))
    shared = PreferenceTree(tree=Tree(prompt=(10, 11), answers=answers), chosen=(0, 0, 1), rejected=(1, 2, 2),
                            strength=(1.0, 0.5, 1.0))
    apart = [PreferenceTree(tree=Tree(prompt=(10, 11), answers=(answers[c], answers[r])), chosen=(0,), rejected=(1,),
                            strength=(s,))
             for c, r, s in zip(shared.chosen, shared.rejected, shared.strength, strict=True)]
    results = []
    for trees in ([shared], apart):
        model = SharedModel.load("tiny-llama", dtype="float32", device="cpu")
        moved_role(model, "policy", head="random")
        model.add_role("reference", Lora(), copy_of="policy", trainable=False)
        run = run_of(kind, steps=1, optimizer=STEADY, **({"margin": 0.3} if kind == "reward" else {}))
        loop = train_reward(run, model, trees, role="policy") if isinstance(run, RewardRun) \
            else train_dpo(run, model, trees, reference="reference")  # type: ignore[arg-type]
        steps = list(loop)
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters("policy")])
        results.append((steps[0].metrics["loss"], weights))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], atol=2e-4, rtol=2e-3)


def test_a_policy_that_did_not_start_from_its_reference_stops_the_run(llama: SharedModel) -> None:
    moved_role(llama, "policy")
    run = run_of("dpo", steps=1)
    assert isinstance(run, DpoRun)
    with pytest.raises(RunError, match=r"KL\(policy, base\) is .* the reference is not what the policy started from"):
        list(train_dpo(run, llama, preferences(8), reference=None))


def test_ppo_that_starts_elsewhere_than_its_reference_stops_too(llama: SharedModel) -> None:
    run, reward = ppo_parts(llama, steps=1)
    moved_role(llama, "reference", trainable=False)
    with pytest.raises(RunError, match=r"KL\(policy, reference\)"):
        list(train_ppo(run, llama, PROMPTS, chat=ChatFormat(llama.tokenizer), reward=reward, reference="reference"))


def test_a_frozen_policy_stops_the_run_at_its_first_step(llama: SharedModel) -> None:
    llama.add_role("policy", Lora(rank=4))
    with torch.no_grad():
        for parameter in llama.parameters("policy"):
            parameter.zero_()  # both matrices zero: no gradient can ever flow
    run = run_of("sft", steps=1)
    assert isinstance(run, SftRun)
    with pytest.raises(RunError, match="no adapter weight moved"):
        list(train_sft(run, llama, pair_trees(8)))


def scored(values: list[float | None]) -> tuple[list[Rollout], list[Score]]:
    rollouts = [Rollout(prompt=PROMPTS[0], prompt_ids=(1,), token_ids=(5, 2), logprobs=(0.0, 0.0), text=str(i),
                        finish="stop", seed=i) for i in range(len(values))]
    return rollouts, [Score(value=value, by="judge", reason="no verdict") for value in values]


def test_an_unscored_answer_leaves_the_batch_and_is_counted() -> None:
    rollouts, scores, unscored = keep_scored(*scored([1.0, None, *[2.0] * 18]))
    assert (len(rollouts), [score.value for score in scores], unscored) == (19, [1.0, *[2.0] * 18], 1)
    assert rollouts[1].text == "2"


def test_more_than_a_tenth_unscored_stops_the_run() -> None:
    with pytest.raises(RunError, match=r"2 of 10 answers could not be scored \(judge: no verdict\)"):
        keep_scored(*scored([None, None, *[1.0] * 8]))


@pytest.mark.parametrize(("rule", "stopped", "expected"), [
    ("subtract", True, 3.0), ("subtract", False, 1.0), ("replace", False, -2.0), ("none", False, 3.0)])
def test_the_end_rule_by_hand(rule: str, stopped: bool, expected: float) -> None:
    run = make_run("ppo", {"end": {"rule": rule, "value": 2.0}})
    assert isinstance(run, PpoRun)
    assert end_score(run.end, 3.0, stopped=stopped) == expected


def test_minibatches_hold_every_tree_once() -> None:
    groups = minibatches(10, 3, seed=1)
    assert sorted(tree for group in groups for tree in group) == list(range(10))
    assert [len(group) for group in groups] == [4, 3, 3]
    assert groups == minibatches(10, 3, seed=1) != minibatches(10, 3, seed=2)


def test_fewer_prompts_than_minibatches_is_an_error_and_not_a_silent_skip(llama: SharedModel) -> None:
    run, reward = ppo_parts(llama, steps=1, batch=2, minibatches=4)
    with pytest.raises(RunError, match="a rollout has fewer prompts than minibatches"):
        list(train_ppo(run, llama, PROMPTS, chat=ChatFormat(llama.tokenizer), reward=reward, reference=None))
