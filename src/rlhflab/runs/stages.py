"""One function a kind of run: data in, trained role out, everything worth keeping in the run's folder.

The loops yield steps; here they are written down. A stage leaves no role behind in the shared model.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

import torch

from rlhflab.analysis.reward_quality import opinions, reward_quality
from rlhflab.config import BestOfNRun, DpoRun, OnlineDpoRun, PpoRun, RewardRun, Run, SampledRun, SftRun
from rlhflab.core.batch import PreferenceTree
from rlhflab.core.calibration import noise_ceiling
from rlhflab.core.losses import policy_loss
from rlhflab.core.returns import advantage_estimator
from rlhflab.data.types import PreferencePair, Prompt, Thumb
from rlhflab.errors import ConfigError, DataError
from rlhflab.rollout.constraints import Constrained, check_source, constrained
from rlhflab.rollout.probe import Probe
from rlhflab.rollout.rewards import Mixture, make_reward, reward_source
from rlhflab.runs import sources
from rlhflab.runs.folder import Record, RunFolder
from rlhflab.runs.hidden_states import cut_states
from rlhflab.runs.lab import Lab, settled
from rlhflab.runs.probes import first_step, reread_roles, scores_by_batch, trained_ends
from rlhflab.runs.reward_measures import measure_role
from rlhflab.runs.watch import (
    CANARY,
    FINDINGS,
    ROLLOUTS,
    START_ANSWERS,
    Recorder,
    Watch,
    check_detect,
    check_of,
    start_answers,
    watched,
)
from rlhflab.scenarios.base import Scenario
from rlhflab.train.best_of_n import train_best_of_n
from rlhflab.train.checkpoint import Checkpoints
from rlhflab.train.dpo import train_dpo
from rlhflab.train.online_dpo import train_online_dpo
from rlhflab.train.ppo import has_critic, train_ppo
from rlhflab.train.preferences import objective
from rlhflab.train.reward import QUALITY, fit_frozen_heads, head_outputs, train_reward
from rlhflab.train.sft import train_sft
from rlhflab.train.state import Saved, Schedule, Step
from rlhflab.train.thumbs import train_thumbs

Summary = dict[str, Any]
CONSTANT = 3
"""Rollouts in a row with one and the same score, after which a run says so."""
NORMALISED_ON = 64
"""Training prompts whose answers, with those held out, give the mean and deviation of a reward role's scores."""


def sft_stage(run: SftRun, lab: Lab, folder: RunFolder) -> Summary:
    """Fine-tune `policy` on demonstrations."""
    conversations = sources.conversations(run)
    trees = [sources.conversation_tree(lab.chat, each) for each in conversations]
    ids = [each.id for each in conversations]
    trees = sources.fitting(run, trees, [len(tree) for tree in trees], ids, lab.progress)
    end_token_share = trained_ends(lab, trees)
    lab.start_role("policy", run)
    total = len(Schedule.of(run, len(trees)))
    kept = checkpoints(run, folder, "policy")
    loop = train_sft(run, lab.model, trees, saved=go_on(kept, lab, folder))
    tokens = follow(loop, lab, folder, kept, "SFT", total, show=("loss",))
    lab.model.save_role("policy", folder.path / "roles" / "policy")
    return {"demonstrations": len(trees), "tokens": tokens, "end_token_share": end_token_share}


def reward_stage(run: RewardRun, lab: Lab, folder: RunFolder) -> Summary:
    """Train `reward` on preference pairs and measure it on prompts it has not seen."""
    pairs = fitting_pairs(run, lab)
    task = sources.gold_of(run, (pair.prompt for pair in pairs))
    train, held_out = (sources.group_by_prompt(part) for part in split_by_prompt(
        pairs, share=run.held_out, seed=run.seed))
    if not train or not held_out:
        raise DataError(f"{run.data}: {len(pairs)} pairs over too few prompts to keep {run.held_out:.0%} of them apart")
    lab.start_role("reward", run, head="random", outputs=head_outputs(run))
    preferences = [sources.preference_tree(lab.chat, group) for group in train]
    tokens = learn_reward(run, lab, folder, preferences)
    unseen = [sources.preference_tree(lab.chat, group) for group in held_out]
    measured = measure_role(run, lab.model, seen=preferences[:NORMALISED_ON], unseen=unseen,
                            prompts=[pair.prompt.messages for group in held_out for pair in group])
    lab.model.save_role("reward", folder.path / "roles" / "reward")
    probes = scores_by_batch(lab, [each.tree for each in unseen], role="reward")
    ceiling = noise_ceiling(opinions(pairs))
    return {"prompts": len(train), "pairs": sum(map(len, train)), "held_out_pairs": len(measured.scores),
            "tokens": tokens, "probes": probes, **reward_quality([pair for group in train for pair in group],
                                               [pair for group in held_out for pair in group], measured.scores, task),
            "calibration": measured.calibration._asdict(), "length": measured.length,
            "noise_ceiling": ceiling._asdict() if ceiling else None}


def learn_reward(run: RewardRun, lab: Lab, folder: RunFolder, preferences: Sequence[PreferenceTree]) -> int:
    """Let the role `reward` learn, in steps or in one fit, and log it. Returns the tokens read."""
    if run.features == "frozen":
        folder.cut("metrics.jsonl", lambda row: False)  # of a run that was killed before its summary
        began = time.perf_counter()
        metrics = fit_frozen_heads(run, lab.model, preferences)
        tokens = sum(len(each.tree) for each in preferences)
        folder.append("metrics.jsonl", {"step": 1, "seconds": round(time.perf_counter() - began, 3), **metrics,
                                        "tokens": tokens})
        return tokens
    kept = checkpoints(run, folder, "reward")
    loop = train_reward(run, lab.model, preferences, saved=go_on(kept, lab, folder))
    tokens = follow(loop, lab, folder, kept, "reward model", len(Schedule.of(run, len(preferences))),
                    show=("loss", "accuracy"))
    if run.length_head:
        lab.model.set_head("reward", lab.model.head_parameters("reward")[0].detach()[:QUALITY + 1])
    return tokens


def dpo_stage(run: DpoRun, lab: Lab, folder: RunFolder) -> Summary:
    """Train `policy` on preference pairs, or on thumbs where the loss learns from them, against its frozen start."""
    goal = objective(run)
    judged: Sequence[PreferencePair | Thumb]
    loop_of: Callable[..., Iterator[Step]]
    if goal.on_thumbs:
        judged = thumbs = fitting_thumbs(run, lab)
        of_thumbs = [sources.thumb_tree(lab.chat, group) for group in sources.group_by_prompt(thumbs)]
        loop_of, trees = partial(train_thumbs, run, lab.model, of_thumbs), [each.tree for each in of_thumbs]
    else:
        judged = pairs = fitting_pairs(run, lab)
        of_pairs = [sources.preference_tree(lab.chat, group) for group in sources.group_by_prompt(pairs)]
        loop_of, trees = partial(train_dpo, run, lab.model, of_pairs), [each.tree for each in of_pairs]
    end_token_share = trained_ends(lab, trees)
    lab.start_role("policy", run)
    reference = lab.freeze_reference(run, moves=run.reference_ema is not None) if goal.has_reference else None
    kept = checkpoints(run, folder, "policy", *(["reference"] if run.reference_ema else []))
    prompts = list({each.prompt.id: each.prompt for each in judged}.values())
    task = sources.gold_of(run, prompts)
    recorder = Recorder(folder, check_of(run, task))
    probe = Probe(prompts=prompts[:run.probe_prompts], chat=lab.chat, max_new_tokens=run.probe_tokens, seed=run.seed,
                  observe=recorder.observe_probe)
    saved = go_on(kept, lab, folder)
    loop = loop_of(reference=reference, probe=probe if probe.prompts and goal.has_reference else None, saved=saved)
    watch = None
    if run.detect is not None:
        watch = Watch(run, lab, recorder, task=task, prompts=prompts, reference=reference)
        watch.begin(done=saved.step if saved else 0)
        loop = watched(loop, watch)
    tokens = follow(loop, lab, folder, kept, "DPO", len(Schedule.of(run, len(trees))), show=("loss", "accuracy"))
    lab.model.save_role("policy", folder.path / "roles" / "policy")
    return {"prompts": len(trees), "thumbs" if goal.on_thumbs else "pairs": len(judged), "tokens": tokens,
            "end_token_share": end_token_share, **(watch.summary if watch else {})}


def ppo_stage(run: PpoRun, lab: Lab, folder: RunFolder) -> Summary:
    """Train `policy` by PPO, RLOO or GRPO against its frozen start, and a critic where the advantage needs one."""
    sampling = start_sampling(run, lab)
    roles = ["policy"]
    if has_critic(run):
        # A critic that adapts every block beside a policy that does not would leave no trunk to share.
        like = "reward" in lab.model.records and lab.model.stacked("reward") == lab.model.stacked("policy")
        lab.model.add_role("value", run.lora, copy_of="reward" if like else "policy", head="zero")
        roles.append("value")
    label = {"gae": "PPO"}.get(run.advantage.name, run.advantage.name.upper())
    return train_on_samples(train_ppo, run, sampling, lab, folder, label=label, roles=roles)


def best_of_n_stage(run: BestOfNRun, lab: Lab, folder: RunFolder) -> Summary:
    """Train `policy` on the best of the answers it samples."""
    return train_on_samples(train_best_of_n, run, start_sampling(run, lab), lab, folder, label="best of n")


def online_dpo_stage(run: OnlineDpoRun, lab: Lab, folder: RunFolder) -> Summary:
    """Train `policy` on pairs of answers it samples, which the reward labels."""
    return train_on_samples(train_online_dpo, run, start_sampling(run, lab), lab, folder, label="online DPO")


STAGES: dict[str, Callable[..., Summary]] = {
    "sft": sft_stage, "reward": reward_stage, "dpo": dpo_stage, "ppo": ppo_stage, "best_of_n": best_of_n_stage,
    "online_dpo": online_dpo_stage}


def run_stage(run: Run, lab: Lab, folder: RunFolder) -> Summary:
    """Train as `run` says, from the checkpoint if there is one; all it makes is written into `folder`.

    The record is the stage's own, also where the stage is a part of a longer job: what it read, and how it ended.
    """
    run = settled(run, str(lab.model.device))
    record = Record(folder, run.kind, base={"name": lab.model.base.name, "digest": lab.model.base.digest},
                    data=sources.data_read(run))
    folder.write_yaml("config.yaml", {"kind": run.kind, **run.model_dump(mode="json")})
    lab.model.recompute_activations(run.recompute)
    torch.manual_seed(run.seed)  # dropout draws from the global generator
    folder.discard("roles")  # saved by a process that was killed before its summary
    try:
        summary = STAGES[run.kind](run, lab, folder)
        summary["probes"] = {**first_step(folder), **summary.get("probes", {}),
                             "reread": reread_roles(lab, folder.path / "roles")}
    except BaseException:
        record.close("stopped")
        raise
    finally:
        lab.drop_roles()
    folder.write_json("summary.json", summary)
    checkpoints(run, folder).drop()
    record.close("finished")
    return summary


def check_choices(run: Run) -> None:
    """What a run says of entries of catalogues, before a model is loaded. ConfigError names the key and its value."""
    if isinstance(run, DpoRun | OnlineDpoRun):
        objective(run)
    if isinstance(run, DpoRun | SampledRun):
        check_watching(run)
    if isinstance(run, SampledRun):
        for i, source in enumerate(run.reward):
            reward_source.entry(source.name, where=f"reward.{i}")
        for i, rule in enumerate(run.constraints):
            reward_source.entry(check_source(rule.check).name, where=f"constraints.{i}.check")
    if isinstance(run, PpoRun):
        policy_loss.bind(run.policy_loss.name, run.policy_loss.options, where="policy_loss")
        advantage_estimator.bind(run.advantage.name, run.advantage.options, where="advantage")
        has_critic(run)
        needs = advantage_estimator.entry(run.advantage.name, where="advantage").needs
        compares = "two samples" in needs or run.advantage.options.get("baseline") == "prompt"
        if compares and run.samples < 2:
            raise ConfigError(f"samples: is {run.samples}, but advantage {run.advantage.name} compares the answers to "
                              "one prompt with each other, so it must be at least 2")


def check_watching(run: SampledRun | DpoRun) -> None:
    """What a run says of detectors. ConfigError names the key and its value."""
    if run.detect is not None:
        task = sources.gold_of(run, ())
        check_detect(run.detect, checked=check_of(run, task) is not None, task=task)


def checkpoints(run: Run, folder: RunFolder, *roles: str) -> Checkpoints:
    """Those of a run whose `roles` change from step to step."""
    return Checkpoints(folder.path / "checkpoints", every=run.checkpoint_every, roles=roles)


def go_on(kept: Checkpoints, lab: Lab, folder: RunFolder) -> Saved | None:
    """Put the model back to the last checkpoint, if there is one, and the logs with it."""
    saved = kept.restore(lab.model)
    done = saved.step if saved else 0
    for name in ("metrics.jsonl", ROLLOUTS, CANARY, FINDINGS):
        folder.cut(name, lambda row: done > 0 and row["step"] <= done)  # the start's answers have step 0
    cut_states(folder, done)
    if saved:
        lab.progress.say(f"Going on after step {done}.")
    return saved


def follow(loop: Iterator[Step], lab: Lab, folder: RunFolder, kept: Checkpoints, label: str, total: int, *,
           show: Sequence[str]) -> int:
    """Write every step of a loop down as it happens. Returns the tokens it trained on, earlier parts included."""
    before = folder.rows("metrics.jsonl")
    tokens = sum(int(row.get("tokens") or 0) for row in before)
    with lab.progress.track(label, total, done=len(before)) as bar:
        for step in loop:
            folder.append("metrics.jsonl", {"step": step.number, "seconds": round(step.seconds, 3), **step.metrics})
            kept.keep(step.number, step.state, lab.model)
            if (lowered := step.metrics.get("micro_tokens")) is not None:
                lab.progress.say(f"Out of memory in step {step.number}: from here on, micro-batches have at most "
                                 f"{lowered:.0f} tokens.")
            tokens += int(step.metrics.get("tokens") or 0)
            bar.advance(1, **{name: step.metrics.get(name) for name in show})
    return tokens


class Sampling(NamedTuple):
    """What a method on samples starts from."""

    prompts: list[Prompt]
    task: Scenario | None
    """Whose gold check judges the answers for the log."""
    reward: Mixture | Constrained
    reference: str | None


def start_sampling(run: SampledRun, lab: Lab) -> Sampling:
    """Prompts that fit, the reward, and `policy` with its frozen reference."""
    prompts = sources.prompts(run)
    lengths = [len(lab.chat.prompt(prompt)) + run.max_new_tokens for prompt in prompts]
    prompts = sources.fitting(run, prompts, lengths, [prompt.id for prompt in prompts], lab.progress)
    task = sources.gold_of(run, prompts)
    lab.start_role("policy", run)
    reference = lab.freeze_reference(run)
    reward = make_reward(run.reward, lab.model, micro_tokens=run.micro_tokens)
    if reward.unmet:
        reward.meet(start_answers(run, lab, prompts, START_ANSWERS, reference=reference))
    return Sampling(prompts, task, constrained(reward, run.constraints, lab.model, micro_tokens=run.micro_tokens),
                    reference)


def train_on_samples(train: Callable[..., Iterator[Step]], run: SampledRun, sampling: Sampling, lab: Lab,
                     folder: RunFolder, *, label: str, roles: Sequence[str] = ("policy",)) -> Summary:
    """Follow a loop that samples, and save the roles it trained."""
    kept = checkpoints(run, folder, *roles)
    saved = go_on(kept, lab, folder)
    recorder = Recorder(folder, check_of(run, sampling.task))
    watch = None if run.detect is None else Watch(
        run, lab, recorder, task=sampling.task, prompts=sampling.prompts, reference=sampling.reference,
        reward=sampling.reward)
    loop = train(run, lab.model, sampling.prompts, chat=lab.chat, reward=sampling.reward, reference=sampling.reference,
                 observe=watch.observe if watch else recorder.observe, saved=saved)
    if watch:
        watch.begin(done=saved.step if saved else 0)
        loop = watched(loop, watch)
    assert run.steps is not None
    tokens = follow(warning_of_constant_rewards(loop, lab), lab, folder, kept, label, run.steps,
                    show=("proxy", "gold", "kl"))
    for role in roles:
        lab.model.save_role(role, folder.path / "roles" / role)
    return {"prompts": len(sampling.prompts), "tokens": tokens, **(watch.summary if watch else {})}


def warning_of_constant_rewards(loop: Iterator[Step], lab: Lab) -> Iterator[Step]:
    """The steps of `loop`; says so, once, when the reward has told no answer from another for a while."""
    for step in loop:
        if step.metrics["constant_rewards"] == CONSTANT:
            lab.progress.say(f"The reward gave every answer of {CONSTANT} rollouts the same score, so there is nothing "
                             "to learn from it: look at rollouts.jsonl and at what the reward checks.")
        yield step


def fitting_pairs(run: RewardRun | DpoRun, lab: Lab) -> list[PreferencePair]:
    """The run's pairs whose prompt with its longer answer fits `max_length`."""
    pairs = sources.pairs(run, lab)
    trees = [sources.preference_tree(lab.chat, [pair]).tree for pair in pairs]
    lengths = [len(tree.prompt) + max(len(answer.ids) for answer in tree.answers) for tree in trees]
    return sources.fitting(run, pairs, lengths, [pair.prompt.id for pair in pairs], lab.progress)


def fitting_thumbs(run: DpoRun, lab: Lab) -> list[Thumb]:
    """The run's thumbs whose prompt and answer fit `max_length`."""
    thumbs = sources.thumbs(run, lab)
    lengths = [len(sources.thumb_tree(lab.chat, [thumb]).tree) for thumb in thumbs]
    return sources.fitting(run, thumbs, lengths, [thumb.prompt.id for thumb in thumbs], lab.progress)


def split_by_prompt(pairs: Sequence[PreferencePair], *, share: float,
                    seed: int) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(training pairs, held-out pairs) that share no prompt."""
    prompts = sorted({pair.prompt.messages for pair in pairs}, key=repr)
    Random(seed).shuffle(prompts)
    apart = set(prompts[:max(1, round(share * len(prompts)))])
    return ([pair for pair in pairs if pair.prompt.messages not in apart],
            [pair for pair in pairs if pair.prompt.messages in apart])


