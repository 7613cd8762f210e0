"""TRL's last PPO trainer: `python -m peers.trl_ppo job.json result.json`, in the environment `trl_ppo`.

Its critic is a model of its own, trained in full, where ours is an adapter on the shared base.
"""

from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from peers.job import Facts, Job, Result, Stopwatch, read_rows, serve
from peers.sums import digest
from peers.theirs import Saving, logprob_sums, padded, policy_model, reward_model, settings, tokenizer_of


def ppo(job: Job) -> Result:
    """`PPOTrainer` with a trained adapter, its frozen copy as the reference, and a merged reward model."""
    tokenizer = tokenizer_of(job)
    tokenizer.padding_side = "left"
    policy = policy_model(job)
    policy.load_adapter(f"{job.roles}/policy", adapter_name="ref")
    paid, value = merged(job), merged(job).requires_grad_(True)
    watch = Stopwatch()
    rows = read_rows(job.rows)
    prompts = [tokenizer(row["prompt"]).input_ids for row in rows]
    data = Dataset.from_list([{"input_ids": ids} for ids in prompts])
    trainer = PPOTrainer(
        args=PPOConfig(**settings(job), num_ppo_epochs=1, num_mini_batches=1, total_episodes=len(rows),
                       response_length=job.new_tokens, temperature=job.temperature, kl_coef=0.05,
                       num_sample_generations=0,
                       stop_token="eos" if job.stops else None, missing_eos_penalty=1.0 if job.stops else None,
                       model_adapter_name="default", ref_adapter_name="ref"),
        processing_class=tokenizer, model=policy, ref_model=None, reward_model=paid, value_model=value,
        train_dataset=data, eval_dataset=data)
    trainer.dataloader = DataLoader(data, batch_size=job.batch, collate_fn=trainer.data_collator)
    seen = count_answers()
    saving = Saving(job, watch, policy)
    trainer.add_callback(saving)
    with watch:
        trainer.train()
    exact = {"prompt token ids": digest(sorted(seen["prompts"])), "episodes": len(seen["prompts"]),
             "new tokens": seen["new"]}
    facts = Facts(exact=exact)
    if job.check:
        policy.set_adapter("ref")
        answers = [[*tokenizer(row["chosen"]).input_ids, tokenizer.eos_token_id] for row in rows]
        ids, mask = padded([[*p, *a] for p, a in zip(prompts, answers, strict=True)][:job.batch],
                           pad=tokenizer.pad_token_id)
        facts = Facts(exact=exact, scores={"reward of a given answer": read_scores(paid, ids, mask)},
                      rounded={"summed log-prob of a given answer": logprob_sums(
                          policy, prompts[:job.batch], answers[:job.batch])})
    return watch.result(len(seen["prompts"]), saved=saving.saved, facts=facts)


def merged(job: Job) -> Any:
    """The reward model with its adapter folded in, standardised as our reward is."""
    model = reward_model(job).merge_and_unload()
    weight = model.score.weight.data
    model.score = torch.nn.Linear(weight.shape[1], 1, bias=True)
    model.score.weight.data = weight / job.reward_std
    model.score.bias.data.fill_(-job.reward_mean / job.reward_std)
    return model


def count_answers() -> dict[str, Any]:
    """What the trainer samples from now on: prompts without padding, and how many tokens were written."""
    seen: dict[str, Any] = {"prompts": [], "new": 0}
    sampled = ppo_trainer.batch_generation

    def counted(model: Any, queries: torch.Tensor, size: int, pad: int, config: Any) -> Any:
        whole, logits = sampled(model, queries, size, pad, config)
        seen["prompts"] += [row[row != pad].tolist() for row in queries]
        seen["new"] += (whole.shape[1] - queries.shape[1]) * len(whole)
        return whole, logits

    ppo_trainer.batch_generation = counted
    return seen


@torch.no_grad()
def read_scores(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """The score layer's output at each row's last token."""
    states = getattr(model, model.base_model_prefix)(input_ids=ids, attention_mask=mask, use_cache=False)
    scores: list[float] = model.score(states.last_hidden_state)[torch.arange(len(ids)), mask.sum(1) - 1, 0].tolist()
    return scores


if __name__ == "__main__":
    serve({"ppo": ppo})
