"""What a run will take, before it is run: steps, tokens, memory and time, and the micro-batches that fit a budget."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from rlhflab.config import DpoRun, PpoRun, RewardRun, Run, SampledRun, SftRun
from rlhflab.core.batch import PreferenceTree, ThumbTree, Tree, micro_batches
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import read_pairs
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError
from rlhflab.model.load import model_folder
from rlhflab.rollout.probe import Probe, fresh_sample_kl
from rlhflab.rollout.scoring import score_trees
from rlhflab.runs import sources
from rlhflab.runs.lab import Lab, settled
from rlhflab.runs.preferences import SAMPLES
from rlhflab.runs.rehearsal import Item, Rehearsal, peak_bytes, step_seconds
from rlhflab.runs.stages import NORMALISED_ON, check_choices
from rlhflab.scenarios import names, scenario
from rlhflab.train.preferences import objective
from rlhflab.train.state import Schedule

ENOUGH = 6000
"""Tokens on which a step is timed, at least; at most four times as many."""
RESIDENT = {"cpu": 1.4}
"""Bytes that a process grows by for each byte of its tensors: what the allocator keeps and products need meanwhile.
SFT with SmolLM2-135M grew to 3.2 GB where base, process and live tensors were 2.4 (one run, two cores, glibc).
"""
DIVISIONS = 2
"""How often the gap between a micro-batch that fits and one that does not is halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a run is to do. Lengths are in tokens, of the rows its items become."""

    items: Sequence[Item]
    lengths: Sequence[int]
    steps: Sequence[Sequence[int]]
    """Numbers of the items of each step."""
    again: int
    """The first step of a later epoch, which may find something kept."""
    prompts: Sequence[Prompt] = ()
    """On which a run that does not sample may be probed."""
    read: int = 0
    """Tokens that are read without a gradient when all steps are done."""

    def tokens(self, steps: Sequence[Sequence[int]]) -> int:
        """Tokens of some steps."""
        return sum(self.lengths[i] for step in steps for i in step)

    def widest(self, micro_tokens: int) -> list[int]:
        """The items of the largest micro-batch of any step."""
        groups = ([step[i] for i in group] for step in self.steps
                  for group in micro_batches([self.lengths[i] for i in step], micro_tokens))
        return max(groups, key=lambda group: (len(group) * self.lengths[group[0]], self.lengths[group[0]]))

    def typical(self, *, sampled: bool) -> list[list[int]]:
        """The first steps, up to enough tokens to time them; one rollout is enough in any case."""
        chosen: list[list[int]] = []
        for step in self.steps:
            whole = self.tokens([step])
            chosen.append(list(step[:max(1, math.ceil(len(step) * min(1.0, 4 * ENOUGH / whole)))]))
            if sampled or self.tokens(chosen) >= ENOUGH:
                break
        return chosen


def describe_run(run: Run) -> dict[str, Any]:
    """The resolved run and an estimate of what it takes, without loading the model.

    Memory is the largest resident memory of the process, on a GPU that of its tensors. Time is that of the steps with
    their probes, and of what is sampled before and read after them; loading is not in it, nor what `detect` asks for.
    """
    check_choices(run)
    folder, _ = model_folder(run.model)
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder))
    device = run.device if run.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    run = settled(run, device)
    held = _resident(device) + _weights(folder, run.dtype)
    work = work_of(run, chat)
    rehearsal = Rehearsal(run=run, config=AutoConfig.from_pretrained(folder), chat=chat, device=device)
    if run.memory_gb is not None:
        run = fitted(rehearsal, work, held=held)
        rehearsal = Rehearsal(run=run, config=rehearsal.config, chat=chat, device=device)
    memory, seconds = measured(rehearsal, work)
    return {"kind": run.kind, "run": run.model_dump(mode="json"), "estimate": {
        "examples": len(work.items), "optimizer_steps": len(work.steps) * _updates(run),
        "tokens": work.tokens(work.steps), "memory_gb": round((held + memory) / 1e9, 2),
        "minutes": round(seconds / 60, 3)}}


def within_memory(run: Run, lab: Lab) -> Run:
    """The run with micro-batches that keep its process within `memory_gb`, where it says so. The model is loaded."""
    if run.memory_gb is None:
        return run
    device = str(lab.model.device)
    run = settled(run, device)
    rehearsal = Rehearsal(run=run, config=lab.model.base.model.config, chat=lab.chat, device=device)
    held = _resident(device) if lab.model.device.type == "cpu" else float(torch.cuda.memory_allocated(device))
    run = fitted(rehearsal, work_of(run, lab.chat), held=held)
    lab.progress.say(f"Micro-batches of at most {run.micro_tokens} tokens, to stay within {run.memory_gb:g} GB.")
    return run


def fitted(rehearsal: Rehearsal, work: Work, *, held: float) -> Run:
    """The run with the largest `micro_tokens` found whose peak, with `held` bytes beside it, is within `memory_gb`.

    ConfigError where the longest example alone is not.
    """
    run = rehearsal.run
    assert run.memory_gb is not None
    longest = max(work.lengths)
    whole = max(len(step) * max(work.lengths[i] for i in step) for step in work.steps)

    def peak(tokens: int) -> float:
        of_size = run.model_copy(update={"micro_tokens": tokens})
        items = [work.items[i] for i in _heaviest(of_size, work)]
        rehearsed = Rehearsal(run=of_size, config=rehearsal.config, chat=rehearsal.chat, device=rehearsal.device)
        return held + _grown(rehearsal, float(rehearsed.at_full_depth(
            lambda lab, small: [peak_bytes(lab, small, items)])[0]))

    budget, fits = run.memory_gb * 1e9, longest
    if (least := peak(longest)) > budget:
        raise ConfigError(f"memory_gb: {run.memory_gb:g} GB is too little: with one example at a time, the longest of "
                          f"{longest} tokens, this run takes about {least / 1e9:.2f} GB; raise memory_gb to that, "
                          "lower max_length, or set recompute: true")
    while fits < whole and peak(min(2 * fits, whole)) <= budget:
        fits = min(2 * fits, whole)
    too_many = min(2 * fits, whole)
    for _ in range(DIVISIONS if fits < whole else 0):
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if peak(middle) <= budget else (fits, middle)
    return run.model_copy(update={"micro_tokens": fits})


def measured(rehearsal: Rehearsal, work: Work) -> tuple[float, float]:
    """(bytes beside the base at most, seconds) of the whole run."""
    run = rehearsal.run
    heaviest = [work.items[i] for i in _heaviest(run, work)]
    typical = work.typical(sampled=isinstance(run, SampledRun))

    def measure(lab: Lab, small: Run) -> list[float]:
        peak = peak_bytes(lab, small, heaviest)
        each = [step_seconds(lab, small, [work.items[i] for i in step]) for step in typical]
        return [peak, *(sum(seconds) for seconds in zip(*each, strict=True)), _beside(lab, small, work, typical)]

    peak, first, later, beside = rehearsal.at_full_depth(measure)
    once, again = (work.tokens(steps) / work.tokens(typical) for steps in (work.steps[:work.again],
                                                                           work.steps[work.again:]))
    return _grown(rehearsal, float(peak)), float(once * first + again * later + beside)


def _heaviest(run: Run, work: Work) -> list[int]:
    """The items of the step that takes most memory: a rollout of the longest, else the largest micro-batch."""
    if isinstance(run, SampledRun):
        return sorted(range(len(work.items)), key=lambda i: -work.lengths[i])[:run.batch]
    return work.widest(run.micro_tokens)


def _beside(lab: Lab, run: Run, work: Work, typical: Sequence[Sequence[int]]) -> float:
    """Seconds of what a run does beside its steps."""
    seconds = 0.0
    if isinstance(run, DpoRun) and objective(run).has_reference and (asked := work.prompts[:run.probe_prompts]):
        probes = len(work.steps) // run.probe_every + bool(len(work.steps) % run.probe_every)
        lab.model.add_role("policy", run.lora)
        probe = Probe(prompts=asked, chat=lab.chat, max_new_tokens=run.probe_tokens)
        seconds += probes * _seconds(partial(fresh_sample_kl, lab.model, probe, role="policy", reference=None))
        lab.drop_roles()
    if work.read:
        trees = [work.items[i] for step in typical for i in step]
        lab.model.add_role("reward", run.lora, head="zero")
        seconds += work.read / work.tokens(typical) * _seconds(partial(
            score_trees, lab.model, [each.tree for each in trees], role="reward",  # type: ignore[union-attr]
            micro_tokens=run.micro_tokens))
        lab.drop_roles()
    return seconds


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# -- the data as it will be packed -------------------------------------------------------------------------------------


def work_of(run: Run, chat: ChatFormat) -> Work:
    """The run's items and steps. For pairs a scenario has yet to sample, its demonstrations stand in."""
    if isinstance(run, SampledRun):
        prompts = sources.prompts(run)
        lengths = [len(chat.prompt(prompt)) + run.samples * run.max_new_tokens for prompt in prompts]
        assert run.steps is not None
        schedule = Schedule(items=len(prompts), batch=run.batch, epochs=run.steps, steps=run.steps)
        return Work(items=prompts, lengths=lengths, steps=list(schedule.order(run.seed)), again=len(schedule))
    items, asked = _learnt_from(run, chat)
    lengths = [len(item if isinstance(item, Tree) else item.tree) for item in items]  # type: ignore[union-attr]
    trained = len(items) - round(run.held_out * len(items)) if isinstance(run, RewardRun) else len(items)
    schedule = Schedule.of(run, trained)
    return Work(items=items, lengths=lengths, steps=list(schedule.order(run.seed)), prompts=asked,
                again=math.ceil(trained / run.batch),
                read=sum(lengths[trained:]) + sum(lengths[:min(trained, NORMALISED_ON)])
                if isinstance(run, RewardRun) else 0)


def _learnt_from(run: Run, chat: ChatFormat) -> tuple[Sequence[Item], Sequence[Prompt]]:
    """(items of the loop, prompts behind them)."""
    if isinstance(run, SftRun):
        return [sources.conversation_tree(chat, each) for each in sources.conversations(run)], ()
    if run.data in names():
        prompts = scenario(run.data).comparison_prompts(run.examples, seed=run.seed)
        trees = [sources.conversation_tree(chat, each) for each in scenario(run.data).demonstrations(run.examples)]
        on_thumbs = isinstance(run, DpoRun) and objective(run).on_thumbs
        return [_stand_in(tree, on_thumbs=on_thumbs) for tree in trees], prompts
    if isinstance(run, DpoRun) and objective(run).on_thumbs:
        thumbs = sources.group_by_prompt(sources.thumbs_of_file(run))
        return [sources.thumb_tree(chat, group) for group in thumbs], [group[0].prompt for group in thumbs]
    pairs = sources.group_by_prompt(read_pairs(sources.file_of(run.data)))
    return [sources.preference_tree(chat, group) for group in pairs], [group[0].prompt for group in pairs]


def _stand_in(tree: Tree, *, on_thumbs: bool) -> PreferenceTree | ThumbTree:
    """As many answers as are sampled, all as long as this one, two of them judged."""
    answers = Tree(prompt=tree.prompt, answers=tree.answers * SAMPLES)
    if on_thumbs:
        return ThumbTree(tree=answers, judged=(0, 1), good=(True, False))
    return PreferenceTree(tree=answers, chosen=(0,), rejected=(1,), strength=(1.0,))


def _updates(run: Run) -> int:
    """Optimizer steps of a step."""
    return run.epochs * (run.minibatches if isinstance(run, PpoRun) else 1) if isinstance(run, SampledRun) else 1


# -- memory --------------------------------------------------------------------------------------------------------


def _grown(rehearsal: Rehearsal, live: float) -> float:
    """Bytes the process grows by when its tensors have `live` bytes."""
    return live * RESIDENT.get(torch.device(rehearsal.device).type, 1.0)


def _resident(device: str) -> float:
    """Bytes of this process; none of it counts on a GPU."""
    return 0.0 if torch.device(device).type != "cpu" else float(psutil.Process().memory_info().rss)


def _weights(folder: Path, dtype: str) -> float:
    """Bytes of the base in `dtype`, by the headers of its weight files."""
    numbers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return float(numbers * torch.empty(0, dtype=getattr(torch, dtype)).element_size())
