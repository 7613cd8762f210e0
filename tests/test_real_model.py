"""The packaged model itself: ten sampled tokens, one DPO step, and the traps of its files."""

import pytest
import torch

from rlhflab.config import DpoRun, Lora, make_run
from rlhflab.core.batch import pack
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import PreferencePair
from rlhflab.model.load import known_models
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import rollout_trees, sample
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.runs.sources import group_by_prompt, preference_tree
from rlhflab.scenarios import scenario
from rlhflab.train.dpo import train_dpo
from rlhflab.train.guards import engine_gap

PACKAGED = next(row for row in known_models() if row["name"] == "smollm2-135m")
pytestmark = pytest.mark.skipif(not PACKAGED["available"], reason=f"needs the packaged model: {PACKAGED['how']}")


@pytest.fixture(scope="module")
def model() -> SharedModel:
    return SharedModel.load("smollm2-135m", device="cpu")


def test_a_turn_ends_with_im_end_although_the_file_may_say_otherwise(model: SharedModel) -> None:
    chat = ChatFormat(model.tokenizer)
    assert (chat.end_id, chat.stop_ids) == (2, (0, 2))
    assert model.tokenizer.convert_tokens_to_ids("<|im_end|>") == 2


def test_a_given_system_prompt_replaces_the_templates_long_default(model: SharedModel) -> None:
    prompt = scenario("helpdesk").prompts("evaluation", 1)[0]
    text = model.tokenizer.decode(ChatFormat(model.tokenizer).prompt(prompt))
    assert text.startswith("<|im_start|>system\nYou answer questions from the note.")
    assert "named SmolLM" not in text and len(ChatFormat(model.tokenizer).prompt(prompt)) < 160


def test_ten_sampled_tokens_have_the_log_probs_of_the_training_forward(model: SharedModel) -> None:
    chat = ChatFormat(model.tokenizer)
    rollouts = sample(model, chat, scenario("helpdesk").prompts("evaluation", 2), role=None, samples=2,
                      max_new_tokens=10)
    trainer = torch.cat(tree_logprobs(model, rollout_trees(rollouts), role=None, micro_tokens=1024))
    gap = engine_gap(torch.tensor([x for r in rollouts for x in r.logprobs]), trainer)
    assert gap["engine_gap_mean"] < 0.05
    assert all(r.text for r in rollouts)


def test_one_dpo_step_moves_the_chosen_answer_up(model: SharedModel) -> None:
    prompts = scenario("helpdesk").prompts("rl", 2)
    pairs = [PreferencePair(prompt=p, chosen="I don't know.", rejected="Certainly! It is 9 pm.") for p in prompts]
    chat = ChatFormat(model.tokenizer)
    trees = [preference_tree(chat, group) for group in group_by_prompt(pairs)]
    model.add_role("policy", Lora(rank=4))
    run = make_run("dpo", {"batch": 2, "optimizer": {"learning_rate": 1e-3, "warmup": 0.0}})
    assert isinstance(run, DpoRun)
    steps = list(train_dpo(run, model, trees, reference=None))
    assert steps[0].metrics["loss"] == pytest.approx(0.6931, abs=1e-3)
    batch = pack([trees[0].tree])
    with torch.no_grad():
        shift = model.logprobs(batch, "policy").logprob - model.logprobs(batch, None).logprob
    chosen = shift[batch.owner == 0].sum()
    assert chosen > shift[batch.owner == 1].sum()
    model.drop_role("policy")
